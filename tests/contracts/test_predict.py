"""Predictions against brute force, in batches, with and without the input collapse; and exact readout draws."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

import bnnwide as bw

N, D, K, DRAWS = 6, 3, 2, 40
NET = bw.Dense(8, w_scale=2**0.5, b_scale=0.3) >> bw.Gelu() >> bw.Dense(K, b_scale=0.2)
NOISES = {"fixed": bw.Gaussian(0.3), "learned": bw.Gaussian(dist.LogNormal(-1.0, 0.5))}


def data(d=D, n=N, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)), rng.normal(size=(n, K))


def hidden_draws(d=D, draws=DRAWS, seed=1):
    rng = np.random.default_rng(seed)
    sites = {"hidden.0.w": rng.normal(size=(draws, d, 8)), "hidden.0.b": rng.normal(size=(draws, 8))}
    return sites | {"noise_scale": rng.uniform(0.2, 0.6, draws)}


def readout_posterior(psi, y, scale):
    precision = psi.T @ psi + scale**2 * np.eye(psi.shape[1])
    return np.linalg.solve(precision, psi.T @ y), scale**2 * np.linalg.inv(precision)


@pytest.mark.parametrize("noise", NOISES)
def test_moments_are_those_of_the_mixture_of_regressions(noise):
    (x, y), x_test, samples = data(), data(seed=5, n=11)[0], hidden_draws()
    model = bw.bnn(NET, NOISES[noise])
    prediction = bw.predict(model, samples, x, y, x_test)
    scales = samples["noise_scale"] if noise == "learned" else np.full(DRAWS, 0.3)
    means, variances = [], []
    for w, b, scale in zip(samples["hidden.0.w"], samples["hidden.0.b"], scales, strict=True):
        params = ({"w": jnp.asarray(w), "b": jnp.asarray(b)}, ())
        psi, psi_test = (np.asarray(NET.features(params, points)) for points in (x, x_test))
        mean, covariance = readout_posterior(psi, y, scale)
        means.append(psi_test @ mean)
        variances.append(np.einsum("ti,ij,tj->t", psi_test, covariance, psi_test))
    np.testing.assert_allclose(prediction.mean, np.mean(means, 0), rtol=1e-9)
    epistemic = np.var(means, 0) + np.mean(variances, 0)[:, None]
    np.testing.assert_allclose(prediction.epistemic, epistemic, rtol=1e-9)
    np.testing.assert_allclose(prediction.aleatoric, np.full((11, K), np.mean(scales**2)), rtol=1e-12)
    np.testing.assert_allclose(prediction.variance, epistemic + np.mean(scales**2), rtol=1e-9)
    assert repr(prediction) == "Prediction(n_test=11, k=2)"


@pytest.mark.parametrize("solver", ["primal", "dual"])
def test_readout_draws_are_bayesian_linear_regression(solver):
    """Frozen hidden weights: many draws of the readout have the closed-form mean, covariance and marginals."""
    (x, y), number = data(), 20_000
    samples = {name: np.repeat(value[:1], number, 0) for name, value in hidden_draws().items()}
    draws = bw.readout_draws(bw.bnn(NET, NOISES["fixed"], solver=solver), samples, x, y, key=jax.random.key(0))
    params = ({"w": jnp.asarray(samples["hidden.0.w"][0]), "b": jnp.asarray(samples["hidden.0.b"][0])}, ())
    mean, covariance = readout_posterior(np.asarray(NET.features(params, x)), y, 0.3)
    spread = np.sqrt(np.diag(covariance))
    white = (np.asarray(draws) - mean) / spread[:, None]
    assert np.abs(white.mean(0)).max() < 5 / np.sqrt(number)
    correlation = covariance / np.outer(spread, spread)
    for output in range(K):
        assert np.abs(np.cov(white[:, :, output], rowvar=False) - correlation).max() < 7 / np.sqrt(number)
        assert stats.kstest(white[:, 0, output], "norm").pvalue > 1e-4
    assert abs(np.corrcoef(white[:, 0, 0], white[:, 0, 1])[0, 1]) < 5 / np.sqrt(number)


def test_predictions_are_the_average_over_readout_draws():
    (x, y), x_test, number = data(), data(seed=5, n=3)[0], 20_000
    samples = {name: np.repeat(value[:4], number // 4, 0) for name, value in hidden_draws().items()}
    model = bw.bnn(NET, NOISES["learned"])
    prediction = bw.predict(model, samples, x, y, x_test)
    theta = bw.readout_draws(model, samples, x, y, key=jax.random.key(0))
    params = bw.hidden_weights(model, samples, x, y, key=jax.random.key(1))
    f = jax.vmap(lambda params, theta: NET.features(params, x_test) @ theta)(params, theta)
    error = np.sqrt(prediction.epistemic / number)
    assert (np.abs(f.mean(0) - prediction.mean) < 5 * error).all()
    np.testing.assert_allclose(f.var(0), prediction.epistemic, rtol=5 * 2 / np.sqrt(number))


def test_readouts_that_are_sampled_are_returned_as_they_are():
    (x, y), theta = data(), np.random.default_rng(3).normal(size=(DRAWS, 9, K))
    samples = hidden_draws()
    key, standard = jax.random.key(0), bw.bnn(NET, NOISES["fixed"], "standard")
    got = bw.readout_draws(standard, samples | {"readout": theta}, x, y, key=key)
    np.testing.assert_array_equal(got, theta)
    mapped = bw.readout_draws(
        bw.bnn(NET, NOISES["fixed"], "repriorised"), samples | {"readout_base": theta}, x, y, key=key
    )
    params = ({"w": jnp.asarray(samples["hidden.0.w"][7]), "b": jnp.asarray(samples["hidden.0.b"][7])}, ())
    bijection = bw.Repriorisation(NET.features(params, x), jnp.asarray(y), 0.3)
    np.testing.assert_allclose(mapped[7], bijection.forward_and_log_det(jnp.asarray(theta[7]))[0], rtol=1e-8)


@pytest.mark.parametrize("d", [D, 9], ids=["full inputs", "input collapse"])
def test_batches_change_nothing(d):
    (x, y), x_test = data(d), data(d, seed=5, n=13)[0]
    model, samples = bw.bnn(NET, NOISES["fixed"]), hidden_draws(d, 5)
    if d > N:
        samples = {"hidden.0.span": np.random.default_rng(2).normal(size=(5, N, 8))}
    key = jax.random.key(3)
    whole = bw.predict(model, samples, x, y, x_test, key=key)
    for size in (1, 5, 13):
        parts = bw.predict(model, samples, x, y, x_test, key=key, batch_size=size)
        np.testing.assert_allclose(parts.mean, whole.mean, rtol=1e-10)
        np.testing.assert_allclose(parts.variance, whole.variance, rtol=1e-10)


def test_ten_thousand_test_inputs():
    (x, y), x_test = data(), data(seed=5, n=10_000)[0]
    prediction = bw.predict(bw.bnn(NET, NOISES["fixed"]), hidden_draws(draws=3), x, y, x_test)
    assert prediction.mean.shape == prediction.variance.shape == (10_000, K)
    few = bw.predict(bw.bnn(NET, NOISES["fixed"]), hidden_draws(draws=3), x, y, x_test[-2:])
    np.testing.assert_allclose(prediction.mean[-2:], few.mean, rtol=1e-9)


def test_input_collapse_predicts_as_full_weights_do():
    """Full weights W ~ N(0, I) and their span Q W are one draw; what the span leaves out is averaged over."""
    d, number = 9, 20_000
    (x, y), x_test = data(d), data(d, seed=5, n=4)[0]
    full = {name: value for name, value in hidden_draws(d, number).items() if name != "noise_scale"}
    on, off = bw.bnn(NET, NOISES["fixed"]), bw.bnn(NET, NOISES["fixed"], input_collapse=False)
    collapse = on.feature_map(jnp.asarray(x)).collapse
    span = jax.vmap(collapse.span)({"w": jnp.asarray(full["hidden.0.w"]), "b": jnp.asarray(full["hidden.0.b"])})
    a = bw.predict(on, {"hidden.0.span": span}, x, y, x_test, key=jax.random.key(4))
    b = bw.predict(off, full, x, y, x_test)
    error = np.sqrt(2 * np.asarray(b.epistemic) / number)
    assert (np.abs(a.mean - b.mean) < 4.5 * error).all()
    np.testing.assert_allclose(a.epistemic, b.epistemic, rtol=0.1)
    params = bw.hidden_weights(on, {"hidden.0.span": span[:5]}, x, y, key=jax.random.key(5))
    for i in range(5):
        seen = NET[0](jax.tree.map(lambda leaf, i=i: leaf[i], params[0]), x)
        np.testing.assert_allclose(seen, collapse.preactivation(span[i]), atol=1e-12)
