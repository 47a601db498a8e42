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


def network(width, outputs=1):
    return bw.Dense(width, w_scale=2.0, b_scale=0.5) >> bw.Erf() >> bw.Dense(outputs, b_scale=0.3)


def hidden(model, x, seed=0):
    """Random hidden weights, as the sites of a model."""
    rng, width = np.random.default_rng(seed), model.net[0].width
    draw = {"hidden.0.w": (x.shape[1], width), "hidden.0.b": (width,)}
    return {name: jnp.asarray(rng.normal(size=shape)) for name, shape in draw.items()}


def features_of(model, x, draw):
    """The transformed features at x, compiled as one."""
    return np.asarray(jax.jit(model.feature_map(jnp.asarray(x)).features)(draw))


def joint(model, data, draw):
    """log p of a draw and the data, compiled as one."""
    return float(jax.jit(lambda draw: log_density(model, data, {}, draw)[0])(draw))


def recorded(model, data, draw, base, value, name):
    """The site `name` as a function of the latent site `base`, and its Jacobian."""

    def site(value, draw):
        trace = handlers.trace(handlers.substitute(model, draw | {base: value})).get_trace(*data)
        return trace[name]["value"], trace[name]["value"]

    jacobian, at = jax.jit(jax.jacfwd(site, has_aux=True))(value, draw)
    return at, np.asarray(jacobian).reshape(value.size, -1)


def stacked(*draws):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *draws)


# P - 1 units and a bias are just enough.
@pytest.mark.parametrize(("width", "prior"), [(P - 1, ROUGH), (P + 3, SMOOTH), (100, ROUGH)])
def test_the_prior_at_the_points_is_the_process_at_any_width(width, prior):
    model = bw.functional_bnn(network(width), prior, POINTS, bw.Gaussian(0.1))
    features = jax.jit(model.feature_map(jnp.asarray(POINTS)).features)
    for seed in range(3):
        psi = features(hidden(model, POINTS, seed))
        np.testing.assert_allclose(psi @ psi.T, prior.covariance(jnp.asarray(POINTS)), atol=1e-9)


def test_the_readouts_covariance_is_that_of_its_definition():
    """theta = A f_M + (I - A Psi_M) theta_0, with A = Psi_M^T (Psi_M Psi_M^T)^-1, by dense formulas."""
    model = bw.functional_bnn(network(12), ROUGH, POINTS, bw.Gaussian(0.1), input_collapse=False)
    draw = hidden(model, X)
    psi = np.asarray(model.net.features(({"w": draw["hidden.0.w"], "b": draw["hidden.0.b"]}, ()), POINTS))
    gain = np.linalg.pinv(psi)
    rest = np.eye(13) - gain @ psi
    expected = gain @ np.asarray(ROUGH.covariance(jnp.asarray(POINTS))) @ gain.T + rest @ rest.T
    features = model.feature_map(jnp.asarray(X))
    transform = jax.jit(features.readout)(draw, jnp.eye(13))
    np.testing.assert_allclose(transform @ transform.T, expected, atol=1e-8)
    # And the features at any input are the network's own, times the transform.
    x_test = RNG.normal(size=(4, D))
    read = jax.jit(lambda basis: features.reader(draw, jax.random.key(0))(basis))(
        features.test_basis(jnp.asarray(x_test))
    )
    plain = model.net.features(({"w": draw["hidden.0.w"], "b": draw["hidden.0.b"]}, ()), x_test)
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


