"""The posterior of a Gaussian process against its textbook formulas, its limits, and what it refuses."""

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gp_problems import NET, NOISE, RNG, X_TEST, K, N, T, X, Y, close, kernels, textbook
from scipy import stats

import bnnwide as bw
from bnnwide.gp.conditioning import condition_number, relative_jitter
from bnnwide.gp.regression import log_density
from bnnwide.linalg import cholesky

PROCESSES = {
    "nngp": lambda *args, **kwargs: bw.gp.nngp(*args, **kwargs),
    "ntk": lambda *args, **kwargs: bw.gp.ntk(*args, kind="covariance", **kwargs),
}
RIDGES = {"none": None, "relative": bw.gp.Ridge(0.05), "absolute": bw.gp.Ridge(0.05, relative=False)}


def amount(ridge, k_dd):
    """What the ridge adds, by the README's words."""
    if ridge is None:
        return 0.0
    return ridge.value * (np.trace(k_dd) / len(k_dd) if ridge.relative else 1.0)


@pytest.mark.parametrize("ridge", RIDGES)
@pytest.mark.parametrize("name", PROCESSES)
def test_is_the_textbook_formula(name, ridge):
    ridge = RIDGES[ridge]
    k_dd, k_td, k_tt = kernels(name)
    total = 0.3**2 + amount(ridge, k_dd)
    mean, covariance = textbook(k_dd, k_td, k_tt, Y, total)
    post = PROCESSES[name](NET, X, Y, NOISE, ridge=ridge)
    full, marginal = post.predict(X_TEST, full_cov=True), post.predict(X_TEST)
    for prediction in (full, marginal, post.predict(X_TEST, batch_size=1)):
        close(prediction.mean, mean)
        close(prediction.epistemic, np.diag(covariance)[:, None] * np.ones(K))
        # The noise of an observation is the likelihood's alone, however large the ridge.
        close(prediction.aleatoric, np.full((T, K), 0.3**2))
        close(prediction.variance, prediction.epistemic + 0.3**2)
    close(full.covariance, covariance)
    assert marginal.covariance is None
    law = stats.multivariate_normal(np.zeros(N), k_dd + total * np.eye(N))
    close(post.log_marginal_likelihood(), law.logpdf(Y.T).sum())
    one = post.predict(X_TEST[:1])
    close(one.mean, mean[:1])
    assert one.mean.shape == (1, K)


def test_without_noise_it_interpolates_and_far_away_it_is_the_prior():
    post = bw.gp.nngp(NET, X, Y, None, ridge=None)
    at_train = post.predict(X)
    close(at_train.mean, Y, atol=1e-9)
    assert np.all(at_train.epistemic < 1e-10) and np.all(at_train.aleatoric == 0)
    errors = [np.abs(bw.gp.nngp(NET, X, Y, bw.Gaussian(s)).predict(X).mean - Y).max() for s in (1e-2, 1e-3)]
    # The residual is sigma^2 A^-1 y: a hundred times less at a tenth of the noise.
    np.testing.assert_allclose(errors[0] / errors[1], 100, rtol=0.2)
    vague = bw.gp.nngp(NET, X, Y, bw.Gaussian(1e4)).predict(X_TEST)
    close(vague.epistemic[:, 0], np.diag(kernels("nngp")[2]), rtol=1e-6)
    close(vague.mean, np.zeros((T, K)), atol=1e-6)


def test_samples_have_the_moments():
    post = bw.gp.nngp(NET, X, Y, NOISE)
    points = np.concatenate([X[:2], X_TEST[:3]])
    s = 20_000
    draws = post.sample(jax.random.key(0), points, s)
    assert draws.shape == (s, len(points), K)
    wanted = post.predict(points, full_cov=True)
    spread = np.asarray(wanted.covariance)
    sd = np.sqrt(np.diag(spread))
    assert np.all(np.abs(draws.mean(0) - wanted.mean) < 5 * sd[:, None] / np.sqrt(s))
    for output in range(K):
        off = np.abs(np.cov(draws[:, :, output].T) - spread)
        assert np.all(off < 5 * np.sqrt((spread**2 + np.outer(sd, sd) ** 2) / s))
    across = np.corrcoef(draws[:, 0, 0], draws[:, 0, 1])[0, 1]
    assert abs(across) < 5 / np.sqrt(s)
    # Nothing is left to draw at the training inputs, and twice at the same one.
    exact = bw.gp.nngp(NET, X, Y, None).sample(jax.random.key(1), X[[0, 0, 1, 2, 3]], 3)
    close(exact, np.broadcast_to(Y[[0, 0, 1, 2, 3]], exact.shape), atol=1e-6)


