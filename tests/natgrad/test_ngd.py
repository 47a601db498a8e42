"""Natural gradient descent as a sampler, on posteriors that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from scipy.special import digamma

import bnnwide as bw
from bnnwide.natgrad.correction import geodesic_force, volume_force
from bnnwide.natgrad.curvature import Layout
from bnnwide.natgrad.problem import check_task

pytestmark = pytest.mark.optimised

SCALE = 0.5


def linear(w, x):
    return x @ w[:, None]


def gaussian_problem():
    """Columns of a Hadamard matrix as inputs and another as residuals: minibatch noise at the mode is F exactly."""
    h = scipy.linalg.hadamard(64).astype(float)
    x = h[:, 1:4]
    w = np.array([0.5, -1.0, 0.3])
    return x, (x @ w + SCALE * h[:, 5])[:, None], w


def test_temperature_solves_for_what_is_left_out():
    assert bw.natgrad.temperature(0.02, 4, 400) == pytest.approx(1.0)
    assert bw.natgrad.temperature(batch_size=4, num_data=400, temperature=1.0) == pytest.approx(0.02)
    assert bw.natgrad.temperature(0.02, num_data=400, temperature=0.5) == pytest.approx(8.0)
    with pytest.raises(ValueError, match="num_data and exactly two of learning_rate, batch_size and temperature"):
        bw.natgrad.temperature(0.02, 4)
    with pytest.raises(ValueError, match="`temperature`: learning_rate must be positive and finite; got -1"):
        bw.natgrad.temperature(-1, 4, 400)


@pytest.mark.parametrize("wanted", [0.5, 1.0, 2.0])
def test_minibatch_noise_alone_holds_the_temperature(wanted):
    """Plain minibatch descent on a linear model, against the exact second moments of its recursion.

    With per-input gradients x_i (x_i^T d - r_i) / s^2 about the mode and F = N/s^2 I, the stationary covariance is
    c F^-1 with c = (eps N / B) / (2 - eps - eps (p - 1) / B), whose limit is T = eps N / 2B: no fit, at this eps.
    """
    x, y, w = gaussian_problem()
    n, p, batch = 64, 3, 4
    eps = bw.natgrad.temperature(batch_size=batch, num_data=n, temperature=wanted)
    draws = bw.natgrad.sample(
        linear, bw.Gaussian(SCALE), x, y, key=jax.random.key(1), learning_rate=eps, batch_size=batch, temperature=None,
        correction="none", damping=0.0, prior_precision=0.0, params=jnp.asarray(w), num_warmup=50, num_samples=150,
        thinning=max(1, int(1.5 / eps)), num_chains=128,
    )  # fmt: skip
    exact = eps * n / batch / (2 - eps - eps * (p - 1) / batch)
    white = (draws.flat() - w) * n**0.5 / SCALE
    count = 128 * 150 / 2  # draws 1.5/eps steps apart are correlated by exp(-1.5), their squares by exp(-3)
    covariance = white.T @ white / len(white)
    error = exact * (2 / count) ** 0.5
    np.testing.assert_allclose(np.diagonal(covariance), exact, atol=5 * error)
    np.testing.assert_allclose(covariance - np.diag(np.diagonal(covariance)), 0.0, atol=5 * error)
    assert exact == pytest.approx(wanted / (1 - eps / 2), rel=0.08)  # the law T = eps N / 2B, its steps allowed for
    if wanted == 1.0:  # equipartition measures the same, mode and all
        np.testing.assert_allclose(draws.stats["temperature"].mean(), exact, rtol=0.05)


@pytest.fixture(scope="module")
def logistic():
    """20 labels at each of 20 inputs in the proportions that the model predicts; the posterior by quadrature."""
    rng = np.random.default_rng(3)
    points, w = rng.uniform(-1.5, 1.5, size=(20, 2)), np.array([0.8, -0.5])
    ones = np.round(20 / (1 + np.exp(-points @ w))).astype(int)
    x = np.repeat(points, 20, axis=0)
    y = np.concatenate([np.arange(20) < k for k in ones]).astype(int)
    axis = np.linspace(-3, 3, 401)
    grid = w + np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    f = grid @ points.T
    cost = np.sum(20 * np.logaddexp(0, f) - ones * f, axis=1) + 0.5 * np.sum(grid**2, axis=1)
    return x, y, w, grid, cost


def moments(grid, cost, temperature):
    weights = np.exp(-(cost - cost.min()) / temperature)
    weights /= weights.sum()
    mean = weights @ grid
    return mean, (grid - mean).T @ ((grid - mean) * weights[:, None])


@pytest.mark.parametrize(
    ("wanted", "batch"),
    [(0.5, 16), (1.0, 8), (2.0, 8), pytest.param(1.0, 16, marks=pytest.mark.slow),
     pytest.param(1.0, None, marks=pytest.mark.slow)],
)  # fmt: skip
def test_logistic_regression_at_three_temperatures(logistic, wanted, batch):
    """Minibatch noise alone (0.5 with B = 16, 1 with B = 8), and with noise added."""
    x, y, w, grid, cost = logistic
    eps = 0.04
    draws = bw.natgrad.sample(
        linear, bw.Bernoulli(), x, y, key=jax.random.key(2), learning_rate=eps, batch_size=batch, temperature=wanted,
        correction="posterior", params=jnp.asarray(w), num_warmup=100, num_samples=24, thinning=25, num_chains=128,
    )  # fmt: skip
    mean, covariance = moments(grid, cost, wanted)
    flat = np.asarray(draws.flat())
    root = np.linalg.cholesky(covariance)
    white = np.linalg.solve(root, (flat - mean).T)
    count = white.shape[1] / 1.3  # squares of neighbouring draws are exp(-2) correlated
    assert np.abs(white.mean(axis=1)).max() < 5 / count**0.5 + 0.03  # 0.03: steps of finite size on a skew posterior
    # Steps of finite size add eps/2 = 2% to the variance; minibatch noise off the mode about T p / N = 1% more.
    np.testing.assert_allclose(white @ white.T / white.shape[1], np.eye(2) * 1.025, atol=4 * (2 / count) ** 0.5 + 0.02)
    np.testing.assert_allclose(draws.stats["temperature"].mean(), wanted, rtol=0.08)


# One rate with four observed counts, in two coordinates: the log rate, and its root. exp(-C) is rate^S exp(-N rate).
COUNTS = np.array([[1.0], [0.0], [2.0], [1.0]])
ONES = np.ones((4, 1))


def log_rate(w, x):
    return w * x


def root_rate(u, x):
    return 2 * jnp.log(u) * x


@pytest.fixture(scope="module")
def rates():
    """Mean log rates, and their errors, of each correction in log rates, and in roots, where all three are the same."""
    options = dict(key=jax.random.key(4), learning_rate=0.02, batch_size=None, damping=0.0, prior_precision=0.0,
                   num_warmup=200, num_samples=30, thinning=75, num_chains=256)  # fmt: skip

    def draw(f, start, correction):
        return bw.natgrad.sample(
            f, bw.Poisson(), ONES, COUNTS, params=jnp.asarray(start), correction=correction, **options
        )

    found = {c: mean_and_error(draw(log_rate, 0.0, c).params) for c in ("posterior", "jeffreys", "none")}
    return found | {"roots": mean_and_error(2 * jnp.log(jnp.abs(draw(root_rate, 1.0, "jeffreys").params)))}


def mean_and_error(values):
    means = np.asarray(values).mean(axis=1)
    return means.mean(), means.std() / len(means) ** 0.5


# The power of the rate that each law adds to the likelihood's Gamma law. In log rates F = N rate; in roots F = 4N, and
# d log rate = rate^-1/2 d root gives half a power to all.
@pytest.mark.parametrize(("name", "extra"), [("posterior", 0.0), ("jeffreys", 0.5), ("none", 1.0), ("roots", 0.5)])
def test_laws_of_the_three_corrections_in_closed_form(rates, name, extra):
    """With one weight all are Gamma laws of the rate. Only "jeffreys" is the same law in both coordinates."""
    mean, error = rates[name]
    expected = digamma(COUNTS.sum() + extra) - np.log(len(COUNTS))
    # Shapes half a unit apart differ by 0.13 in this mean; a step of 0.02 is allowed as much as its own size.
    assert abs(mean - expected) < 4 * error + 0.02
    assert error < 0.02


def test_stochastic_ngd_is_invariant_where_plain_minibatch_ngd_is_not():
    """The same minibatches in two coordinates: corrected paths stay together, plain ones part by Ito's term.

    d log rate = 2 du/u - (du/u)^2 with du^2 = 2 T eps / 4N: plain descent in roots is lower by 2 T / (4 N rate).
    """
    eps, counts = 0.05, np.array([[1.0], [9.0], [3.0], [7.0], [5.0], [5.0], [5.0], [5.0]])  # variance 5 = mean 5
    options = dict(key=jax.random.key(5), learning_rate=eps, batch_size=1, temperature=None, damping=0.0,
                   prior_precision=0.0, num_warmup=200, num_samples=50, thinning=20, num_chains=128)  # fmt: skip
    x, start = np.ones((8, 1)), np.log(5.0)

    def draw(f, start, correction):
        chains = bw.natgrad.sample(
            f, bw.Poisson(), x, counts, params=jnp.asarray(start), correction=correction, **options
        )
        return chains.params

    # In roots F is constant, so that corrected and plain descent are one.
    roots = 2 * jnp.log(jnp.abs(draw(root_rate, np.exp(start / 2), "none")))
    plain, plain_error = mean_and_error(draw(log_rate, start, "none") - roots)
    corrected, error = mean_and_error(draw(log_rate, start, "jeffreys") - roots)
    apart = 2 * (eps * 8 / 2) / (4 * 8 * 5.0)
    np.testing.assert_allclose(plain, apart, rtol=0.25)  # the term itself, to first order in eps
    assert plain > 10 * plain_error
    assert abs(corrected) < 0.2 * plain + 3 * error


def test_correction_forces_against_derivatives_of_matrices():
    """Christoffel's symbols contracted with G^-1, and the gradient of log det G / 2, from derivatives of the matrix."""
    net = bw.Dense(2, b_scale=0.5) >> bw.Tanh() >> bw.Dense(3)
    x = np.random.default_rng(6).normal(size=(5, 2))
    params = net.init(jax.random.key(7), (2,))
    task, params = check_task("test", net, params, bw.Categorical(), x)
    layout = Layout.of(params)
    flat = layout.ravel(params)

    def metric(flat):
        rows = jax.jacobian(lambda flat: net(layout.unravel(flat), jnp.asarray(x)))(flat)
        h = jax.vmap(jax.hessian(jax.nn.logsumexp))(net(layout.unravel(flat), jnp.asarray(x)))
        return jnp.einsum("nap,nab,nbq->pq", rows, h, rows) + 0.3 * jnp.eye(layout.size)

    g, slopes = jax.jit(lambda flat: (metric(flat), jax.jacfwd(metric)(flat)))(flat)  # slopes[a, b, j] = d_j G_ab
    inverse = np.linalg.inv(g)
    volume = 0.5 * np.einsum("abj,ab->j", slopes, inverse)
    geodesic = np.einsum("abj,bj->a", slopes, inverse) - volume
    # Exact instead of random noise: the columns of a root of G^-1 sum to the expectation.
    columns = np.linalg.cholesky(inverse).T
    one = jax.vmap(lambda v: layout.ravel(geodesic_force(task, params, layout.unravel(v))))
    np.testing.assert_allclose(jax.jit(one)(jnp.asarray(columns)).sum(axis=0), geodesic, atol=1e-10)
    operator = bw.natgrad.fisher(net, params, x, bw.Categorical(), form="dense", damping=0.3)
    found = jax.jit(lambda params: layout.ravel(volume_force(task, params, operator)))(params)
    np.testing.assert_allclose(found, volume, atol=1e-10)


