"""Stochastic-gradient MCMC: the potential it estimates, its law on quadratics, and its bias against an exact chain."""

import sys

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from blackjax.sgmcmc import diffusions
from numpyro.infer import MCMC
from numpyro.infer.util import log_density
from threadpoolctl import threadpool_limits

import bnnwide as bw
from bnnwide.comparators.anchored import anchored_posterior
from bnnwide.comparators.stochastic_gradient import draw_rows, sghmc_step, sgld_step

KEY = jax.random.key(0)
N, D = 12, 2
RNG = np.random.default_rng(0)
X, X_TEST = RNG.normal(size=(N, D)), RNG.normal(size=(5, D))
LABELS = (np.sin(2 * X[:, 0]) > 0).astype(int)
PROBLEMS = {
    "gaussian": (bw.Gaussian(0.3), RNG.normal(size=(N, 2))),
    "gaussian per output": (bw.Gaussian(jnp.asarray([0.2, 0.5])), RNG.normal(size=(N, 2))),
    "categorical": (bw.Categorical(), RNG.integers(2, size=N)),
    "student t": (bw.StudentT(4.0, 0.3), RNG.normal(size=(N, 2))),
    "heteroscedastic": (bw.HeteroscedasticGaussian(0.5), RNG.normal(size=(N, 1))),
}


@pytest.fixture(scope="module", autouse=True)
def one_blas_thread():
    """Factors are small: threads of the linear algebra cost more than they bring where cores are shared."""
    with threadpool_limits(1, user_api="blas"):
        yield


def network(outputs, width=6):
    return bw.Dense(width, w_scale=2**0.5, b_scale=0.3) >> bw.Tanh() >> bw.Dense(outputs, w_scale=1.5, b_scale=0.3)


def posterior(name, num_anchors, x=X, **options):
    likelihood, y = PROBLEMS[name]
    model = bw.bnn(network(2), likelihood, "repriorised", **options)
    return anchored_posterior("sgld", model, x, y, KEY, num_anchors)


def each(fn, found):
    """The values of a function at a few points."""
    points = jax.vmap(found.start)(jax.random.split(jax.random.key(1), 4))
    return np.asarray(jax.jit(lambda points: jax.lax.map(fn, points))(points))


@pytest.mark.parametrize(("num_anchors", "wide"), [(N, False), (5, True)])  # with d > n the input collapse is on
def test_minibatches_average_to_the_gradient(num_anchors, wide):
    x = RNG.normal(size=(N, 20)) if wide else X
    found = posterior("categorical", num_anchors, x)
    assert (found.features.collapse is not None) == wide and len(found.anchors) == num_anchors
    z = found.start(KEY)
    batches = jnp.asarray(np.random.default_rng(3).permutation(N).reshape(3, 4))
    parts = jax.jit(jax.vmap(jax.grad(found.estimate), (None, 0)))(z, batches)
    whole = jax.jit(jax.grad(found.potential))(z)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a.mean(0), b, rtol=1e-9, atol=1e-9), parts, whole)
    assert not np.allclose(parts["readout_base"][0], whole["readout_base"], rtol=0.1)


@pytest.mark.parametrize(("n", "size"), [(12, 5), (7, 7), (9, 1)])
def test_every_row_is_as_likely_and_none_is_there_twice(n, size):
    rows = np.asarray(jax.vmap(lambda key: draw_rows(key, n, size))(jax.random.split(KEY, 20_000)))
    assert all(len(set(batch)) == size for batch in rows[:200])
    share = np.bincount(rows.ravel(), minlength=n) / len(rows)
    p = size / n
    np.testing.assert_allclose(share, p, atol=4.5 * np.sqrt(p * (1 - p) / len(rows)) + 1e-12)