@pytest.mark.parametrize(("learned", "solver"), [(False, "primal"), (True, "dual")])
def test_three_forms_are_one_density_under_gaussian_noise(learned, solver):
    net = network(9, outputs=2)
    net = dataclasses.replace(
        net, layers=(*net.layers[:-1], bw.Dense(2, w_scale=dist.LogNormal(0.0, 0.2), b_scale=0.3))
    )
    noise = bw.Gaussian(dist.LogNormal(-1.0, 0.5)) if learned else bw.Gaussian(0.3)
    build = lambda form: bw.functional_bnn(  # noqa: E731
        net, HYPER, POINTS, noise, form, solver=solver, input_collapse=False
    )
    models = {form: build(form) for form in ("standard", "repriorised", "collapsed")}
    sites = hidden(models["standard"], X)
    sites |= {
        "prior_amplitude": jnp.asarray(1.4),
        "prior_length": jnp.asarray(0.7),
        "readout.w_scale": jnp.asarray(0.8),
    }
    sites |= {"noise_scale": jnp.asarray(0.45)} if learned else {}
    phi = jax.random.normal(jax.random.key(3), (10, 2))
    theta, jacobian = recorded(models["repriorised"], (X, Y), sites, "readout_base", phi, "readout")
    log_det = np.linalg.slogdet(jacobian)[1]
    standard = joint(models["standard"], (X, Y), sites | {"readout": theta})
    repriorised = joint(models["repriorised"], (X, Y), sites | {"readout_base": phi})
    np.testing.assert_allclose(repriorised, standard + log_det, rtol=1e-9)
    collapsed = joint(models["collapsed"], (X, Y), sites)
    np.testing.assert_allclose(repriorised, collapsed + stats.norm.logpdf(phi).sum(), rtol=1e-10)

    # The standard form against its definition, with the network's own readout.
    scale, law = (0.45, stats.lognorm(0.5, scale=np.exp(-1.0)).logpdf(0.45)) if learned else (0.3, 0.0)
    law += stats.lognorm(0.5).logpdf(1.4) + stats.lognorm(0.3).logpdf(0.7) + stats.lognorm(0.2).logpdf(0.8)
    own = jax.jit(models["standard"].feature_map(jnp.asarray(X)).readout)(sites, theta)
    fixed = bw.with_scales(net, {"2.w_scale": 0.8})
    f = fixed.features(({"w": sites["hidden.0.w"], "b": sites["hidden.0.b"]}, ()), X) @ own
    expected = law + sum(stats.norm.logpdf(sites[f"hidden.0.{name}"]).sum() for name in "wb")
    expected += stats.norm.logpdf(theta).sum() + stats.norm.logpdf(Y, f, scale).sum()
    np.testing.assert_allclose(standard, expected, rtol=1e-9)


def test_three_forms_are_one_density_under_counts():
    y, net = np.array([3, 0, 1, 2, 5]), network(9)
    gaussian_sites = bw.Sites(jnp.log1p(jnp.asarray(y, float))[:, None], jnp.linspace(0.5, 2.0, 5)[:, None])
    models = {
        form: bw.functional_bnn(net, HYPER, POINTS, bw.Poisson(), form, sites=gaussian_sites)
        for form in ("standard", "repriorised", "collapsed")
    }
    draw = hidden(models["standard"], X) | {"prior_amplitude": jnp.asarray(1.4), "prior_length": jnp.asarray(0.7)}

    phi, e = jnp.asarray(RNG.normal(size=(10, 1))), jnp.asarray(RNG.normal(size=(5, 1)))
    theta, jacobian = recorded(models["repriorised"], (X, y), draw, "readout_base", phi, "readout")
    standard = joint(models["standard"], (X, y), draw | {"readout": theta})
    repriorised = joint(models["repriorised"], (X, y), draw | {"readout_base": phi})
    np.testing.assert_allclose(repriorised, standard + np.linalg.slogdet(jacobian)[1], rtol=1e-9)

    # Collapsed: the density of f is N(f; 0, Psi Psi^T) p(y | f), times |df/de|.
    f, jacobian = recorded(models["collapsed"], (X, y), draw, "function_base", e, "function")
    psi = features_of(models["standard"], X, draw)
    others = standard - stats.norm.logpdf(theta).sum() - stats.poisson.logpmf(y, np.exp(psi @ theta)[:, 0]).sum()
    expected = others + stats.multivariate_normal(np.zeros(5), psi @ psi.T).logpdf(f[:, 0])
    expected += stats.poisson.logpmf(y, np.exp(f[:, 0])).sum() + np.linalg.slogdet(jacobian)[1]
    np.testing.assert_allclose(joint(models["collapsed"], (X, y), draw | {"function_base": e}), expected, rtol=1e-7)


