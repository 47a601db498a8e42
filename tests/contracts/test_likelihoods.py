"""Likelihoods: their laws against closed forms, the three forms as one density, and the registry's own contract."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from likelihood_problems import GAUSSIANS, PROBLEMS, N, X, network, prior_draw
from numpyro.infer.util import constrain_fn, initialize_model, log_density
from scipy import stats

import bnnwide as bw
from bnnwide.reparam import FunctionValues, ProjectedValues, SitedRepriorisation, Sites, find_projection
from bnnwide.reparam.sites import output_coordinates

F = np.random.default_rng(1).normal(size=(5, 4))
LAWS = {
    # outputs used, likelihood, targets, log-density by scipy
    "categorical": (F[:, :3], bw.Categorical(), np.array([0, 2, 1, 1, 0]),
        lambda f, y: np.log(np.exp(f)[np.arange(5), y] / np.exp(f).sum(1))),
    "bernoulli": (F[:, :1], bw.Bernoulli(), np.array([[0], [1], [1], [0], [1]]),
        lambda f, y: stats.bernoulli.logpmf(y, 1 / (1 + np.exp(-f)))[:, 0]),
    "poisson": (F[:, :1], bw.Poisson(), np.array([[0], [4], [1], [0], [2]]),
        lambda f, y: stats.poisson.logpmf(y, np.exp(f))[:, 0]),
    "student t": (F[:, :2], bw.StudentT(3.0, 0.4), F[:, 2:],
        lambda f, y: stats.t.logpdf(y, 3.0, f, 0.4).sum(1)),
    "laplace": (F[:, :2], bw.Laplace(0.4), F[:, 2:],
        lambda f, y: stats.laplace.logpdf(y, f, 0.4).sum(1)),
    "gaussian per output": (F[:, :2], bw.Gaussian(np.array([0.4, 1.0])), F[:, 2:],
        lambda f, y: stats.norm.logpdf(y, f, [0.4, 1.0]).sum(1)),
    "heteroscedastic": (F, bw.HeteroscedasticGaussian(0.5), F[:, ::2],
        lambda f, y: stats.norm.logpdf(y, f[:, :2], 0.5 * np.exp(f[:, 2:])).sum(1)),
}  # fmt: skip


@pytest.mark.parametrize("name", LAWS)
def test_log_probs(name):
    f, likelihood, y, expected = LAWS[name]
    np.testing.assert_allclose(likelihood.log_prob(jnp.asarray(f), jnp.asarray(y)), expected(f, y), rtol=1e-10)


@pytest.mark.parametrize("name", LAWS)
def test_outcomes_are_the_moments_of_draws(name):
    f, likelihood, _, _ = LAWS[name]
    if name == "student t":
        likelihood = bw.StudentT(9.0, 0.4)  # a finite fourth moment, for the error of the variance
    f, number = jnp.asarray(f), 40_000
    draws = likelihood.law(f).sample(jax.random.key(0), (number,))
    if name == "categorical":
        draws = jax.nn.one_hot(draws, 3)
    outcome = likelihood.outcome(f)
    assert (jnp.abs(draws.mean(0) - outcome.mean) < 5 * jnp.sqrt(outcome.variance / number)).all()
    error = jnp.std((draws - outcome.mean) ** 2, axis=0) / number**0.5
    assert (jnp.abs(draws.var(0) - outcome.variance) < 5 * error + 1e-12).all()


def test_entropies():
    f = jnp.asarray(F[:, :3])
    np.testing.assert_allclose(
        bw.Categorical().outcome(f).entropy, stats.entropy(jax.nn.softmax(f), axis=1), rtol=1e-12
    )
    p = 1 / (1 + np.exp(-F[:, :2]))
    expected = stats.entropy(np.stack([p, 1 - p]), axis=0)
    np.testing.assert_allclose(bw.Bernoulli().outcome(jnp.asarray(F[:, :2])).entropy, expected, rtol=1e-12)
    # Certain outcomes have no entropy, and it is a number.
    assert bw.Bernoulli().outcome(jnp.asarray([[800.0], [-800.0]])).entropy.tolist() == [[0.0], [0.0]]


def joint(model, y, sites):
    return float(log_density(model, (X, y), {}, sites)[0])


def normal(*arrays):
    return sum(stats.norm.logpdf(array).sum() for array in arrays)


@pytest.mark.parametrize(
    ("name", "width"),
    [*((name, 9) for name in PROBLEMS), *((name, 4) for name in ("categorical", "poisson", "heteroscedastic"))],
)
def test_three_forms_are_one_density(name, width):
    """Repriorised and collapsed densities against the standard one, through Jacobians by autodiff."""
    likelihood, outputs = PROBLEMS[name]
    net = network(outputs, width)
    sites, theta, y = prior_draw(jax.random.key(3), likelihood, net)
    sites_of_likelihood = bw.bnn(net, likelihood).find_sites(jnp.asarray(X), y)
    models = {
        form: bw.bnn(net, likelihood, form, sites=sites_of_likelihood, rank=N)
        for form in ("standard", "repriorised", "collapsed")
    }
    standard = joint(models["standard"], y, sites | {"readout": theta})
    hidden = {name: value for name, value in sites.items() if name not in likelihood.priors}
    psi = models["standard"].feature_map(jnp.asarray(X)).features(hidden)
    f = psi @ theta
    by_hand = normal(*hidden.values(), theta) + float(likelihood.at(sites).log_prob(f, y).sum())
    by_hand += sum(float(prior.log_prob(sites[name])) for name, prior in likelihood.priors.items())
    np.testing.assert_allclose(standard, by_hand, rtol=1e-10)

    bijection = SitedRepriorisation(psi, sites_of_likelihood)
    phi, log_det = bijection.inverse_and_log_det(theta)
    jacobian = jax.jacobian(lambda theta: bijection.inverse_and_log_det(theta)[0].ravel())(theta)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(jacobian.reshape(phi.size, phi.size))[1], rtol=1e-8)
    repriorised = joint(models["repriorised"], y, sites | {"readout_base": phi})
    np.testing.assert_allclose(repriorised, standard - log_det, rtol=1e-9)
    back = constrain_fn(models["repriorised"], (X, y), {}, hidden | {"readout_base": phi}
        | {name: jnp.log(sites[name]) for name in likelihood.priors}, return_deterministic=True)  # fmt: skip
    np.testing.assert_allclose(back["readout"], theta, atol=1e-8)

    # The collapsed form's density of e is that of v, with f = C v, times the Jacobian of e -> v.
    factored = FunctionValues(psi, sites_of_likelihood).factor()
    base = jax.random.normal(jax.random.key(4), (min(psi.shape), outputs))
    v = factored.prior_coordinates(base)
    jacobian = jax.jacobian(lambda base: factored.prior_coordinates(base).ravel())(base).reshape(v.size, v.size)
    log_likelihood = float(likelihood.at(sites).log_prob(factored.root @ v, y).sum())
    expected = by_hand - normal(theta) - float(likelihood.at(sites).log_prob(f, y).sum()) + normal(v) + log_likelihood
    collapsed = joint(models["collapsed"], y, sites | {"function_base": base})
    np.testing.assert_allclose(collapsed, expected + np.linalg.slogdet(jacobian)[1], rtol=1e-9)
    gram = psi @ psi.T
    np.testing.assert_allclose(factored.root @ factored.root.T, gram, atol=1e-9 * float(jnp.trace(gram)))


@pytest.mark.parametrize("name", ["categorical", "two binary targets", "student t, learned"])
def test_a_few_projections_and_the_rest_are_the_same_density(name):
    likelihood, outputs = PROBLEMS[name]
    net = network(outputs)
    sites, theta, y = prior_draw(jax.random.key(3), likelihood, net)
    model = bw.bnn(net, likelihood, rank=2)
    projection = model.find_projection(jnp.asarray(X), y)
    hidden = {name: value for name, value in sites.items() if name not in likelihood.priors}
    psi = model.feature_map(jnp.asarray(X)).features(hidden)
    base = jax.random.normal(jax.random.key(4), (2, outputs))
    factored, outside = ProjectedValues(psi, model.find_sites(jnp.asarray(X), y), projection).factor(theta)
    v = factored.prior_coordinates(base)
    f = factored.root @ v + outside

    # The readout that v and theta_0 make: a linear map with T T^T = I, so N(0, I) under the prior, with these values.
    q, r = np.linalg.qr(np.asarray(projection @ psi).T)
    sign = np.sign(np.diagonal(r))
    transform = np.concatenate([q * sign, np.eye(10) - q @ q.T], axis=1)
    np.testing.assert_allclose(transform @ transform.T, np.eye(10), atol=1e-10)
    np.testing.assert_allclose(psi @ (transform @ np.concatenate([v, theta])), f, atol=1e-9)

    jacobian = jax.jacobian(lambda base: factored.prior_coordinates(base).ravel())(base).reshape(v.size, v.size)
    expected = normal(*hidden.values(), theta, v) + float(likelihood.at(sites).log_prob(f, y).sum())
    expected += sum(float(prior.log_prob(sites[name])) for name, prior in likelihood.priors.items())
    found = joint(model, y, sites | {"readout_base": theta, "function_base": base})
    np.testing.assert_allclose(found, expected + np.linalg.slogdet(jacobian)[1], rtol=1e-9)


def test_projections_are_those_the_sites_know_most_about():
    """Along them posterior and prior variances of the function are diagonal together, and their ratio is least."""
    rng = np.random.default_rng(6)
    root = rng.normal(size=(30, 30)) * 0.7 ** np.arange(30)
    kernel, sites = root @ root.T, Sites(jnp.zeros((30, 2)), jnp.asarray(rng.uniform(0.1, 2, (30, 1))))
    precision = np.diag(np.asarray(sites.precision[:, 0]))
    posterior = kernel - kernel @ np.linalg.solve(kernel + np.linalg.inv(precision), kernel)
    ratios = 1 - np.sort(np.linalg.eigvals(np.linalg.solve(kernel + np.linalg.inv(precision), kernel)).real)[::-1]
    for rank in (None, 3):
        projection = np.asarray(find_projection(sites, jnp.asarray(kernel), rank))
        prior = projection @ kernel @ projection.T
        np.testing.assert_allclose(prior, np.diag(np.diagonal(prior)), atol=1e-9)
        # W^(1/2) f has these variances: of W K W itself, lambda under the prior and lambda / (1 + lambda) after it.
        share = np.sort(np.diagonal(projection @ posterior @ projection.T) / np.diagonal(prior))
        np.testing.assert_allclose(share, ratios[: len(share)], rtol=1e-8)
        assert len(share) == (3 if rank else (1 / ratios - 1 > 0.1).sum())
    # Where the data tell of most directions, all values are sampled.
    assert find_projection(sites, jnp.asarray(kernel + np.eye(30))) is None


@pytest.mark.parametrize(("precisions", "shift_invariant"), [(1, True), (1, False), (3, False)])
def test_derivative_through_both_factorisations_is_that_of_each_after_the_other(precisions, shift_invariant):
    rng = np.random.default_rng(5)
    n, m, k = 40, 50, 3
    psi, base, weight = (jnp.asarray(rng.normal(size=shape)) for shape in ((n, m), (n, k), (n, k)))
    contrasts = output_coordinates(bw.Categorical() if shift_invariant else bw.Poisson(), k)
    targets, precision = (
        jnp.asarray(rng.uniform(0.5, 2, (n, columns))) for columns in (k - shift_invariant, precisions)
    )
    values = lambda psi, targets: FunctionValues(psi / m**0.5, Sites(targets, precision, contrasts))  # noqa: E731

    def at_once(*arguments):
        psi, base, targets = arguments
        f, log_marginal = values(psi, targets).forward_and_log_marginal(base)
        return jnp.sum(weight * jnp.sin(f)) + log_marginal

    def one_after_the_other(*arguments):
        psi, base, targets = arguments
        factored = values(psi, targets).factor()
        return jnp.sum(weight * jnp.sin(factored.forward(base))) + factored.log_marginal()

    arguments = (psi, base, targets)
    np.testing.assert_allclose(at_once(*arguments), one_after_the_other(*arguments), rtol=1e-12)
    for i in range(3):
        got, want = (jax.jit(jax.grad(fn, i))(*arguments) for fn in (at_once, one_after_the_other))
        np.testing.assert_allclose(got, want, atol=1e-11 * float(jnp.abs(want).max()))


@pytest.mark.parametrize("name", GAUSSIANS)
def test_gaussian_scales_per_output_are_one_density_too(name):
    likelihood, outputs = GAUSSIANS[name]
    net = network(outputs)
    sites, theta, y = prior_draw(jax.random.key(3), likelihood, net)
    scale = np.broadcast_to(np.asarray(likelihood.at(sites).scale), (outputs,))
    psi = np.asarray(net.features(({"w": sites["hidden.0.w"], "b": sites["hidden.0.b"]}, ()), X))
    priors = normal(*(sites[name] for name in ("hidden.0.w", "hidden.0.b")))
    priors += sum(float(jnp.sum(prior.log_prob(sites[name]))) for name, prior in likelihood.priors.items())
    marginal = sum(
        stats.multivariate_normal.logpdf(y[:, j], np.zeros(N), psi @ psi.T + scale[j] ** 2 * np.eye(N))
        for j in range(outputs)
    )
    np.testing.assert_allclose(joint(bw.bnn(net, likelihood), y, sites), priors + marginal, rtol=1e-10)
    model = bw.bnn(net, likelihood, "repriorised")
    phi = jax.random.normal(jax.random.key(5), theta.shape)
    np.testing.assert_allclose(
        joint(model, y, sites | {"readout_base": phi}), priors + marginal + normal(phi), rtol=1e-10
    )
    unconstrained = sites | {name: jnp.log(sites[name]) for name in likelihood.priors} | {"readout_base": phi}
    theta = constrain_fn(model, (X, y), {}, unconstrained, return_deterministic=True)["readout"]
    standard = joint(bw.bnn(net, likelihood, "standard"), y, sites | {"readout": theta})
    log_det = -sum(0.5 * np.linalg.slogdet(psi @ psi.T / scale[j] ** 2 + np.eye(N))[1] for j in range(outputs))
    np.testing.assert_allclose(standard + log_det, priors + marginal + normal(phi), rtol=1e-9)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("m", [4, 12])
@pytest.mark.parametrize("solver", ["primal", "dual"])
def test_sited_bijection_against_the_dense_posterior(solver, m, shared):
    """Mean and covariance of theta(phi) are those of the Gaussian posterior under the sites; log Z is the integral."""
    rng, k = np.random.default_rng(2), 3
    contrasts = output_coordinates(bw.Categorical(), k) if shared else None
    q = 2 if shared else 3
    sites = Sites(
        jnp.asarray(rng.normal(size=(N, q))), jnp.asarray(rng.uniform(0.1, 2, (N, 1 if shared else q))), contrasts
    )
    psi = jnp.asarray(rng.normal(size=(N, m)))
    bijection = SitedRepriorisation(psi, sites, solver)
    basis = np.eye(k) if contrasts is None else np.asarray(contrasts)
    # Of vec(theta), column by column of outputs.
    design = np.kron(basis.T, psi)
    weights = np.broadcast_to(sites.precision, (N, q)).T.ravel()
    precision = np.eye(m * k) + design.T @ (weights[:, None] * design)
    mean = np.linalg.solve(precision, design.T @ (weights * np.asarray(sites.targets).T.ravel()))
    forward = lambda phi: bijection.forward_and_log_det(phi.reshape(k, m).T)[0].T.ravel()  # noqa: E731
    np.testing.assert_allclose(forward(jnp.zeros(m * k)), mean, atol=1e-10)
    slope = jax.jacobian(forward)(jnp.zeros(m * k))
    np.testing.assert_allclose(slope @ slope.T, np.linalg.inv(precision), atol=1e-10)
    covariance = design @ design.T + np.diag(1 / weights)
    evidence = stats.multivariate_normal.logpdf(np.asarray(sites.targets).T.ravel(), np.zeros(N * q), covariance)
    evidence += 0.5 * np.sum(np.log(2 * np.pi / weights))
    np.testing.assert_allclose(bijection.log_marginal(), evidence, rtol=1e-10)
    np.testing.assert_allclose(FunctionValues(psi, sites).factor().log_marginal(), evidence, rtol=1e-6)


class NegativeBinomial(bw.Likelihood):
    """A user's own likelihood, in a few lines."""

    def law(self, f):
        return dist.NegativeBinomial2(jnp.exp(f), 5.0)


def model_potential(model, y):
    info = initialize_model(jax.random.key(0), model, model_args=(X, y))
    return float(info.potential_fn(info.param_info.z))


def test_a_users_likelihood():
    net = network(1)
    _, _, y = prior_draw(jax.random.key(0), NegativeBinomial(), net)
    for form in ("standard", "repriorised", "collapsed"):
        model = bw.bnn(net, NegativeBinomial(), form)
        assert np.isfinite(float(model_potential(model, y)))
    with pytest.raises(ValueError, match="y must be numbers in the support of its law for NegativeBinomial; got -1"):
        bw.bnn(net, NegativeBinomial())(X, np.full(N, -1))
