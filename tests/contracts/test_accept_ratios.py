"""Every sampler's accept probability against the textbook ratio, written with energies and proposal densities."""

import importlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnnwide.samplers import Reference, pcn, pcnl, split_hmc

SAMPLERS = {
    "pcn": (pcn, 0.8),
    "pcnl": (pcnl, 0.9),
    # Without the jitter, whose draw differs between precisions.
    "split_hmc": (lambda rest: split_hmc(rest, jitter=0.0), math.pi / 6),
}
START = {"a": jnp.asarray([0.5, -1.2, 0.3]), "b": jnp.asarray(0.9)}


def rest(z):
    return jnp.sum(jnp.cos(2 * z["a"])) + 0.5 * z["b"] ** 2 * z["a"][0] + jnp.sin(z["b"])


def flat(z):
    return np.concatenate([np.asarray(z["a"]).ravel(), np.asarray(z["b"]).ravel()])


def potential(z, rest=rest):
    return float(rest(z)) + 0.5 * float(flat(z) @ flat(z))


def steps_from(sampler, start, angle, keys):
    state = sampler.init(start)
    return jax.jit(jax.vmap(lambda key: sampler.step(key, state, jnp.asarray(angle))))(keys)


def accepted_moves(name, number=60):
    """Return accepted proposals, each with its reported accept probability."""
    build, angle = SAMPLERS[name]
    states, info = steps_from(build(rest), START, angle, jax.random.split(jax.random.key(0), 300))
    chosen = np.flatnonzero(info.accepted)[:number]
    probabilities = np.asarray(info.accept_prob)[chosen]
    assert (probabilities < 0.999).sum() > 5
    return [(jax.tree.map(lambda z, i=i: z[i], states.position), p) for i, p in zip(chosen, probabilities, strict=True)]


def test_pcn_ratio_is_that_of_the_rest():
    for proposal, probability in accepted_moves("pcn"):
        np.testing.assert_allclose(probability, min(1.0, np.exp(float(rest(START) - rest(proposal)))), rtol=1e-10)


def test_pcnl_ratio_is_metropolis_hastings():
    delta = 2 * math.tan(0.9 / 2) ** 2

    def log_q(u, v):  # the density of proposing v from u, up to a constant
        mean = ((2 - delta) * flat(u) - 2 * delta * flat(jax.grad(rest)(u))) / (2 + delta)
        return -0.5 * np.sum((flat(v) - mean) ** 2) * (2 + delta) ** 2 / (8 * delta)

    for proposal, probability in accepted_moves("pcnl"):
        log_ratio = potential(START) - potential(proposal) + log_q(proposal, START) - log_q(START, proposal)
        np.testing.assert_allclose(probability, min(1.0, np.exp(log_ratio)), rtol=1e-9)


def trajectory(z, p, angle, steps):
    """Rotate, kick, rotate: split HMC in plain NumPy."""
    gradient = lambda v: flat(jax.grad(rest)({"a": jnp.asarray(v[:3]), "b": jnp.asarray(v[3])}))  # noqa: E731
    cos, sin = math.cos(angle / 2), math.sin(angle / 2)
    for _ in range(steps):
        z, p = cos * z + sin * p, cos * p - sin * z
        p = p - math.sin(angle) * gradient(z)
        z, p = cos * z + sin * p, cos * p - sin * z
    return z, p


def fix_noise(monkeypatch, noise):
    """Let every sampler draw `noise` instead of random numbers."""
    for module in ("pcn", "pcnl", "split_hmc"):
        draw = lambda key, like: jax.tree.map(lambda n, z: jnp.asarray(n, z.dtype), noise, like)  # noqa: E731
        monkeypatch.setattr(importlib.import_module(f"bnnwide.samplers.{module}"), "standard_normal_like", draw)


