"""The noisy quadratic model against textbook formulas and against simulation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnnwide as bw
from bnnwide.natgrad.curvature import Layout

pytestmark = pytest.mark.optimised

H = np.array([1.0, 0.3, 0.05])
C = np.array([1.0, 0.2, 0.1])
PLAIN = bw.natgrad.NoisyQuadratic(H, C, learning_rate=0.2)


def test_stationary_moments_of_descent_and_momentum():
    np.testing.assert_allclose(PLAIN.stationary(4), 0.2 * C / (4 * H * (2 - 0.2 * H)), rtol=1e-10)
    heavy = dataclasses.replace(PLAIN, momentum=0.9)
    expected = 0.2 * C * 1.9 / (4 * H * 0.1 * (2 * 1.9 - 0.2 * H))
    np.testing.assert_allclose(heavy.stationary(4), expected, rtol=1e-8)
    averaged = dataclasses.replace(PLAIN, averaging=0.9)
    rho = 1 - 0.2 * H  # an average of an autoregression: variance (1-g)(1+g rho) / ((1+g)(1-g rho))
    np.testing.assert_allclose(
        averaged.stationary(4), PLAIN.stationary(4) * 0.1 * (1 + 0.9 * rho) / (1.9 * (1 - 0.9 * rho)), rtol=1e-8
    )
    assert np.isinf(dataclasses.replace(PLAIN, learning_rate=2.5).stationary(4)[0])


def test_natural_gradient_holds_one_temperature_in_all_directions():
    natural = bw.natgrad.NoisyQuadratic(H, H, learning_rate=0.1, power=1.0)
    np.testing.assert_allclose(natural.temperature(5, num_data=100), 0.1 * 100 / (5 * 1.9), rtol=1e-10)
    law = bw.natgrad.temperature(0.1, 5, 100)
    np.testing.assert_allclose(natural.temperature(5, num_data=100), law / (1 - 0.05), rtol=1e-10)
    spread = bw.natgrad.NoisyQuadratic(H, H, learning_rate=0.1, power=0.0).temperature(5, num_data=100)
    assert spread.max() > 15 * spread.min()


def test_losses_are_those_of_simulated_runs():
    model = bw.natgrad.NoisyQuadratic(H, C, learning_rate=0.3, momentum=0.5, power=0.5, damping=0.1, averaging=0.8)
    batch, steps, runs = 2, 30, 20_000
    rate = 0.3 * (H + 0.1) ** -0.5

    def step(carry, key):
        w, v, a = carry
        v = 0.5 * v - rate * (H * w + np.sqrt(C / batch) * jax.random.normal(key, w.shape))
        w = w + v
        a = 0.8 * a + 0.2 * w
        return (w, v, a), 0.5 * jnp.sum(H * a**2, axis=1)

    start = np.array([1.0, 2.0, 3.0])
    w = jnp.broadcast_to(jnp.sqrt(start), (runs, 3))
    _, losses = jax.jit(lambda keys: jax.lax.scan(step, (w, 0 * w, w), keys))(
        jax.random.split(jax.random.key(0), steps)
    )
    expected = model.loss(start, batch, steps)
    np.testing.assert_allclose(expected[0], 0.5 * H @ start)
    error = losses.std(axis=1) / runs**0.5
    assert (np.abs(losses.mean(axis=1) - expected[1:]) < 5 * error).all()
    np.testing.assert_allclose(model.loss(start, batch, 2000)[-1], 0.5 * H @ model.stationary(batch), rtol=1e-6)


def test_critical_batch_size_in_closed_form():
    """One direction: second moments are r^(2t) s + m_B (1 - r^(2t)) with r = 1 - eps h and m_B the stationary one."""
    model, s, target = bw.natgrad.NoisyQuadratic(np.array([0.5]), np.array([0.3]), learning_rate=0.2), 2.0, 0.02
    steps = int(np.ceil(np.log(2 * target / 0.5 / s) / (2 * np.log(0.9))))
    shrunk = 0.9 ** (2 * 2 * steps)
    stationary = (2 * target / 0.5 - shrunk * s) / (1 - shrunk)
    expected = 0.2 * 0.3 / (stationary * 0.5 * 1.9)
    np.testing.assert_allclose(model.critical_batch_size(np.array([s]), target, 100), expected, rtol=1e-6)


def test_errors():
    with pytest.raises(ValueError, match="must be reached within 5 steps"):
        PLAIN.critical_batch_size(np.ones(3), 1e-6, 10)
    with pytest.raises(ValueError, match=r"`NoisyQuadratic`: momentum must lie in \[0, 1\); got 1"):
        dataclasses.replace(PLAIN, momentum=1)


@pytest.fixture(scope="module")
def trained():
    """A small network at its minimum: curvatures, gradient noise in their directions, and a run of any optimiser."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(60, 2)))
    y = jnp.sin(2 * x[:, :1]) + 0.5 * rng.normal(size=(60, 1))
    net, noise = bw.Dense(4, w_scale=1.5, b_scale=0.5) >> bw.Tanh() >> bw.Dense(1, b_scale=0.5), bw.Gaussian(0.5)
    mode = bw.natgrad.minimise(net, noise, x, y, net.init(jax.random.key(0), (2,)), num_steps=200, tolerance=1e-12)
    layout = Layout.of(mode.params)
    center = layout.ravel(mode.params)

    def loss(w, x, y):  # of one datum on average, with its share of the prior
        return -noise.log_prob(net(layout.unravel(w), x), y).mean() + 0.5 * jnp.sum(w**2) / 60

    @jax.jit
    def curvature_and_noise():
        h, u = jnp.linalg.eigh(jax.hessian(loss)(center, x, y))
        each = jax.vmap(lambda a, b: jax.grad(loss)(center, a[None], b[None]))(x, y)
        return h, u, jnp.var(each @ u, axis=0)

    h, u, c = curvature_and_noise()

    @jax.jit
    def excess(keys, metric, learning_rate, momentum, averaging):
        def step(carry, key):
            w, v, a = carry
            rows = jax.random.randint(key, (8,), 0, 60)
            v = momentum * v - learning_rate * metric @ jax.grad(loss)(w, x[rows], y[rows])
            a = averaging * a + (1 - averaging) * (w + v)
            return (w + v, v, a), loss(a, x, y)

        chain = lambda keys: jax.lax.scan(step, (center, 0 * center, center), keys)[1]  # noqa: E731
        return jax.vmap(chain)(keys) - loss(center, x, y)

    return h, u, c, excess


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [dict(learning_rate=0.02), dict(learning_rate=0.004, momentum=0.8), dict(learning_rate=0.02, averaging=0.95),
     dict(learning_rate=0.02, power=1.0, damping=0.1), dict(learning_rate=0.02, power=0.5, damping=0.1)],
    ids=["descent", "momentum", "averaged", "natural", "half"],
)  # fmt: skip
def test_stationary_losses_are_those_of_a_network(trained, options):
    """A network near its minimum is a quadratic; steps are small, and gradient noise is that at the minimum."""
    h, u, c, excess = trained
    assert h.min() > 0
    model = bw.natgrad.NoisyQuadratic(h, c, **options)
    predicted = float(0.5 * h @ model.stationary(8))
    metric = (u * (h + model.damping) ** -model.power) @ u.T
    keys = jax.random.split(jax.random.key(1), (32, 4000))
    found = excess(keys, metric, model.learning_rate, model.momentum, model.averaging)[:, 2000:].mean(axis=1)
    error = found.std() / 32**0.5
    assert error < 0.05 * predicted
    np.testing.assert_allclose(found.mean(), predicted, atol=4 * error + 0.1 * predicted)  # 0.1: not a quadratic
