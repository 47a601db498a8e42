"""A functional BNN under a process whose mean is not zero: exact at its points, in every form, for every reader."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.infer import Predictive
from numpyro.infer.util import log_density
from process_priors import Process
from scipy import optimize, stats

import bnnwide as bw
from bnnwide.comparators.anchored import anchored_posterior
from bnnwide.diagnostics.baseline import PaperHMC
from bnnwide.reparam import find_sites

RNG = np.random.default_rng(1)
D, P, WIDTH = 2, 5, 9
POINTS = RNG.normal(size=(P, D)) * 1.2
X = np.concatenate([POINTS[[1, 3]], RNG.normal(size=(3, D))])  # two among the points, three not
X_TEST = np.concatenate([POINTS[[0, 3]], RNG.normal(size=(2, D))])
Y, COUNTS = RNG.normal(size=(5, 2)) + 2.0, np.array([9, 4, 12, 7, 5])


@dataclasses.dataclass(frozen=True)
class Trend(Process):
    """A process with the mean level + x_1 - x_2^2."""

    def mean(self, x):
        return self.level + x[:, 0] - x[:, 1] ** 2


PRIOR = Trend(1.3, 0.8, level=2.0)
HYPER = dataclasses.replace(PRIOR, hyper={"level": dist.Normal(0.0, 1.0), "length": dist.LogNormal(0.0, 0.3)})
MEAN = np.asarray(PRIOR.mean(POINTS))
COVARIANCE = np.asarray(PRIOR.covariance(jnp.asarray(POINTS)))


def network(width=WIDTH, outputs=2):
    return bw.Dense(width, w_scale=2.0, b_scale=0.5) >> bw.Erf() >> bw.Dense(outputs, b_scale=0.3)


def model_of(form, *, prior=PRIOR, likelihood=None, outputs=2, width=WIDTH, points=POINTS, **options):
    likelihood = bw.Gaussian(0.3) if likelihood is None else likelihood
    return bw.functional_bnn(
        network(width, outputs), prior, points, likelihood, form, input_collapse=False, **options
    )  # fmt: skip


def hidden(width=WIDTH, seed=0):
    rng = np.random.default_rng(seed)
    return {"hidden.0.w": jnp.asarray(rng.normal(size=(D, width))), "hidden.0.b": jnp.asarray(rng.normal(size=width))}


def plain_features(draw, x):
    net = network(draw["hidden.0.b"].size)
    return np.asarray(net.features(({"w": draw["hidden.0.w"], "b": draw["hidden.0.b"]}, ()), x))


def law_by_dense_formulas(draw, x, mean=MEAN, covariance=COVARIANCE):
    """Mean and covariance of f at x: theta = A f_M + (I - A Psi_M) theta_0 with A the pseudo-inverse of Psi_M."""
    psi_points, psi = plain_features(draw, POINTS), plain_features(draw, x)
    gain = np.linalg.pinv(psi_points)
    rest = np.eye(psi.shape[1]) - gain @ psi_points
    return psi @ gain @ mean, psi @ (gain @ covariance @ gain.T + rest @ rest.T) @ psi.T


def joint(model, data, draw):
    return float(jax.jit(lambda draw: log_density(model, data, {}, draw)[0])(draw))


@pytest.mark.parametrize("width", [P - 1, 60])  # P - 1 units and a bias are just enough
def test_mean_and_covariance_are_the_processs_at_the_points_and_the_networks_between(width):
    features = model_of("standard", width=width).feature_map(jnp.asarray(np.concatenate([POINTS, X_TEST])))
    for seed in range(2):
        draw = hidden(width, seed)
        psi, mean = jax.jit(features.features_and_mean)(draw)
        np.testing.assert_allclose((psi @ mean)[:P, 0], MEAN, atol=1e-9)
        np.testing.assert_allclose((psi @ psi.T)[:P, :P], COVARIANCE, atol=1e-9)
        expected = law_by_dense_formulas(draw, X_TEST)
        np.testing.assert_allclose((psi @ mean)[P:, 0], expected[0], rtol=1e-7, atol=1e-7)
        np.testing.assert_allclose((psi @ psi.T)[P:, P:], expected[1], rtol=1e-7, atol=1e-7)


def test_three_forms_are_one_density_under_gaussian_noise():
    models = {form: model_of(form, prior=HYPER) for form in ("standard", "repriorised", "collapsed")}
    draw = hidden() | {"prior_level": jnp.asarray(1.4), "prior_length": jnp.asarray(0.7)}
    at = HYPER.at({"level": 1.4, "length": 0.7})
    covariance = np.asarray(at.covariance(jnp.asarray(POINTS)))
    mean, spread = law_by_dense_formulas(draw, X, np.asarray(at.mean(POINTS)), covariance)
    law = stats.multivariate_normal(mean, spread + 0.09 * np.eye(5))
    sites = sum(stats.norm.logpdf(leaf).sum() for leaf in hidden().values())
    sites += stats.norm.logpdf(1.4) + stats.lognorm(0.3).logpdf(0.7)
    expected = sites + sum(law.logpdf(column) for column in Y.T)
    np.testing.assert_allclose(joint(models["collapsed"], (X, Y), draw), expected, rtol=1e-8)
    phi = RNG.normal(size=(WIDTH + 1, 2))
    found = joint(models["repriorised"], (X, Y), draw | {"readout_base": jnp.asarray(phi)})
    np.testing.assert_allclose(found, expected + stats.norm.logpdf(phi).sum(), rtol=1e-8)
    # The standard form, with the network's own weights.
    theta = jnp.asarray(RNG.normal(size=(WIDTH + 1, 2)))
    own = bw.readout_draws(
        models["standard"], jax.tree.map(lambda leaf: leaf[None], draw | {"readout": theta}), X, Y,
        key=jax.random.key(0),
    )[0]  # fmt: skip
    f = plain_features(draw, X) @ own
    expected = sites + stats.norm.logpdf(theta).sum() + stats.norm.logpdf(Y, f, 0.3).sum()
    np.testing.assert_allclose(joint(models["standard"], (X, Y), draw | {"readout": theta}), expected, rtol=1e-8)


def test_predictions_are_the_conditional_law_by_dense_formulas():
    """Given hidden weights: with the readout integrated out, by exact readout draws, and from prior draws."""
    draw = hidden()
    samples = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (4000, *leaf.shape)), draw)
    mean, spread = law_by_dense_formulas(draw, np.concatenate([X, X_TEST]))
    gain = spread[5:, :5] @ np.linalg.inv(spread[:5, :5] + 0.09 * np.eye(5))
    expected = mean[5:, None] + gain @ (Y - mean[:5, None])
    variance = np.diagonal(spread[5:, 5:] - gain @ spread[:5, 5:])[:, None]
    model = model_of("collapsed")
    prediction = bw.predict(model, jax.tree.map(lambda leaf: leaf[:1], samples), X, Y, X_TEST)
    np.testing.assert_allclose(prediction.mean, expected, atol=1e-8)
    np.testing.assert_allclose(prediction.epistemic, variance + 0 * expected, atol=1e-8)
    f = plain_features(draw, X_TEST) @ bw.readout_draws(model, samples, X, Y, key=jax.random.key(5))
    assert (np.abs(f.mean(axis=0) - expected) < 4.5 * np.sqrt(variance / 4000)).all()
    np.testing.assert_allclose(f.var(axis=0), variance + 0 * expected, rtol=0.1)
    # The prior predictive of both kinds of readout.
    for form in ("standard", "collapsed"):
        y = Predictive(model_of(form), num_samples=4000)(jax.random.key(0), POINTS)["y"]
        error = np.sqrt((COVARIANCE.diagonal() + 0.09) / 4000)[:, None]
        assert (np.abs(y.mean(axis=0) - MEAN[:, None]) < 4.5 * error).all()


def test_every_reader_of_a_readout_sees_one_function():
    draw = hidden() | {"readout": jnp.asarray(RNG.normal(size=(WIDTH + 1, 2)))}
    samples = jax.tree.map(lambda leaf: leaf[None], draw)
    model = model_of("standard")
    expected = plain_features(draw, X_TEST) @ bw.readout_draws(model, samples, X, Y, key=jax.random.key(0))[0]
    np.testing.assert_allclose(bw.comparators.predict_plain(model, samples, X, X_TEST).mean, expected, atol=1e-9)
    counts = model_of("standard", likelihood=bw.Poisson(), outputs=1)
    one = samples | {"readout": samples["readout"][..., :1]}
    np.testing.assert_allclose(
        bw.predict(counts, one, X, COUNTS, X_TEST).mean, np.exp(expected[:, :1]), rtol=1e-8
    )  # fmt: skip


def test_with_the_training_inputs_among_the_points_the_posterior_is_the_processs():
    x, y = POINTS[:3], Y[:3]
    exact = bw.gp.regression(COVARIANCE[:3, :3], y - MEAN[:3, None], bw.Gaussian(0.3))
    mean, spread = exact.marginals(COVARIANCE[:, :3], COVARIANCE.diagonal())
    model, draws = model_of("collapsed"), [hidden(seed=seed) for seed in range(3)]
    for draw in draws:
        prior = sum(stats.norm.logpdf(leaf).sum() for leaf in draw.values())
        np.testing.assert_allclose(joint(model, (x, y), draw) - prior, exact.log_marginal_likelihood(), rtol=1e-9)
    samples = jax.tree.map(lambda *leaves: jnp.stack(leaves), *draws)
    prediction = bw.predict(model, samples, x, y, POINTS)
    np.testing.assert_allclose(prediction.mean, mean + MEAN[:, None], atol=1e-8)
    np.testing.assert_allclose(prediction.epistemic, spread[:, None] + 0 * mean, atol=1e-8)


def test_forms_and_moves_under_counts():
    models = {
        form: model_of(form, likelihood=bw.Poisson(), outputs=1) for form in ("standard", "repriorised", "collapsed")
    }
    draw = hidden()
    weights = sum(stats.norm.logpdf(leaf).sum() for leaf in draw.values())
    mean, spread = law_by_dense_formulas(draw, X)

    def recorded(form, base, value, name):
        from numpyro import handlers

        def site(value):
            trace = handlers.trace(handlers.substitute(models[form], draw | {base: value})).get_trace(X, COUNTS)
            return trace[name]["value"], trace[name]["value"]

        jacobian, at = jax.jit(jax.jacfwd(site, has_aux=True))(value)
        return at, np.linalg.slogdet(np.asarray(jacobian).reshape(value.size, -1))[1]

    phi = jnp.asarray(RNG.normal(size=(WIDTH + 1, 1)))
    theta, log_det = recorded("repriorised", "readout_base", phi, "readout")
    standard = joint(models["standard"], (X, COUNTS), draw | {"readout": theta})
    np.testing.assert_allclose(
        joint(models["repriorised"], (X, COUNTS), draw | {"readout_base": phi}), standard + log_det, rtol=1e-8
    )
    e = jnp.asarray(RNG.normal(size=(5, 1)))
    f, log_det = recorded("collapsed", "function_base", e, "function")
    expected = weights + stats.multivariate_normal(mean, spread).logpdf(f[:, 0]) + log_det
    expected += stats.poisson.logpmf(COUNTS, np.exp(f[:, 0])).sum()
    np.testing.assert_allclose(
        joint(models["collapsed"], (X, COUNTS), draw | {"function_base": e}), expected, rtol=1e-7
    )  # fmt: skip
    # What SplitHMC moves apart from the weights is the rest of the same potential.
    keep, given = models["collapsed"].function_rest(X, COUNTS)

    def whole(e):
        return stats.norm.logpdf(e).sum() - joint(models["collapsed"], (X, COUNTS), draw | {"function_base": e})

    kept, other = keep(draw), e + 0.3
    np.testing.assert_allclose(given(kept, other) - given(kept, e), whole(other) - whole(e), rtol=1e-7)


def test_sites_are_found_around_the_mean():
    """Laplace sites of counts under N(m, K) are gradient and curvature at the mode, by an optimiser of scipy's."""
    precision = np.linalg.inv(COVARIANCE)

    def loss(f):
        return 0.5 * (f - MEAN) @ precision @ (f - MEAN) - COUNTS @ f + np.exp(f).sum()

    mode = optimize.minimize(loss, np.log(COUNTS), tol=1e-12).x
    sites = find_sites(
        bw.Poisson(), jnp.asarray(COUNTS)[:, None], jnp.asarray(COVARIANCE), 1, mean=jnp.asarray(MEAN),
        method="laplace", tolerance=1e-8,
    )  # fmt: skip
    np.testing.assert_allclose(sites.precision[:, 0], np.exp(mode), rtol=1e-4)
    np.testing.assert_allclose(sites.targets[:, 0], mode + COUNTS / np.exp(mode) - 1, rtol=1e-4, atol=1e-4)
    # A model's are found with the mean of its wide limit.
    model = model_of("collapsed", likelihood=bw.Poisson(), outputs=1)
    limit = bw.functional.wide_limit(network(1, 1), PRIOR, POINTS)
    expected = find_sites(bw.Poisson(), jnp.asarray(COUNTS)[:, None], limit.covariance(X), 1, mean=limit.mean(X))
    np.testing.assert_allclose(
        model.find_sites(jnp.asarray(X), jnp.asarray(COUNTS)[:, None]).targets, expected.targets, rtol=1e-6
    )  # fmt: skip