@pytest.mark.parametrize("name", ["gaussian per output", "categorical"])
def test_with_all_inputs_as_anchors_the_potential_is_the_models(name):
    found = posterior(name, N)
    # The model itself maps the readout and adds what its sites lack.
    numpyros = -each(lambda z: log_density(found.model, (X, PROBLEMS[name][1]), {}, z)[0], found)
    ours = each(found.potential, found)
    np.testing.assert_allclose(np.diff(ours), np.diff(numpyros), rtol=1e-8, atol=1e-8)
    assert np.ptp(ours) > 1


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_density_is_that_of_the_standard_form(name):
    """Whatever the anchors: density in z = density of (hidden, theta) times |det dtheta/dphi|, by autodiff."""
    found = posterior(name, 4)
    standard = bw.bnn(network(2), PROBLEMS[name][0], "standard")

    def transformed(z):
        theta = lambda phi: found.sites_of_model(z | {"readout_base": phi})["readout"]  # noqa: E731
        size = z["readout_base"].size
        jacobian = jax.jacfwd(theta)(z["readout_base"]).reshape(size, size)
        density, _ = log_density(standard, (X, PROBLEMS[name][1]), {}, found.sites_of_model(z))
        return density + jnp.linalg.slogdet(jacobian)[1]

    np.testing.assert_allclose(
        np.diff(-each(found.potential, found)), np.diff(each(transformed, found)), rtol=1e-7, atol=1e-7
    )


def test_sites_of_the_model_are_taken_at_the_anchors():
    full = posterior("categorical", N).sites
    found = posterior("categorical", 4, sites=full)
    np.testing.assert_array_equal(found.sites.targets, full.targets[found.anchors])
    np.testing.assert_allclose(found.sites.precision, full.precision[found.anchors] * N / 4)


# Curvatures, and minibatches of one of two rows whose gradients differ by 2 * SLOPE: V = 4 SLOPE^2 = 2.25.
CURVATURE, SLOPE = jnp.asarray([0.5, 1.0, 2.0]), 0.75


def quadratic(z, rows):
    signs = jnp.asarray([1.0, -1.0])[rows]
    return 0.5 * jnp.sum(CURVATURE * z["z"] ** 2) + 2 / len(rows) * SLOPE * jnp.sum(signs) * jnp.sum(z["z"])


def variances(step, step_size, num_steps, chains=20_000):
    """Variances (3,) of many chains after some steps from 0."""
    keys = jax.random.split(KEY, num_steps)
    move = jax.vmap(lambda key, z: step(key, z, jnp.asarray(step_size)))
    body = lambda z, key: (move(jax.random.split(key, chains), z), None)  # noqa: E731
    return np.asarray(jax.jit(lambda z: jax.lax.scan(body, z, keys)[0])({"z": jnp.zeros((chains, 3))})["z"].var(axis=0))


@pytest.mark.parametrize("batch_size", [1, 2])
def test_sgld_has_its_known_law_on_a_quadratic(batch_size):
    step_size, noise = 0.2, 4 * SLOPE**2 * (batch_size == 1)
    found = variances(sgld_step(blackjax, quadratic, 2, batch_size), step_size, 60)
    wanted = (1 + step_size * noise / 2) / (CURVATURE * (1 - step_size * CURVATURE / 2))
    np.testing.assert_allclose(found, wanted, rtol=4.5 * np.sqrt(2 / 20_000))


def sghmc_law(curvature, step_size, length, alpha, beta, noise):
    """The stationary variance by the recursion of second moments, momenta refreshed after `length` steps."""
    drift = lambda time: np.array([[1, time], [0, 1]])  # noqa: E731
    kick = np.array([[1, 0], [-step_size * curvature, 1 - alpha * step_size]])
    move = kick @ drift(step_size)
    injected = np.diag([0, step_size * (2 * alpha - step_size * beta) + step_size**2 * noise])
    variance = 1.0
    for _ in range(500):
        cov = drift(-step_size / 2) @ np.diag([variance, 1 / (1 - alpha * step_size / 2)]) @ drift(-step_size / 2).T
        for _ in range(length):
            cov = move @ cov @ move.T + injected
        variance = (drift(step_size / 2) @ cov @ drift(step_size / 2).T)[0, 0]
    return variance


@pytest.mark.parametrize(("batch_size", "beta", "length"), [(1, 0.0, 4), (1, 1.5, 4), (2, 0.0, 4), (2, 0.0, 2)])
def test_sghmc_has_its_known_law_on_a_quadratic(batch_size, beta, length):
    step_size, alpha, noise = 0.4, 1.0, 4 * SLOPE**2 * (batch_size == 1)
    found = variances(sghmc_step(diffusions, quadratic, 2, batch_size, length, alpha, beta), step_size, 25)
    wanted = [sghmc_law(float(c), step_size, length, alpha, beta, noise) for c in CURVATURE]
    np.testing.assert_allclose(found, wanted, rtol=4.5 * np.sqrt(2 / 20_000))


