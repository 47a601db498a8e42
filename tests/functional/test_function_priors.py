"""Priors over functions against tinygp, the textbook, and what their draws must look like."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import tinygp
from scipy.stats import kstest

import bnnwide as bw
from bnnwide.functional import GPPrior, ImplicitPrior, Mixture, piecewise_constant, piecewise_linear

RNG = np.random.default_rng(0)
X, X_TEST = RNG.uniform(-2, 2, (15, 1)), np.linspace(-3, 3, 7)[:, None]
Y = np.sin(2 * X) + 0.1 * RNG.normal(size=X.shape)
KERNEL = 1.3 * tinygp.kernels.ExpSquared(0.7)
NOISE = bw.Gaussian(0.2)
KEY = jax.random.key(0)


def rbf(scale, length):
    return lambda a, b: scale**2 * jnp.exp(-0.5 * jnp.sum((a[:, None] - b[None]) ** 2, -1) / length**2)


def mean_of(x):
    return 0.5 * x[:, 0]


def test_posterior_is_tinygps():
    process = tinygp.GaussianProcess(KERNEL, jnp.asarray(X), mean=lambda x: 0.5 * x[0], diag=0.04)
    log_prob, other = process.condition(jnp.asarray(Y[:, 0]), jnp.asarray(X_TEST))
    prior = GPPrior(KERNEL, mean_of)
    post = prior.posterior(X, Y, NOISE)
    pred = post.predict(X_TEST, full_cov=True)
    np.testing.assert_allclose(pred.mean[:, 0], other.mean, atol=1e-8)
    np.testing.assert_allclose(pred.covariance, other.covariance, atol=1e-7)  # tinygp adds a jitter of its own
    np.testing.assert_allclose(post.predict(X_TEST).epistemic[:, 0], jnp.diagonal(pred.covariance), atol=1e-9)
    np.testing.assert_allclose(prior.log_marginal_likelihood(X, Y, NOISE), log_prob, rtol=1e-9)
    np.testing.assert_allclose(pred.aleatoric, 0.04)


def test_posterior_of_an_architecture_is_the_nngps():
    net = bw.Dense(8, w_scale=2.0, b_scale=1.0) >> bw.Erf() >> bw.Dense(1)
    ours, theirs = GPPrior(net).posterior(X, Y, NOISE), bw.gp.nngp(net, X, Y, NOISE)
    a, b = ours.predict(X_TEST), theirs.predict(X_TEST)
    np.testing.assert_allclose(a.mean, b.mean, atol=1e-9)
    np.testing.assert_allclose(a.variance, b.variance, atol=1e-9)


def test_hyper_parameters_in_three_notations_find_one_optimum():
    process, noise = GPPrior(KERNEL).fit(X, Y, NOISE)
    named, named_noise = GPPrior(rbf, hyper={"scale": 1.0, "length": 1.0}).fit(X, Y, NOISE)
    best = process.log_marginal_likelihood(X, Y, noise)
    np.testing.assert_allclose(named.log_marginal_likelihood(X, Y, named_noise), best, atol=1e-3)
    np.testing.assert_allclose(named_noise.scale, noise.scale, rtol=1e-2)
    # A gradient of zero, by differences in each direction.
    for name in ("scale", "length"):
        for factor in (0.9, 1.1):
            moved = named.at({name: named.numbers[name] * factor})
            assert moved.log_marginal_likelihood(X, Y, named_noise) < best
    # A narrow prior holds its parameter; the noise may be left out.
    prior = GPPrior(rbf, hyper={"scale": 1.0, "length": dist.LogNormal(jnp.log(0.3), 0.01)})
    assert list(prior.hyper) == ["length"] and list(prior.numbers) == ["scale"]
    held, same = prior.fit(X, Y, NOISE, parameters=("length", "scale"))
    assert abs(held.numbers["length"] / 0.3 - 1) < 0.05
    assert not held.hyper and same.scale == NOISE.scale


def test_draws_of_hyper_parameters_go_in_under_a_tracer():
    prior = GPPrior(rbf, hyper={"scale": dist.HalfNormal(1.0), "length": dist.HalfNormal(1.0)})
    values = {"scale": jnp.array(2.0), "length": jnp.array(0.5), "another site": jnp.array(1.0)}
    at = jax.jit(lambda values: prior.at(values).covariance(X))(values)
    np.testing.assert_allclose(at, rbf(2.0, 0.5)(X, X), rtol=1e-12)


def test_moments_of_draws_are_the_priors():
    prior = GPPrior(KERNEL, mean_of)
    draws = prior.sample(KEY, X_TEST, 20_000)
    np.testing.assert_allclose(draws.mean(0), mean_of(X_TEST), atol=5 * np.sqrt(1.3 / 20_000))
    np.testing.assert_allclose(np.cov(draws.T), prior.covariance(X_TEST), atol=5 * 1.3 * np.sqrt(2 / 20_000))


def test_score_is_the_gradient_of_the_density():
    points = jnp.asarray(X_TEST)
    f = jax.random.normal(KEY, (3, len(points)))
    prior, other = GPPrior(KERNEL, mean_of), GPPrior(tinygp.kernels.Matern32(1.0))
    law = dist.MultivariateNormal(mean_of(points), prior.covariance(points) + 0.1 * jnp.eye(len(points)))
    np.testing.assert_allclose(prior.log_prob(f[0], points, 0.1), law.log_prob(f[0]), rtol=1e-9)
    np.testing.assert_allclose(prior.score(f, points, 0.1), jax.vmap(jax.grad(law.log_prob))(f), rtol=1e-6)
    second = dist.MultivariateNormal(jnp.zeros(7), other.covariance(points) + 0.1 * jnp.eye(len(points)))
    density = lambda f: jnp.log(0.25 * jnp.exp(law.log_prob(f)) + 0.75 * jnp.exp(second.log_prob(f)))  # noqa: E731
    mixture = Mixture([prior, other], [1.0, 3.0])
    np.testing.assert_allclose(mixture.score(f, points, 0.1), jax.vmap(jax.grad(density))(f), rtol=1e-6)


def test_a_mixture_draws_whole_functions_of_its_parts():
    low, high = (ImplicitPrior(lambda key, x, level=level: jnp.full(len(x), level)) for level in (0.0, 1.0))
    draws = Mixture([low, high], [1, 3]).sample(KEY, X_TEST, 4000)
    assert (draws == draws[:, :1]).all()
    assert abs(draws.mean() - 0.75) < 5 * np.sqrt(0.75 * 0.25 / 4000)
    with pytest.raises(NotImplementedError, match="known by its draws only"):
        low.log_prob(jnp.zeros(7), jnp.asarray(X_TEST), 0.1)


def test_piecewise_constant_functions():
    grid = np.linspace(-2, 2, 2001)[:, None]
    draws = np.asarray(piecewise_constant(-1.0, 1.0, rate=2.0).sample(KEY, grid, 500))
    jumps = (np.diff(draws, axis=1) != 0).sum(1)
    # Poisson(2) changes; two in one of the 1000 steps between -1 and 1 are rarer than one in a hundred functions.
    assert abs(jumps.mean() - 2.0) < 5 * np.sqrt(2 / 500)
    assert abs(jumps.var() - 2.0) < 1.0
    outside = np.abs(grid[:, 0]) > 1.01
    assert (np.diff(draws[:, outside][:, : outside.sum() // 2], axis=1) == 0).all()
    assert kstest(draws[:, 0], "norm").pvalue > 1e-3 and kstest(draws[:, -1], "norm").pvalue > 1e-3


def test_piecewise_linear_functions():
    grid = np.linspace(-2, 2, 2001)[:, None]
    draws = np.asarray(piecewise_linear(-1.0, 1.0, rate=2.0, value=dist.Normal(1.0, 0.5)).sample(KEY, grid, 500))
    bends = (np.abs(np.diff(draws, 2, axis=1)) > 1e-9).sum(1)
    # A knot between two points of the grid bends at both of them.
    assert abs(bends.mean() / 2 - 2.0) < 0.4
    assert (np.abs(np.diff(draws[:, :500], 2, axis=1)) < 1e-9).all()
    at_ends = draws[:, [500, 1500]]
    assert kstest((at_ends.ravel() - 1) / 0.5, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(at_ends.T)[0, 1]) < 0.25  # equal where no knot lay between would be seen


@pytest.mark.usefixtures("only_the_librarys_own_checks")
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: GPPrior(3), TypeError, "`GPPrior`: kernel must be a function of"),
        (lambda: GPPrior(rbf, hyper={"scale": "one"}), TypeError, "hyper\\['scale'\\] must be a number"),
        (lambda: GPPrior(lambda a, b: jnp.ones(3)).covariance(X), ValueError, "kernel must return shape \\(15, 15\\)"),
        (
            lambda: GPPrior(rbf, hyper={"scale": dist.HalfNormal(), "length": 1.0}).covariance(X),
            ValueError, "`covariance`: the hyper-parameters of the prior must be numbers; got distributions for",
        ),
        (lambda: GPPrior(KERNEL).covariance(X * np.nan), ValueError, "`covariance`: x1 must be finite"),
        (lambda: GPPrior(KERNEL).posterior(X, Y[:3], NOISE), ValueError, "`posterior`: y must have shape \\(15, k\\)"),
        (lambda: GPPrior(KERNEL).fit(X, Y, bw.StudentT(3.0, 1.0)), TypeError, "`fit`: likelihood must be Gaussian"),
        (lambda: GPPrior(KERNEL).fit(X, Y, NOISE, parameters=["b"]), ValueError, "parameters must be among"),
        (
            lambda: GPPrior(rbf, hyper={"scale": -1.0, "length": 1.0}).fit(X, Y, NOISE),
            ValueError, "`fit`: scale must be positive and finite; got -1.0",
        ),
        (lambda: ImplicitPrior(3), TypeError, "`ImplicitPrior`: sample_fn must be a function"),
        (lambda: ImplicitPrior(lambda k, x: x).sample(KEY, X, 2), ValueError, "sample_fn must return shape \\(15,\\)"),
        (lambda: Mixture([GPPrior(KERNEL)], [-1.0]), ValueError, "`Mixture`: weights must be one positive number"),
        (lambda: Mixture([3]), TypeError, "`Mixture`: priors must be priors over functions"),
        (lambda: piecewise_constant(1, 0), ValueError, "low must be below high"),
        (lambda: piecewise_linear(0, 1, rate=-1.0), ValueError, "rate must be positive"),
        (lambda: piecewise_linear(0, 1, value=3), TypeError, "value must be a NumPyro distribution over numbers"),
        (lambda: piecewise_linear(0, 1).sample(KEY, np.ones((3, 2)), 2), ValueError, "x must have one column"),
    ],
)  # fmt: skip
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
