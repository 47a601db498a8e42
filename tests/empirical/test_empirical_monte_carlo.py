"""Kernels averaged over the prior: the average and its error, written out and against the infinite network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnnwide as bw

NET = bw.Dense(40, w_scale=1.4, b_scale=0.2) >> bw.Erf() >> bw.Dense(3, w_scale=1.1, b_scale=0.1)
KEY = jax.random.key(0)
X1, X2 = jax.random.normal(jax.random.key(1), (3, 4)), jax.random.normal(jax.random.key(2), (2, 4))


def infinite_kernels(x1, x2):
    """The closed forms of one hidden layer of erf (Williams 1997), written out for `NET`."""
    inner = lambda a, b: 1.4**2 * np.sum(np.asarray(a) * np.asarray(b), -1) / 4 + 0.2**2  # noqa: E731
    q11, q12, q22 = inner(x1, x1)[:, None], inner(x1[:, None], x2[None]), inner(x2, x2)[None]
    volume = (1 + 2 * q11) * (1 + 2 * q22)
    nngp = 1.1**2 * 2 / np.pi * np.arcsin(2 * q12 / np.sqrt(volume)) + 0.1**2
    return nngp, nngp + 1.1**2 * q12 * 4 / np.pi / np.sqrt(volume - 4 * q12**2)


def test_average_and_error_are_those_of_the_draws():
    estimate = bw.empirical.monte_carlo(NET, KEY, X1, X2, num_draws=5)
    draws = [NET.init(key, (4,)) for key in jax.random.split(KEY, 5)]
    for kernel, mean, error in (
        (bw.empirical.nngp, estimate.nngp, estimate.nngp_error),
        (bw.empirical.ntk, estimate.ntk, estimate.ntk_error),
    ):
        each = np.stack([kernel(NET, params, X1, X2) for params in draws])
        np.testing.assert_allclose(mean, each.mean(0), rtol=1e-12)
        np.testing.assert_allclose(error, each.std(0, ddof=1) / np.sqrt(5), rtol=1e-10)


def test_one_hidden_layer_has_the_infinite_networks_kernels_on_average():
    # With one hidden layer the mean of the finite kernels is the limit itself, at any width.
    few, many = (bw.empirical.monte_carlo(NET, jax.random.key(3), X1, num_draws=n) for n in (1000, 4000))
    for name, infinite in zip(("nngp", "ntk"), infinite_kernels(X1, X1), strict=True):
        mean, error = getattr(many, name), getattr(many, f"{name}_error")
        assert np.all(np.abs(mean - infinite) < 4.5 * error)
        assert np.all(error < 0.1 * np.max(np.abs(mean)))
        # The error itself is known to about 1/sqrt(1000) of a heavy-tailed square.
        np.testing.assert_allclose(getattr(few, f"{name}_error") / error, 2.0, rtol=0.25)
        np.testing.assert_allclose(mean, mean.T, rtol=1e-12)


def test_a_wide_deep_network_comes_close_to_its_architectures_kernel():
    net = (
        bw.Dense(300, w_scale=1.4, b_scale=0.2) >> bw.Residual(bw.Relu() >> bw.Dense(300)) >> bw.Relu() >> bw.Dense(20)
    )
    estimate, infinite = bw.empirical.monte_carlo(net, KEY, X1, X2, num_draws=60), net.kernel(X1, X2)
    for name in ("nngp", "ntk"):
        gap = np.abs(getattr(estimate, name) - getattr(infinite, name))
        # Errors of Monte Carlo, and the finite width's own of order 1/300.
        assert np.all(gap < 5 * getattr(estimate, f"{name}_error") + 0.02 * np.abs(getattr(infinite, name)))
        assert np.all(getattr(estimate, f"{name}_error") < 0.1 * np.abs(getattr(infinite, name)).max())


def test_the_errors_are_calibrated():
    # Over repetitions, deviations from the limit in units of the error have mean square 1.
    run = jax.jit(jax.vmap(lambda key: bw.empirical.monte_carlo(NET, key, X1[:1], X2[:1], num_draws=30)))
    estimates = run(jax.random.split(jax.random.key(4), 200))
    for name, infinite in zip(("nngp", "ntk"), infinite_kernels(X1[:1], X2[:1]), strict=True):
        scores = np.ravel((getattr(estimates, name) - infinite) / getattr(estimates, f"{name}_error"))
        # Student's t of 29 degrees: variance 1.07; the mean square over 200 has standard deviation about 0.11.
        assert 0.6 < np.mean(scores**2) < 1.6


def test_the_nngp_alone():
    alone = bw.empirical.monte_carlo(NET, KEY, X1, X2, num_draws=5, ntk=False)
    both = bw.empirical.monte_carlo(NET, KEY, X1, X2, num_draws=5, method="jacobian", batch_size=2)
    assert alone.ntk is None and alone.ntk_error is None
    np.testing.assert_allclose(alone.nngp, both.nngp, rtol=1e-12)
    np.testing.assert_allclose(alone.nngp_error, both.nngp_error, rtol=1e-10)


def test_float32_squares_do_not_cancel():
    # A bias that dwarfs the rest: the error, from differences of squares, would be lost in float32.
    net = bw.Dense(8) >> bw.Elementwise(lambda u: 1e3 + jnp.tanh(u)) >> bw.Identity()
    x = X1.astype(jnp.float32)
    exact = bw.empirical.monte_carlo(net, KEY, X1, num_draws=50, ntk=False)
    jax.config.update("jax_enable_x64", False)
    try:
        single = bw.empirical.monte_carlo(net, jax.random.key(9), x, num_draws=50, ntk=False)
        assert single.nngp.dtype == jnp.float32
    finally:
        jax.config.update("jax_enable_x64", True)
    np.testing.assert_allclose(np.median(single.nngp_error), np.median(exact.nngp_error), rtol=0.5)


REFUSED = {
    "no architecture": (
        lambda: bw.empirical.monte_carlo(lambda params, x: x, KEY, X1, num_draws=3), TypeError,
        "`monte_carlo`: net must be an architecture, which knows its prior; got function",
    ),
    "one draw": (
        lambda: bw.empirical.monte_carlo(NET, KEY, X1, num_draws=1), ValueError,
        "`monte_carlo`: num_draws must be at least 2; got 1",
    ),
    "x2": (
        lambda: bw.empirical.monte_carlo(NET, KEY, X1, X2[:, :3], num_draws=3), ValueError,
        "`monte_carlo`: x2 must have shape (n2, 4) with the rest from x1; got (2, 3)",
    ),
    "method": (
        lambda: bw.empirical.monte_carlo(NET, KEY, X1, num_draws=3, method="best"), ValueError,
        "`monte_carlo`: method must be one of 'auto'",
    ),
    "complex": (
        lambda: bw.empirical.monte_carlo(NET, KEY, X1 + 1j, num_draws=3), TypeError,
        "`monte_carlo`: x1 must be an array of real numbers; got dtype complex128",
    ),
}  # fmt: skip


@pytest.mark.usefixtures("only_the_librarys_own_checks")
@pytest.mark.parametrize("name", REFUSED)
def test_wrong_arguments_are_refused(name):
    call, kind, text = REFUSED[name]
    with pytest.raises(kind) as caught:
        call()
    assert text in str(caught.value)
