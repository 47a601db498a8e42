"""Comparators against closed forms, against the library's exact samplers, and in the sweep."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr
from numpyro.infer import MCMC
from numpyro.infer.util import log_density

import bnnwide as bw
from bnnwide.comparators.elliptical_slice import elliptical_slice_sampler
from bnnwide.diagnostics import effective_sample_size

KEY = jax.random.key(0)
A = np.array([[1.0, 0.6, 0.0], [0.0, 1.2, -0.5], [0.3, 0.0, 0.9]])
TARGETS = np.array([0.5, -1.0, 0.8])
X, Y = np.random.default_rng(0).normal(size=(7, 3)), np.random.default_rng(1).normal(size=(7, 2))
X_TEST, Y_TEST = np.random.default_rng(2).normal(size=(5, 3)), np.random.default_rng(3).normal(size=(5, 2))


def linear(a, y):
    """A regression with one site that is standard normal and one that is not, and a function of both."""
    z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    w = numpyro.sample("w", dist.Normal(0.3, 2.0))
    numpyro.deterministic("sum", z + w)
    numpyro.sample("y", dist.Normal(a @ z + w, 0.5), obs=y)


def exact():
    """Mean and precision of (z, w) given the targets, by hand."""
    design = np.concatenate([A, np.ones((3, 1))], axis=1)
    precision = np.diag([1, 1, 1, 1 / 4]) + design.T @ design / 0.25
    return np.linalg.solve(precision, [0, 0, 0, 0.3 / 4] + design.T @ TARGETS / 0.25), precision


def vectors(run):
    """(chains, draws, 4) draws of (z, w)."""
    samples = run.get_samples(group_by_chain=True)
    np.testing.assert_allclose(samples["sum"], samples["z"] + samples["w"][..., None])
    return np.concatenate([samples["z"], samples["w"][..., None]], axis=2)


def z_scores(draws, mean, covariance):
    """How many Monte-Carlo errors the first and second moments of draws are off."""
    white = np.linalg.solve(np.linalg.cholesky(covariance), (draws - mean)[..., None])[..., 0]
    i, j = np.tril_indices(len(mean))
    moments = np.concatenate([white, white[..., i] * white[..., j] - (i == j)], axis=2)
    error = moments.std((0, 1)) / np.sqrt(effective_sample_size(moments))
    return np.abs(moments.mean((0, 1)) / error)


def network(width):
    return bw.Dense(width, w_scale=2**0.5, b_scale=0.1) >> bw.Gelu() >> bw.Dense(2, b_scale=0.1)


def test_elliptical_slice_is_exact():
    run = bw.comparators.elliptical_slice(linear, A, TARGETS, key=KEY, num_warmup=300, num_samples=5000)
    mean, precision = exact()
    assert z_scores(vectors(run), mean, np.linalg.inv(precision)).max() < 4.5
    assert z_scores(vectors(run), mean, np.linalg.inv(precision) * 1.15).max() > 4.5  # the check has power
    evals = run.stats["num_evals"]
    assert evals.shape == (4, 5000) and evals.min() == 1 and 2 < evals.mean() < 10
    assert (run.stats["accept_prob"] == 1).all() and not run.stats["diverging"].any()


@pytest.mark.parametrize("form", ["repriorised", "collapsed"])
def test_elliptical_slice_has_the_predictions_of_split_hmc(form):
    model = bw.bnn(network(4), bw.Gaussian(dist.LogNormal(0.0, 0.3)), form)
    run = bw.comparators.elliptical_slice(model, X, Y, key=KEY, num_warmup=300, num_samples=2000)
    mcmc = MCMC(bw.SplitHMC(model), num_warmup=200, num_samples=1000, num_chains=4, chain_method="vectorized",
                progress_bar=False)  # fmt: skip
    mcmc.run(KEY, X, Y)
    moments = []
    for samples in (run.get_samples(True), mcmc.get_samples(True)):
        flat = {name: site.reshape(-1, *site.shape[2:]) for name, site in samples.items()}
        mean, sd = bw.predict_draws(model, flat, X, Y, X_TEST)
        chains = [a.reshape(4, -1, 10) for a in (mean, mean**2 + sd**2)] + [np.log(samples["noise_scale"])[..., None]]
        draws = np.concatenate(chains, axis=2)
        moments.append((draws.mean((0, 1)), draws.var((0, 1)) / effective_sample_size(draws)))
    (one, error), (other, other_error) = moments
    assert (np.abs(one - other) < 4.5 * np.sqrt(error + other_error)).all()
    assert np.sqrt(error).max() < 0.05  # the comparison has power


def test_elliptical_slice_never_takes_what_is_no_number_and_always_ends():
    hole = elliptical_slice_sampler(lambda z: jnp.where(z["a"][0] > 0.5, jnp.nan, 0.0))
    # Digits of 16: nothing lies above the level but by an accident of rounding.
    coarse = elliptical_slice_sampler(lambda z: 1e17 + 0.5 * jnp.sum(z["a"] ** 2))
    for sampler, stays in ((hole, False), (coarse, True)):

        def step(state, key, sampler=sampler):
            new, info = sampler.step(key, state, jnp.asarray(1.0))
            return new, (new.position["a"], info)

        start = sampler.init({"a": jnp.asarray([0.2, -0.1])})
        _, (path, info) = jax.lax.scan(step, start, jax.random.split(KEY, 500))
        assert not info.diverging.any() and (info.num_evals >= 1).all()
        if stays:
            assert (path == path[0]).all() and (info.accept_prob == 0).all()
        else:
            assert path[:, 0].max() <= 0.5 and path[:, 0].std() > 0.3 and (info.accept_prob == 1).all()


def test_mclmc_is_near_where_its_energy_error_says_and_biased_where_it_is_not():
    mean, precision = exact()
    covariance = np.linalg.inv(precision)
    run = bw.comparators.mclmc(linear, A, TARGETS, key=KEY, num_warmup=1000, num_samples=5000)
    draws = vectors(run).reshape(-1, 4)
    white = np.linalg.solve(np.linalg.cholesky(covariance), (draws - mean).T)
    assert np.abs(white.mean(1)).max() < 0.1 and np.abs(np.cov(white) - np.eye(4)).max() < 0.12
    np.testing.assert_array_equal(run.stats["num_grads"], 2)
    assert (run.stats["energy_change"].var(1) / 4 < 5e-3).all() and not run.stats["diverging"].any()
    assert len(set(np.ravel(run.stats["step_size"]).tolist())) == 4  # one per chain, the same for all its draws
    coarse = bw.comparators.mclmc(
        linear, A, TARGETS, key=KEY, num_warmup=50, num_samples=6000, step_size=1.6, decoherence_length=3.0
    )
    white = np.linalg.solve(np.linalg.cholesky(covariance), (vectors(coarse).reshape(-1, 4) - mean).T)
    assert np.abs(np.cov(white) - np.eye(4)).max() > 0.15
    assert (coarse.stats["energy_change"].var(1) / 4 > 5e-3).all()


def test_mclmc_counts_every_gradient_and_runs_as_one_chain():
    counts = []

    def counted(y):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        jax.debug.callback(lambda _: counts.append(1), z[0])
        numpyro.sample("y", dist.Normal(z, 0.5).to_event(1), obs=y)

    kernel = bw.comparators.MCLMC(counted, num_tuning=100)
    state = kernel.init(KEY, 5, None, (TARGETS,), {})
    jax.effects_barrier()
    for expected in (2 * (33 + 25 + 8 + 33), 2, 2):
        counts.clear()
        state = jax.jit(lambda s: kernel.sample(s, (TARGETS,), {}))(state)
        jax.block_until_ready(state)
        jax.effects_barrier()
        assert len(counts) == state.num_grads == expected
    assert int(state.i) == 7 and jnp.isnan(state.accept_prob)


def test_mean_field_has_the_conditional_variances():
    run = bw.comparators.mean_field(linear, A, TARGETS, key=KEY, num_samples=20_000, num_particles=4)
    mean, precision = exact()
    draws = vectors(run)[0]
    spread = 1 / np.sqrt(np.diag(precision))
    assert np.abs((draws.mean(0) - mean) / spread).max() < 0.1
    np.testing.assert_allclose(draws.std(0), spread, rtol=0.06)
    assert (spread**2 < 0.6 * np.diag(np.linalg.inv(precision))).all()  # far from what it approximates
    # The optimum: log evidence minus KL, which for these two Gaussians is (log det of diag(P) - log det P) / 2.
    kl = 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])
    design = np.concatenate([A, np.ones((3, 1))], axis=1)
    off, covariance = TARGETS - design @ [0, 0, 0, 0.3], design @ np.diag([1, 1, 1, 4]) @ design.T + 0.25 * np.eye(3)
    evidence = -0.5 * (off @ np.linalg.solve(covariance, off) + np.linalg.slogdet(2 * np.pi * covariance)[1])
    assert run.stats["elbo"] == pytest.approx(evidence - kl, abs=0.5)
    assert run.stats["loss"].shape == (5000,) and run.stats["num_grads"] == 20_000


def test_laplace_is_exact_on_a_gaussian():
    run = bw.comparators.laplace(linear, A, TARGETS, key=KEY, num_steps=3000, num_samples=20_000)
    mean, precision = exact()
    draws = vectors(run)[0]
    white = np.linalg.solve(np.linalg.cholesky(np.linalg.inv(precision)), (draws - mean).T)
    assert np.abs(white.mean(1)).max() < 4.5 / np.sqrt(20_000)
    assert np.abs(np.cov(white) - np.eye(4)).max() < 4.5 * np.sqrt(2 / 20_000)
    assert run.stats["num_hessian_rows"] == 4


def test_ensembles_of_one_mode_agree_unless_they_are_anchored():
    mean, precision = exact()
    plain = bw.comparators.deep_ensemble(
        linear, A, TARGETS, key=KEY, num_members=20, num_steps=3000, learning_rate=0.03
    )
    np.testing.assert_allclose(vectors(plain)[0], np.tile(mean, (20, 1)), atol=1e-2)
    run = bw.comparators.deep_ensemble(
        linear, A, TARGETS, key=KEY, num_members=4000, num_steps=3000, learning_rate=0.03, anchored=True
    )
    draws, inverse = vectors(run)[0], np.linalg.inv(precision)
    covariance = inverse @ np.diag([1, 1, 1, 0]) @ inverse  # w is not standard normal, and keeps its prior
    error = np.sqrt(np.diag(covariance) / 4000)
    assert (np.abs(draws.mean(0) - mean) < 4.5 * error).all()
    scale = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
    assert (np.abs(np.cov(draws.T) - covariance) < 4.5 * scale * np.sqrt(2 / 4000)).all()


def test_members_of_a_deep_ensemble_are_different_stationary_points():
    model = bw.bnn(network(8), bw.Gaussian(0.3), "standard")
    run = bw.comparators.deep_ensemble(model, X, Y, key=KEY, num_members=5, num_steps=4000, learning_rate=0.03)
    samples = run.get_samples()
    assert set(samples) == {"hidden.0.w", "hidden.0.b", "readout"} and samples["readout"].shape == (5, 9, 2)
    slope = jax.jit(jax.grad(lambda sites: log_density(model, (X, Y), {}, sites)[0]))
    start = jax.tree.map(lambda leaf: jax.random.normal(KEY, leaf.shape[1:]), samples)
    norm = lambda g: np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(g)))  # noqa: E731
    for member in range(5):
        reached = norm(slope({name: site[member] for name, site in samples.items()}))
        assert reached < 1e-3 * norm(slope(start))
        assert reached == pytest.approx(float(run.stats["grad_norm"][0, member]), rel=1e-3, abs=1e-8)
    weights = np.asarray(samples["hidden.0.w"]).reshape(5, -1)
    apart = np.linalg.norm(weights[:, None] - weights[None], axis=2)
    assert apart[np.triu_indices(5, 1)].min() > 0.3
    assert run.stats["loss"].shape == (4000, 5) and run.stats["num_grads"] == 20_000


RUNS = {
    "mclmc": lambda model: bw.comparators.mclmc(model, X, Y, key=KEY, num_warmup=60, num_samples=6, num_chains=2),
    "elliptical_slice": lambda model: bw.comparators.elliptical_slice(
        model, X, Y, key=KEY, num_warmup=5, num_samples=6, num_chains=2
    ),
    "laplace": lambda model: bw.comparators.laplace(model, X, Y, key=KEY, num_samples=12, learning_rate=0.03),
    "mean_field": lambda model: bw.comparators.mean_field(model, X, Y, key=KEY, num_steps=50, num_samples=12),
    "deep_ensemble": lambda model: bw.comparators.deep_ensemble(model, X, Y, key=KEY, num_members=12, num_steps=50),
}


@pytest.mark.parametrize("name", RUNS)
def test_every_run_goes_where_draws_of_mcmc_go(name):
    model = bw.bnn(network(4), bw.Gaussian(dist.LogNormal(-0.5, 0.3)), "repriorised")
    run = RUNS[name](model)
    chains = 2 if name in ("mclmc", "elliptical_slice") else 1
    samples = run.get_samples()
    assert {site: leaf.shape for site, leaf in samples.items()} == {
        "hidden.0.w": (12, 3, 4), "hidden.0.b": (12, 4), "noise_scale": (12,), "readout_base": (12, 5, 2),
        "readout": (12, 5, 2),
    }  # fmt: skip
    assert run.get_samples(group_by_chain=True)["noise_scale"].shape == (chains, 12 // chains)
    assert (samples["noise_scale"] > 0).all() and repr(run).startswith(f"Run(method='{name}', chains={chains}, draws=")
    prediction = bw.predict(model, samples, X, Y, X_TEST)
    plain = bw.comparators.predict_plain(model, samples, X, X_TEST)
    assert prediction.mean.shape == plain.mean.shape == (5, 2) and jnp.isfinite(prediction.variance).all()

    f = []
    for draw in range(12):
        hidden = ({"w": samples["hidden.0.w"][draw], "b": samples["hidden.0.b"][draw]}, ())
        f.append(np.asarray(model.net.features(hidden, X_TEST) @ samples["readout"][draw]))
    np.testing.assert_allclose(plain.mean, np.mean(f, 0), atol=1e-12)
    np.testing.assert_allclose(plain.epistemic, np.var(f, 0), atol=1e-12)
    np.testing.assert_allclose(plain.aleatoric, np.mean(samples["noise_scale"] ** 2) * np.ones((5, 2)))

    tree = bw.to_arviz(run, x_test=X_TEST)
    assert isinstance(tree, xr.DataTree) and tree.attrs["method"] == name
    assert tree["posterior"]["readout"].shape == (chains, 12 // chains, 5, 2)
    assert tree["predictions"]["mean"].shape == (chains, 12 // chains, 5, 2)
    np.testing.assert_allclose(tree["predictions"]["mean"].mean(("chain", "draw")), prediction.mean, atol=1e-10)
    if chains == 2:
        assert tree["sample_stats"]["potential_energy"].sizes == {"chain": 2, "draw": 6}


def test_plain_predictions_of_exact_draws_are_those_of_predict():
    model = bw.bnn(network(4), bw.Gaussian(1.0), "repriorised")
    run = bw.comparators.elliptical_slice(model, X, Y, key=KEY, num_warmup=100, num_samples=1500)
    plain = bw.comparators.predict_plain(model, run.get_samples(), X, X_TEST)
    exact = bw.predict(model, run.get_samples(), X, Y, X_TEST)
    np.testing.assert_allclose(plain.mean, exact.mean, atol=0.04)
    np.testing.assert_allclose(plain.epistemic, exact.epistemic, atol=0.05)


APPROXIMATIONS = ["mean-field", "functional-vi", "functional-laplace", "laplace", "ensemble"]
METHODS = ["mclmc-repriorised", "ess-collapsed", *APPROXIMATIONS]


def test_the_sweep_knows_the_comparators_and_what_they_need():
    needs = {name: method.package for name, method in bw.METHODS.items() if method.package}
    assert needs == {
        "mclmc-standard": "blackjax", "mclmc-repriorised": "blackjax", "ess-standard": "blackjax",
        "ess-repriorised": "blackjax", "ess-collapsed": "blackjax",
    } | dict.fromkeys(APPROXIMATIONS, "optax")  # fmt: skip


@pytest.mark.slow
def test_comparators_take_part_in_the_sweep(tmp_path):
    table = bw.ess_by_width(
        # With noise as large as this every point has a positive definite Hessian, however few steps time allows.
        network, bw.Gaussian(3.0), X, Y, widths=[4], methods=METHODS, key=KEY, x_test=X_TEST, y_test=Y_TEST,
        seconds=1.5, max_draws=60, num_chains=2, progress=False, store=tmp_path / "ess.nc",
    )  # fmt: skip
    assert table.rmse.notnull().all() and table.accuracy.notnull().all() and (table.sampling_seconds > 0).all()
    rows = {row[0]: row for row in map(str.split, bw.format_ess_table(table).splitlines()[2:])}
    names = bw.format_ess_table(table).splitlines()[0].replace("test RMSE", "RMSE").split()
    for method, row in rows.items():
        shown = dict(zip(names[2:5], row[2:5], strict=True)) | {"ESS": row[5:9]}
        if method in APPROXIMATIONS:
            assert shown == {"accept": "-", "R-hat": "-", "draws": "10" if method == "ensemble" else "120"} | {
                "ESS": ["-"] * 4
            }
        else:
            assert shown["accept"] == ("-" if method.startswith("mclmc") else "1.00") and "-" not in shown["ESS"]
        assert "-" not in row[9:]
    grads = dict(zip(METHODS, table.num_grads.values[:, 0], strict=True))
    assert grads["mclmc-repriorised"] == 2 * 120 and grads["ess-collapsed"] > 120
    with xr.open_datatree(tmp_path / "ess.nc", engine="h5netcdf") as tree:
        assert tree["ensemble/width_4/posterior"].prediction.shape == (1, 10, 5, 2)
    assert bw.plot_ess_by_width(table).axes


def test_a_cell_that_laplace_refuses_is_empty():
    with pytest.warns(UserWarning, match="laplace, width 2000: `laplace`: the model must have at most max_size=5000"):
        table = bw.ess_by_width(
            network, bw.Gaussian(0.3), X, Y, widths=[2000], methods=["laplace"], key=KEY, seconds=1.0, progress=False
        )
    assert table.num_draws.isnull().all()


def flat(_=None):
    """A prior that its factor cancels: no curvature anywhere."""
    z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    numpyro.factor("flat", 0.5 * jnp.sum(z**2))


def scalar():
    numpyro.sample("z", dist.Normal(0.0, 1.0))


COLLAPSED = bw.bnn(network(4), bw.Gaussian(0.3))
C = bw.comparators
ERRORS = {
    "short warm-up": (
        lambda: C.mclmc(linear, A, TARGETS, key=KEY, num_warmup=10),
        "`mclmc`: num_warmup must be at least 50 for tuning; got 10; or give step_size and decoherence_length",
    ),
    "half": (
        lambda: C.mclmc(linear, A, TARGETS, key=KEY, step_size=0.1),
        "`mclmc`: step_size and decoherence_length must both be given, or neither; got one",
    ),
    "step size": (
        lambda: C.mclmc(linear, A, TARGETS, key=KEY, step_size=-0.1, decoherence_length=1.0),
        "`mclmc`: step_size must be positive and finite; got -0.1",
    ),
    "energy": (
        lambda: C.mclmc(linear, A, TARGETS, key=KEY, desired_energy_var=0.0),
        "`mclmc`: desired_energy_var must be positive and finite; got 0.0",
    ),
    "tuning": (lambda: C.MCLMC(linear, num_tuning=3), "`mclmc`: num_tuning must be at least 50; got 3"),
    "one dimension": (
        lambda: C.mclmc(scalar, key=KEY, num_chains=1),
        "`mclmc`: the model must have at least two latent entries; it has 1",
    ),
    "samples": (
        lambda: C.elliptical_slice(linear, A, TARGETS, key=KEY, num_samples=0),
        "`elliptical_slice`: num_samples must be at least 1; got 0",
    ),
    "chains": (
        lambda: C.elliptical_slice(linear, A, TARGETS, key=KEY, num_chains=0),
        "`elliptical_slice`: num_chains must be at least 1; got 0",
    ),
    "no site": (
        lambda: C.elliptical_slice(lambda: None, key=KEY),
        "`EllipticalSlice`: the model must have at least one latent site; it has none",
    ),
    "large": (
        lambda: C.laplace(bw.bnn(network(3000), bw.Gaussian(0.3), "standard"), X, Y, key=KEY),
        "`laplace`: the model must have at most max_size=5000 latent entries, for a dense Hessian of P^2 numbers; got "
        "P=18002, 2.59 GB in float64; use mean_field",
    ),
    "flat": (
        lambda: C.laplace(flat, key=KEY, num_steps=5),
        "`laplace`: the potential's Hessian must be positive definite where the optimiser stopped; it is not",
    ),
    "steps": (
        lambda: C.mean_field(linear, A, TARGETS, key=KEY, num_steps=0),
        "`mean_field`: num_steps must be at least 1; got 0",
    ),
    "rate": (
        lambda: C.laplace(linear, A, TARGETS, key=KEY, learning_rate=-1.0),
        "`laplace`: learning_rate must be positive and finite; got -1.0",
    ),
    "particles": (
        lambda: C.mean_field(linear, A, TARGETS, key=KEY, num_particles=0),
        "`mean_field`: num_particles must be at least 1; got 0",
    ),
    "members": (
        lambda: C.deep_ensemble(linear, A, TARGETS, key=KEY, num_members=0),
        "`deep_ensemble`: num_members must be at least 1; got 0",
    ),
    "nothing to train": (
        lambda: C.deep_ensemble(lambda: None, key=KEY), "`deep_ensemble`: the model must have at least one latent site",
    ),
    "data": (lambda: C.deep_ensemble(COLLAPSED, X, Y[1:], key=KEY), "`bnn`: y must have shape (7, k)"),
    "no readout": (
        lambda: C.predict_plain(COLLAPSED, {"hidden.0.w": X}, X, X_TEST),
        "`predict_plain`: samples must hold the site 'readout'; got ['hidden.0.w']; use the standard or the",
    ),
    "no bnn": (lambda: C.predict_plain(linear, {}, X, X_TEST), "`predict_plain`: model must be made by bnn(...)"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.usefixtures("only_the_librarys_own_checks")
def test_says_what_was_expected_and_what_came(name):
    call, message = ERRORS[name]
    with pytest.raises((ValueError, TypeError)) as error:
        call()
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("package", "call"),
    [
        ("blackjax", lambda: C.mclmc(linear, A, TARGETS, key=KEY)),
        ("blackjax", lambda: C.elliptical_slice(linear, A, TARGETS, key=KEY)),
        ("optax", lambda: C.mean_field(linear, A, TARGETS, key=KEY)),
        ("optax", lambda: C.laplace(linear, A, TARGETS, key=KEY)),
        ("optax", lambda: C.deep_ensemble(linear, A, TARGETS, key=KEY)),
        (
            "blackjax",
            lambda: bw.ess_by_width(
                network, bw.Gaussian(0.3), X, Y, widths=[4], methods=["paper", "ess-standard"], key=KEY, progress=False
            ),
        ),
    ],
)
def test_a_missing_package_is_named_with_its_extra(monkeypatch, package, call):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError) as error:
        call()
    assert f"the package '{package}' must be installed" in str(error.value)
    assert "pip install 'bnnwide[comparators]'" in str(error.value)