def test_with_the_training_inputs_among_the_points_the_posterior_is_the_processs():
    """At the points, for any hidden weights: log p(Y | Psi), mean and variance are those of the exact regression."""
    x, y = POINTS[:4], Y[:4]
    model = bw.functional_bnn(network(15, outputs=2), ROUGH, POINTS, bw.Gaussian(0.2))
    cov = lambda a, b=None: ROUGH.covariance(jnp.asarray(a), None if b is None else jnp.asarray(b))  # noqa: E731
    exact = bw.gp.regression(cov(x), y, bw.Gaussian(0.2))
    mean, spread = exact.marginals(cov(POINTS, x), jnp.diagonal(cov(POINTS)))
    draws = [hidden(model, x, seed) for seed in range(4)]
    prior = [sum(stats.norm.logpdf(value).sum() for value in draw.values()) for draw in draws]
    joint = jax.jit(lambda draw: log_density(model, (x, y), {}, draw)[0])
    found = [float(joint(draw)) for draw in draws]
    np.testing.assert_allclose(np.subtract(found, prior), float(exact.log_marginal_likelihood()), rtol=1e-9)
    # The epistemic variance over draws is that given one: the means do not differ between them.
    prediction = bw.predict(model, stacked(*draws), x, y, POINTS, batch_size=4)
    np.testing.assert_allclose(prediction.mean, mean, atol=1e-9)
    np.testing.assert_allclose(prediction.epistemic, spread[:, None] + 0 * mean, atol=1e-9)


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
        covariance = np.asarray(ROUGH.covariance(jnp.asarray(POINTS)))  # x is the first four points
        gain = covariance[:, :4] @ np.linalg.inv(covariance[:4, :4] + 0.04 * np.eye(4))
        mean, sd = gain @ y, np.sqrt(np.diagonal(covariance - gain @ covariance[:4]))[:, None]
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


def test_function_values_at_the_points_have_the_processs_posterior():
    """Whatever the hidden weights, the density of f is N(f; 0, K_gp) p(y | f)."""
    y = np.array([4, 0, 2, 1, 0, 3])
    sites = bw.Sites(jnp.ones((P, 1)), jnp.full((P, 1), 0.5))
    model = bw.functional_bnn(network(20), ROUGH, POINTS, bw.Poisson(), sites=sites)
    covariance = np.asarray(ROUGH.covariance(jnp.asarray(POINTS)))
    draw, e = hidden(model, POINTS), jnp.asarray(RNG.normal(size=(P, 1)))
    f, jacobian = recorded(model, (POINTS, y), draw, "function_base", e, "function")
    expected = stats.multivariate_normal(np.zeros(P), covariance).logpdf(f[:, 0])
    expected += stats.poisson.logpmf(y, np.exp(f[:, 0])).sum() + np.linalg.slogdet(jacobian)[1]
    expected += sum(stats.norm.logpdf(value).sum() for value in draw.values())
    np.testing.assert_allclose(joint(model, (POINTS, y), draw | {"function_base": e}), expected, rtol=1e-7)


