"""Every activation's dual, its derivatives, diagonal and mean to ten digits, by nested quadrature of its formula."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.polynomial import hermite_e
from scipy import special

import bnnwide as bw
from bnnwide.arch import duals


def hermite(k, u):
    return hermite_e.hermeval(u, [0] * k + [1]) / math.sqrt(math.factorial(k))


CLOSED = {
    bw.Relu(): lambda u: np.maximum(u, 0),
    bw.LeakyRelu(0.2): lambda u: np.where(u > 0, u, 0.2 * u),
    bw.ABRelu(-0.3, 1.7): lambda u: np.where(u > 0, 1.7 * u, -0.3 * u),
    bw.Abs(): np.abs,
    bw.Sign(): np.sign,
    bw.Erf(): special.erf,
    bw.SigmoidLike(): lambda u: 0.5 * special.erf(u / 2.4020563531719796) + 0.5,
    bw.Gelu(): lambda u: u * special.ndtr(u),
    bw.Sin(): np.sin,
    bw.Cos(): np.cos,
    bw.Rbf(0.7): lambda u: np.sqrt(2) * np.sin(np.sqrt(1.4) * u + np.pi / 4),
    bw.Exp(1.3, 0.6): lambda u: 1.3 * np.exp(0.6 * u),
    bw.GaussianBump(1.3, 0.8): lambda u: 1.3 * np.exp(-0.8 * u**2),
    bw.Gabor(): lambda u: np.exp(-(u**2)) * np.sin(u),
    bw.Polynomial((0.3, -1.0, 0.5, 0.2)): lambda u: 0.3 - u + 0.5 * u**2 + 0.2 * u**3,
    **{bw.Hermite(k): functools.partial(hermite, k) for k in (0, 1, 2, 5)},
    **{bw.Monomial(k): lambda u, k=k: u**k for k in (1, 2, 3, 6)},
    **{bw.RectifiedMonomial(k): lambda u, k=k: np.maximum(u, 0) ** k for k in (1, 2, 3, 4)},
    bw.RectifiedMonomial(0): lambda u: (u > 0) * 1.0,
}
BY_QUADRATURE = {
    bw.Tanh(): np.tanh,
    bw.Sigmoid(): special.expit,
    bw.Silu(): lambda u: u * special.expit(u),
    bw.Swish(2.5): lambda u: u * special.expit(2.5 * u),
    bw.Softplus(): lambda u: np.logaddexp(0, u),
    bw.Elu(0.6): lambda u: np.where(u > 0, u, 0.6 * np.expm1(np.minimum(u, 0))),
    bw.Elementwise(jnp.arctan): np.arctan,
}
FORMULAS = CLOSED | BY_QUADRATURE
DIFFERENTIATED = [*CLOSED, bw.Elu(0.6)]
JUMPS = (bw.Sign(), bw.RectifiedMonomial(0))
VARIANCES = np.array([[1.0, 1.0], [1e-3, 0.5], [4.0, 2.0]])
CORRELATIONS = np.array([-1.0, -0.99, -0.4, 0.0, 0.5, 0.999999, 1.0])
NAMES = {"ids": lambda activation: repr(activation).split("<")[0]}


def graded(levels, count):
    """Gauss-Legendre nodes and weights on (0, 1), in panels that halve towards 0."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    edges = np.concatenate([[0.0], 2.0 ** np.arange(-levels + 1, 1)])
    x = (edges[:-1, None] + np.diff(edges)[:, None] * (nodes + 1) / 2).ravel()
    return x, (np.diff(edges)[:, None] / 2 * weights).ravel()


def expectation(f, g, q11, q12, q22, counts=(16, 24)):
    """E[f(u) g(v)]: over u on either side of 0, and for each u over v given u, on either side of v = 0."""
    (x, w), (t, dt), end = graded(14, counts[0]), graded(6, counts[1]), 10.5
    gauss = lambda z: np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi)  # noqa: E731
    rest = q22 - q12**2 / q11
    rest = 0.0 if rest < 1e-13 * q22 else np.sqrt(rest)
    total = 0.0
    for side in (1, -1):
        u = side * np.sqrt(q11) * end * x
        if rest == 0:
            inner = g(np.sign(q12) * np.sqrt(q22 / q11) * u)
        else:
            mean = q12 / q11 * u[:, None]
            zero = np.clip(-mean / rest, -end, end)
            inner = 0.0
            for direction in (1, -1):
                length = end - direction * zero
                z = zero + direction * length * t
                inner = inner + (length * dt * gauss(z) * g(mean + rest * z)).sum(1)
        total += (end * w * gauss(end * x) * f(u) * inner).sum()
    return total