def test_the_bias_of_sghmc_as_documented():
    long = [sghmc_law(c, 0.3, 200, 0.8, 0.5, 2.0) for c in (0.5, 1.0, 3.0)]
    np.testing.assert_allclose(long, [(1 + 0.3 * 1.5 / 1.6) / c for c in (0.5, 1.0, 3.0)], rtol=1e-6)
    errors = [sghmc_law(2.0, e, round(1 / e), 1.0, 0.0, 0.0) * 2 - 1 for e in (0.2, 0.1, 0.05)]
    np.testing.assert_allclose([errors[0] / errors[1], errors[1] / errors[2]], 4, rtol=0.15)  # O(e^2)


MODEL = bw.bnn(
    bw.Dense(8, w_scale=2**0.5, b_scale=0.3) >> bw.Tanh() >> bw.Dense(1, w_scale=2.0, b_scale=0.3),
    bw.Bernoulli(),
    "repriorised",
)


def moments(samples):
    f = np.asarray(bw.predict_draws(MODEL, samples, X, LABELS, X_TEST)[0])[..., 0]
    return f.mean(axis=0), f.std(axis=0)


@pytest.fixture(scope="module")
def exact():
    mcmc = MCMC(
        bw.SplitHMC(MODEL), num_warmup=200, num_samples=1500, num_chains=8, chain_method="vectorized",
        progress_bar=False,
    )  # fmt: skip
    mcmc.run(KEY, X, LABELS)
    return moments(mcmc.get_samples())


def excess(run, exact):
    """By how much the standard deviations of the function are too large, on average over the test inputs."""
    return np.mean(moments(run.get_samples())[1] / exact[1] - 1)


def langevin(step_size, batch_size):
    return bw.comparators.sgld(
        MODEL, X, LABELS, key=KEY, step_size=step_size, batch_size=batch_size, num_warmup=100, num_samples=500,
        num_chains=16, thinning=4, num_anchors=6,
    )  # fmt: skip


@pytest.mark.slow
def test_the_bias_of_sgld_falls_with_its_step_and_grows_as_batches_shrink(exact):
    runs = {(e, b): langevin(e, b) for e, b in [(0.3, 2), (0.1, 2), (0.1, N)]}
    bias = {case: excess(run, exact) for case, run in runs.items()}
    heat = {case: float(run.stats["temperature"].mean()) - 1 for case, run in runs.items()}
    assert bias[0.3, 2] > 0.2 and bias[0.3, 2] > 1.7 * bias[0.1, 2], bias
    assert bias[0.1, 2] > 0.08 and bias[0.1, 2] > bias[0.1, N] + 0.05, bias
    assert abs(bias[0.1, N]) < 0.08, bias
    assert heat[0.3, 2] > 2 * heat[0.1, 2] > 2.4 * heat[0.1, N] > 0, heat


@pytest.mark.slow
def test_sghmc_with_all_data_agrees_with_the_exact_chain(exact):
    run = bw.comparators.sghmc(
        MODEL, X, LABELS, key=KEY, step_size=0.2, num_integration_steps=6, batch_size=N, num_warmup=20,
        num_samples=500, num_chains=16, num_anchors=6,
    )  # fmt: skip
    mean, sd = moments(run.get_samples())
    np.testing.assert_allclose(mean, exact[0], atol=0.15 * exact[1].max())
    np.testing.assert_allclose(sd, exact[1], rtol=0.08)
    assert abs(float(run.stats["temperature"].mean()) - 1) < 0.01
    assert (np.asarray(run.stats["num_grads"]) == 6).all()


