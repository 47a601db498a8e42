"""Fits of functions against exact answers: linear models, and a Gaussian process."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from process_priors import Process

import bnnwide as bw
from bnnwide.comparators.fit import run_steps
from bnnwide.comparators.variational import mean_field_fit
from bnnwide.diagnostics.functionals import predictions_of
from bnnwide.functional import (
    Factorised,
    FixedPoints,
    FunctionalELBO,
    GPPrior,
    MatrixVariate,
    Measurement,
    RegularisedELBO,
    RepriorisedFamily,
    fit,
    laplace,
)
from bnnwide.functional.families import make_family
from bnnwide.functional.guide import functional_fit, functional_laplace_fit
from bnnwide.prediction import Prediction

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = np.r_[RNG.uniform(-2, -0.7, (6, 1)), RNG.uniform(0.7, 2, (6, 1))]
Y = np.sin(2 * X) + 0.1 * RNG.normal(size=X.shape)
GRID = np.linspace(-2.5, 2.5, 21)[:, None]
NOISE = bw.Gaussian(0.1)
NET = bw.Dense(20, w_scale=2.0, b_scale=2.0) >> bw.Tanh() >> bw.Dense(1, w_scale=2.0)
LINE = bw.Network((bw.Dense(1, b_scale=1.0),))
POINTS = FixedPoints(np.linspace(-2, 2, 4)[:, None])


def rbf(a, b):
    return jnp.exp(-0.5 * jnp.sum((a[:, None] - b[None]) ** 2, -1) / 0.7**2)


PRIOR = GPPrior(rbf)


@pytest.fixture(scope="module")
def exact():
    return PRIOR.posterior(X, Y, NOISE).predict(GRID)


def distances(pred, exact):
    """Root mean squared distances of means and of standard deviations of the function."""
    sd = np.sqrt(pred.epistemic) - np.sqrt(exact.epistemic)
    return float(np.sqrt(np.mean((pred.mean - exact.mean) ** 2))), float(np.sqrt(np.mean(sd**2)))


@pytest.mark.parametrize(("family", "objective"), [("factorised", FunctionalELBO), ("matrix", RegularisedELBO)])
def test_a_straight_line_is_fitted_exactly(family, objective):
    # The KL of straight lines to their own law is that of the two weights: independent normals have the posterior's
    # mean and 1 / precision. (Rows and columns of W (1, 1) and the bias are independent in both families.)
    options = {"noise": 0.003} if objective is FunctionalELBO else {"gamma": 1e-6}
    made = objective(GPPrior(LINE), measurement=POINTS, score="linearised", num_samples=8, **options)
    found = fit(
        LINE,
        made.prior,
        bw.Gaussian(0.5),
        X,
        Y,
        key=KEY,
        num_steps=300,
        family=family,
        objective=made,
        learning_rate=0.05,
    )
    design = np.c_[X, np.ones(12)]
    precision = np.eye(2) + design.T @ design / 0.25
    mean = np.linalg.solve(precision, design.T @ Y / 0.25)
    pred = found.predict(GRID, num_samples=20_000)
    new = np.c_[GRID, np.ones(21)]
    variance = new**2 @ (1 / np.diagonal(precision))
    # Eight draws per step leave noise in the mean, a tenth of its standard deviation.
    np.testing.assert_allclose(pred.mean, new @ mean, atol=0.1)
    np.testing.assert_allclose(pred.epistemic[:, 0], variance, rtol=0.1)
    np.testing.assert_allclose(pred.aleatoric, 0.25)


@pytest.fixture(scope="module")
def mean_field(exact):
    model = bw.bnn(NET, NOISE, "standard")
    run = bw.comparators.mean_field(model, X, Y, key=KEY, num_steps=1500, num_samples=500)
    return distances(bw.comparators.predict_plain(model, run.get_samples(), X, GRID), exact)


# Steps are few; the benchmark has longer runs.
FITS = {
    "stein": (lambda m: FunctionalELBO(PRIOR, measurement=m, num_samples=32), "factorised", 800),
    "stein, repriorised": (lambda m: FunctionalELBO(PRIOR, measurement=m, num_samples=32), "repriorised", 300),
    "gaussian": (lambda m: FunctionalELBO(PRIOR, measurement=m, score="gaussian", num_samples=32), "factorised", 800),
    "regularised": (lambda m: RegularisedELBO(PRIOR, measurement=m, num_samples=16), "factorised", 800),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FITS)
def test_is_closer_to_the_process_than_mean_field_weights_are(name, exact, mean_field):
    make, family, num_steps = FITS[name]
    found = fit(
        NET, PRIOR, NOISE, X, Y, key=KEY, num_steps=num_steps, family=family,
        objective=make(Measurement(12, 10, (-2.5, 2.5))),
    )  # fmt: skip
    got = distances(found.predict(GRID), exact)
    assert got[0] < mean_field[0], (got, mean_field)
    # Independent weights have the wrong spread between data in function space too: not always less wrong than before.
    assert name in ("stein", "gaussian") or got[1] < mean_field[1], (got, mean_field)


def test_the_repriorised_family_comes_close_to_the_process(exact):
    make, family, _ = FITS["stein, repriorised"]
    objective = make(Measurement(12, 10, (-2.5, 2.5)))
    found = fit(NET, PRIOR, NOISE, X, Y, key=KEY, num_steps=200, family=family, objective=objective)
    got = distances(found.predict(GRID), exact)
    assert got[0] < 0.1 and got[1] < 0.15, got


@pytest.mark.slow
def test_laplace_of_a_wide_network_is_the_process(exact):
    # 120 weights are linear enough here, and the function prior decides between data.
    wide = bw.Dense(60, w_scale=2.0, b_scale=2.0) >> bw.Tanh() >> bw.Dense(1, w_scale=2.0)
    found = laplace(
        wide, PRIOR, NOISE, X, Y, key=KEY, num_steps=2000, measurement=Measurement(12, 12, (-2.5, 2.5)), num_context=40
    )
    pred = found.predict(GRID)
    mean, sd = distances(pred, exact)
    assert mean < 0.1 and sd < 0.03, (mean, sd)
    draws = found.draws(KEY, GRID, 4000)
    np.testing.assert_allclose(draws.mean(0), pred.mean, atol=5 * 0.6 / np.sqrt(4000))
    np.testing.assert_allclose(draws.var(0), pred.epistemic, atol=0.05)


def test_laplace_of_a_straight_line_is_its_posterior():
    # With K the law of lines itself, of rank 2 in four points, the jitter is the only difference.
    found = laplace(
        LINE, GPPrior(LINE), bw.Gaussian(0.5), X, Y, key=KEY, num_steps=1500, measurement=POINTS, noise=1e-4,
        weight_scale=1e6,
    )  # fmt: skip
    pred, exact = found.predict(GRID), GPPrior(LINE).posterior(X, Y, bw.Gaussian(0.5)).predict(GRID)
    np.testing.assert_allclose(pred.mean, exact.mean, atol=1e-3)
    np.testing.assert_allclose(pred.epistemic, exact.epistemic, rtol=1e-3)


@pytest.mark.slow
def test_classes():
    labels = (Y[:, 0] > 0).astype(int)
    two = NET[:-1] >> bw.Dense(2, w_scale=2.0)
    made = FunctionalELBO(PRIOR, measurement=Measurement(6, 6), num_samples=16)
    found = fit(two, PRIOR, bw.Categorical(), X, labels, key=KEY, num_steps=100, family="mixture", objective=made)
    pred = found.predict(X)
    np.testing.assert_allclose(pred.probs.sum(1), 1.0, rtol=1e-9)
    assert (pred.probs.argmax(1) == labels).mean() > 0.9
    found = laplace(two, PRIOR, bw.Categorical(), X, labels, key=KEY, num_steps=300, num_context=10)
    assert (found.predict(X).probs.argmax(1) == labels).mean() > 0.9


def test_learned_noise_of_a_straight_line():
    # The noise has a wide prior, so that its posterior is near the residuals' standard deviation.
    prior = GPPrior(LINE)
    made = FunctionalELBO(prior, measurement=POINTS, score="gaussian", num_samples=32)
    found = fit(
        LINE, prior, bw.Gaussian(dist.LogNormal(-1.0, 2.0)), X, Y, key=KEY, num_steps=300, objective=made,
        learning_rate=0.05, batch_size=8,
    )  # fmt: skip
    design = np.c_[X, np.ones(12)]
    residual = Y - design @ np.linalg.lstsq(design, Y, rcond=None)[0]
    np.testing.assert_allclose(np.sqrt(found.predict(X).aleatoric.mean()), residual.std() * (12 / 9) ** 0.5, rtol=0.2)
    tree = bw.to_arviz(found.run(KEY, GRID, num_samples=20))
    assert tree["posterior"]["f"].shape == (1, 20, 21, 1)
    assert tree["posterior"]["noise_scale"].shape == (1, 20)
    np.testing.assert_allclose(found.predict(GRID, batch_size=4).mean, found.predict(GRID).mean, rtol=1e-9)


@pytest.mark.parametrize("name", ["factorised", "matrix", "repriorised"])
def test_linearised_networks(name):
    family = make_family(name, NET, jnp.asarray(X), jnp.asarray(Y), NOISE)
    params = family.init(KEY)
    mean, jacobian = family.linearised(params, jnp.asarray(GRID))
    draws = family.sample_linearised(params, KEY, 4000)(jnp.asarray(GRID))
    np.testing.assert_allclose(draws.mean(0), mean, atol=0.1)
    np.testing.assert_allclose(
        np.cov(draws[..., 0].T), jacobian @ jacobian.T, atol=0.1 * float(jacobian.std() ** 2 * 80)
    )
    # A draw is the network at weights that a key sets, at any inputs.
    sample = family.sample(params, KEY, 3)
    np.testing.assert_allclose(sample(jnp.asarray(GRID[:5])), sample(jnp.asarray(GRID))[:, :5], rtol=1e-9)


def test_a_repriorised_family_starts_at_the_readouts_posterior():
    family = make_family("repriorised", NET, jnp.asarray(X), jnp.asarray(Y), NOISE)
    assert isinstance(family, RepriorisedFamily)
    params = family.init(KEY)
    hidden = params["mean"]["hidden"]
    narrow = {**params, "log_scale": {**params["log_scale"], "hidden": jax.tree.map(lambda w: w - 20, hidden)}}
    draws = family.sample(narrow, KEY, 20_000)(jnp.asarray(GRID))
    psi, psi_test = NET.features(hidden, X), NET.features(hidden, GRID)
    process = bw.gp.regression(psi @ psi.T, Y, NOISE)
    mean, covariance = process.moments(psi_test @ psi.T, psi_test @ psi_test.T)
    np.testing.assert_allclose(draws.mean(0), mean, atol=0.03)
    np.testing.assert_allclose(np.cov(draws[..., 0].T), covariance, atol=0.05)


def test_matrix_normals_have_the_covariances_of_rows_and_columns():
    family = MatrixVariate(bw.Network((bw.Dense(2),)), (3,))
    params = family.init(KEY)
    a, b = (jax.random.normal(k, (size, size)) for k, size in zip(jax.random.split(KEY), (3, 2), strict=True))
    params["spread"] = [{"A": 0.3 * a, "B": 0.3 * b}]
    w = jax.vmap(lambda k: family.weights(params, family.noise(k))[0]["w"])(jax.random.split(KEY, 40_000))
    low = [jnp.tril(m, -1) + jnp.diag(jnp.exp(jnp.diagonal(m))) for m in (0.3 * a, 0.3 * b)]
    expected = jnp.kron(low[0] @ low[0].T, low[1] @ low[1].T)
    np.testing.assert_allclose(
        np.cov(w.reshape(-1, 6).T), expected, atol=5 * float(expected.max()) * (2 / 40_000) ** 0.5
    )


@pytest.mark.usefixtures("only_the_librarys_own_checks")
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda **o: fit("net", PRIOR, NOISE, X, Y, **o), TypeError, "`fit`: net must be an architecture"),
        (lambda **o: fit(NET, rbf, NOISE, X, Y, **o), TypeError, "`fit`: prior must be a prior over functions"),
        (lambda **o: fit(NET, PRIOR, 0.1, X, Y, **o), TypeError, "`fit`: likelihood must be a likelihood"),
        (lambda **o: fit(NET, PRIOR, NOISE, X, Y[:3], **o), ValueError, "`fit`: y must have shape \\(12, 1?k?\\)"),
        (lambda **o: fit(NET, PRIOR, NOISE, X * np.inf, Y, **o), ValueError, "`fit`: x must be finite"),
        (lambda **o: fit(NET, PRIOR, NOISE, X, Y, family="full", **o), ValueError, "family must be one of"),
        (lambda **o: fit(NET, PRIOR, NOISE, X, Y, family=3, **o), TypeError, "family must be a Family"),
        (lambda **o: fit(NET, PRIOR, NOISE, X, Y, objective="elbo", **o), ValueError, "objective must be one of"),
        (lambda **o: fit(NET, PRIOR, NOISE, X, Y, objective=3, **o), TypeError, "objective must be a FunctionalELBO"),
        (
            lambda **o: fit(NET, PRIOR, NOISE, X, Y, objective=FunctionalELBO(GPPrior(rbf)), **o),
            ValueError, "the objective must be made with the same prior",
        ),
        (
            lambda **o: fit(NET, PRIOR, NOISE, X, Y, family="mixture", objective="regularised", **o),
            ValueError, "score='linearised' needs a Gaussian family",
        ),
        (lambda **o: fit(NET, PRIOR, NOISE, X, Y, num_steps=0, **o), ValueError, "num_steps must be at least 1"),
        (lambda **o: laplace(NET, rbf, NOISE, X, Y, **o), TypeError, "`laplace`: prior must be a GPPrior"),
        (
            lambda **o: laplace(NET, PRIOR, bw.Gaussian(dist.HalfNormal()), X, Y, **o),
            ValueError, "`laplace`: parameters of the likelihood must be numbers",
        ),
        (lambda **o: laplace(NET, PRIOR, NOISE, X, Y, noise=0.0, **o), ValueError, "noise must be positive"),
        (lambda **o: Factorised(NET, (1,), -1.0), ValueError, "init_scale must be positive"),
    ],
)  # fmt: skip
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(key=KEY)


@pytest.mark.slow
def test_the_sweeps_fit_on_a_models_own_sites_is_closer_to_the_process_than_mean_field_is(exact):
    """One family on the sites of one model, whose prior at the data is the process': only the divergence differs."""
    model = bw.functional_bnn(NET, PRIOR, X, NOISE, form="standard")
    data = (jnp.asarray(X), jnp.asarray(Y))
    at = predictions_of(model, *data, jnp.asarray(GRID))
    far = {}
    for name, build in (
        ("functional", functional_fit),
        ("weights", lambda *args, **kw: mean_field_fit(*args, **kw)[0]),
    ):
        approximation = build(model, data, KEY, num_steps=800)
        draws = approximation.draws(run_steps(approximation)[0], jax.random.key(1), 200)
        f = jax.lax.map(lambda item: at(*item), (draws, jax.random.split(jax.random.key(2), 200)))
        far[name] = distances(Prediction(f.mean(0), f.var(0), 0.01 + 0 * f[0]), exact)
    assert far["functional"][0] < 0.15 and far["functional"][0] < 0.7 * far["weights"][0]
    assert far["functional"][1] < 0.25 and far["functional"][1] < 0.3 * far["weights"][1]


