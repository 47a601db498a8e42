"""Training dynamics against iterated gradient descent on linear models, matrix exponentials and ODE solvers."""

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gp_problems import NET, NOISE, RNG, X_TEST, K, N, T, X, Y, close, kernels, textbook
from scipy.integrate import solve_ivp
from scipy.linalg import expm

import bnnwide as bw
from bnnwide.gp import Descent, Flow

# A linear model f = J w from a start w0: its tangent kernel is J J^T, and gradient descent can be run on its weights.
P = 15
J, J_TEST, W0 = RNG.normal(size=(N, P)), RNG.normal(size=(T, P)), RNG.normal(size=(P, K))
TANGENT, CROSS = J @ J.T, J_TEST @ J.T
START = {"f_train": J @ W0, "f_test": J_TEST @ W0}
PENALTY = 0.7
SIZE = N * K


def descend(num_steps, learning_rate, momentum, penalty):
    """Weights after heavy-ball steps on 1/(2N) sum (f - y)^2 + penalty/(2N) |w - w0|^2."""
    w, v = W0, np.zeros_like(W0)
    for _ in range(num_steps):
        slope = (J.T @ (J @ w - Y) + penalty * (w - W0)) / SIZE
        v = momentum * v - learning_rate * slope
        w = w + v
    return w


def dynamics(penalty=0.0):
    return bw.gp.training_dynamics(TANGENT, Y, ridge=bw.gp.Ridge(penalty, relative=False))


@pytest.mark.parametrize("penalty", [0.0, PENALTY])
@pytest.mark.parametrize("momentum", [0.0, 0.6])
@pytest.mark.parametrize("num_steps", [0, 1, 2, 25])
def test_descent_is_gradient_descent_on_the_weights(num_steps, momentum, penalty):
    schedule = Descent(num_steps, learning_rate=0.4, momentum=momentum)
    weights = descend(num_steps, 0.4, momentum, penalty)
    train, test = dynamics(penalty).values(schedule, k_td=CROSS, **START)
    close(test, J_TEST @ weights)
    if not penalty:
        close(train, J @ weights)
    # With a penalty, `train` is of the targets; the function at the training inputs comes through the cross kernel.
    _, again = dynamics(penalty).values(schedule, k_td=TANGENT, f_train=START["f_train"], f_test=START["f_train"])
    close(again, J @ weights)


@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_descent_tends_to_flow_at_the_rate_of_its_step(momentum):
    # Time counts steps: s steps at rate r are time 1 at rate r s; with momentum m, which has its own time scale, they
    # have friction (1 - m) s and force r s^2.
    target = dynamics().values(Flow(6.0, 0.5, momentum), k_td=CROSS, **START)[1]

    def error(refine):
        rate, inertia = 0.5 / refine, momentum
        if momentum:
            rate, inertia = 0.5 / refine**2, 1 - (1 - momentum) / refine
        return np.abs(dynamics().values(Descent(6 * refine, rate, inertia), k_td=CROSS, **START)[1] - target).max()

    coarse, fine = error(64), error(128)
    assert 1.9 < coarse / fine < 2.1


@pytest.mark.parametrize("penalty", [0.0, PENALTY])
def test_flow_is_the_matrix_exponential(penalty):
    matrix = TANGENT + penalty * np.eye(N)
    for time, rate in ((0.0, 1.0), (0.3, 1.0), (4.0, 0.5), (200.0, 2.0)):
        gain = np.linalg.solve(matrix, np.eye(N) - expm(-matrix * rate * time / SIZE))
        train, test = dynamics(penalty).values(Flow(time, rate), k_td=CROSS, **START)
        close(train, START["f_train"] + matrix @ gain @ (Y - START["f_train"]), rtol=1e-9, atol=1e-10)
        close(test, START["f_test"] + CROSS @ gain @ (Y - START["f_train"]), rtol=1e-9, atol=1e-10)
    # At the end, the least penalised: of all that reach it, the nearest to the start.
    weights = W0 + J.T @ np.linalg.solve(matrix, Y - START["f_train"])
    for schedule in (Flow(), Flow(1e6), Flow(momentum=0.5), Flow(1e5, 1.0, 0.5), Descent(200_000, 0.5)):
        close(dynamics(penalty).values(schedule, k_td=CROSS, **START)[1], J_TEST @ weights, rtol=1e-8)


