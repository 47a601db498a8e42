"""The functional ELBO's divergences, its points, and its use as a loss of NumPyro's SVI."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro import handlers
from numpyro.distributions import kl_divergence
from numpyro.infer import SVI
from numpyro.infer.autoguide import AutoNormal

import bnnwide as bw
from bnnwide.functional import (
    FixedPoints,
    FunctionalELBO,
    GPPrior,
    ImplicitPrior,
    Measurement,
    Mixture,
    RegularisedELBO,
)
from bnnwide.functional.divergence import gaussian_divergence

KEY = jax.random.key(0)
POINTS = jnp.linspace(-1.0, 1.0, 4)[:, None]


def rbf(a, b, length=0.6):
    return jnp.exp(-0.5 * jnp.sum((a[:, None] - b[None]) ** 2, -1) / length**2)


def matern(a, b):
    return jnp.exp(-jnp.abs(a[:, None, 0] - b[None, :, 0]))


def linear(a, b):
    return 1.0 + a @ b.T


PRIOR = GPPrior(rbf)


def test_gaussian_divergence_is_the_kl_of_stacked_outputs():
    root = jax.random.normal(KEY, (8, 8))
    mean, covariance = jax.random.normal(jax.random.key(1), (4, 2)), root @ root.T
    got = gaussian_divergence(mean, covariance, jnp.ones(4), rbf(POINTS, POINTS), jnp.array(0.1))
    prior = jax.scipy.linalg.block_diag(rbf(POINTS, POINTS), rbf(POINTS, POINTS)) + 0.1 * jnp.eye(8)
    p = dist.MultivariateNormal(jnp.ones(8), prior)
    q = dist.MultivariateNormal(mean.T.ravel(), covariance + 0.1 * jnp.eye(8))
    np.testing.assert_allclose(got, kl_divergence(q, p), rtol=1e-9)


def divergence_gradient(objective, shift, spread, num_keys=24):
    """Average the gradient over keys, of f = shift + spread * a smooth Gaussian function, with respect to both."""
    root = jnp.linalg.cholesky(rbf(POINTS, POINTS, 1.0) + 1e-6 * jnp.eye(4))

    def value(theta, key):
        noise_key, key = jax.random.split(key)
        noise = jax.random.normal(noise_key, (objective.num_samples, 4))
        return objective.divergence(key, POINTS, (theta[0] + theta[1] * noise @ root.T)[..., None])

    theta = jnp.array([shift, spread])
    slopes = jax.lax.map(lambda key: jax.grad(value)(theta, key), jax.random.split(KEY, num_keys))
    return slopes.mean(0), slopes.std(0) / num_keys**0.5


def exact_gradient(prior_mean, shift, spread, nugget):
    def value(theta):
        own = theta[1] ** 2 * (rbf(POINTS, POINTS, 1.0) + 1e-6 * jnp.eye(4))
        return gaussian_divergence(
            jnp.full((4, 1), theta[0]), own, jnp.full(4, prior_mean), rbf(POINTS, POINTS), jnp.array(nugget)
        )

    return jax.grad(value)(jnp.array([shift, spread]))


def test_score_gradients_are_those_of_the_kl():
    exact = exact_gradient(0.0, 0.7, 1.2, 0.25)
    # The gradient of the shift goes through the prior's exact score alone; that of the spread through SteinScore, whose
    # bias at 300 draws was seen to be a tenth.
    stein, error = divergence_gradient(FunctionalELBO(PRIOR, noise=0.5, num_samples=300), 0.7, 1.2)
    assert abs(stein[0] - exact[0]) < 0.1 * abs(exact[0]) + 4 * error[0]
    assert abs(stein[1] - exact[1]) < 0.25 * abs(exact[1]) + 4 * error[1]
    # Moments of draws: exact but for 1/num_samples.
    gaussian, error = divergence_gradient(FunctionalELBO(PRIOR, noise=0.5, score="gaussian", num_samples=300), 0.7, 1.2)
    np.testing.assert_array_less(abs(gaussian - exact), 0.05 * abs(exact) + 4 * error)


def test_an_implicit_prior_pulls_as_the_process_it_imitates():
    root = jnp.linalg.cholesky(rbf(POINTS, POINTS) + 1e-6 * jnp.eye(4))
    imitation = ImplicitPrior(lambda key, x: root @ jax.random.normal(key, (4,)))
    objective = FunctionalELBO(imitation, noise=0.5, num_samples=100, num_prior_samples=400)
    exact = exact_gradient(0.0, 0.7, 1.2, 0.25)
    got, error = divergence_gradient(objective, 0.7, 1.2, 12)
    assert abs(got[0] - exact[0]) < 0.25 * abs(exact[0]) + 4 * error[0]
    # A mixture of processes has a density, and so an exact score.
    one = divergence_gradient(FunctionalELBO(Mixture([PRIOR, PRIOR]), noise=0.5, num_samples=50), 0.7, 1.2, 4)[0]
    two = divergence_gradient(FunctionalELBO(PRIOR, noise=0.5, num_samples=50), 0.7, 1.2, 4)[0]
    np.testing.assert_allclose(one, two, rtol=1e-6)


def test_regularised_divergence_has_a_limit_and_the_other_has_none():
    fixed, regularised = [], []
    for num in (20, 80, 320):
        x = jnp.linspace(0.0, 1.0, num)[:, None]
        laws = (jnp.zeros((num, 1)), matern(x, x), jnp.zeros(num), rbf(x, x))
        fixed.append(gaussian_divergence(*laws, FunctionalELBO(PRIOR, noise=0.1).nugget(jnp.ones(()), num)))
        regularised.append(gaussian_divergence(*laws, RegularisedELBO(PRIOR, gamma=1e-3).nugget(jnp.ones(()), num)))
    assert fixed[2] > 2.0 * fixed[1] > 4.0 * fixed[0]
    assert abs(regularised[2] / regularised[1] - 1) < 0.02
    assert abs(regularised[2] - regularised[1]) < 0.5 * abs(regularised[1] - regularised[0])


def test_measurement_points():
    x = jnp.arange(10.0)[:, None]
    points = np.asarray(Measurement(4, 5, (20.0, 21.0))(KEY, x))
    assert points.shape == (9, 1)
    assert len(set(points[:4, 0])) == 4 and set(points[:4, 0]) <= set(range(10))
    assert ((points[4:] > 20) & (points[4:] < 21)).all()
    wide = np.asarray(Measurement(0, 4000)(KEY, x))[:, 0]
    assert abs(wide.min() + 2.25) < 0.05 and abs(wide.max() - 11.25) < 0.05
    law = dist.Normal(jnp.full(1, 50.0), 1.0).to_event(1)
    assert (np.asarray(Measurement(20, 3, law)(KEY, x))[10:] > 40).all()  # all ten training inputs, then the law's
    np.testing.assert_array_equal(Measurement(0, 3, lambda key, num: jnp.ones((num, 1)))(KEY, x), 1.0)
    np.testing.assert_array_equal(FixedPoints(POINTS)(KEY, x), POINTS)


X = np.random.default_rng(0).uniform(-1, 1, (12, 1))
Y = 0.8 * X[:, 0] - 0.3 + 0.2 * np.random.default_rng(1).normal(size=12)


def line(x, y=None):
    a, b = numpyro.sample("a", dist.Normal(5.0, 0.1)), numpyro.sample("b", dist.Normal(5.0, 0.1))
    f = numpyro.deterministic("f", a + b * x[:, 0])
    numpyro.sample("y", dist.Normal(f, 0.2), obs=y)


@pytest.mark.parametrize("objective", [FunctionalELBO, RegularisedELBO])
def test_svi_with_a_users_model_finds_the_mean_field_optimum_of_the_function_prior(objective):
    # With f = a + b x and the prior GP(0, 1 + x x'), the KL of functions is that of (a, b) to N(0, I), in whatever
    # points: the optimum over independent normals is known. The model's own prior, far away, plays no part.
    options = {"noise": 0.01} if objective is FunctionalELBO else {"gamma": 1e-5}
    loss = objective(
        GPPrior(linear), measurement=Measurement(2, 2), score="gaussian", num_samples=200, **options
    )  # fmt: skip
    svi = SVI(line, AutoNormal(line), optax.adam(optax.cosine_decay_schedule(0.05, 400)), loss)
    run = jax.jit(lambda: jax.lax.scan(lambda s, _: svi.update(s, X, Y), svi.init(KEY, X, Y), length=400))
    state, losses = run()
    found = svi.get_params(state)
    design = np.c_[np.ones(12), X]
    precision = np.eye(2) + design.T @ design / 0.04
    mean = np.linalg.solve(precision, design.T @ Y / 0.04)
    got = np.array([found["a_auto_loc"], found["b_auto_loc"]])
    sd = np.array([found["a_auto_scale"], found["b_auto_scale"]])
    np.testing.assert_allclose(got, mean, atol=0.01)
    np.testing.assert_allclose(sd, np.diagonal(precision) ** -0.5, rtol=0.05)
    assert np.isfinite(losses).all()


def test_svi_with_a_bnn():
    net = bw.Dense(6, w_scale=2.0, b_scale=1.0) >> bw.Erf() >> bw.Dense(1)
    y = Y[:, None]
    loss = FunctionalELBO(PRIOR, measurement=Measurement(3, 3), num_samples=16)
    model = bw.bnn(net, bw.Gaussian(dist.HalfNormal(0.3)), "repriorised")
    svi = SVI(model, AutoNormal(model), optax.adam(0.02), loss)
    run = jax.jit(lambda: jax.lax.scan(lambda s, _: svi.update(s, X, y), svi.init(KEY, X, y), length=40)[1])
    losses = run()
    assert np.mean(losses[-10:]) < np.mean(losses[:10])


def test_a_function_of_its_own_is_the_recorded_one():
    by_name = FunctionalELBO(PRIOR, measurement=Measurement(3, 3), num_samples=16)
    by_function = FunctionalELBO(
        PRIOR, measurement=Measurement(3, 3), num_samples=16, function=lambda draw, x: draw["a"] + draw["b"] * x
    )
    guide = AutoNormal(line)
    params = {f"{name}_auto_{part}": 0.5 for name in "ab" for part in ("loc", "scale")}
    handlers.seed(guide, KEY)(X, Y)  # it learns the model's sites
    same = [jax.jit(lambda loss=loss: loss.loss(KEY, params, line, guide, X, Y))() for loss in (by_name, by_function)]
    np.testing.assert_allclose(*same, rtol=1e-9)


@pytest.mark.usefixtures("only_the_librarys_own_checks")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FunctionalELBO(PRIOR, score="exact"), "`FunctionalELBO`: score must be one of 'stein'"),
        (lambda: FunctionalELBO(PRIOR, noise=0.0), "`FunctionalELBO`: noise must be positive"),
        (lambda: FunctionalELBO(PRIOR, weight=-1.0), "`FunctionalELBO`: weight must be positive"),
        (lambda: FunctionalELBO(PRIOR, num_samples=1), "`FunctionalELBO`: num_samples must be at least 2"),
        (lambda: RegularisedELBO(PRIOR, score="stein"), "`RegularisedELBO`: score must be one of 'gaussian', 'linear"),
        (lambda: RegularisedELBO(PRIOR, gamma=-1.0), "`RegularisedELBO`: gamma must be positive"),
        (
            lambda: FunctionalELBO(GPPrior(lambda s: rbf, hyper={"s": dist.HalfNormal()})),
            "`FunctionalELBO`: the hyper-parameters of the prior must be numbers",
        ),
        (lambda: Measurement(0, 0), "must not both be 0"),
        (lambda: Measurement(1, 1, (1.0, 0.0)), "low below high"),
        (lambda: Measurement(1, 2, lambda k, m: jnp.ones(m))(KEY, POINTS), "inputs from the domain must have shape"),
        (lambda: FixedPoints(POINTS)(KEY, jnp.ones((3, 2))), "`FixedPoints`: points must have shape"),
        (
            lambda: FunctionalELBO(PRIOR, function="g").loss(KEY, {}, line, line, X),
            "must record the function as a deterministic site 'g'",
        ),
        (
            lambda: FunctionalELBO(PRIOR, parametric=("c",)).loss(KEY, {}, line, line, X),
            "the parametric site 'c' must be sampled by the model",
        ),
    ],
)  # fmt: skip
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.usefixtures("only_the_librarys_own_checks")
def test_errors_of_kind():
    with pytest.raises(TypeError, match="`FunctionalELBO`: prior must be a prior over functions"):
        FunctionalELBO(rbf)
    with pytest.raises(TypeError, match="`Measurement`: domain must be"):
        Measurement(1, 1, 3)