def test_minibatches_and_the_released_algorithm():
    model = model_of("repriorised", outputs=1)
    y = Y[:, :1]
    anchored = anchored_posterior("here", model, X, y, jax.random.key(0), 2)
    z = anchored.start(jax.random.key(1))
    estimate = jax.jit(anchored.estimate)
    every = np.mean([estimate(z, jnp.array([row])) for row in range(5)])
    np.testing.assert_allclose(every, estimate(z, jnp.arange(5)), rtol=1e-9)
    # Its potential is the posterior's: log N(theta) p(y | f) |dtheta/dphi| for the readout it records.
    theta = anchored.sites_of_model(z)["readout"]
    standard = joint(model_of("standard", outputs=1), (X, y), {name: z[name] for name in hidden()} | {"readout": theta})
    base = lambda phi: anchored.sites_of_model(z | {"readout_base": phi})["readout"]  # noqa: E731
    jacobian = np.asarray(jax.jacfwd(base)(z["readout_base"])).reshape(WIDTH + 1, -1)
    constants = 0.5 * np.log(2 * np.pi) * sum(leaf.size for leaf in jax.tree.leaves(z))
    expected = -standard - np.linalg.slogdet(jacobian)[1] - constants
    np.testing.assert_allclose(estimate(z, jnp.arange(5)), expected, rtol=1e-8)
    energy, _ = PaperHMC(model).potential(X, y)
    other = z | {"readout_base": z["readout_base"] + 0.1, "hidden.0.b": z["hidden.0.b"] * 0.9}
    differ = [float(energy(at)) + joint(model, (X, y), at) for at in (z, other)]
    np.testing.assert_allclose(*differ, rtol=1e-8)


def test_the_wide_limit():
    limit = bw.functional.wide_limit(network(1), PRIOR, POINTS)
    np.testing.assert_allclose(limit.mean(POINTS), MEAN, atol=1e-8)
    kernel = np.asarray(network(1).kernel(np.concatenate([POINTS, X_TEST]), ntk=False).nngp)
    expected = kernel[P:, :P] @ np.linalg.solve(kernel[:P, :P], MEAN)
    np.testing.assert_allclose(limit.mean(X_TEST), expected, atol=1e-8)
    errors = []
    for width in (300, 4800):
        draws = [(plain_features(draw, X_TEST), plain_features(draw, POINTS)) for draw in
                 (hidden(width, seed) for seed in range(40))]  # fmt: skip
        off = [psi @ np.linalg.pinv(at_points) @ MEAN - expected for psi, at_points in draws]
        errors.append(np.sqrt(np.mean(np.square(off))))
    assert errors[1] < 0.1
    np.testing.assert_allclose(errors[0] / errors[1], 4.0, rtol=0.35)  # sqrt(4800 / 300)
