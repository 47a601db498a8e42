"""A functional BNN has the Gaussian process prior it was asked for at its points, in every form and at any width."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer import MCMC, NUTS, Predictive
from numpyro.infer.util import log_density
from process_priors import Process
from scipy import stats

import bnnwide as bw
from bnnwide.comparators.anchored import anchored_posterior
from bnnwide.diagnostics.ess import effective_sample_size

RNG = np.random.default_rng(0)
D, P = 2, 6
POINTS = np.array([[-1.5, 0.3], [-0.7, -1.2], [0.1, 0.9], [0.4, -0.4], [1.1, 1.3], [1.6, -0.9]])
X = np.concatenate([POINTS[[1, 4]], RNG.normal(size=(3, D))])  # two among the points, three not
Y = RNG.normal(size=(5, 2))
ROUGH, SMOOTH = Process(1.3, 0.8), Process(0.9, 1.0, rough=False)


def network(width, outputs=1, **scales):
    return bw.Dense(width, w_scale=2.0, b_scale=0.5, **scales) >> bw.Tanh() >> bw.Dense(outputs, b_scale=0.3)


def hidden(model, x, seed=0):
    """Random hidden weights, as the sites of a model."""
    shapes = model.feature_map(jnp.asarray(x)).shapes
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return {name: jax.random.normal(key, leaf.shape) for key, (name, leaf) in zip(keys, shapes.items(), strict=True)}


def stacked(*draws):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *draws)


@pytest.mark.parametrize("prior", [ROUGH, SMOOTH])
@pytest.mark.parametrize("width", [P - 1, P + 3, 100])  # P - 1 units and a bias are just enough
def test_the_prior_at_the_points_is_the_process_at_any_width(width, prior):
    net = network(width)
    model = bw.functional_bnn(net, prior, POINTS, bw.Gaussian(0.1), input_collapse=False)
    for seed in range(3):
        draw = hidden(model, POINTS, seed)
        psi = model.feature_map(jnp.asarray(POINTS)).features(draw)
        np.testing.assert_allclose(psi @ psi.T, prior.covariance(jnp.asarray(POINTS)), atol=1e-9)


def test_the_readouts_covariance_is_that_of_its_definition():
    """theta = A f_M + (I - A Psi_M) theta_0, with A = Psi_M^T (Psi_M Psi_M^T)^-1, by dense formulas."""
    model = bw.functional_bnn(network(12), ROUGH, POINTS, bw.Gaussian(0.1), input_collapse=False)
    draw = hidden(model, X)
    psi = np.asarray(model.net.features(({"w": draw["hidden.0.w"], "b": draw["hidden.0.b"]}, ()), POINTS))
    gain = np.linalg.pinv(psi)
    rest = np.eye(13) - gain @ psi
    expected = gain @ np.asarray(ROUGH.covariance(jnp.asarray(POINTS))) @ gain.T + rest @ rest.T
    transform = model.feature_map(jnp.asarray(X)).readout(draw, jnp.eye(13))
    np.testing.assert_allclose(transform @ transform.T, expected, atol=1e-8)
    # And the features at any input are the network's own, times the transform.
    x_test = RNG.normal(size=(4, D))
    features = model.feature_map(jnp.asarray(X))
    read = features.test_features(draw, features.test_basis(jnp.asarray(x_test)), jax.random.key(0))
    plain = bw.models.feature_map(model.net, jnp.asarray(x_test), False).features(draw)
    np.testing.assert_allclose(read, plain @ transform, atol=1e-9)


@pytest.mark.parametrize("form", ["standard", "collapsed"])
def test_prior_draws(form):
    model = bw.functional_bnn(network(9, outputs=2), ROUGH, POINTS, bw.Gaussian(0.1), form)
    y = Predictive(model, num_samples=4000)(jax.random.key(0), POINTS)["y"]
    expected = np.asarray(ROUGH.covariance(jnp.asarray(POINTS))) + 0.01 * np.eye(P)
    for output in range(2):
        found = np.cov(y[..., output].T, bias=True)
        # Var of a sample covariance of Gaussians: (K_ii K_jj + K_ij^2) / s.
        error = np.sqrt((np.outer(expected.diagonal(), expected.diagonal()) + expected**2) / len(y))
        assert np.abs((found - expected) / error).max() < 4.5
    across = (y[:, :, 0].T @ y[:, :, 1]) / len(y)
    assert np.abs(across).max() < 5 * expected[0, 0] / np.sqrt(len(y))


HYPER = dataclasses.replace(ROUGH, hyper={"amplitude": dist.LogNormal(0.0, 0.5), "length": dist.LogNormal(0.0, 0.3)})


@pytest.mark.parametrize("solver", ["primal", "dual"])
@pytest.mark.parametrize("learned", [False, True])
def test_three_forms_are_one_density_under_gaussian_noise(learned, solver):
    net = network(9, outputs=2)
    net = dataclasses.replace(net, layers=(*net.layers[:-1], bw.Dense(2, w_scale=dist.LogNormal(0.0, 0.2), b_scale=0.3)))
    noise = bw.Gaussian(dist.LogNormal(-1.0, 0.5)) if learned else bw.Gaussian(0.3)
    build = lambda form: bw.functional_bnn(  # noqa: E731
        net, HYPER, POINTS, noise, form, solver=solver, input_collapse=False
    )
    models = {form: build(form) for form in ("standard", "repriorised", "collapsed")}
    sites = hidden(models["standard"], X)
    sites |= {"prior_amplitude": jnp.asarray(1.4), "prior_length": jnp.asarray(0.7), "readout.w_scale": jnp.asarray(0.8)}
    sites |= {"noise_scale": jnp.asarray(0.45)} if learned else {}
    phi = jax.random.normal(jax.random.key(3), (10, 2))
    log_joint = {
        form: lambda extra, model=model: float(log_density(model, (X, Y), {}, sites | extra)[0])
        for form, model in models.items()
    }

    def readout(phi):
        fixed = handlers.substitute(models["repriorised"], sites | {"readout_base": phi})
        return handlers.trace(fixed).get_trace(X, Y)["readout"]["value"]

    log_det = np.linalg.slogdet(np.asarray(jax.jacobian(readout)(phi)).reshape(20, 20))[1]
    theta = readout(phi)
    standard, repriorised = log_joint["standard"]({"readout": theta}), log_joint["repriorised"]({"readout_base": phi})
    np.testing.assert_allclose(repriorised, standard + log_det, rtol=1e-9)
    np.testing.assert_allclose(repriorised, log_joint["collapsed"]({}) + stats.norm.logpdf(phi).sum(), rtol=1e-10)

    # The standard form against its definition, with the network's own readout.
    scale, law = (0.45, stats.lognorm(0.5, scale=np.exp(-1.0)).logpdf(0.45)) if learned else (0.3, 0.0)
    law += stats.lognorm(0.5).logpdf(1.4) + stats.lognorm(0.3).logpdf(0.7) + stats.lognorm(0.2).logpdf(0.8)
    own = models["standard"].feature_map(jnp.asarray(X)).readout(sites, theta)
    fixed = bw.with_scales(net, {"2.w_scale": 0.8})
    f = fixed.features(({"w": sites["hidden.0.w"], "b": sites["hidden.0.b"]}, ()), X) @ own
    expected = law + sum(stats.norm.logpdf(sites[f"hidden.0.{name}"]).sum() for name in "wb")
    expected += stats.norm.logpdf(theta).sum() + stats.norm.logpdf(Y, f, scale).sum()
    np.testing.assert_allclose(standard, expected, rtol=1e-9)


def test_three_forms_are_one_density_under_counts():
    y, net = np.array([3, 0, 1, 2, 5]), network(9)
    models = {
        form: bw.functional_bnn(net, HYPER, POINTS, bw.Poisson(), form, input_collapse=False)
        for form in ("standard", "repriorised", "collapsed")
    }
    sites = hidden(models["standard"], X) | {"prior_amplitude": jnp.asarray(1.4), "prior_length": jnp.asarray(0.7)}
    joint = lambda form, extra: float(log_density(models[form], (X, y), {}, sites | extra)[0])  # noqa: E731

    def recorded(form, base, name):
        fixed = handlers.substitute(models[form], sites | base)
        return handlers.trace(fixed).get_trace(X, y)[name]["value"]

    phi, e = jax.random.normal(jax.random.key(3), (10, 1)), jax.random.normal(jax.random.key(4), (5, 1))
    readout = lambda phi: recorded("repriorised", {"readout_base": phi}, "readout")  # noqa: E731
    log_det = np.linalg.slogdet(np.asarray(jax.jacobian(readout)(phi)).reshape(10, 10))[1]
    standard = joint("standard", {"readout": readout(phi)})
    np.testing.assert_allclose(joint("repriorised", {"readout_base": phi}), standard + log_det, rtol=1e-9)

    # Collapsed: the density of f is N(f; 0, Psi Psi^T) p(y | f), times |df/de|.
    function = lambda e: recorded("collapsed", {"function_base": e}, "function")  # noqa: E731
    log_det = np.linalg.slogdet(np.asarray(jax.jacobian(function)(e)).reshape(5, 5))[1]
    psi, f = np.asarray(models["standard"].feature_map(jnp.asarray(X)).features(sites)), np.asarray(function(e))[:, 0]
    others = joint("standard", {"readout": jnp.zeros((10, 1))}) - stats.norm.logpdf(np.zeros(10)).sum()
    others -= stats.poisson.logpmf(y, 1.0).sum()
    expected = others + stats.multivariate_normal(np.zeros(5), psi @ psi.T).logpdf(f)
    expected += stats.poisson.logpmf(y, np.exp(f)).sum() + log_det
    np.testing.assert_allclose(joint("collapsed", {"function_base": e}), expected, rtol=1e-7)


def test_with_the_training_inputs_among_the_points_the_posterior_is_the_processs():
    """At the points, for any hidden weights: log p(Y | Psi), mean and variance are those of the exact regression."""
    x, y = POINTS[:4], Y[:4]
    model = bw.functional_bnn(network(15, outputs=2), ROUGH, POINTS, bw.Gaussian(0.2))
    cov = lambda a, b=None: ROUGH.covariance(jnp.asarray(a), None if b is None else jnp.asarray(b))  # noqa: E731
    exact = bw.gp.regression(cov(x), y, bw.Gaussian(0.2))
    mean, spread = exact.marginals(cov(POINTS, x), jnp.diagonal(cov(POINTS)))
    draws = [hidden(model, x, seed) for seed in range(4)]
    prior = [sum(stats.norm.logpdf(value).sum() for value in draw.values()) for draw in draws]
    found = [float(log_density(model, (x, y), {}, draw)[0]) for draw in draws]
    np.testing.assert_allclose(np.subtract(found, prior), float(exact.log_marginal_likelihood()), rtol=1e-9)
    for draw in draws:
        prediction = bw.predict(model, stacked(draw), x, y, POINTS, batch_size=4)
        np.testing.assert_allclose(prediction.mean, mean, atol=1e-9)
        np.testing.assert_allclose(prediction.epistemic, spread[:, None] + 0 * mean, atol=1e-9)
    # Off the points the network decides: predictions differ between draws, and agree over batches of any size.
    x_test = RNG.normal(size=(5, D))
    first, second = (bw.predict(model, stacked(draw), x, y, x_test) for draw in draws[:2])
    assert np.abs(first.mean - second.mean).max() > 0.01
    np.testing.assert_allclose(
        bw.predict(model, stacked(draws[0]), x, y, x_test, batch_size=2).mean, first.mean, rtol=1e-9
    )


def test_readout_draws_are_weights_of_the_network():
    x, y, key = POINTS[:4], Y[:4], jax.random.key(5)
    net = network(15, outputs=2)
    samples = None
    for form in ("collapsed", "repriorised"):
        model = bw.functional_bnn(net, ROUGH, POINTS, bw.Gaussian(0.2), form, input_collapse=False)
        samples = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (4000, *leaf.shape)), hidden(model, x))
        if form == "repriorised":
            phi = jax.random.normal(key, (4000, 16, 2))
            psi = model.feature_map(jnp.asarray(x)).features(hidden(model, x))
            samples["readout"] = jax.vmap(
                lambda phi, psi=psi: bw.Repriorisation(psi, jnp.asarray(y), 0.2).forward_and_log_det(phi)[0]
            )(phi)
        theta = bw.readout_draws(model, samples, x, y, key=key)
        f = net.features(({"w": samples["hidden.0.w"][0], "b": samples["hidden.0.b"][0]}, ()), POINTS) @ theta
        exact = bw.gp.regression(ROUGH.covariance(jnp.asarray(x)), y, bw.Gaussian(0.2))
        cross = ROUGH.covariance(jnp.asarray(POINTS), jnp.asarray(x))
        mean, cov = exact.moments(cross, ROUGH.covariance(jnp.asarray(POINTS)))
        sd = np.sqrt(np.diagonal(cov))[:, None]
        assert (np.abs(f.mean(axis=0) - mean) < 4.5 * sd / np.sqrt(4000)).all()
        np.testing.assert_allclose(f.std(axis=0), np.broadcast_to(sd, (P, 2)), rtol=0.06)


def chains(kernel, args, num_samples, num_warmup=200):
    mcmc = MCMC(
        kernel, num_warmup=num_warmup, num_samples=num_samples, num_chains=2, chain_method="vectorized",
        progress_bar=False,
    )  # fmt: skip
    mcmc.run(jax.random.key(1), *args)
    return mcmc


def agree(found, expected):
    """Means and standard deviations of two sets of chains (2, draws, quantities), within Monte-Carlo errors."""
    error = np.sqrt(sum(draws.var(axis=(0, 1)) / effective_sample_size(draws) for draws in (found, expected)))
    assert np.abs((found.mean(axis=(0, 1)) - expected.mean(axis=(0, 1))) / error).max() < 4
    np.testing.assert_allclose(found.std(axis=(0, 1)), expected.std(axis=(0, 1)), rtol=0.15)


def test_counts_at_the_points_against_nuts_on_the_process():
    y = np.array([4, 0, 2, 1, 0, 3])
    covariance = ROUGH.covariance(jnp.asarray(POINTS))

    def process():
        import numpyro

        z = numpyro.sample("z", dist.Normal().expand((P,)).to_event(1))
        f = numpyro.deterministic("f", jnp.linalg.cholesky(covariance) @ z)
        numpyro.sample("y", dist.Poisson(jnp.exp(f)).to_event(1), obs=y)

    expected = chains(NUTS(process), (), 1000).get_samples()["f"].reshape(2, 1000, P)
    model = bw.functional_bnn(network(20), ROUGH, POINTS, bw.Poisson())
    found = chains(bw.SplitHMC(model), (POINTS, y), 1000).get_samples()["function"].reshape(2, 1000, P)
    agree(np.asarray(found), np.asarray(expected))


@pytest.mark.slow
def test_between_the_points_forms_and_samplers_agree():
    """Training inputs that are not among the points: SplitHMC on the collapsed form, NUTS on the standard one."""
    x, x_test = RNG.normal(size=(8, D)), RNG.normal(size=(4, D))
    y = np.sin(2 * x[:, :1])
    draws = {}
    for form, kernel, num_samples in (("standard", NUTS, 1000), ("collapsed", bw.SplitHMC, 2000)):
        model = bw.functional_bnn(network(8), SMOOTH, POINTS, bw.Gaussian(0.2), form)
        samples = chains(kernel(model), (x, y), num_samples, 300).get_samples()
        mean, sd = bw.predict_draws(model, samples, x, y, x_test)
        draws[form] = np.asarray(mean + sd * jax.random.normal(jax.random.key(2), mean.shape)).reshape(2, num_samples, 4)
    agree(draws["collapsed"], draws["standard"])


def test_input_collapse_and_anchors_read_the_same_network():
    rng = np.random.default_rng(5)
    x, points, y = rng.normal(size=(4, 12)), rng.normal(size=(3, 12)), rng.normal(size=(4, 1))
    points[0] = x[2]
    net, prior = network(7), Process(1.0, 4.0)
    on, off = (
        bw.functional_bnn(net, prior, points, bw.Gaussian(0.2), "repriorised", input_collapse=flag)
        for flag in (None, False)
    )
    draw = hidden(off, x)
    features = on.feature_map(jnp.asarray(x))
    assert features.inputs.shape == (6, 12) and features.collapse.r.shape == (6, 6)  # one input is a point
    span = features.collapse.span({"w": draw["hidden.0.w"], "b": draw["hidden.0.b"]})
    expected = off.feature_map(jnp.asarray(x)).features(draw)
    np.testing.assert_allclose(features.features({"hidden.0.span": span}), expected, atol=1e-9)
    # Traced inputs cannot be compared with the points; they are read as well.
    traced = jax.jit(lambda x: off.feature_map(x).features(draw))(jnp.asarray(x))
    np.testing.assert_allclose(traced, expected, atol=1e-9)

    rows = jnp.array([3, 0])
    np.testing.assert_allclose(features.at(rows).features({"hidden.0.span": span}), expected[rows], atol=1e-9)
    anchored = anchored_posterior("here", on, x, y, jax.random.key(0), 2)
    z = anchored.start(jax.random.key(1))
    every = np.mean([anchored.estimate(z, jnp.array([row])) for row in range(4)])
    np.testing.assert_allclose(every, anchored.potential(z), rtol=1e-9)


def test_repeated_and_close_points():
    points = np.concatenate([POINTS, POINTS[:2], POINTS[2:3] + 1e-9])
    model = bw.functional_bnn(network(P), ROUGH, points, bw.Gaussian(0.1), input_collapse=False)
    assert model.points.shape == (P + 1, D)  # repetitions are one point; the close pair is kept
    draw = hidden(model, points)
    y = RNG.normal(size=(len(points), 1))
    value, grad = jax.value_and_grad(lambda draw: log_density(model, (points, y), {}, draw)[0])(draw)
    assert np.isfinite(value) and all(np.isfinite(leaf).all() for leaf in grad.values())
    psi = model.feature_map(jnp.asarray(points)).features(draw)
    np.testing.assert_allclose(psi @ psi.T, ROUGH.covariance(jnp.asarray(points)), atol=1e-6)


def test_hidden_units_that_do_not_tell_points_apart():
    """Relus without a kink between points are linear on them: what they cannot say is left out, without blowing up."""
    net = bw.Dense(12, w_scale=1.0, b_scale=3.0) >> bw.Relu() >> bw.Dense(1, b_scale=0.3)
    points = np.linspace(-0.1, 0.1, 8)[:, None]
    model = bw.functional_bnn(net, ROUGH, points, bw.Gaussian(0.1), input_collapse=False)
    draw = hidden(model, points)
    features = model.feature_map(jnp.asarray(points))
    raw = bw.models.feature_map(net, jnp.asarray(points), False).features(draw)
    assert np.linalg.matrix_rank(raw) < 8
    variance = np.diagonal(features.features(draw) @ features.features(draw).T)
    assert (variance < 2 * ROUGH.amplitude**2).all() and (variance > 0).all()
    transform = features.readout(draw, jnp.eye(13))
    assert np.isfinite(transform).all()


def test_single_precision():
    with jax.enable_x64(False):
        model = bw.functional_bnn(network(40), ROUGH, POINTS, bw.Gaussian(0.1), input_collapse=False)
        draw = hidden(model, POINTS)
        psi = model.feature_map(jnp.asarray(POINTS, jnp.float32)).features(draw)
        assert psi.dtype == jnp.float32
        covariance = np.asarray(psi, float) @ np.asarray(psi, float).T
        prediction = bw.predict(model, stacked(draw), POINTS, Y[:1].repeat(P, 0)[:, :1], POINTS)
        assert prediction.mean.dtype == jnp.float32
    np.testing.assert_allclose(covariance, ROUGH.covariance(jnp.asarray(POINTS)), atol=2e-4)


def test_the_wide_limit():
    """Between the points Psi Psi^T tends to the process given the points with the NNGP's law, at the rate 1/width."""
    prior, x = SMOOTH, np.concatenate([POINTS[:2], RNG.normal(size=(4, D))])
    limit = bw.functional.wide_limit(network(1), prior, POINTS)
    expected = limit.covariance(x)
    np.testing.assert_allclose(limit.covariance(POINTS), prior.covariance(jnp.asarray(POINTS)), atol=1e-9)
    np.testing.assert_allclose(limit.covariance(x, x[:3]), expected[:, :3], atol=1e-12)
    # Against the law of f given f_M, by dense inverses.
    k = lambda a, b: np.asarray(network(1).kernel(a, b, ntk=False).nngp)  # noqa: E731
    gain = k(x, POINTS) @ np.linalg.inv(k(POINTS, POINTS))
    wanted = np.asarray(prior.covariance(jnp.asarray(POINTS))) - k(POINTS, POINTS)
    np.testing.assert_allclose(expected, k(x, x) + gain @ wanted @ gain.T, atol=1e-8)

    errors = []
    for width in (50, 800):
        model = bw.functional_bnn(network(width), prior, POINTS, bw.Gaussian(0.1), input_collapse=False)
        features = model.feature_map(jnp.asarray(x))
        read = jax.jit(lambda draw, features=features: (lambda psi: psi @ psi.T)(features.features(draw)))
        off = np.stack([read(hidden(model, x, seed)) - expected for seed in range(40)])
        np.testing.assert_allclose(off[:, :2, :2], 0.0, atol=1e-9)
        errors.append(np.sqrt(np.mean(off[:, 2:, 2:] ** 2)))
    assert errors[1] < 0.1
    np.testing.assert_allclose(errors[0] / errors[1], 4.0, rtol=0.35)  # sqrt(800 / 50)


