"""Laplace and noisy natural gradient against posteriors that are Gaussian, and against closed forms elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import bnnwide as bw

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 3))
X_TEST = RNG.normal(size=(4, 3))
LINEAR = bw.Dense(1, w_scale=1.4, b_scale=0.6)
SCALE = 0.5
Y = X @ np.array([[1.0], [-0.5], [0.2]]) + SCALE * RNG.normal(size=(12, 1))


@pytest.fixture(scope="module")
def regression():
    """Posterior mean, precision and features of the linear model."""
    psi, psi_test = (np.asarray(LINEAR.features(jnp.asarray(x))) for x in (X, X_TEST))
    precision = psi.T @ psi / SCALE**2 + np.eye(4)
    return np.linalg.solve(precision, psi.T @ Y / SCALE**2), precision, psi, psi_test


@pytest.mark.parametrize("form", ["dense", "dual", "kfac"])
def test_laplace_is_exact_on_a_linear_model(regression, form):
    mean, precision, psi, psi_test = regression
    post = bw.natgrad.laplace(LINEAR, bw.Gaussian(SCALE), X, Y, form=form, key=jax.random.key(0))
    np.testing.assert_allclose(LINEAR.stacked(post.mean), mean, atol=1e-5)
    pred = post.predict(X_TEST)
    np.testing.assert_allclose(pred.mean, psi_test @ mean, atol=1e-5)
    variance = np.einsum("tm,mt->t", psi_test, np.linalg.solve(precision, psi_test.T))
    np.testing.assert_allclose(pred.epistemic[:, 0], variance, rtol=1e-8)
    np.testing.assert_allclose(pred.aleatoric, SCALE**2)
    evidence = stats.multivariate_normal.logpdf(Y[:, 0], cov=psi @ psi.T + SCALE**2 * np.eye(12))
    np.testing.assert_allclose(post.log_marginal_likelihood(), evidence, rtol=1e-7)


def test_the_bound_on_the_evidence_is_tight_for_the_posterior_and_below_it_by_the_divergence_otherwise(regression):
    _, precision, psi, _ = regression
    evidence = stats.multivariate_normal.logpdf(Y[:, 0], cov=psi @ psi.T + SCALE**2 * np.eye(12))
    exact, diagonal = (
        bw.natgrad.laplace(LINEAR, bw.Gaussian(SCALE), X, Y, form=form, key=jax.random.key(0))
        for form in ("dense", "diag")
    )
    bound, error = exact.elbo(X, Y, key=jax.random.key(1))
    np.testing.assert_allclose(bound, evidence, rtol=1e-6)
    assert error < 1e-6
    bound, error = diagonal.elbo(X, Y, key=jax.random.key(1), num_samples=4000)
    spread = np.diagonal(precision)
    divergence = 0.5 * (np.sum(np.log(spread)) - np.linalg.slogdet(precision)[1])  # the traces cancel
    assert error < 0.05 and abs(bound - (evidence - divergence)) < 4 * error
    with pytest.raises(ValueError, match="`elbo`: y must be finite"):
        exact.elbo(X, np.full_like(Y, np.nan), key=jax.random.key(1))


def test_draws_of_a_gaussian_have_its_moments(regression):
    mean, precision, _, _ = regression
    post = bw.natgrad.laplace(LINEAR, bw.Gaussian(SCALE), X, Y, form="dense", key=jax.random.key(0))
    draws = post.sample(jax.random.key(1), 4000)
    flat = np.asarray(jax.vmap(LINEAR.stacked)(draws.flat()))[:, :, 0]
    white = (flat - mean[:, 0]) @ np.linalg.cholesky(precision)
    np.testing.assert_allclose(white.T @ white / 4000, np.eye(4), atol=5 * (2 / 4000) ** 0.5)
    np.testing.assert_allclose(draws.predict(X_TEST).epistemic, post.predict(X_TEST).epistemic, rtol=0.12)


def test_laplace_evidence_of_logistic_regression_is_the_dense_formula():
    labels = (Y[:, 0] > 0).astype(int)
    post = bw.natgrad.laplace(LINEAR, bw.Bernoulli(), X, labels, key=jax.random.key(2))
    psi = np.asarray(LINEAR.features(jnp.asarray(X)))
    w = np.asarray(LINEAR.stacked(post.mean))[:, 0]
    p = 1 / (1 + np.exp(-psi @ w))
    np.testing.assert_allclose(psi.T @ (p - labels) + w, 0, atol=1e-4)  # at the mode
    hessian = (psi * (p * (1 - p))[:, None]).T @ psi + np.eye(4)
    evidence = np.sum(np.log(np.where(labels, p, 1 - p))) - 0.5 * w @ w - 0.5 * np.linalg.slogdet(hessian)[1]
    np.testing.assert_allclose(post.log_marginal_likelihood(), evidence, rtol=1e-8)
    pred = post.predict(X_TEST)
    psi_test = np.asarray(LINEAR.features(jnp.asarray(X_TEST)))
    sd = np.sqrt(np.einsum("tm,mt->t", psi_test, np.linalg.solve(hessian, psi_test.T)))
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    probs = (1 / (1 + np.exp(-(psi_test @ w + sd * nodes[:, None])))).T @ weights / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(pred.probs[:, 0], probs, atol=0.02)  # 200 draws, in pairs
    np.testing.assert_allclose(post.log_score(X_TEST, np.ones(4, int)), np.log(probs), atol=0.05)


def test_last_layer_is_bayesian_regression_on_its_features():
    net = bw.Dense(5, w_scale=1.5, b_scale=0.3) >> bw.Tanh() >> bw.Dense(2, w_scale=1.2)
    y = RNG.normal(size=(12, 2))
    params = net.init(jax.random.key(3), (3,))
    psi = np.asarray(net.features(params, jnp.asarray(X)))
    precision = psi.T @ psi / SCALE**2 + np.eye(5)
    params = (*params[:-1], {"w": jnp.asarray(np.linalg.solve(precision, psi.T @ y / SCALE**2))})
    post = bw.natgrad.laplace(net, bw.Gaussian(SCALE), X, y, form="last_layer", params=params)
    evidence = sum(stats.multivariate_normal.logpdf(c, cov=psi @ psi.T + SCALE**2 * np.eye(12)) for c in y.T)
    np.testing.assert_allclose(post.log_marginal_likelihood(), evidence, rtol=1e-9)
    psi_test = np.asarray(net.features(params, jnp.asarray(X_TEST)))
    variance = np.einsum("tm,mt->t", psi_test, np.linalg.solve(precision, psi_test.T))
    np.testing.assert_allclose(post.predict(X_TEST).epistemic, np.stack([variance, variance], axis=1), rtol=1e-9)


@pytest.mark.parametrize("family", ["diag", "kfac", "ekfac"])
def test_noisy_vi_finds_the_known_optimum_of_a_linear_model(regression, family):
    """Mean: exact. Precision: the diagonal of the exact one, the exact one, or the prior factored into it."""
    mean, precision, psi, _ = regression
    post = bw.natgrad.noisy_vi(
        LINEAR, bw.Gaussian(SCALE), X, Y, key=jax.random.key(4), family=family, num_steps=400, learning_rate=0.2
    )
    np.testing.assert_allclose(LINEAR.stacked(post.mean), mean, atol=1e-4)
    got = np.asarray(post.precision.dense())
    order = np.array([1, 2, 3, 0])  # leaves come by name, the bias first
    got = got[np.ix_(order, order)]
    if family == "kfac":
        a, b = psi.T @ psi / 12, 1 / SCALE**2
        pi = np.sqrt(np.trace(a) / 4 / b)
        expected = (12**0.5 * a + pi * np.eye(4)) * (12**0.5 * b + 1 / pi)
    else:
        expected = precision if family == "ekfac" else np.diag(np.diagonal(precision))
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


def test_noisy_vi_on_minibatches_of_a_classifier():
    net = bw.Dense(6, w_scale=1.5, b_scale=0.3) >> bw.Tanh() >> bw.Dense(3, w_scale=2.0)
    x = np.random.default_rng(7).normal(size=(80, 3))
    labels = np.argmax(x, axis=1)
    post = bw.natgrad.noisy_vi(
        net, bw.Categorical(), x, labels, key=jax.random.key(5), family="ekfac", batch_size=20, num_steps=300
    )
    draws = post.sample(jax.random.key(6), 50)
    assert float(draws.log_score(x, labels).mean()) > np.log(1 / 3) + 0.3
    pred = draws.predict(X_TEST)
    np.testing.assert_allclose(pred.probs.sum(axis=1), 1.0)
    assert (pred.epistemic > 0).all()


def test_a_bound_on_the_divergence_of_steps_keeps_a_fit_finite():
    """Small batches of rectifiers, as fast as may be: off without a bound, a fit with one."""
    net = bw.Dense(20, b_scale=1.0) >> bw.Relu() >> bw.Dense(1)
    rng = np.random.default_rng(9)
    x = rng.normal(size=(60, 4))
    y = np.sin(2 * x[:, :1]) * x[:, 1:2]
    options = {"key": jax.random.key(9), "family": "ekfac", "batch_size": 10, "learning_rate": 1.0, "num_steps": 400}
    with pytest.raises(ValueError, match="it left with learning_rate=1.0; lower it, or set max_kl=1"):
        bw.natgrad.noisy_vi(net, bw.Gaussian(0.1), x, y, **options)
    post = bw.natgrad.noisy_vi(net, bw.Gaussian(0.1), x, y, max_kl=1, **options)
    assert np.mean((y - post.predict(x).mean) ** 2) < 0.2 * np.mean(y**2)


def test_a_step_moves_q_by_the_divergence_it_may(regression):
    """One step from afar: KL(q_new | q_old) of the means, in the precision that was seen, is the bound."""
    far = {"w": jnp.full((3, 1), 100.0), "b": jnp.zeros(1)}
    options = {"key": jax.random.key(4), "family": "ekfac", "num_steps": 1, "learning_rate": 1.0, "params": far}
    moved = bw.natgrad.noisy_vi(LINEAR, bw.Gaussian(SCALE), X, Y, max_kl=2.0, **options)
    shift = LINEAR.stacked(moved.mean) - LINEAR.stacked(far)
    np.testing.assert_allclose(0.5 * np.sum(shift * (regression[1] @ shift)), 2.0, rtol=1e-5)


def test_noisy_vi_of_one_logistic_weight_is_the_optimum_of_the_elbo():
    """There F is the Hessian: precision = E_q[Hessian] + 1 and E_q[gradient] + mean = 0, both by quadrature."""
    x, labels = X[:, :1] + 1.0, (Y[:, 0] > 0).astype(int)
    net = bw.Dense(1)
    post = bw.natgrad.noisy_vi(net, bw.Bernoulli(), x, labels, key=jax.random.key(8), family="diag", num_steps=3000)
    mean, precision = float(post.mean["w"][0, 0]), float(post.precision.values[0])
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    p = 1 / (1 + np.exp(-x * (mean + nodes / precision**0.5)))
    weights = weights / weights.sum()
    np.testing.assert_allclose(np.sum((p - labels[:, None]) * x, axis=0) @ weights + mean, 0.0, atol=0.02)
    np.testing.assert_allclose(np.sum(p * (1 - p) * x**2, axis=0) @ weights + 1, precision, rtol=0.01)


def test_errors():
    with pytest.raises(ValueError, match="`laplace`: params, the mode, or a key to look for one must be given"):
        bw.natgrad.laplace(LINEAR, bw.Gaussian(SCALE), X, Y)
    with pytest.raises(ValueError, match="form 'last_layer' must be given an architecture that ends in Dense"):
        bw.natgrad.laplace(LINEAR, bw.Gaussian(SCALE), X, Y, form="last_layer", key=jax.random.key(0))
    with pytest.raises(ValueError, match="family must be one of 'diag', 'kfac', 'ekfac'; got 'full'"):
        bw.natgrad.noisy_vi(LINEAR, bw.Gaussian(SCALE), X, Y, key=jax.random.key(0), family="full")
    with pytest.raises(ValueError, match="max_kl must be positive and finite; got 0"):
        bw.natgrad.noisy_vi(LINEAR, bw.Gaussian(SCALE), X, Y, key=jax.random.key(0), max_kl=0)
    with pytest.raises(ValueError, match="learning_rate must be above 0 and at most 1; got 3"):
        bw.natgrad.noisy_vi(LINEAR, bw.Gaussian(SCALE), X, Y, key=jax.random.key(0), learning_rate=3)