@pytest.mark.parametrize("steps", [1, 3])
def test_split_hmc_ratio_is_the_energy_difference_and_time_reverses(monkeypatch, steps):
    angle, sampler = math.pi / 2 / steps, split_hmc(rest, jitter=0.0)
    compared = 0
    for seed in range(4):
        p = 0.5 * np.random.default_rng(seed).normal(size=4)
        z_end, p_end = trajectory(flat(START), p, angle, steps)
        end = {"a": jnp.asarray(z_end[:3]), "b": jnp.asarray(z_end[3])}
        change = potential(end) + 0.5 * p_end @ p_end - potential(START) - 0.5 * p @ p
        for start, stop, velocity, error in ((START, end, p, change), (end, START, -p_end, -change)):
            fix_noise(monkeypatch, {"a": velocity[:3], "b": velocity[3]})
            states, info = steps_from(sampler, start, angle, jax.random.split(jax.random.key(seed), 20))
            np.testing.assert_allclose(info.accept_prob, min(1.0, math.exp(-error)), rtol=1e-9)
            assert (info.num_grads == steps).all() and (info.num_evals == 1).all()
            for i in np.flatnonzero(info.accepted):
                position = flat(jax.tree.map(lambda s, i=i: s[i], states.position))
                np.testing.assert_allclose(position, flat(stop), atol=1e-12)
                compared += 1
    assert compared > 30


def test_reference_changes_variables():
    """Sampling is exact with any force, so a wrong one would only be slow: the chain rule is checked on its own."""
    reference = Reference({"b": jnp.asarray(0.3)}, {"b": jnp.asarray(0.7)})
    white = reference.whiten(START)
    np.testing.assert_allclose(flat(reference.color(white)), flat(START), rtol=1e-14)
    outside = lambda z: rest(z) + 0.5 * z["b"] ** 2  # noqa: E731  R holds all of U that belongs to b
    v = lambda white: reference.tilt(outside(reference.color(white)), white)  # noqa: E731
    np.testing.assert_allclose(float(v(white)) + 0.5 * flat(white) @ flat(white), potential(START), rtol=1e-13)
    by_rule = reference.tilt_grad(jax.grad(outside)(START), white)
    np.testing.assert_allclose(flat(by_rule), flat(jax.grad(v)(white)), rtol=1e-12)


@pytest.mark.parametrize("name", SAMPLERS)
def test_acceptance_tends_to_one_as_the_rest_vanishes(name):
    build, angle = SAMPLERS[name]
    keys = jax.random.split(jax.random.key(2), 400)
    means = [
        float(steps_from(build(lambda z, s=size: s * rest(z)), START, angle, keys)[1].accept_prob.mean())
        for size in (1.0, 0.1, 0.01, 0.0)
    ]
    assert means == sorted(means)
    assert means[0] < 0.98 and means[2] > 0.99 and means[3] == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_potential_that_is_not_finite_diverges_and_stays(name, bad):
    build, angle = SAMPLERS[name]
    walled = lambda z: jnp.where(z["b"] == START["b"], 0.0, bad) + 0.0 * rest(z)  # noqa: E731
    states, info = steps_from(build(walled), START, angle, jax.random.split(jax.random.key(3), 10))
    assert info.diverging.all() and not info.accepted.any() and (info.accept_prob == 0).all()
    for name, value in START.items():
        assert (states.position[name] == value).all()
    assert (states.rest == 0).all()


@pytest.mark.parametrize("name", SAMPLERS)
def test_float32_accepts_as_float64(monkeypatch, name):
    """A million squares add up to energies that float32 knows to 0.03 at best; their differences keep their digits."""
    build, angle = SAMPLERS[name]
    dimension = 1_000_000
    z, noise, direction = np.random.default_rng(4).normal(size=(3, dimension)).astype(np.float32)
    direction /= np.linalg.norm(direction)
    z += (1.2 - direction @ z) * direction
    noise += (0.4 - direction @ noise) * direction
    fix_noise(monkeypatch, noise)
    probabilities = []
    for dtype in (jnp.float32, jnp.float64):
        along = jnp.asarray(direction, dtype)
        bump = lambda z, along=along: 3 * jnp.cos(2 * jnp.vdot(along, z) + 0.5)  # noqa: E731
        sampler = build(bump)
        step = lambda key, z, sampler=sampler: sampler.step(key, sampler.init(z), jnp.asarray(angle, z.dtype))  # noqa: E731
        _, info = jax.jit(step)(jax.random.key(0), jnp.asarray(z, dtype))
        assert info.accept_prob.dtype == dtype
        probabilities.append(float(info.accept_prob))
    assert 0.02 < probabilities[1] < 0.98
    np.testing.assert_allclose(*probabilities, atol=2e-3)