@pytest.mark.slow
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
    rng = np.random.default_rng(3)
    x, x_test = rng.normal(size=(8, D)), rng.normal(size=(4, D))
    y = np.sin(2 * x[:, :1])
    draws = {}
    for form, kernel, num_samples in (("standard", NUTS, 500), ("collapsed", bw.SplitHMC, 1000)):
        model = bw.functional_bnn(network(8), SMOOTH, POINTS, bw.Gaussian(0.2), form)
        samples = chains(kernel(model), (x, y), num_samples, 300).get_samples()
        mean, sd = bw.predict_draws(model, samples, x, y, x_test)
        draws[form] = np.asarray(mean + sd * jax.random.normal(jax.random.key(2), mean.shape)).reshape(
            2, num_samples, 4
        )
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
    read = jax.jit(features.features)
    assert features.inputs.shape == (6, 12) and features.collapse.r.shape == (6, 6)  # one input is a point
    span = features.collapse.span({"w": draw["hidden.0.w"], "b": draw["hidden.0.b"]})
    expected = features_of(off, x, draw)
    np.testing.assert_allclose(read({"hidden.0.span": span}), expected, atol=1e-9)
    # Traced inputs cannot be compared with the points; they are read as well.
    traced = jax.jit(lambda x: off.feature_map(x).features(draw))(jnp.asarray(x))
    np.testing.assert_allclose(traced, expected, atol=1e-9)

    rows = jnp.array([3, 0])
    some = jax.jit(features.at(rows).features)({"hidden.0.span": span})
    np.testing.assert_allclose(some, expected[rows], atol=1e-9)
    anchored = anchored_posterior("here", on, x, y, jax.random.key(0), 2)
    z = anchored.start(jax.random.key(1))
    estimate = jax.jit(anchored.estimate)
    every = np.mean([estimate(z, jnp.array([row])) for row in range(4)])
    np.testing.assert_allclose(every, estimate(z, jnp.arange(4)), rtol=1e-9)


def test_repeated_and_close_points():
    points = np.concatenate([POINTS, POINTS[:2], POINTS[2:3] + 1e-9])
    model = bw.functional_bnn(network(P), ROUGH, points, bw.Gaussian(0.1), input_collapse=False)
    assert model.points.shape == (P + 1, D)  # repetitions are one point; the close pair is kept
    draw = hidden(model, points)
    y = RNG.normal(size=(len(points), 1))
    value, grad = jax.jit(jax.value_and_grad(lambda draw: log_density(model, (points, y), {}, draw)[0]))(draw)
    assert np.isfinite(value) and all(np.isfinite(leaf).all() for leaf in grad.values())
    psi = features_of(model, points, draw)
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
    variance = np.sum(features_of(model, points, draw) ** 2, axis=1)
    assert (variance < 2 * ROUGH.amplitude**2).all() and (variance > 0).all()
    transform = jax.jit(features.readout)(draw, jnp.eye(13))
    assert np.isfinite(transform).all()


def test_single_precision():
    with jax.enable_x64(False):
        model = bw.functional_bnn(network(40), ROUGH, POINTS, bw.Gaussian(0.1), input_collapse=False)
        draw = hidden(model, POINTS)
        psi = features_of(model, POINTS, draw)
        assert psi.dtype == jnp.float32
        covariance = np.asarray(psi, float) @ np.asarray(psi, float).T
    np.testing.assert_allclose(covariance, ROUGH.covariance(jnp.asarray(POINTS)), atol=2e-4)