def test_flow_with_momentum_is_a_damped_oscillator():
    def motion(_, state):
        f, v = state.reshape(2, N, K)
        return np.concatenate([v, -0.4 * v - 0.9 * TANGENT @ (f - Y) / SIZE]).ravel()

    start = np.concatenate([START["f_train"], np.zeros((N, K))]).ravel()
    solved = solve_ivp(motion, (0, 7), start, rtol=1e-11, atol=1e-12).y[:, -1].reshape(2, N, K)[0]
    train, _ = dynamics().values(Flow(7.0, 0.9, 0.6), **{"f_train": START["f_train"]})
    close(train, solved, rtol=1e-7, atol=1e-8)


def test_modes_that_are_never_learned_stay_where_they_are():
    # Two equal inputs: the tangent kernel has an eigenvalue of 0, along which the targets cannot be told apart.
    twice = np.concatenate([J, J[:1]])
    kernel, y = twice @ twice.T, np.concatenate([Y, Y[:1]])
    for schedule in (Flow(3.0), Flow(3.0, 1.0, 0.5), Descent(3), Descent(3, 1.0, 0.5)):
        train, _ = bw.gp.training_dynamics(kernel, y).values(schedule)
        assert np.isfinite(train).all()
        close(train[0], train[-1])
    gains = [schedule.gain(jnp.asarray([0.0, -1e-17]), 4) for schedule in (Flow(3.0, 0.8), Descent(3, 0.8))]
    close(gains, np.full((2, 2), 0.6))  # learning_rate time / N