def test_leave_one_out_is_leaving_one_out():
    ridge = bw.gp.Ridge(0.02, relative=False)
    post = bw.gp.nngp(NET, X, Y, NOISE, ridge=ridge)
    got, log_prob = post.leave_one_out(), post.leave_one_out_log_prob()
    k_dd = kernels("nngp")[0]
    for i in range(N):
        rest = np.arange(N) != i
        total = 0.3**2 + 0.02
        mean, spread = textbook(k_dd[rest][:, rest], k_dd[i : i + 1, rest], k_dd[i, i], Y[rest], total)
        close(got.mean[i], mean[0])
        close(got.epistemic[i], np.full(K, spread[0, 0]))
        close(got.aleatoric[i], np.full(K, 0.3**2))
        close(log_prob[i], stats.norm(mean[0], np.sqrt(spread[0, 0] + total)).logpdf(Y[i]))


def test_log_density_and_its_derivatives():
    def plain(matrix, y):
        fit = jnp.sum(y * jnp.linalg.solve(matrix, y))
        return -0.5 * (fit + K * jnp.linalg.slogdet(matrix)[1] + y.size * jnp.log(2 * jnp.pi))

    def all_of(density):
        symmetric = lambda a, y: density((a + a.T) / 2, y)  # noqa: E731
        return jax.jit(lambda *at: (symmetric(*at), jax.grad(symmetric, (0, 1))(*at), jax.hessian(symmetric)(*at)))

    at = jnp.asarray(kernels("nngp")[0] + 0.1 * np.eye(N)), jnp.asarray(Y)
    same(all_of(log_density)(*at), all_of(plain)(*at), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", ["evidence", "leave one out"])
def test_derivatives_in_the_scales(kind):
    @jax.jit
    def objective(scale, noise):
        net = bw.Dense(4, w_scale=scale, b_scale=0.3) >> bw.Erf() >> bw.Dense(1, b_scale=0.1)
        post = bw.gp.nngp(net, X, Y, bw.Gaussian(noise))
        return post.log_marginal_likelihood() if kind == "evidence" else post.leave_one_out_log_prob().sum()

    slopes = jax.jit(jax.grad(objective, (0, 1)))(1.3, 0.2)
    for slope, step in zip(slopes, ((1e-5, 0.0), (0.0, 1e-5)), strict=True):
        ahead, behind = objective(1.3 + step[0], 0.2 + step[1]), objective(1.3 - step[0], 0.2 - step[1])
        np.testing.assert_allclose(slope, (ahead - behind) / 2e-5, rtol=1e-6)


def same(got, wanted, **tolerance):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        close(a, b, **tolerance)


def test_a_posterior_is_a_pytree():
    wanted = bw.gp.nngp(NET, X, Y, NOISE).predict(X_TEST, full_cov=True)
    got = jax.jit(lambda x, y, t: bw.gp.nngp(NET, x, y, NOISE).predict(t, full_cov=True))(X, Y, X_TEST)
    same(got, wanted)
    got = jax.jit(lambda post, t: post.predict(t, full_cov=True))(bw.gp.nngp(NET, X, Y, NOISE), X_TEST)
    same(got, wanted)
    assert isinstance(got, bw.Prediction)
    assert repr(bw.gp.nngp(NET, X, Y, NOISE)).startswith("GaussianProcess(n=9, k=2, kernel='nngp', scale=0.3, net=")


def test_mixture_of_predictions_has_the_moments_of_the_mixture():
    posts = [bw.gp.nngp(NET, X, Y, bw.Gaussian(s)) for s in (0.1, 0.3, 1.0)]
    from bnnwide.prediction import mixture

    got = mixture([post.predict(X_TEST, full_cov=True) for post in posts])
    parts = [post.predict(X_TEST, full_cov=True) for post in posts]
    mean = sum(part.mean for part in parts) / 3
    second = sum(np.asarray(part.covariance) + np.einsum("ik,jk->kij", part.mean, part.mean) for part in parts) / 3
    close(got.mean, mean)
    close(got.covariance, second - np.einsum("ik,jk->kij", mean, mean))
    close(got.epistemic, np.diagonal(got.covariance, axis1=1, axis2=2).T)
    close(got.aleatoric, np.full((T, K), (0.01 + 0.09 + 1.0) / 3))
    assert mixture([post.predict(X_TEST) for post in posts]).covariance is None


def spectrum(*eigenvalues):
    rotation = np.linalg.qr(RNG.normal(size=(len(eigenvalues),) * 2))[0]
    return jnp.asarray(rotation * np.asarray(eigenvalues) @ rotation.T)


@pytest.mark.parametrize("smallest", [1e-2, 1e-6])
def test_condition_number(smallest):
    matrix = spectrum(5.0, *np.linspace(0.5, 1.0, 30), smallest)
    estimate = float(condition_number(cholesky(matrix)))
    assert 0.8 * 5 / smallest < estimate < 5 / smallest * (1 + 1e-6)


def test_relative_jitter():
    matrix = spectrum(*np.linspace(0.5, 1.0, 10))
    assert abs(relative_jitter(matrix, cholesky(matrix))) < 1e-15
    mean = float(np.diag(matrix).mean())
    close(relative_jitter(matrix, cholesky(matrix + 0.01 * mean * jnp.eye(10))), 0.01, rtol=1e-8)


@pytest.fixture
def x32():
    with jax.enable_x64(False):
        yield


# Three inputs, three times each: the kernel has three directions, all else is noise.
CROWD = np.repeat(RNG.normal(size=(3, 3)), 3, axis=0) + 1e-4 * RNG.normal(size=(9, 3))
CROWD_Y = np.sin(3 * CROWD[:, :K])


def test_float32_says_what_float64_says(x32):
    single = bw.gp.nngp(NET, X, Y, NOISE).predict(X_TEST, full_cov=True)
    assert {leaf.dtype for leaf in jax.tree.leaves(single)} == {jnp.dtype(jnp.float32)}
    with jax.enable_x64(True):
        double = bw.gp.nngp(NET, X, Y, NOISE).predict(X_TEST, full_cov=True)
    same(single, double, rtol=1e-3, atol=1e-4)


def test_float32_warns_and_names_the_remedy(x32):
    with pytest.warns(RuntimeWarning) as caught:
        bw.gp.nngp(NET, CROWD, CROWD_Y, bw.Gaussian(1e-3))
    assert re.fullmatch(
        r"`nngp`: K \+ \(scale\^2 \+ ridge\) I has a condition number of about \de\+0\d: in float32 the results may be "
        r"off by up to \d+%; use float64 \(jax\.config\.update\('jax_enable_x64', True\)\), or a larger noise scale or "
        r"ridge",
        str(caught[0].message),
    )
    with pytest.warns(RuntimeWarning, match=r"^`ntk`: the tangent kernel \+ \(scale\^2 \+ ridge\) I took a jitter of"):
        bw.gp.ntk(NET, CROWD, CROWD_Y, None)


@pytest.mark.parametrize(
    "remedy", [{}, {"likelihood": bw.Gaussian(0.3)}, {"ridge": bw.gp.Ridge(1e-2)}], ids=["float64", "noise", "ridge"]
)
def test_the_remedies_help(remedy):
    arguments = {"likelihood": bw.Gaussian(1e-3)} | remedy
    with warnings.catch_warnings(), jax.enable_x64(not remedy):
        warnings.simplefilter("error")
        bw.gp.nngp(NET, CROWD, CROWD_Y, **arguments)


def spoiled(array, value):
    array = np.array(array)
    array[0, 0] = value
    return array


REFUSED = {
    "net": (lambda: bw.gp.nngp(lambda x: x, X, Y, NOISE), TypeError, "`nngp`: net must be an architecture such as"),
    "likelihood": (
        lambda: bw.gp.nngp(NET, X, Y, 0.1),
        TypeError,
        "`nngp`: likelihood must be Gaussian(scale), or None for targets without noise; got 0.1",
    ),
    "ridge as likelihood": (
        lambda: bw.gp.nngp(NET, X, Y, bw.gp.Ridge(0.1)),
        TypeError,
        "`nngp`: likelihood must be Gaussian(scale), or None for targets without noise; got Ridge(value=0.1, "
        "relative=True); pass a Ridge as ridge=...",
    ),
    "ridge": (
        lambda: bw.gp.nngp(NET, X, Y, NOISE, ridge=0.1),
        TypeError,
        "`nngp`: ridge must be Ridge(value) or None; got 0.1",
    ),
    "negative ridge": (lambda: bw.gp.Ridge(-1.0), ValueError, "`Ridge`: value must be one finite number, zero or"),
    "x rank": (lambda: bw.gp.nngp(NET, X[:, 0], Y, NOISE), ValueError, "`nngp`: x must have shape (n, d); got (9,)"),
    "y rows": (
        lambda: bw.gp.nngp(NET, X, Y[:-1], NOISE),
        ValueError,
        "`nngp`: y must have shape (9, k) with n=9 from x; got (8, 2)",
    ),
    "y rank": (lambda: bw.gp.nngp(NET, X, Y[:, 0], NOISE), ValueError, "`nngp`: y must have shape (9, k)"),
    "NaN in x": (lambda: bw.gp.nngp(NET, spoiled(X, np.nan), Y, NOISE), ValueError, "`nngp`: x must be finite; got 1"),
    "NaN in y": (lambda: bw.gp.nngp(NET, X, spoiled(Y, np.nan), NOISE), ValueError, "`nngp`: y must be finite; got 1"),
    "test shape": (
        lambda: bw.gp.nngp(NET, X, Y, NOISE).predict(X_TEST[:, :2]),
        ValueError,
        "`predict`: x_test must have shape (n, 3) with the rest from x; got (5, 2)",
    ),
    "NaN in x_test": (
        lambda: bw.gp.nngp(NET, X, Y, NOISE).sample(jax.random.key(0), spoiled(X_TEST, np.inf), 1),
        ValueError,
        "`sample`: x_test must be finite; got 1",
    ),
    "num_samples": (
        lambda: bw.gp.nngp(NET, X, Y, NOISE).sample(jax.random.key(0), X_TEST, 0),
        ValueError,
        "`sample`: num_samples must be at least 1; got 0",
    ),
    "batch_size": (
        lambda: bw.gp.nngp(NET, X, Y, NOISE).predict(X_TEST, batch_size=0),
        ValueError,
        "`predict`: batch_size must be at least 1; got 0",
    ),
    "k_dd": (
        lambda: bw.gp.regression(np.eye(3), Y, NOISE),
        ValueError,
        "`regression`: k_dd must have shape (9, 9) with n=9 from y; got (3, 3)",
    ),
    "indefinite": (
        lambda: bw.gp.regression(np.diag([1.0, 1.0, -0.5]), np.ones((3, 1)), None),
        ValueError,
        "`regression`: K + (scale^2 + ridge) I has no finite Cholesky factor, even with jitter; use float64",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_says_what_was_expected_and_what_came(name, only_the_librarys_own_checks):
    call, error, message = REFUSED[name]
    with pytest.raises(error, match="^" + re.escape(message)):
        call()


def test_a_learned_noise_is_refused_with_the_way_out():
    import numpyro.distributions as dist

    with pytest.raises(ValueError, match=r"^`nngp`: the noise scale must be a number; .* sample it with gp_model$"):
        bw.gp.nngp(NET, X, Y, bw.Gaussian(dist.HalfNormal(1.0)))


def test_an_overflowing_kernel_is_refused(x32):
    with pytest.raises(ValueError, match=r"^`nngp`: K \+ \(scale\^2 \+ ridge\) I is not finite; scale inputs"):
        bw.gp.nngp(bw.Dense(1), 1e20 * X, Y, NOISE)


@pytest.mark.parametrize("posterior", [bw.gp.nngp, bw.gp.ntk])
def test_a_posterior_larger_than_memory_is_refused_before_it_is_begun(posterior, monkeypatch):
    monkeypatch.setattr("bnnwide.gp.memory.total_memory", lambda device: 3 * 8 * 49**2)
    x, y = np.random.default_rng(0).normal(size=(50, 2)), np.zeros((50, 1))
    net, noise = bw.Dense(8) >> bw.Relu() >> bw.Dense(1), bw.Gaussian(0.1)
    posterior(net, x[:49], y[:49], noise)
    with pytest.raises(ValueError, match="n=50 inputs need at least 0 GB .* use bw.gp.large"):
        posterior(net, x, y, noise)
    jax.jit(lambda x: posterior(net, x, y, noise).predict(x).mean)(x)


def test_the_memory_of_this_machine_is_known():
    from bnnwide.gp.memory import total_memory

    assert total_memory(jax.devices()[0]) > 2**28