def slope_of(activation):
    slope = jax.jit(jax.vmap(jax.grad(activation.fn)))
    return lambda u: np.asarray(slope(jnp.ravel(u))).reshape(np.shape(u))


def covariances():
    a, b, rho = (grid.ravel() for grid in np.broadcast_arrays(*VARIANCES.T[:, :, None], CORRELATIONS))
    return a, rho * np.sqrt(a * b), b


@functools.cache
def truth(activation):
    """E[phi phi] and E[phi' phi'], each with what it is measured by: the root of its values at equal inputs."""
    rows, results = list(zip(*covariances(), strict=True)), []
    for function in (FORMULAS[activation], slope_of(activation)):
        values = np.array([expectation(function, function, *row) for row in rows])
        own = {q: expectation(function, function, q, q, q) for q in np.unique(VARIANCES)}
        results.append((values, np.array([np.sqrt(own[a] * own[b]) for a, _, b in rows])))
    return results


@functools.cache
def compiled(activation):
    return jax.jit(activation.dual_and_derivative)


def close(got, wanted, scale, tolerance):
    np.testing.assert_array_less(np.abs(np.asarray(got) - wanted), tolerance * scale + 1e-300)


def test_the_quadrature_of_this_file():
    for a, c, b in zip(*covariances(), strict=True):
        wanted = np.exp(-(a + b) / 2) * np.cosh(c)
        np.testing.assert_allclose(expectation(np.cos, np.cos, a, c, b), wanted, rtol=1e-12)
        wanted = 2 / np.pi * (np.sqrt(max(a * b - c * c, 0)) + c * np.arcsin(np.clip(c / np.sqrt(a * b), -1, 1)))
        np.testing.assert_allclose(expectation(np.abs, np.abs, a, c, b), wanted, rtol=1e-9)


@pytest.mark.parametrize("activation", FORMULAS, **NAMES)
def test_dual_and_its_derivative(activation):
    u = np.linspace(-4, 4, 41)
    np.testing.assert_allclose(activation.fn(jnp.asarray(u)), FORMULAS[activation](u), rtol=1e-12, atol=1e-13)
    (values, scale), (slopes, slope_scale) = truth(activation)
    value, slope = compiled(activation)(*map(jnp.asarray, covariances()))
    close(value, values, scale, 1e-11)
    # That of a step is 0, as its derivative is almost everywhere.
    close(slope, slopes, slope_scale, 1e-10)
    if activation in CLOSED:
        a, c, b = (jnp.asarray(q).reshape(3, 7) for q in covariances())
        for spread in (
            activation.dual(a[:, :1], c, b[:, :1]),
            activation.dual_and_derivative(a[:, :1], c, b[:, :1])[0],
        ):
            close(spread.ravel(), value, scale, 1e-13)


@pytest.mark.parametrize("activation", FORMULAS, **NAMES)
def test_diagonal_and_mean(activation):
    f, q = FORMULAS[activation], np.array([1e-4, 0.3, 1.0, 4.0, 5.0 if isinstance(activation, bw.Exp) else 12.0])
    squares = np.array([expectation(f, f, v, v, v) for v in q])
    np.testing.assert_allclose(activation.dual_diag(jnp.asarray(q)), squares, rtol=1e-10)
    means = [expectation(f, np.ones_like, v, 0.0, 1.0) for v in q]
    close(activation.dual_mean(jnp.asarray(q)), means, np.sqrt(squares), 1e-10)


@pytest.mark.parametrize("activation", FORMULAS, **NAMES)
def test_float32(activation):
    arguments = [np.asarray(q, np.float32) for q in covariances()]
    value, slope = compiled(activation)(*map(jnp.asarray, arguments))
    assert value.dtype == slope.dtype == jnp.float32
    q = jnp.asarray(arguments[0])
    assert activation.dual_diag(q).dtype == activation.dual_mean(q).dtype == jnp.float32
    # At the same numbers: rounding them moves an angle near 0 by the root of the rounding.
    wanted, wanted_slope = compiled(activation)(*(jnp.asarray(q, jnp.float64) for q in arguments))
    (_, scale), (_, slope_scale) = truth(activation)
    near = np.abs(np.tile(CORRELATIONS, len(VARIANCES)) - 0.999999) < 1e-7
    tolerance = 1e-4 if isinstance(activation, (bw.Monomial, bw.RectifiedMonomial, bw.Hermite)) else 2e-5
    close(value, wanted, scale, np.where(near & (activation in JUMPS), 1e-2, tolerance))
    close(slope, wanted_slope, slope_scale, np.where(near, 1e-2, 5 * tolerance))