@pytest.mark.parametrize("name", ["gaussian", "student t"])
def test_runs_are_what_predictions_read_and_steps_fall_as_the_schedule_says(name, monkeypatch):
    likelihood, y = PROBLEMS[name]
    model = bw.bnn(network(2), likelihood, "repriorised")
    if name == "gaussian":  # draws do not depend on the blocks that they are made in
        monkeypatch.setattr("bnnwide.comparators.stochastic_gradient.GRADS_PER_BLOCK", 4)
    run = bw.comparators.sgld(
        model, X, y, key=KEY, batch_size=5, num_warmup=5, num_samples=7, num_chains=2, thinning=2, decay=0.5,
        num_anchors=6,
    )  # fmt: skip
    samples = run.get_samples(group_by_chain=True)
    assert samples["readout"].shape == (2, 7, 7, 2) and "readout_base" not in samples
    assert np.isfinite(bw.predict(model, run.get_samples(), X, y, X_TEST).mean).all()
    # Draw i follows the step of number 5 + 2 i + 1.
    np.testing.assert_allclose(run.stats["step_size"][1], 0.01 * (7.0 + 2 * np.arange(7)) ** -0.5)
    assert (np.asarray(run.stats["num_grads"]) == 2).all()
    if name == "gaussian":
        monkeypatch.undo()
        again = bw.comparators.sgld(
            model, X, y, key=KEY, batch_size=5, num_warmup=5, num_samples=7, num_chains=2, thinning=2, decay=0.5,
            num_anchors=6,
        )  # fmt: skip
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), run.get_samples(), again.get_samples())


GAUSSIAN = bw.bnn(network(2), bw.Gaussian(0.3), "repriorised")
Y = PROBLEMS["gaussian"][1]


def sgld(model=GAUSSIAN, x=X, y=Y, **options):
    return bw.comparators.sgld(model, x, y, key=KEY, **options)


def sghmc(**options):
    return bw.comparators.sghmc(GAUSSIAN, X, Y, key=KEY, **options)


LEARNED = bw.bnn(network(2), bw.Gaussian(dist.HalfNormal(1.0)), "repriorised")


@pytest.mark.usefixtures("only_the_librarys_own_checks")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sgld(network(2)), r"`sgld`: model must be made by bnn\(...\); got Network"),
        (lambda: sgld(bw.bnn(network(2), bw.Gaussian(0.3))), r"form='repriorised'; got 'collapsed'"),
        (lambda: sgld(LEARNED), "must be numbers; got priors for noise_scale; put numbers in"),
        (lambda: sgld(y=Y[:3]), r"`sgld`: y must have shape \(12, k\) with n=12 from x"),
        (lambda: sgld(batch_size=13), "`sgld`: batch_size must be at most n=12; got 13"),
        (lambda: sgld(batch_size=0), "batch_size must be at least 1; got 0"),
        (lambda: sgld(batch_size=2.0), "batch_size must be a whole number; got 2.0"),
        (lambda: sgld(num_anchors=0), "num_anchors must be at least 1; got 0"),
        (lambda: sgld(batch_size=4, num_samples=0), "num_samples must be at least 1; got 0"),
        (lambda: sgld(batch_size=4, num_warmup=-1), "num_warmup must be at least 0; got -1"),
        (lambda: sgld(batch_size=4, thinning=0), "thinning must be at least 1; got 0"),
        (lambda: sgld(batch_size=4, num_chains=0), "num_chains must be at least 1; got 0"),
        (lambda: sgld(step_size=-1.0), "step_size must be positive and finite; got -1.0"),
        (lambda: sgld(decay=2.0), "decay must lie between 0 and 1; got 2.0"),
        (lambda: sgld(batch_size=4, step_size=50.0, num_chains=1), "must stay finite; they left with step_size=50.0"),
        (lambda: sghmc(num_integration_steps=0), "`sghmc`: num_integration_steps must be at least 1; got 0"),
        (lambda: sghmc(alpha=-1.0), r"alpha must lie between 0 and 2 / step_size=40; got -1.0"),
        (lambda: sghmc(step_size=0.1, beta=30.0), r"beta must lie between 0 and 2 alpha / step_size=20; got 30.0"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


@pytest.mark.usefixtures("only_the_librarys_own_checks")
@pytest.mark.parametrize(("call", "package"), [(sgld, "blackjax"), (sghmc, "blackjax.sgmcmc.diffusions")])
def test_without_blackjax_the_extra_is_named(call, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"must be installed.*bnnwide\[comparators\]"):
        call()
