"""Fits to other data of the same shapes find their program in JAX's compilation cache: data are no constants of it."""

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

import bnnwide as bw

NET = bw.Dense(3, b_scale=1.0) >> bw.Tanh() >> bw.Dense(1)


@pytest.fixture
def entries(tmp_path):
    """Return how many programs have been compiled anew since the last call."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    seen = set()

    def new():
        found = {path.name for path in tmp_path.iterdir() if path.name.endswith("-cache")} - seen
        seen.update(found)
        return len(found)

    yield new
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def kernel(scale):
    return lambda a, b: scale**2 * jax.numpy.exp(-0.5 * (a - b.T) ** 2)


def functional(x, y, size):
    prior = bw.functional.GPPrior(kernel, hyper={"scale": size})
    bw.functional.fit(NET, prior, bw.Gaussian(0.1 * size), x, y, key=jax.random.key(0), num_steps=2)


def hyper(x, y, size):
    bw.functional.GPPrior(kernel, hyper={"scale": 1.0}).fit(x, y, bw.Gaussian(0.1), num_steps=2)


def noisy(x, y, size):
    bw.natgrad.noisy_vi(NET, bw.Gaussian(0.1 * size), x, y, key=jax.random.key(0), num_steps=2)


@pytest.mark.parametrize("fit", [functional, hyper, noisy])
def test_other_data_compile_nothing_new(fit, entries):
    x = np.linspace(-1.0, 1.0, 7)[:, None]
    fit(x, np.sin(x), 1.0)
    assert entries() > 0
    fit(x + 0.5, np.cos(x), 2.0)
    assert entries() == 0
