"""The fully Bayesian Gaussian process against quadrature over its hyper-parameters."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from gp_problems import RNG, close
from numpyro.infer import MCMC, NUTS, Predictive
from numpyro.infer.util import log_density
from scipy import stats

import bnnwide as bw
from bnnwide.models.gp import gp_model

X, X_TEST = RNG.normal(size=(8, 2)), RNG.normal(size=(3, 2))
Y = np.sin(2 * X[:, :1]) + 0.1 * RNG.normal(size=(8, 1))
PRIORS = {"w": dist.LogNormal(0.0, 0.5), "b": dist.HalfNormal(1.0)}
LEARNED = bw.Gaussian(dist.HalfNormal(0.5))


def network(w, b=0.3):
    return bw.Dense(1, w_scale=w, b_scale=b) >> bw.Erf() >> bw.Dense(1, w_scale=1.5)


MODEL = gp_model(network, PRIORS, LEARNED, ridge=bw.gp.Ridge(0.01))


def test_density_is_prior_times_evidence():
    draw = {"w": jnp.asarray(1.3), "b": jnp.asarray(0.4), "noise_scale": jnp.asarray(0.2)}
    prior = stats.lognorm(0.5).logpdf(1.3) + stats.halfnorm().logpdf(0.4) + stats.halfnorm(scale=0.5).logpdf(0.2)
    kernel = np.asarray(network(1.3, 0.4).kernel(X).nngp)
    law = stats.multivariate_normal(np.zeros(8), kernel + (0.04 + 0.01 * np.trace(kernel) / 8) * np.eye(8))
    close(log_density(MODEL, (X, Y), {}, draw)[0], prior + law.logpdf(Y[:, 0]))
    post = MODEL.posterior(draw, X, Y)
    close(post.log_marginal_likelihood(), law.logpdf(Y[:, 0]))
    close(post.variance, 0.04)


def test_prior_predictive_has_the_kernel_as_covariance():
    model = gp_model(network, {"w": dist.Delta(1.2)}, bw.Gaussian(0.5), outputs=2)
    s = 20_000
    y = Predictive(model, num_samples=s)(jax.random.key(0), X)["y"]
    assert y.shape == (s, 8, 2)
    wanted = np.asarray(network(1.2).kernel(X).nngp) + 0.25 * np.eye(8)
    sd = np.sqrt(np.diag(wanted))
    assert np.all(np.abs(np.cov(y[:, :, 1].T) - wanted) < 5 * np.sqrt((wanted**2 + np.outer(sd, sd) ** 2) / s))


def test_predict_is_the_mixture_over_draws():
    draws = {"w": np.array([0.7, 1.3]), "b": np.array([0.2, 0.5]), "noise_scale": np.array([0.1, 0.4])}
    parts = [MODEL.posterior({name: jnp.asarray(value[i]) for name, value in draws.items()}, X, Y) for i in range(2)]
    wanted = [part.predict(X_TEST, full_cov=True) for part in parts]
    means = np.stack([part.mean for part in wanted])
    for full_cov in (False, True):
        got = MODEL.predict(draws, X, Y, X_TEST, full_cov=full_cov)
        close(got.mean, means.mean(0))
        close(got.epistemic, np.mean([part.epistemic for part in wanted], axis=0) + means.var(0))
        close(got.aleatoric, np.full((3, 1), (0.01 + 0.16) / 2))
    off = means[:, :, 0] - means.mean(0)[:, 0]
    close(got.covariance[0], np.mean([part.covariance for part in wanted], axis=0) + off.T @ off / 2)


def test_nuts_finds_the_posterior_of_a_grid():
    noise = bw.Gaussian(0.2)
    model = gp_model(network, {"w": dist.LogNormal(0.0, 0.5)}, noise)
    grid = np.linspace(-2.5, 2.5, 201)
    kernels = jax.jit(jax.vmap(lambda w: network(w).kernel(X, ntk=False).nngp))(np.exp(grid))
    evidence = [stats.multivariate_normal(np.zeros(8), k + 0.04 * np.eye(8)).logpdf(Y[:, 0]) for k in kernels]
    weights = np.exp(np.asarray(evidence) - np.max(evidence)) * stats.norm(0, 0.5).pdf(grid)
    weights /= weights.sum()
    mean = weights @ grid
    sd = np.sqrt(weights @ (grid - mean) ** 2)

    mcmc = MCMC(NUTS(model), num_warmup=200, num_samples=1000, progress_bar=False)
    mcmc.run(jax.random.key(1), X, Y)
    logs = np.log(mcmc.get_samples()["w"])
    # Draws of one well-scaled number are about as good as a third as many independent ones.
    error = sd / np.sqrt(len(logs) / 3)
    assert abs(logs.mean() - mean) < 4 * error
    assert abs(logs.std() - sd) < 4 * error

    exact = [bw.gp.nngp(network(np.exp(log)), X, Y, noise).predict(X_TEST).mean for log in grid[::10]]
    coarse = weights[::10] / weights[::10].sum()
    wanted = np.einsum("g,gtk->tk", coarse, np.stack(exact))
    spread = np.sqrt(np.einsum("g,gtk->tk", coarse, (np.stack(exact) - wanted) ** 2))
    got = model.predict(mcmc.get_samples(), X, Y, X_TEST).mean
    assert np.all(np.abs(got - wanted) < 4 * spread / np.sqrt(len(logs) / 3) + 1e-4)


REFUSED = {
    "net": (
        lambda: gp_model(network(1.0), PRIORS, LEARNED),
        "`gp_model`: net_of_scales must be a function from scales",
    ),
    "prior": (
        lambda: gp_model(network, {"w": 1.0}, LEARNED),
        "`gp_model`: priors['w'] must be a NumPyro distribution; got 1.0",
    ),
    "name": (
        lambda: gp_model(network, {"noise_scale": PRIORS["w"]}, LEARNED),
        "`gp_model`: the name 'noise_scale' belongs to the likelihood",
    ),
    "likelihood": (lambda: gp_model(network, PRIORS, 0.1), "`gp_model`: likelihood must be a likelihood such as"),
    "kernel": (lambda: gp_model(network, PRIORS, LEARNED, kernel="rbf"), "`gp_model`: kernel must be one of 'nngp'"),
    "y": (
        lambda: MODEL.posterior({}, X, np.ones((8, 2))),
        "`posterior`: y must have shape (8, 1) with n=8 from x and k=1 from outputs; got (8, 2)",
    ),
    "missing": (
        lambda: MODEL.predict({"w": np.ones(2), "b": np.ones(2)}, X, Y, X_TEST),
        "`predict`: samples must hold the site 'noise_scale'; got ['b', 'w']; pass the samples of this model",
    ),
    "not finite": (
        lambda: MODEL.predict({name: np.full(2, np.nan) for name in ("w", "b", "noise_scale")}, X, Y, X_TEST),
        "`predict`: K + scale^2 I has no finite Cholesky factor, even with jitter, or a sample is not finite",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_says_what_was_expected_and_what_came(name, only_the_librarys_own_checks):
    call, message = REFUSED[name]
    with pytest.raises((ValueError, TypeError), match="^" + re.escape(message)):
        call()
