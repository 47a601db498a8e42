"""The marginal likelihood against SciPy's formula, its own derivatives against autodiff, and the jitter ladder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import stats

from bnnwide.linalg import cholesky, log_marginal, triangular_inverse

SHAPES = [(3, 6, 1), (6, 3, 2), (4, 4, 3)]  # n, m, k


def problem(n, m, k):
    rng = np.random.default_rng(1)
    psi, y = rng.normal(size=(n, m)) / np.sqrt(m), rng.normal(size=(n, k))
    return jnp.asarray(psi), jnp.asarray(y), jnp.asarray(0.4)


def plain(psi, y, scale):
    gram = psi @ psi.T + scale**2 * jnp.eye(len(psi))
    quadratic = jnp.sum(y * jnp.linalg.solve(gram, y))
    return -0.5 * quadratic - 0.5 * y.shape[1] * jnp.linalg.slogdet(gram)[1] - 0.5 * y.size * jnp.log(2 * jnp.pi)


@pytest.mark.parametrize("solver", ["primal", "dual", "auto"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_log_marginal(shape, solver):
    psi, y, scale = problem(*shape)
    ours = lambda psi, y, scale: log_marginal(psi, y, scale, solver=solver)  # noqa: E731
    law = stats.multivariate_normal(np.zeros(len(psi)), np.asarray(psi @ psi.T + scale**2 * jnp.eye(len(psi))))
    expected = sum(law.logpdf(np.asarray(y)[:, j]) for j in range(y.shape[1]))
    np.testing.assert_allclose(ours(psi, y, scale), expected, rtol=1e-11)
    for got, want in zip(
        jax.jit(jax.grad(ours, (0, 1, 2)))(psi, y, scale), jax.grad(plain, (0, 1, 2))(psi, y, scale), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-11)
    tangents = (jnp.cos(psi), jnp.sin(y), jnp.asarray(0.7))
    forward = [jax.jvp(f, (psi, y, scale), tangents)[1] for f in (ours, plain)]
    np.testing.assert_allclose(*forward, rtol=1e-9)


@pytest.mark.parametrize("solver", ["primal", "dual"])
def test_log_marginal_hessian(solver):
    psi, y, scale = problem(4, 3, 2)

    def hessian(value):
        blocks = jax.jit(jax.hessian(value, (0, 1, 2)))(psi, y, scale)
        return jax.tree.leaves(blocks)

    for got, want in zip(
        hessian(lambda *a: log_marginal(*a, solver=solver)), hessian(lambda *a: plain(*a)), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-9)


def test_log_marginal_takes_a_batch():
    psi, y, scale = problem(3, 6, 2)
    many = jnp.stack([psi, 2 * psi, -psi])
    batched = jax.vmap(lambda psi: log_marginal(psi, y, scale))(many)
    np.testing.assert_allclose(batched, jnp.stack([log_marginal(one, y, scale) for one in many]), rtol=1e-12)


def spectrum(*eigenvalues):
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(len(eigenvalues),) * 2))[0]
    return jnp.asarray(rotation * np.asarray(eigenvalues) @ rotation.T)


def test_a_good_matrix_gets_no_jitter():
    a = spectrum(1.0, 0.5, 3.0, 1e-6)
    np.testing.assert_array_equal(cholesky(a), jnp.linalg.cholesky(a, symmetrize_input=False))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_a_singular_matrix_climbs_the_ladder(dtype):
    a = spectrum(1.0, 2.0, 0.0, 0.0, 0.0, -4 * float(jnp.finfo(dtype).eps)).astype(dtype)
    assert not jnp.isfinite(jnp.linalg.cholesky(a)).all()
    factor = cholesky(a)
    assert factor.dtype == dtype and jnp.isfinite(factor).all()
    np.testing.assert_allclose(factor @ factor.T, a, atol=32e4 * float(jnp.finfo(dtype).eps))
    np.testing.assert_array_equal(factor, jnp.tril(factor))


def test_an_indefinite_matrix_is_nan_and_does_not_spoil_its_batch():
    good, bad = spectrum(1.0, 2.0, 3.0), spectrum(1.0, 2.0, -0.5)
    assert jnp.isnan(cholesky(bad)).any()
    factors = jax.vmap(cholesky)(jnp.stack([good, bad]))
    np.testing.assert_allclose(factors[0], jnp.linalg.cholesky(good), rtol=1e-12)
    assert jnp.isnan(factors[1]).any()
    assert jnp.isnan(log_marginal(jnp.full((2, 2), jnp.nan), jnp.ones((2, 1)), 0.1))


def test_cholesky_derivative():
    a = spectrum(1.0, 0.5, 3.0, 2.0)
    symmetric = lambda s: cholesky(jnp.asarray(s + s.T) / 2)  # noqa: E731
    check_grads(symmetric, (a,), order=2, modes=["fwd", "rev"], rtol=1e-5)
    reference = jax.jacrev(lambda s: jnp.linalg.cholesky((s + s.T) / 2, symmetrize_input=False))(a)
    np.testing.assert_allclose(jax.jacrev(symmetric)(a), reference, atol=1e-12)


@pytest.mark.parametrize("n", [5, 33, 150])  # one block, two, and blocks of unequal sizes
def test_triangular_inverse_and_the_derivative_made_of_it(n):
    a = spectrum(*np.linspace(0.1, 3.0, n))
    factor = cholesky(a)
    inverse = triangular_inverse(factor)
    np.testing.assert_allclose(inverse @ factor, np.eye(n), atol=1e-13)
    np.testing.assert_array_equal(inverse, jnp.tril(inverse))
    weight = jnp.cos(jnp.arange(n * n).reshape(n, n))
    ours = jax.grad(lambda a: jnp.sum(weight * cholesky((a + a.T) / 2)))(a)
    reference = jax.grad(lambda a: jnp.sum(weight * jnp.linalg.cholesky((a + a.T) / 2, symmetrize_input=False)))(a)
    np.testing.assert_allclose(ours, reference, atol=1e-11)
