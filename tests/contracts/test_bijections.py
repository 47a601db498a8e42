"""Repriorisation is a bijection whose pushforward of N(0, I) is the readout's posterior, in both of its forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import stats

import bnnwide as bw

SHAPES = [(3, 6, 1), (6, 3, 3), (4, 4, 1), (5, 8, 3), (1, 1, 1)]  # n, m, k
SCALE = 0.3


def problem(n, m, k, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    psi = np.concatenate([rng.normal(size=(n, m - 1)) / np.sqrt(m), np.full((n, 1), 0.5)], axis=1)  # with a bias column
    return [jnp.asarray(a, dtype) for a in (psi, rng.normal(size=(n, k)), rng.normal(size=(m, k)))]


def posterior(psi, y, scale=SCALE):
    precision = np.asarray(psi).T @ np.asarray(psi) + scale**2 * np.eye(psi.shape[1])
    return np.linalg.solve(precision, np.asarray(psi).T @ np.asarray(y)), scale**2 * np.linalg.inv(precision)


def log_normal(z):
    return stats.norm.logpdf(np.asarray(z)).sum()


def log_marginal(psi, y, scale=SCALE):
    gram = np.asarray(psi) @ np.asarray(psi).T + scale**2 * np.eye(len(psi))
    law = stats.multivariate_normal(np.zeros(len(psi)), gram)
    return sum(law.logpdf(column) for column in np.asarray(y).T)


@pytest.mark.parametrize("solver", ["primal", "dual"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bijection(shape, solver):
    psi, y, phi = problem(*shape)
    n, m, k = shape
    bijection = bw.Repriorisation(psi, y, SCALE, solver)
    theta, log_det = bijection.forward_and_log_det(phi)
    back, log_det_back = bijection.inverse_and_log_det(theta)
    np.testing.assert_allclose(back, phi, atol=1e-11)
    np.testing.assert_allclose(log_det_back, -log_det, rtol=1e-12)

    # The linear map itself, column by column of Y, and its determinant.
    jacobian = jax.jacfwd(lambda phi: bijection.forward_and_log_det(phi)[0])(phi)
    flat = jacobian.reshape(m * k, m * k)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(flat)[1], rtol=1e-10, atol=1e-12)
    inverse = jax.jacfwd(lambda theta: bijection.inverse_and_log_det(theta)[0])(theta).reshape(m * k, m * k)
    np.testing.assert_allclose(flat @ inverse, np.eye(m * k), atol=1e-10)

    # The pushforward of N(0, I) is the posterior, the same for every output and independent between outputs.
    mean, covariance = posterior(psi, y)
    np.testing.assert_allclose(bijection.forward_and_log_det(jnp.zeros((m, k)))[0], mean, atol=1e-11)
    np.testing.assert_allclose(flat @ flat.T, np.kron(covariance, np.eye(k)), atol=1e-11)

    # The collapse: prior and likelihood of theta, with the determinant, are N(phi) and the marginal likelihood.
    joint = log_normal(theta) + stats.norm.logpdf(y, psi @ theta, SCALE).sum() + float(log_det)
    np.testing.assert_allclose(joint, log_normal(phi) + log_marginal(psi, y), rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_auto_takes_the_smaller_matrix(shape):
    psi, y, phi = problem(*shape)
    chosen = "primal" if shape[1] <= shape[0] else "dual"
    auto, named = (bw.Repriorisation(psi, y, SCALE, s).forward_and_log_det(phi)[0] for s in ("auto", chosen))
    np.testing.assert_array_equal(auto, named)


@pytest.mark.parametrize("solver", ["primal", "dual"])
@pytest.mark.parametrize("shape", [(5, 40, 2), (40, 5, 2)], ids=str)
def test_float32(shape, solver):
    psi, y, phi = problem(*shape, np.float32)
    theta, log_det = bw.Repriorisation(psi, y, 0.1, solver).forward_and_log_det(phi)
    back, _ = bw.Repriorisation(psi, y, 0.1, solver).inverse_and_log_det(theta)
    assert theta.dtype == log_det.dtype == back.dtype == jnp.float32
    exact, exact_log_det = bw.Repriorisation(
        *(a.astype(jnp.float64) for a in (psi, y)), 0.1, solver
    ).forward_and_log_det(phi.astype(jnp.float64))
    np.testing.assert_allclose(theta, exact, atol=2e-4)
    np.testing.assert_allclose(log_det, exact_log_det, rtol=1e-4)
    np.testing.assert_allclose(back, phi, atol=3e-3)


@pytest.mark.parametrize("solver", ["primal", "dual"])
def test_derivatives_reach_features_and_scale(solver):
    psi, y, phi = problem(4, 5, 2)

    def total(psi, scale):
        psi, scale = jnp.asarray(psi), jnp.asarray(scale)
        theta, log_det = bw.Repriorisation(psi, y, scale, solver).forward_and_log_det(phi)
        return jnp.sum(jnp.sin(theta)) + log_det

    check_grads(total, (psi, jnp.asarray(SCALE)), order=1, modes=["fwd", "rev"], rtol=1e-5)


def test_readout_marginal_draws_have_its_covariance():
    psi, _, _ = problem(3, 6, 2)
    law = bw.reparam.ReadoutMarginal(psi, SCALE, 2)
    draws = np.asarray(law.sample(jax.random.key(0), (40_000,)))
    gram = np.asarray(psi) @ np.asarray(psi).T + SCALE**2 * np.eye(3)
    empirical = np.einsum("sik,sjl->ikjl", draws, draws) / len(draws)
    expected = np.einsum("ij,kl->ikjl", gram, np.eye(2))
    assert np.abs(empirical - expected).max() < 5 * np.sqrt(2 / len(draws)) * gram.max()
    np.testing.assert_allclose(law.log_prob(jnp.asarray(draws[0])), log_marginal(psi, draws[0]), rtol=1e-10)
