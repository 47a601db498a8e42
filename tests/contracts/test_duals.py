"""The dual of every activation against tensor Gauss-Legendre quadrature in other coordinates, written here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnnwide as bw

CLOSED = [
    bw.Relu(), bw.LeakyRelu(0.2), bw.ABRelu(-0.4, 1.3), bw.Abs(), bw.Sign(), bw.Erf(), bw.SigmoidLike(), bw.Gelu(),
    bw.Sin(), bw.Cos(), bw.Rbf(0.7), bw.Exp(0.8, 0.5), bw.GaussianBump(1.2, 0.6), bw.Gabor(), bw.Hermite(3),
    bw.Hermite(6), bw.Monomial(3), bw.Monomial(4), bw.RectifiedMonomial(1), bw.RectifiedMonomial(2),
    bw.RectifiedMonomial(3), bw.RectifiedMonomial(4), bw.Polynomial((0.3, -1.0, 0.5, 0.2)),
]  # fmt: skip
NUMERIC = [bw.Tanh(), bw.Sigmoid(), bw.Silu(), bw.Softplus(), bw.Elu(1.5), bw.Swish(2.0), bw.Elementwise(jnp.arctan)]
Q11, Q22 = np.array([0.3, 1.0, 2.5])[:, None, None], np.array([0.5, 1.7])[None, :, None]
RHO = np.array([-1.0, -0.99, -0.4, 0.0, 0.5, 0.999, 1.0])
Q12 = RHO * np.sqrt(Q11 * Q22)


def pieces(edges, count=100):
    """Gauss-Legendre nodes and weights between consecutive edges."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    edges = np.asarray(edges)
    middle, half = 0.5 * (edges[1:] + edges[:-1]), 0.5 * (edges[1:] - edges[:-1])
    return (middle[:, None] + half[:, None] * nodes).ravel(), (half[:, None] * weights).ravel()


def expectation(f, g, q11, q12, q22):
    """E[f(u) g(v)]: for every u, over v given u, split where either is 0."""
    s1, s = np.sqrt(q11), np.sqrt(max(q22 - q12**2 / q11, 0.0))
    z, w = pieces([-12, -6, 0, 6, 12])
    u, w = s1 * z, w * np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    mean = q12 / q11 * u
    if s < 1e-7:
        return np.sum(w * f(u) * g(mean))
    edges = np.clip(-mean / s, -12, 12)
    t, wt = map(np.stack, zip(*(pieces([-12, (e - 12) / 2, e, (e + 12) / 2, 12], 40) for e in edges), strict=True))
    inner = np.sum(
        wt * np.exp(-0.5 * t**2) / np.sqrt(2 * np.pi) * g((mean[:, None] + s * t).ravel()).reshape(t.shape), 1
    )
    return np.sum(w * f(u) * inner)


@pytest.mark.parametrize("activation", [*CLOSED, *NUMERIC], ids=lambda activation: type(activation).__name__)
def test_duals(activation):
    fn = lambda u: np.asarray(activation.fn(jnp.asarray(u)))  # noqa: E731
    value, slope = jax.jit(activation.dual_and_derivative)(Q11, Q12, Q22)
    derivative = jax.jit(jax.vmap(jax.grad(activation.fn)))
    spread1, spread2 = activation.dual_diag(jnp.asarray(Q11)), activation.dual_diag(jnp.asarray(Q22))
    for i, j, k in ((0, 1, 2), (1, 0, 1), (2, 1, 4), (1, 1, 5), (2, 0, 3)):
        q = float(Q11[i, 0, 0]), float(Q12[i, j, k]), float(Q22[0, j, 0])
        scale = float(jnp.sqrt(spread1[i, 0, 0] * spread2[0, j, 0]))
        assert abs(float(value[i, j, k]) - expectation(fn, fn, *q)) < 1e-8 * scale
        if not isinstance(activation, bw.Sign):
            dfn = lambda u: np.asarray(derivative(jnp.asarray(u)))  # noqa: E731
            assert abs(float(slope[i, j, k]) - expectation(dfn, dfn, *q)) < 1e-7 * max(1.0, float(jnp.abs(slope).max()))
    # At equal variances and full correlation the dual is the mean square; opposite signs, the product with the mirror.
    z, w = pieces([-12, -6, -2, 0, 2, 6, 12])
    w = w * np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    for q in (0.3, 1.0, 2.5):
        u = np.sqrt(q) * z
        np.testing.assert_allclose(activation.dual_diag(jnp.asarray(q)), np.sum(w * fn(u) ** 2), rtol=1e-9)
        np.testing.assert_allclose(activation.dual(*map(jnp.asarray, (q, q, q))), np.sum(w * fn(u) ** 2), rtol=1e-9)
        opposite = activation.dual(*map(jnp.asarray, (q, -q, q)))
        np.testing.assert_allclose(opposite, np.sum(w * fn(u) * fn(-u)), rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(activation.dual_mean(jnp.asarray(q)), np.sum(w * fn(u)), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("activation", [*CLOSED, bw.Tanh(), bw.Elu()], ids=lambda activation: type(activation).__name__)
def test_nothing_is_nan_at_degenerate_points(activation):
    for dtype in (jnp.float64, jnp.float32):
        q11, q12, q22 = (jnp.asarray(v, dtype) for v in ([1, 1, 0, 0, 2.0], [1, -1, 0, 0, 0], [1, 1, 0, 2.0, 2.0]))
        both = lambda *q: sum(map(jnp.sum, activation.dual_and_derivative(*q)))  # noqa: E731
        value, slopes = jax.jit(jax.value_and_grad(both, argnums=(0, 1, 2)))(q11, q12, q22)
        assert value.dtype == dtype and np.isfinite(value)
        assert all(np.isfinite(slope).all() for slope in slopes)


def test_waves_do_not_overflow():
    for activation in (bw.Sin(), bw.Cos(), bw.Rbf()):
        for sign in (1, -1):
            q = jnp.asarray(2000.0)
            value, slopes = jax.value_and_grad(activation.dual, argnums=(0, 1, 2))(q, sign * q, q)
            assert np.isfinite(value) and np.isfinite(slopes).all()


def test_hermite_of_high_degree_keeps_its_digits():
    rho = jnp.linspace(-1, 1, 11)
    for degree in (10, 20):
        one = jnp.ones(())
        np.testing.assert_allclose(bw.Hermite(degree).dual(one, rho, one), rho**degree, rtol=1e-12)