# Coincident (also but for the last digit), opposite, zero, and one zero; and one pair apart.
POINTS = np.array([[1.3, 1.3, 1.3], [0.7, 0.7 * (1 + 2e-16), 0.7], [0.6, -0.6, 0.6], [0.5, 1.0, 2.0], [0.5, -1.0, 2.0],
                   [0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [1.0, 0.3, 0.8]])  # fmt: skip


@pytest.mark.parametrize("activation", DIFFERENTIATED, **NAMES)
def test_nothing_is_nan_or_infinite_at_degenerate_points(activation):
    @jax.jit
    def all_of_it(*points):
        result, pull = jax.vjp(activation.dual_and_derivative, *points)
        one, zero = jnp.ones_like(points[0]), jnp.zeros_like(points[0])
        alone = jax.vjp(lambda q: (activation.dual_diag(q), activation.dual_mean(q)), points[0])
        return result, pull((one, zero)), pull((zero, one)), alone[0], alone[1]((one, one))

    for dtype, tolerance in ((jnp.float64, 1e-9), (jnp.float32, 1e-4)):
        leaves = all_of_it(*(jnp.asarray(q, dtype) for q in POINTS.T))
        assert all(leaf.dtype == dtype and jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(leaves))
        if activation not in JUMPS:
            (_, slope), (_, by12, _) = leaves[:2]
            np.testing.assert_allclose(by12, slope, rtol=tolerance, atol=1e-30)


@pytest.mark.parametrize("activation", DIFFERENTIATED, **NAMES)
def test_gradients_equal_differences(activation):
    arguments = jnp.asarray([[1.0, 0.3, 0.8], [0.4, -0.5, 1.5], [2.0, 1.9, 2.0]]).T
    both, step = jax.jit(lambda q: jnp.stack(activation.dual_and_derivative(*q))), 1e-3
    tangents = jax.jit(jax.jacfwd(lambda move: both(arguments + move[:, None])))(jnp.zeros(3))
    for index, move in enumerate(np.eye(3)[:, :, None]):
        at = {k: both(arguments + k * step * move) for k in (-3, -2, -1, 1, 2, 3)}
        differences = 45 * (at[1] - at[-1]) - 9 * (at[2] - at[-2]) + (at[3] - at[-3])
        np.testing.assert_allclose(tangents[..., index], differences / (60 * step), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("activation", [bw.Relu(), bw.Gelu(), bw.Elu(0.6), bw.RectifiedMonomial(2)], **NAMES)
def test_gradients_at_equal_inputs_are_those_of_the_diagonal(activation):
    """Along q11 = q12 = q22 both duals depend on one number, as E[phi(u)^2] and E[phi'(u)^2]."""
    q, step = jnp.asarray([0.2, 1.0, 3.0]), 1e-4
    along = jax.jit(lambda q: activation.dual_and_derivative(q, q, q))
    np.testing.assert_allclose(along(q)[0], activation.dual_diag(q), rtol=1e-12)
    tangents = jax.jit(lambda q: jax.jvp(along, (q,), (jnp.ones_like(q),))[1])(q)
    for tangent, up, down in zip(tangents, along(q + step), along(q - step), strict=True):
        np.testing.assert_allclose(tangent, (up - down) / (2 * step), rtol=1e-6, atol=1e-9)


def test_second_derivatives_of_a_smooth_dual_at_equal_inputs():
    """The derivative of E[phi' phi'] in q12 is E[phi'' phi''], with no loss of digits where inputs meet."""
    bend = lambda u: -2 * np.tanh(u) / np.cosh(u) ** 2  # noqa: E731
    for q12 in (0.9, 0.9 * (1 - 1e-12), 0.9 * (1 - 1e-6)):
        slope = lambda c: duals.dual_and_derivative(jnp.tanh, jnp.asarray(0.9), c, jnp.asarray(0.9))[1]  # noqa: E731
        got = jax.jit(jax.grad(slope))(jnp.asarray(q12))
        np.testing.assert_allclose(got, expectation(bend, bend, 0.9, q12, 0.9), rtol=1e-9)


@pytest.mark.parametrize("activation", [bw.Relu(), bw.Sign(), bw.Erf()], **NAMES)
def test_a_correlation_within_rounding_of_one_counts_as_one(activation):
    for dtype in (jnp.float64, jnp.float32):
        q, eps = jnp.asarray([0.1, 1.0, 7.0], dtype), float(jnp.finfo(dtype).eps)
        for off in (-4, -1, 1, 4):
            for sign in (1, -1):
                near = activation.dual_and_derivative(q, sign * q * (1 + off * eps), q)
                same = activation.dual_and_derivative(q, sign * q, q)
                for a, b in zip(near, same, strict=True):
                    np.testing.assert_allclose(a, b, rtol=8 * eps, atol=4 * eps)


@pytest.mark.parametrize("degree", [3, 10, 20])
def test_hermite_to_high_degree(degree):
    activation, rho = bw.Hermite(degree), jnp.linspace(-1, 1, 21)
    value, slope = activation.dual_and_derivative(jnp.ones_like(rho), rho, jnp.ones_like(rho))
    np.testing.assert_allclose(value, rho**degree, rtol=1e-13, atol=1e-300)
    np.testing.assert_allclose(slope, degree * rho ** (degree - 1), rtol=1e-13, atol=1e-300)
    f = functools.partial(hermite, degree)
    for a, c, b in ((1.0, 0.6, 1.0), (0.8, 0.5, 1.3), (1.2, -0.9, 1.1), (0.2, 0.1, 0.3)):
        scale = np.sqrt(expectation(f, f, a, a, a) * expectation(f, f, b, b, b))
        close(activation.dual(*map(jnp.asarray, (a, c, b))), expectation(f, f, a, c, b, counts=(32, 64)), scale, 1e-9)


def test_waves_neither_overflow_nor_cancel():
    for dtype in (jnp.float64, jnp.float32):
        q = jnp.asarray(1e6, dtype)
        for sign in (1, -1):
            np.testing.assert_allclose(bw.Sin().dual_and_derivative(q, sign * q, q), [0.5 * sign, 0.5], rtol=1e-6)
            np.testing.assert_allclose(bw.Cos().dual_and_derivative(q, sign * q, q), [0.5, 0.5 * sign], rtol=1e-6)
    small = jnp.asarray(1e-9)
    np.testing.assert_allclose(bw.Sin().dual(small, small / 3, small), 1e-9 / 3, rtol=1e-8)
    np.testing.assert_allclose(bw.Cos().dual_and_derivative(small, small / 3, small)[1], 1e-9 / 3, rtol=1e-8)


@pytest.mark.parametrize(
    ("fn", "formula"),
    [
        (jnp.tanh, np.tanh),
        (jnp.sin, np.sin),
        (lambda u: u * jax.nn.sigmoid(12 * u), lambda u: u * special.expit(12 * u)),
    ],
    ids=["tanh", "sin", "swish"],
)
def test_quadrature_of_steep_and_wavy_functions(fn, formula):
    """Standard deviations from 1e-3 to 10 and any correlation; poles of tanh(10 x) come within 0.16 of the axis."""
    s = np.array([[1e-3, 1e-3], [1e-3, 10.0], [0.7, 3.0], [10.0, 10.0]])
    rho = np.array([-1.0, -0.9, -1e-3, 0.3, 0.99, 1 - 1e-9, 1.0])
    s1, s2, rho = (grid.ravel() for grid in np.broadcast_arrays(*s.T[:, :, None], rho))
    q = s1**2, rho * s1 * s2, s2**2
    wanted = [expectation(formula, formula, *row, counts=(40, 64)) for row in zip(*q, strict=True)]
    size = {v: expectation(formula, formula, v, v, v) for v in np.unique(q[::2])}
    scale = np.array([np.sqrt(size[a] * size[b]) for a, b in zip(*q[::2], strict=True)])
    close(duals.dual(fn, *map(jnp.asarray, q)), wanted, scale, 1e-10)


def gram(n, size, spread=1.0):
    """Second moments of n inputs: two of them equal, two opposite, one zero, their sizes apart by exp(spread)."""
    x = np.random.default_rng(5).normal(size=(n, 3))
    x *= size * np.exp(spread * np.linspace(-1, 0, n))[:, None] / np.linalg.norm(x, axis=1, keepdims=True)
    x[3], x[4], x[5] = x[2], -x[2], 0.0
    products = jnp.asarray(x @ x.T)
    return jnp.diagonal(products)[:, None], products, jnp.diagonal(products)[None, :]


def on_a_table_and_by_pairs(monkeypatch, call, *arguments):
    results = []
    for limit in (1, 10**9):
        monkeypatch.setattr(duals, "_MANY", limit)
        results.append(jax.jit(lambda *a: call(*a))(*arguments))  # noqa: B023
    return results


@pytest.mark.parametrize(("fn", "size"), [(jax.nn.softplus, 10.0), (bw.Elu(0.5).fn, 2.0)], ids=["softplus", "elu"])
def test_many_pairs_on_a_table(fn, size, monkeypatch):
    call = lambda *q: duals.dual_and_derivative(fn, *q)  # noqa: E731
    table, pairs = on_a_table_and_by_pairs(monkeypatch, call, *gram(16, size, spread=4.0))
    for got, wanted in zip(table, pairs, strict=True):
        own = jnp.sqrt(jnp.abs(jnp.diagonal(wanted)))
        close(got, wanted, own[:, None] * own[None, :], 1e-9)


def test_a_table_that_does_not_fit_is_not_used(monkeypatch):
    steep = lambda u: u * jax.nn.sigmoid(30 * u)  # noqa: E731
    table, pairs = on_a_table_and_by_pairs(monkeypatch, lambda *q: duals.dual(steep, *q), *gram(6, 3.0))
    np.testing.assert_allclose(table, pairs, rtol=1e-12)


@pytest.mark.slow
def test_gradients_through_a_table(monkeypatch):
    def total(scale, q11, q12, q22):
        value, slope = duals.dual_and_derivative(jnp.tanh, scale * q11, scale * q12, scale * q22)
        return jnp.sum(jnp.cos(value)) + jnp.sum(jnp.cos(slope))

    table, pairs = on_a_table_and_by_pairs(monkeypatch, jax.grad(total, (0, 2)), 1.3, *gram(8, 1.0))
    for got, wanted in zip(table, pairs, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("make", [bw.Elu, bw.LeakyRelu, bw.Rbf, bw.Exp, lambda a: bw.GaussianBump(1.0, a)])
def test_gradients_in_what_an_activation_is_made_of(make):
    arguments = jnp.asarray([[1.0, 0.3, 0.8], [0.7, 0.7, 0.7], [0.4, -0.5, 1.5]]).T
    both, step = jax.jit(lambda a: jnp.stack(make(a).dual_and_derivative(*arguments))), 1e-4
    wanted = (both(0.8 + step) - both(0.8 - step)) / (2 * step)
    np.testing.assert_allclose(jax.jit(jax.jacrev(both))(0.8), wanted, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("activation", [bw.Relu(), bw.Gelu(), bw.Tanh()], **NAMES)
def test_vmap(activation):
    arguments = [jnp.asarray(q).reshape(3, 7) for q in covariances()]
    many, whole = (
        jax.jit(jax.vmap(activation.dual_and_derivative))(*arguments),
        activation.dual_and_derivative(*arguments),
    )
    for got, wanted in zip(many, whole, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: bw.Hermite(-1), ValueError, "`Hermite`: degree must be at least 0; got -1"),
        (lambda: bw.Monomial(1.5), TypeError, "`Monomial`: degree must be a whole number; got 1.5"),
        (lambda: bw.RectifiedMonomial(-1), ValueError, "`RectifiedMonomial`: degree must be at least 0; got -1"),
        (lambda: bw.Rbf(-1.0), ValueError, "`Rbf`: gamma must be positive and finite; got -1.0"),
        (lambda: bw.GaussianBump(1.0, 0.0), ValueError, "`GaussianBump`: rate must be positive and finite; got 0.0"),
        (lambda: bw.Polynomial(()), ValueError, "`Polynomial`: coefficients must hold at least one entry"),
    ],
)
@pytest.mark.usefixtures("only_the_librarys_own_checks")
def test_what_activations_refuse(call, error, message):
    with pytest.raises(error) as raised:
        call()
    assert message in str(raised.value)