def test_the_wide_limit():
    """Between the points Psi Psi^T tends to the process given the points with the NNGP's law, at the rate 1/width."""
    x = np.concatenate([POINTS[:2], X[2:], RNG.normal(size=(3, D))])
    limit = bw.functional.wide_limit(network(1), SMOOTH, POINTS)
    expected = np.asarray(limit.covariance(x))
    at_points = SMOOTH.covariance(jnp.asarray(POINTS))
    np.testing.assert_allclose(expected[:2, :2], at_points[:2, :2], atol=1e-9)
    model = bw.functional_bnn(network(P), SMOOTH, POINTS, bw.Gaussian(0.3))
    np.testing.assert_allclose(model.prior_covariance(jnp.asarray(x)), expected, atol=1e-8)
    # Against the law of f given f_M, by dense inverses.
    kernel = np.asarray(network(1).kernel(np.concatenate([POINTS, x]), ntk=False).nngp)
    gain = kernel[P:, :P] @ np.linalg.inv(kernel[:P, :P])
    wanted = np.asarray(at_points) - kernel[:P, :P]
    np.testing.assert_allclose(expected, kernel[P:, P:] + gain @ wanted @ gain.T, atol=1e-8)

    errors = []
    for width in (100, 1600):
        model = bw.functional_bnn(network(width), SMOOTH, POINTS, bw.Gaussian(0.3))
        read = jax.jit(jax.vmap(model.feature_map(jnp.asarray(x)).features))
        draws = stacked(*[hidden(model, x, seed) for seed in range(100)])
        psi = np.asarray(read(draws))
        off = psi @ psi.transpose(0, 2, 1) - expected
        np.testing.assert_allclose(off[:, :2, :2], 0.0, atol=1e-9)
        errors.append(np.sqrt(np.mean(off[:, 2:, 2:] ** 2)))
    assert errors[1] < 0.05
    np.testing.assert_allclose(errors[0] / errors[1], 4.0, rtol=0.25)  # sqrt(1600 / 100)

    # And the wide network predicts as the regression with its limit's kernel.
    y = Y[:, :1]
    mean, cov = bw.gp.regression(expected[:5, :5], y, bw.Gaussian(0.3)).moments(expected[5:, :5], expected[5:, 5:])
    prediction = bw.predict(model, jax.tree.map(lambda leaf: leaf[:8], draws), x[:5], y, x[5:])
    np.testing.assert_allclose(prediction.mean, mean, atol=0.05)
    np.testing.assert_allclose(prediction.epistemic[:, 0], np.diagonal(cov), atol=0.05)


NET = network(10)
REFUSED = {
    "net": (
        TypeError,
        lambda: bw.functional_bnn("net", ROUGH, POINTS, bw.Gaussian(0.1)),
        "net must be an architecture",
    ),
    "likelihood": (TypeError, lambda: bw.functional_bnn(NET, ROUGH, POINTS, 0.1), "likelihood must be a likelihood"),
    "prior": (
        TypeError,
        lambda: bw.functional_bnn(NET, "rbf", POINTS, bw.Gaussian(0.1)),
        "prior must be a Gaussian proc",
    ),
    "hyper": (
        TypeError,
        lambda: bw.functional_bnn(NET, Process(hyper={"length": 1.0}), POINTS, bw.Gaussian(0.1)),
        "the prior of 'length' must be a NumPyro distribution",
    ),
    "form": (
        ValueError,
        lambda: bw.functional_bnn(NET, ROUGH, POINTS, bw.Gaussian(0.1), "half"),
        "form must be one of",
    ),
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
        lambda: bw.functional_bnn(NET, Process(level=np.nan), POINTS, bw.Gaussian(0.1)),
        r"prior.mean\(points\) must be finite; got 6 NaN",
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


def test_it_takes_part_in_the_sweep():
    """With the training inputs among the points the fit of every draw is that of the Gaussian process."""

    def model_of(net, likelihood, **options):
        return bw.functional_bnn(net, ROUGH, POINTS, likelihood, **options)

    x, y = POINTS[:4], Y[:4, :1]
    table = bw.ess_by_width(
        network, bw.Gaussian(0.3), x, y, widths=[8], methods=["splithmc-collapsed"], key=jax.random.key(0),
        x_test=POINTS, y_test=np.zeros((6, 1)), seconds=1.0, max_draws=60, num_chains=2, progress=False,
        model_of=model_of,
    )  # fmt: skip
    exact = np.asarray(ROUGH.covariance(POINTS, x) @ np.linalg.solve(ROUGH.covariance(x) + 0.09 * np.eye(4), y))
    assert table.rmse.item() == pytest.approx(np.sqrt(np.mean(exact**2)), rel=1e-6)