def test_the_sweeps_laplace_is_laplace():
    """Step by step it comes to the same mode, and its draws have the moments that `laplace` states."""
    model = bw.functional_bnn(NET, PRIOR, X, NOISE, form="standard")
    approximation = functional_laplace_fit(model, (jnp.asarray(X), jnp.asarray(Y)), KEY, num_steps=300)
    state, losses = run_steps(approximation)
    known = laplace(NET, PRIOR, NOISE, X, Y, key=KEY, num_steps=300)
    np.testing.assert_allclose(losses, known.losses, rtol=1e-9)
    draws = approximation.draws(state, jax.random.key(1), 4000)
    f = jax.vmap(lambda draw: approximation.read(state, draw, jnp.asarray(GRID)))(draws)
    stated = known.predict(GRID)
    np.testing.assert_allclose(f.mean(0), stated.mean, atol=5 * np.sqrt(stated.epistemic.max() / 4000))
    np.testing.assert_allclose(f.var(0), stated.epistemic, rtol=0.12)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            bw.bnn(NET, bw.Gaussian(dist.LogNormal(0.0, 1.0)), "standard"),
            "parameters of the likelihood must be numbers",
        ),
        (bw.bnn(bw.Dense(150_000) >> bw.Tanh() >> bw.Dense(1), NOISE, "standard"), "a Jacobian of 3.4e.07 entries"),
    ],
)
def test_the_sweeps_laplace_refuses(model, message):
    with pytest.raises(ValueError, match=message):
        functional_laplace_fit(model, (jnp.asarray(X), jnp.asarray(Y)), KEY, num_steps=5)


def test_the_sweeps_fit_refuses_what_it_has_no_process_for():
    """With a ValueError, which a sweep answers with an empty cell and a warning."""
    data = (jnp.asarray(X), jnp.asarray(Y))
    model = bw.functional_bnn(NET, Process(), X, NOISE, form="standard")
    with pytest.raises(ValueError, match="the model's prior over functions must be a GPPrior; got Process"):
        functional_fit(model, data, KEY, num_steps=5)
    net = bw.from_features(lambda w, x: jnp.sin(x @ w["a"]), {"a": np.zeros((1, 8))}, 1)
    with pytest.raises(ValueError, match="no infinite-width kernel is known"):
        run_steps(functional_fit(bw.bnn(net, NOISE, "standard"), data, KEY, num_steps=5))
