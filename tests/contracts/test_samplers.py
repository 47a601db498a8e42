"""Every sampler leaves its target invariant and reaches it from afar, with any reference: many independent chains."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from bnnwide.samplers import Reference, pcn, pcnl, rest_of, split_hmc

pytestmark = pytest.mark.optimised

SAMPLERS = {
    "pcn": (pcn, 0.9),
    "pcnl": (pcnl, 0.8),
    "split_hmc": (split_hmc, math.pi / 4),
    "split_hmc, one step": (split_hmc, math.pi / 2),
    "split_hmc, no jitter": (functools.partial(split_hmc, trajectory_length=2.0, jitter=0.0), 0.5),
}
CHAINS, STEPS = 8000, 120


def gaussian(z):
    """A correlated Gaussian, narrower than N(0, I) one way and wider the other."""
    a, b = z["a"][0] - 0.4, z["b"] + 0.3
    return 0.5 * (1.4 * a**2 + 0.8 * b**2 + 2 * 0.3 * a * b)


def bent(z):
    """N(0, I) times a factor between 0 and 1, far from Gaussian, so that exact draws come by rejection."""
    a, b = z["a"][0], z["b"]
    return 0.5 * (a**2 + b**2) + 1.5 * (1 + jnp.sin(2 * a)) + 0.5 * (b - 0.7 * a**2) ** 2


TARGETS = {"gaussian": gaussian, "bent": bent}
FUNCTIONALS = (
    lambda a, b: a, lambda a, b: b, lambda a, b: a**2, lambda a, b: b**2, lambda a, b: a * b, lambda a, b: a**2 * b,
    lambda a, b: np.cos(2 * a),
)  # fmt: skip


@functools.cache
def grid(target):
    """Integrate a target on a grid: its points, and their probabilities."""
    axis = np.linspace(-9, 9, 601)
    a, b = np.meshgrid(axis, axis, indexing="ij")
    energy = jax.vmap(jax.vmap(lambda a, b: TARGETS[target]({"a": a[None], "b": b})))(a, b)
    weight = np.exp(-np.asarray(energy))
    return axis, a, b, weight / weight.sum()


def exact_draws(target):
    """Draw from the grid's cells, uniformly within each: the cells are far smaller than what N draws can resolve."""
    axis, a, b, weight = grid(target)
    rng = np.random.default_rng(0)
    cells = rng.choice(weight.size, CHAINS, p=weight.ravel())
    jitter = (rng.uniform(size=(2, CHAINS)) - 0.5) * (axis[1] - axis[0])
    return {"a": jnp.asarray(a.ravel()[cells] + jitter[0])[:, None], "b": jnp.asarray(b.ravel()[cells] + jitter[1])}


def assert_drawn_from(target, draws):
    """Compare independent draws with the target: moments by z-scores, marginals by Kolmogorov-Smirnov."""
    axis, a, b, weight = grid(target)
    got_a, got_b = np.asarray(draws["a"])[:, 0], np.asarray(draws["b"])
    for functional in FUNCTIONALS:
        values, cells = functional(got_a, got_b), functional(a, b)
        mean = (weight * cells).sum()
        error = np.sqrt((weight * (cells - mean) ** 2).sum() / len(values))
        assert abs(values.mean() - mean) < 4.5 * error
    for values, marginal in ((got_a, weight.sum(1)), (got_b, weight.sum(0))):
        edges = axis + (axis[1] - axis[0]) / 2
        cdf = lambda v, edges=edges, marginal=marginal: np.interp(v, edges, np.cumsum(marginal))  # noqa: E731
        assert stats.kstest(values, cdf).pvalue > 1e-5


def run_chains(build, angle, rest, start, reference, *, steps=STEPS):
    """Run independent chains of a bare sampler: vmap over chains, scan over steps."""
    sampler = build(rest)

    def chain(key, position):
        def step(state, key):
            state, info = sampler.step(key, state, jnp.asarray(angle), reference)
            return state, (state.position, info)

        return jax.lax.scan(step, sampler.init(position), jax.random.split(key, steps))[1]

    return jax.jit(jax.vmap(chain))(jax.random.split(jax.random.key(1), CHAINS), start)


@pytest.mark.parametrize("referenced", [False, True], ids=["standard", "referenced"])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_invariant_and_ergodic(name, target, referenced):
    if referenced and "," in name:
        pytest.skip("the reference does not depend on the number of steps")
    (build, angle), potential = SAMPLERS[name], TARGETS[target]
    rest, reference = rest_of(potential), Reference()
    if referenced:  # the rest then holds all of U that belongs to the referenced entry
        rest = lambda z: potential(z) - 0.5 * jnp.sum(z["a"] ** 2)  # noqa: E731
        reference = Reference({"b": jnp.asarray(-0.2)}, {"b": jnp.asarray(0.8)})
    exact, far = exact_draws(target), {"a": jnp.full((CHAINS, 1), 1.0), "b": jnp.full(CHAINS, -1.5)}
    for start, checked in ((exact, (0, 4, STEPS - 1)), (far, (STEPS - 1,))):
        positions, info = run_chains(build, angle, rest, start, reference)
        for step in checked:
            assert_drawn_from(target, jax.tree.map(lambda z, step=step: z[:, step], positions))
    assert 0.2 < info.accept_prob.mean() < 0.999
    np.testing.assert_allclose(info.accepted.mean(), info.accept_prob.mean(), atol=0.01)
    assert not info.diverging.any()


def test_the_check_has_power():
    """A sampler that forgets its accept step, or accepts by the wrong sign, is caught."""
    always = lambda rest: pcn(lambda z: 0.0 * rest(z))  # noqa: E731
    flipped = lambda rest: pcn(lambda z: -rest(z))  # noqa: E731
    for broken in (always, flipped):
        positions, _ = run_chains(broken, 0.9, rest_of(bent), exact_draws("bent"), Reference())
        with pytest.raises(AssertionError):
            assert_drawn_from("bent", jax.tree.map(lambda z: z[:, 4], positions))
