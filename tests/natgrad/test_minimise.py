"""The optimiser: to the mode, and at the linear rate of wide networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnnwide as bw

RNG = np.random.default_rng(0)
X = RNG.normal(size=(8, 3))


def test_linear_rate_of_a_wide_network():
    """Without prior, each residual shrinks by 1 - learning_rate per step (Zhang, Martens & Grosse 2019)."""
    net = bw.Dense(256, w_scale=2**0.5, b_scale=0.1) >> bw.Tanh() >> bw.Dense(1)
    y = RNG.normal(size=(8, 1))
    found = bw.natgrad.minimise(
        net, bw.Gaussian(1.0), X, y, net.init(jax.random.key(0), (3,)), prior_precision=0.0, learning_rate=0.5,
        num_steps=12, tolerance=1e-30,
    )  # fmt: skip
    squares = 2 * (found.cost - 8 * 0.5 * np.log(2 * np.pi))
    # (1 - 0.5)^2, but for the curvature of a network of width 256
    np.testing.assert_allclose(squares[2:9] / squares[1:8], 0.25, rtol=0.1)
    assert int(found.num_steps) == 12


def test_finds_the_mode_of_a_regression_in_one_step():
    net = bw.Dense(2, w_scale=1.3, b_scale=0.5)
    y = RNG.normal(size=(8, 2))
    found = bw.natgrad.minimise(net, bw.Gaussian(0.5), X, y, net.init(jax.random.key(1), (3,)), form="dense")
    psi = np.asarray(net.features(jnp.asarray(X)))
    mean = np.linalg.solve(psi.T @ psi / 0.25 + np.eye(4), psi.T @ y / 0.25)
    np.testing.assert_allclose(net.stacked(found.params), mean, atol=1e-5)
    assert int(found.num_steps) <= 3


def test_finds_a_mode_of_a_classifier_with_either_matrix():
    net = bw.Dense(6, w_scale=1.5, b_scale=0.3) >> bw.Tanh() >> bw.Dense(3)
    labels = np.array([0, 1, 2, 0, 1, 2, 0, 1])
    params = net.init(jax.random.key(2), (3,))
    found = {
        form: bw.natgrad.minimise(net, bw.Categorical(), X, labels, params, form=form) for form in ("dense", "dual")
    }

    def cost(params):
        fit = jnp.sum(bw.Categorical().log_prob(net(params, jnp.asarray(X)), jnp.asarray(labels)))
        return -fit + 0.5 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))

    grads = jax.jit(jax.grad(cost))(found["dual"].params)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(grads)) < 1e-3
    np.testing.assert_allclose(found["dual"].cost, found["dense"].cost, rtol=1e-6)
    np.testing.assert_allclose(found["dual"].cost[-1], cost(found["dual"].params), rtol=1e-9)
    assert (np.diff(found["dual"].cost) <= 0).all()


def test_errors(only_the_librarys_own_checks):
    net = bw.Dense(1)
    params = net.init(jax.random.key(0), (3,))
    with pytest.raises(ValueError, match="learning_rate must be above 0 and at most 1; got 2"):
        bw.natgrad.minimise(net, bw.Gaussian(1.0), X, np.zeros((8, 1)), params, learning_rate=2.0)
    with pytest.raises(ValueError, match="`minimise`: y must have shape"):
        bw.natgrad.minimise(net, bw.Gaussian(1.0), X, np.zeros((7, 1)), params)