def test_the_wide_limit_conditions_on_data():
    """A wide functional BNN predicts as the regression with its limit's kernel."""
    x, x_test, y = X, RNG.normal(size=(3, D)), Y[:, :1]
    limit = bw.functional.wide_limit(network(1), ROUGH, POINTS)
    exact = bw.gp.regression(limit.covariance(x), y, bw.Gaussian(0.3))
    mean, cov = exact.moments(limit.covariance(x_test, x), limit.covariance(x_test))
    model = bw.functional_bnn(network(3000), ROUGH, POINTS, bw.Gaussian(0.3))
    prediction = bw.predict(model, stacked(*[hidden(model, x, seed) for seed in range(8)]), x, y, x_test)
    np.testing.assert_allclose(prediction.mean, mean, atol=0.06)
    np.testing.assert_allclose(prediction.epistemic[:, 0], np.diagonal(cov), atol=0.06)


NET = network(10)
REFUSED = {
    "net": (TypeError, lambda: bw.functional_bnn("net", ROUGH, POINTS, bw.Gaussian(0.1)), "net must be an architecture"),
    "likelihood": (TypeError, lambda: bw.functional_bnn(NET, ROUGH, POINTS, 0.1), "likelihood must be a likelihood"),
    "prior": (TypeError, lambda: bw.functional_bnn(NET, "rbf", POINTS, bw.Gaussian(0.1)), "prior must be a Gaussian proc"),
    "hyper": (
        TypeError,
        lambda: bw.functional_bnn(NET, Process(hyper={"length": 1.0}), POINTS, bw.Gaussian(0.1)),
        "the prior of 'length' must be a NumPyro distribution",
    ),
    "form": (ValueError, lambda: bw.functional_bnn(NET, ROUGH, POINTS, bw.Gaussian(0.1), "half"), "form must be one of"),
    "points": (
        ValueError,
        lambda: bw.functional_bnn(NET, ROUGH, POINTS[:, 0], bw.Gaussian(0.1)),
        r"points must have shape \(p, d\); got \(6,\)",
    ),
    "NaN": (
        ValueError,
        lambda: bw.functional_bnn(NET, ROUGH, POINTS * np.nan, bw.Gaussian(0.1)),
        "points must be finite; got 12 NaN",
    ),
    "width": (
        ValueError,
        lambda: bw.functional_bnn(network(4), ROUGH, POINTS, bw.Gaussian(0.1)),
        "width of the last hidden layer must be at least the number of points, p=6; got 5 readout features",
    ),
    "mean": (
        ValueError,
        lambda: bw.functional_bnn(NET, Process(level=0.5), POINTS, bw.Gaussian(0.1)),
        "prior must have mean zero at the points; got means up to 0.5",
    ),
    "covariance": (
        ValueError,
        lambda: bw.functional_bnn(NET, Process(amplitude=np.nan), POINTS, bw.Gaussian(0.1)),
        r"prior.covariance\(points\) must be finite",
    ),
    "readout": (
        ValueError,
        lambda: bw.functional_bnn(
            bw.Dense(10) >> bw.Tanh() >> bw.Dense(1, w_prior=dist.Laplace(0.0, 1.0)), ROUGH, POINTS, bw.Gaussian(0.1)
        ),
        "net needs a readout of normal weights",
    ),
    "centred": (
        ValueError,
        lambda: bw.functional_bnn(NET, ROUGH, POINTS, bw.Gaussian(0.1), centred=("hidden.0.b",)),
        "centred must name hidden weights",
    ),
    "limit": (TypeError, lambda: bw.functional.wide_limit(NET, None, POINTS), "prior must be a Gaussian process"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name, only_the_librarys_own_checks):
    error, build, message = REFUSED[name]
    with pytest.raises(error, match=message):
        build()


def test_inputs_of_another_dimension_are_refused(only_the_librarys_own_checks):
    model = bw.functional_bnn(NET, ROUGH, POINTS, bw.Gaussian(0.1))
    with pytest.raises(ValueError, match=r"x must have shape \(n, 2\) with d=2 from points; got \(5, 3\)"):
        model(RNG.normal(size=(5, 3)), Y[:, :1])
    assert repr(model).startswith("FunctionalBNN(") and "points=6" in repr(model)