def test_values_on_any_loss():
    labels = np.eye(K)[RNG.integers(K, size=N)]

    def motion(_, f):
        f = f.reshape(N, K)
        share = np.exp(f) / np.exp(f).sum(1, keepdims=True)
        return (-0.8 * TANGENT @ (share - labels) / N).ravel()

    solved = solve_ivp(motion, (0, 3), START["f_train"].ravel(), rtol=1e-11, atol=1e-12).y[:, -1].reshape(N, K)
    loss = lambda f: -jnp.mean(jnp.sum(jax.nn.log_softmax(f) * labels, axis=1))  # noqa: E731
    added = np.linalg.solve(TANGENT, solved - START["f_train"])
    train, test = bw.gp.gradient_flow(loss, TANGENT, time=3.0, learning_rate=0.8, k_td=CROSS, **START)
    close(train, solved, rtol=1e-7, atol=1e-8)
    close(test, START["f_test"] + CROSS @ added, rtol=1e-6, atol=1e-7)
    square = lambda f: 0.5 * jnp.mean((f - Y) ** 2)  # noqa: E731
    for momentum in (0.0, 0.6):
        solved = bw.gp.gradient_flow(square, TANGENT, time=3.0, momentum=momentum, k_td=CROSS, **START)
        closed = dynamics().values(Flow(3.0, 1.0, momentum), k_td=CROSS, **START)
        for got, wanted in zip(solved, closed, strict=True):
            close(got, wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_max_learning_rate_is_where_descent_diverges(momentum):
    limit = float(bw.gp.max_learning_rate(TANGENT, SIZE, momentum=momentum))
    start = np.abs(Y - START["f_train"]).max()

    def residual(rate):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            return np.abs(Y - J @ descend(3000, rate, momentum, 0.0)).max()

    assert residual(0.99 * limit) < 1e-3 * start and residual(1.01 * limit) > 1e3 * start
    post = bw.gp.ntk(NET, X, Y, NOISE)
    matrix = kernels("ntk")[0] + 0.09 * np.eye(N)
    wanted = 2 * (1 + momentum) * SIZE / np.linalg.eigvalsh(matrix)[-1]
    close(post.max_learning_rate(momentum), wanted)
    close(post.at(Flow(1.0)).max_learning_rate(momentum), wanted)


def ensemble(time, learning_rate=1.0, diagonal=0.09, num_steps=None):
    """Mean and covariance of trained networks from the definition: f -> f_test + G (y - f_train)."""
    initial, tangent = kernels("nngp"), kernels("ntk")
    matrix = tangent[0] + diagonal * np.eye(N)
    if num_steps is not None:
        left = np.linalg.matrix_power(np.eye(N) - learning_rate * matrix / SIZE, num_steps)
    else:
        left = np.zeros((N, N)) if time is None else expm(-matrix * learning_rate * time / SIZE)
    gain = tangent[1] @ np.linalg.inv(matrix) @ (np.eye(N) - left)
    joint = np.block([[initial[0], initial[1].T], [initial[1], initial[2]]])
    linear = np.concatenate([-gain, np.eye(T)], axis=1)
    return gain @ Y, linear @ joint @ linear.T


@pytest.mark.parametrize(
    "options",
    [
        {"time": None},
        {"time": 0.7},
        {"time": 30.0, "learning_rate": 0.2},
        {"time": None, "num_steps": 5, "learning_rate": 0.4},
    ],
    ids=str,
)
def test_ensemble_is_the_law_of_trained_networks(options):
    post = bw.gp.ntk(NET, X, Y, NOISE, **options)
    mean, covariance = ensemble(**options)
    full, marginal = post.predict(X_TEST, full_cov=True), post.predict(X_TEST, batch_size=1)
    for prediction in (full, marginal):
        close(prediction.mean, mean)
        close(prediction.epistemic, np.diag(covariance)[:, None] * np.ones(K))
        close(prediction.aleatoric, np.full((T, K), 0.09))
    close(full.covariance, covariance)
    schedule = Descent(5, 0.4) if "num_steps" in options else Flow(options["time"], options.get("learning_rate", 1.0))
    again = bw.gp.ntk(NET, X, Y, NOISE).at(schedule)
    close(again.predict(X_TEST).mean, mean)
    assert again.at(Flow(2.0)).solver is again.solver


def test_ensemble_from_prior_to_convergence():
    start = bw.gp.ntk(NET, X, Y, NOISE, time=0.0).predict(X_TEST, full_cov=True)
    close(start.mean, np.zeros((T, K)))
    close(start.covariance, kernels("nngp")[2])
    end, late = (bw.gp.ntk(NET, X, Y, NOISE, time=time).predict(X_TEST, full_cov=True) for time in (None, 1e5))
    close(late.mean, end.mean, rtol=1e-8)
    close(late.covariance, end.covariance, rtol=1e-8, atol=1e-10)
    at_train = bw.gp.ntk(NET, X, Y, None).predict(X)
    close(at_train.mean, Y, atol=1e-9)
    assert np.all(at_train.epistemic < 1e-9)
    ridge = bw.gp.Ridge(0.1)
    relative = bw.gp.ntk(NET, X, Y, None, ridge=ridge).predict(X_TEST, full_cov=True)
    mean, covariance = ensemble(None, diagonal=0.1 * np.trace(kernels("ntk")[0]) / N)
    close(relative.mean, mean)
    close(relative.covariance, covariance)
    assert np.all(relative.aleatoric == 0)


def test_ensemble_samples_have_the_moments():
    post, s = bw.gp.ntk(NET, X, Y, NOISE, time=3.0), 20_000
    draws, wanted = post.sample(jax.random.key(0), X_TEST, s), post.predict(X_TEST)
    sd = np.sqrt(wanted.epistemic)
    assert draws.shape == (s, T, K)
    assert np.all(np.abs(draws.mean(0) - wanted.mean) < 5 * sd / np.sqrt(s))
    assert np.all(np.abs(draws.var(0) / sd**2 - 1) < 5 * np.sqrt(2 / s))


def test_training_readouts_on_noisy_targets_is_the_nngp_posterior():
    initial = kernels("nngp")
    got = bw.gp.training_dynamics(initial[0], Y, NOISE).ensemble(
        Flow(), k_dd=initial[0], k_td=initial[1], k_tt=initial[2], ntk_td=initial[1], target_variance=0.09
    )
    for part, wanted in zip(got, textbook(*initial, Y, 0.09), strict=True):
        close(part, wanted)


def test_schedules_work_under_transformations():
    # One decomposition, many times at once.
    times = jnp.asarray([0.0, 0.5, 20.0])
    ready = dynamics()
    curve = jax.vmap(lambda time: ready.values(Flow(time), k_td=CROSS)[1])(times)
    close(curve, np.stack([ready.values(Flow(float(time)), k_td=CROSS)[1] for time in times]))
    fast = jax.jit(lambda post, t: post.predict(t).variance)(bw.gp.ntk(NET, X, Y, NOISE, time=2.0), X_TEST)
    close(fast, bw.gp.ntk(NET, X, Y, NOISE, time=2.0).predict(X_TEST).variance)
    slope = jax.grad(lambda time: bw.gp.ntk(NET, X, Y, NOISE, time).predict(X_TEST).mean.sum())(2.0)
    ahead, behind = (bw.gp.ntk(NET, X, Y, NOISE, 2.0 + h).predict(X_TEST).mean.sum() for h in (1e-4, -1e-4))
    np.testing.assert_allclose(slope, (ahead - behind) / 2e-4, rtol=1e-6)


def test_float32_of_an_early_stop_needs_no_warning():
    # What makes the end of training ill-conditioned is not reached.
    crowd = np.repeat(RNG.normal(size=(3, 3)), 3, axis=0)
    y = np.sin(crowd[:, :K])
    with jax.enable_x64(False), warnings.catch_warnings():
        warnings.simplefilter("error")
        single = bw.gp.ntk(NET, crowd, y, None, time=5.0).predict(X_TEST)
        with pytest.raises(RuntimeWarning, match="took a jitter of"):
            bw.gp.ntk(NET, crowd, y, None)
    assert single.mean.dtype == jnp.float32
    close(single.mean, bw.gp.ntk(NET, crowd, y, None, time=5.0).predict(X_TEST).mean, rtol=1e-3, atol=1e-4)


REFUSED = {
    "time": (lambda: bw.gp.ntk(NET, X, Y, NOISE, time=-1.0), "`Flow`: time must be zero, positive or None; got -1.0"),
    "rate": (
        lambda: bw.gp.ntk(NET, X, Y, NOISE, 1.0, 0.0),
        "`Flow`: learning_rate must be positive and finite; got 0.0",
    ),
    "momentum": (
        lambda: bw.gp.ntk(NET, X, Y, NOISE, momentum=1.0),
        "`Flow`: momentum must be a number from 0 to below 1; got 1.0",
    ),
    "steps": (lambda: Descent(-1), "`Descent`: num_steps must be at least 0; got -1"),
    "both": (
        lambda: bw.gp.ntk(NET, X, Y, NOISE, 1.0, num_steps=3),
        "`ntk`: at most one of time and num_steps must be given; got 1.0 and 3",
    ),
    "kind": (
        lambda: bw.gp.ntk(NET, X, Y, NOISE, kind="bayes"),
        "`ntk`: kind must be one of 'ensemble', 'covariance'; got 'bayes'",
    ),
    "trained covariance": (
        lambda: bw.gp.ntk(NET, X, Y, NOISE, 1.0, kind="covariance"),
        "`ntk`: kind='covariance' is a posterior without training; got time; leave it out, or take kind='ensemble'",
    ),
    "y": (lambda: bw.gp.ntk(NET, X, Y[:3], NOISE), "`ntk`: y must have shape (9, k) with n=9 from x; got (3, 2)"),
    "diverged": (
        lambda: bw.gp.ntk(NET, X, Y, NOISE, learning_rate=100.0, num_steps=1000),
        "`ntk`: the tangent kernel + (scale^2 + ridge) I is not positive definite to rounding, or training diverged",
    ),
    "singular": (
        lambda: bw.gp.training_dynamics(np.ones((2, 2)), np.ones((2, 1))).values(Flow()),
        "`values`: the tangent kernel + (scale^2 + ridge) I is not positive definite to rounding, or training diverged",
    ),
    "ntk_dd": (
        lambda: bw.gp.training_dynamics(TANGENT[:3], Y),
        "`training_dynamics`: ntk_dd must have shape (9, 9) with n=9 from y; got (3, 9)",
    ),
    "f_train": (
        lambda: dynamics().values(Flow(), f_train=Y[:3]),
        "`values`: f_train must have shape (9, 2) with n=9 and k=2 from y; got (3, 2)",
    ),
    "k_td": (
        lambda: dynamics().values(Flow(), k_td=CROSS.T),
        "`values`: k_td must have shape (t, 9) with n=9 from y; got (9, 5)",
    ),
    "f_test": (
        lambda: dynamics().values(Flow(), k_td=CROSS, f_test=Y),
        "`values`: f_test must have shape (5, 2) with t=5 from k_td and k=2 from y; got (9, 2)",
    ),
    "k_tt": (
        lambda: dynamics().ensemble(Flow(), k_dd=TANGENT, k_td=CROSS, k_tt=CROSS, ntk_td=CROSS),
        "`ensemble`: k_tt must have shape (5, 5); got (5, 9)",
    ),
    "flow time": (
        lambda: bw.gp.gradient_flow(jnp.sum, TANGENT, f_train=Y, time=0.0),
        "`gradient_flow`: time must be positive and finite; got 0.0",
    ),
    "rate of what": (
        lambda: bw.gp.max_learning_rate(TANGENT, 0),
        "`max_learning_rate`: num_targets must be at least 1; got 0",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_says_what_was_expected_and_what_came(name, only_the_librarys_own_checks):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match="^" + re.escape(message)), np.errstate(all="ignore"):
        call()
