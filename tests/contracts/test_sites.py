"""Sites against a second implementation (Laplace), against closed-form fixed points (variational), and refined."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.infer
import pytest
from scipy import stats
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.gaussian_process.kernels import RBF

import bnnwide as bw
from bnnwide.reparam import find_sites, match_draws
from bnnwide.reparam.sites import posterior_moments

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 2))
KERNEL = 2.0 * np.exp(-0.5 * ((X[:, None] - X) ** 2).sum(-1)) + 1e-8 * np.eye(12)
LATENT = np.linalg.cholesky(KERNEL) @ RNG.normal(size=12)
SIGNS = (LATENT + 0.3 * RNG.normal(size=12) > 0).astype(int)
COUNTS = RNG.poisson(np.exp(LATENT))
OUTLIERS = LATENT + RNG.laplace(size=12, scale=0.4)


def test_laplace_sites_are_scikit_learns():
    """Mode and evidence of Laplace's approximation, by Rasmussen & Williams' algorithm 3.1 in scikit-learn."""
    other = GaussianProcessClassifier(2.0 * RBF(1.0), optimizer=None).fit(X, SIGNS)
    sites = find_sites(
        bw.Bernoulli(), jnp.asarray(SIGNS)[:, None], jnp.asarray(KERNEL), 1, method="laplace", tolerance=1e-9
    )
    mean, _ = posterior_moments(sites, jnp.asarray(KERNEL))
    # scikit-learn stops once the evidence moves by less than 1e-10.
    weights = np.asarray(sites.precision[:, 0])
    sign = 2 * SIGNS - 1
    log_likelihood = -np.log1p(np.exp(-sign * np.asarray(mean[:, 0]))).sum()
    b = np.eye(12) + np.sqrt(weights)[:, None] * KERNEL * np.sqrt(weights)
    evidence = log_likelihood - 0.5 * mean[:, 0] @ np.linalg.solve(KERNEL, mean[:, 0]) - 0.5 * np.linalg.slogdet(b)[1]
    np.testing.assert_allclose(evidence, other.log_marginal_likelihood(), rtol=1e-6)
    np.testing.assert_allclose(weights, jax.nn.sigmoid(mean[:, 0]) * jax.nn.sigmoid(-mean[:, 0]), rtol=1e-6)


def closed_form(name, mean, variance, y):
    """Expected gradient and curvature of the log-likelihood under N(mean, variance)."""
    sd = np.sqrt(variance)
    if name == "poisson":
        rate = np.exp(mean + variance / 2)
        return y - rate, rate
    if name == "laplace":
        return (2 * stats.norm.cdf((y - mean) / sd) - 1) / 0.4, 2 * stats.norm.pdf(y, mean, sd) / 0.4
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()
    p = 1 / (1 + np.exp(-(mean[:, None] + sd[:, None] * nodes)))
    return (weights * (y[:, None] - p)).sum(1), (weights * p * (1 - p)).sum(1)


@pytest.mark.parametrize("name", ["bernoulli", "poisson", "laplace"])
def test_variational_sites_are_at_the_fixed_point(name):
    """Opper & Archambeau 2009, eqs. 12-13, with the expectations in closed form or by Gauss-Hermite quadrature."""
    likelihood, y = {
        "bernoulli": (bw.Bernoulli(), SIGNS),
        "poisson": (bw.Poisson(), COUNTS),
        "laplace": (bw.Laplace(0.4), OUTLIERS),
    }[name]
    sites = find_sites(likelihood, jnp.asarray(y)[:, None], jnp.asarray(KERNEL), 1, tolerance=1e-7)
    mean, sd = (np.asarray(part[:, 0]) for part in posterior_moments(sites, jnp.asarray(KERNEL)))
    grad, curvature = closed_form(name, mean, sd**2, y)
    # A pseudo-target lies at most five prior standard deviations away: that binds where |y - f| has no curvature left.
    least = np.abs(grad) / (5 * np.sqrt(2.0))
    assert (curvature > least).sum() >= 10
    # The error is that of 128 quasi-random points.
    np.testing.assert_allclose(sites.precision[:, 0], np.maximum(curvature, least), rtol=0.05)
    found = np.asarray(sites.precision * (sites.targets - mean[:, None]))[:, 0]
    np.testing.assert_allclose(found, grad, atol=0.02 * np.abs(grad).max())


def test_gaussian_sites_are_the_noise_itself():
    y = RNG.normal(size=(12, 2))
    for method in ("variational", "laplace"):
        sites = find_sites(bw.Gaussian(0.3), jnp.asarray(y), jnp.asarray(KERNEL), 2, method=method, tolerance=1e-12)
        np.testing.assert_allclose(sites.targets, y, rtol=1e-8)
        np.testing.assert_allclose(sites.precision, 1 / 0.3**2, rtol=1e-8)


def test_sites_of_a_softmax_see_contrasts_only():
    labels = jnp.asarray(RNG.integers(0, 3, 12))
    sites = find_sites(bw.Categorical(), labels, jnp.asarray(KERNEL), 3)
    assert sites.precision.shape == (12, 1) and sites.targets.shape == (12, 2)
    f = jnp.asarray(RNG.normal(size=(12, 3)))
    np.testing.assert_allclose(sites.log_density(f), sites.log_density(f + RNG.normal(size=(12, 1))), rtol=1e-10)


def test_outliers_and_great_counts_have_usable_sites():
    far = LATENT.copy()
    far[0] = 1e4
    for likelihood, y in (
        (bw.StudentT(3.0, 0.2), far),
        (bw.Poisson(), np.where(np.arange(12) == 3, 100_000, COUNTS)),
        (bw.Bernoulli(), np.ones(12, int)),
    ):
        sites = find_sites(likelihood, jnp.asarray(y)[:, None], jnp.asarray(KERNEL), 1)
        assert np.isfinite(sites.targets).all() and (sites.precision > 0).all(), likelihood


def test_sites_matched_to_exact_draws_are_the_noise():
    """Under Gaussian noise the gradient is linear: draws of any law give the site that the noise is."""
    y, draws = RNG.normal(size=(12, 1)), RNG.normal(size=(50, 12, 1))
    start = find_sites(bw.Gaussian(0.3), jnp.asarray(y), jnp.asarray(KERNEL), 1)
    sites = match_draws(bw.Gaussian(0.3), jnp.asarray(y), start, jnp.asarray(draws), jnp.ones(12))
    np.testing.assert_allclose(sites.targets, y, rtol=1e-8)
    np.testing.assert_allclose(sites.precision, 1 / 0.3**2, rtol=1e-8)


def test_refined_sites_of_a_wide_network_stay_near_those_of_the_limit():
    """Of a wide network under counts: close to the sites of the infinitely wide one."""
    net = bw.Dense(256, w_scale=2**0.5, b_scale=0.3) >> bw.Tanh() >> bw.Dense(1, b_scale=0.3)
    model = bw.bnn(net, bw.Poisson())
    refined = bw.refine_sites(model, X, COUNTS, key=jax.random.key(0), num_rounds=1, num_steps=150)
    found, first = refined.sites, model.find_sites(jnp.asarray(X), jnp.asarray(COUNTS)[:, None])
    kernel = net.kernel(X).nngp
    after, before = posterior_moments(found, kernel), posterior_moments(first, kernel)
    assert np.abs(after[0] - before[0]).max() < 0.35 * float(before[1].max())
    np.testing.assert_allclose(after[1], before[1], rtol=0.3)
    assert bw.bnn(net, bw.Gaussian(0.1)) == bw.refine_sites(
        bw.bnn(net, bw.Gaussian(0.1)), X, LATENT[:, None], key=jax.random.key(0)
    )


def test_refining_refuses_the_standard_form():
    net = bw.Dense(4) >> bw.Tanh() >> bw.Dense(1)
    with pytest.raises(ValueError, match="form must be 'repriorised' or 'collapsed'"):
        bw.refine_sites(bw.bnn(net, bw.Poisson(), "standard"), X, COUNTS, key=jax.random.key(0))


@pytest.mark.parametrize("asarray", [np.asarray, jnp.asarray])
def test_what_data_decide_is_worked_out_once_and_not_in_the_potential(asarray):
    # Sites need a loop, the span of the inputs a factorisation: neither belongs into a program run for each gradient.
    x, y = asarray(np.random.default_rng(0).normal(size=(6, 9))), asarray(np.arange(6) % 3)
    model = bw.bnn(bw.Dense(8) >> bw.Erf() >> bw.Dense(3), bw.Categorical())
    drawn = lambda key: numpyro.handlers.seed(model, key)  # noqa: E731
    density = lambda key: numpyro.infer.util.log_density(drawn(key), (x, y), {}, {})[0]  # noqa: E731
    program = jax.make_jaxpr(density)(jax.random.key(0))
    used = {equation.primitive.name for equation in program.eqns}
    assert "cholesky" in str(program) and not used & {"while", "qr", "geqrf"}


def test_targets_one_column_short_are_refused():
    with pytest.raises(ValueError, match=r"`find_sites`: y must have shape \(12, 1\)"):
        find_sites(bw.Poisson(), jnp.asarray(COUNTS), jnp.asarray(KERNEL), 1)