def test_wide_network_through_the_dual_form_and_a_fixed_operator():
    """More weights than data: the draws predict as the linear model that a one-layer network is, at T = 1."""
    net = bw.Dense(1, w_scale=2.0, b_scale=0.5)
    rng = np.random.default_rng(8)
    x, y = rng.normal(size=(4, 6)), rng.normal(size=(4, 1))
    params = net.init(jax.random.key(0), (6,))
    psi = np.asarray(net.features(jnp.asarray(x)))
    precision = psi.T @ psi / 0.25 + np.eye(7)
    mean = np.linalg.solve(precision, psi.T @ y / 0.25)
    x_test = rng.normal(size=(3, 6))
    psi_test = np.asarray(net.features(jnp.asarray(x_test)))
    variance = np.einsum("tm,mt->t", psi_test, np.linalg.solve(precision, psi_test.T))
    operator = bw.natgrad.fisher(net, params, x, bw.Gaussian(0.5), form="dual", damping=1.0)
    for metric in ("dual", operator):
        draws = bw.natgrad.sample(
            net, bw.Gaussian(0.5), x, y, key=jax.random.key(9), learning_rate=0.2, batch_size=None, fisher=metric,
            correction="none", params=params, num_warmup=20, num_samples=60, thinning=8, num_chains=32,
        )  # fmt: skip
        pred = draws.predict(x_test)
        inflated = variance / (1 - 0.2 / 2)  # exactly, for exact gradients
        np.testing.assert_allclose(pred.epistemic[:, 0], inflated, rtol=0.15)  # sd 0.035 of 1700 effective draws
        assert (np.abs(pred.mean[:, 0] - (psi_test @ mean)[:, 0]) < 5 * (inflated / 1200) ** 0.5).all()
        np.testing.assert_allclose(pred.aleatoric, 0.25)
    assert draws.log_score(x_test, np.zeros((3, 1))).shape == (3,)
    tree = draws.to_arviz()
    assert tree["posterior"]["w"].shape == (32, 60, 6, 1)
    assert tree["sample_stats"]["temperature"].shape == (32, 60)


def test_errors():
    x, y, w = gaussian_problem()
    options = dict(key=jax.random.key(0), learning_rate=0.5, batch_size=4, params=jnp.asarray(w))
    noise = bw.Gaussian(SCALE)
    with pytest.raises(
        ValueError, match="temperature must be at least 4, .*; use batch_size=16 or learning_rate=0.125"
    ):
        bw.natgrad.sample(linear, noise, x, y, **options)
    with pytest.raises(ValueError, match="correction='posterior' needs the exact Fisher matrix"):
        bw.natgrad.sample(linear, noise, x, y, fisher="diag", temperature=4.0, **options)
    with pytest.raises(ValueError, match="correction must be one of 'none', 'jeffreys', 'posterior'; got 'some'"):
        bw.natgrad.sample(linear, noise, x, y, temperature=4.0, correction="some", **options)
    with pytest.raises(TypeError, match="params must be given for a function"):
        bw.natgrad.sample(linear, noise, x, y, **(options | {"params": None}))
    with pytest.raises(ValueError, match="learning_rate must lie between 0 and 2"):
        bw.natgrad.sample(linear, noise, x, y, **(options | {"learning_rate": 2.5}))
