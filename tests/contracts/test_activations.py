"""Every activation: its value against SciPy, its derivatives against autodiff of the formula and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

import bnnwide as bw

FORMULAS = {
    bw.Relu(): lambda u: np.maximum(u, 0),
    bw.LeakyRelu(): lambda u: np.where(u > 0, u, 0.01 * u),
    bw.LeakyRelu(slope=0.3): lambda u: np.where(u > 0, u, 0.3 * u),
    bw.Abs(): np.abs,
    bw.Erf(): special.erf,
    bw.Gelu(): lambda u: u * special.ndtr(u),
    bw.Sin(): np.sin,
    bw.Cos(): np.cos,
    bw.Tanh(): np.tanh,
    bw.Sigmoid(): special.expit,
    bw.Silu(): lambda u: u * special.expit(u),
    bw.Softplus(): lambda u: np.logaddexp(0, u),
    bw.Elementwise(jnp.arctan): np.arctan,
}
# No point within a finite-difference step of the kink at 0.
POINTS = np.array([-9.0, -3.1, -1.2, -0.4, -0.01, 0.02, 0.3, 1.1, 2.7, 8.0])


@pytest.mark.parametrize("layer", FORMULAS, ids=lambda layer: type(layer).__name__)
def test_value_and_derivatives(layer):
    formula, step = FORMULAS[layer], 1e-4
    value = lambda u: layer((), u[None, None])[0, 0]  # noqa: E731
    np.testing.assert_allclose(layer((), POINTS[None])[0], formula(POINTS), rtol=1e-12, atol=1e-15)
    slope = jax.vmap(jax.grad(value))(POINTS)
    central = (formula(POINTS + step) - formula(POINTS - step)) / (2 * step)
    np.testing.assert_allclose(slope, central, rtol=1e-6, atol=1e-8)
    curvature = jax.vmap(jax.grad(jax.grad(value)))(POINTS)
    central = (formula(POINTS + step) - 2 * formula(POINTS) + formula(POINTS - step)) / step**2
    np.testing.assert_allclose(curvature, central, rtol=1e-5, atol=2e-6)
    forward = jax.vmap(lambda u: jax.jvp(value, (u,), (2.0,))[1])(POINTS)
    np.testing.assert_allclose(forward, 2 * slope, rtol=1e-12)


def test_gelu_derivatives_equal_autodiff_of_the_formula():
    plain = lambda u: u * 0.5 * (1 + jax.lax.erf(u / jnp.sqrt(2.0)))  # noqa: E731
    ours = lambda u: bw.Gelu()((), u[None, None])[0, 0]  # noqa: E731
    points = jnp.linspace(-4, 4, 41)
    for order in range(4):
        np.testing.assert_allclose(jax.vmap(ours)(points), jax.vmap(plain)(points), rtol=1e-11, atol=1e-13)
        if order < 3:
            ours, plain = jax.grad(ours), jax.grad(plain)


def test_gelu_keeps_its_left_tail():
    u = jnp.asarray([[-9.0, -12.0, -30.0]])
    np.testing.assert_allclose(bw.Gelu()((), u), u * special.ndtr(np.asarray(u)), rtol=1e-10)


def test_slope_is_a_leaf():
    slope = jax.grad(lambda layer: layer((), jnp.asarray([[-2.0, 3.0]])).sum())(bw.LeakyRelu(0.5)).slope
    assert slope == -2.0
