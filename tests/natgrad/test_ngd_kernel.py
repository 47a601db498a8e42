"""Natural gradient descent as a NumPyro kernel, in the sweep over widths among others."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import bnnwide as bw
from bnnwide.natgrad import NGDState, natural_gradient
from bnnwide.natgrad.problem import check_task

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X, Y, X_TEST = RNG.normal(size=(7, 3)), RNG.normal(size=(7, 2)), RNG.normal(size=(5, 3))


def network(width):
    return bw.Dense(width, w_scale=1.5, b_scale=0.3) >> bw.Tanh() >> bw.Dense(2, b_scale=0.4)


def test_draws_of_a_linear_model_have_the_law_of_the_recursion():
    """Fixed features: precision Psi^T Psi / s^2 + I = G, whose steps hold exactly G^-1 / (1 - eps/2), and the mean."""
    net, eps, scale = bw.Tanh() >> bw.Dense(2, w_scale=2.0, b_scale=0.5), 0.3, 0.4
    model = bw.bnn(net, bw.Gaussian(scale), "standard")
    run = bw.comparators.ngd(model, X, Y, key=KEY, learning_rate=eps, num_warmup=30, num_samples=500, num_chains=16)
    psi = np.asarray(net.features(((),), jnp.asarray(X)))
    precision = psi.T @ psi / scale**2 + np.eye(4)
    mean = np.linalg.solve(precision, psi.T @ Y / scale**2)
    white = np.linalg.cholesky(precision).T @ (np.asarray(run.get_samples()["readout"]) - mean)
    rho = 1 - eps  # an autoregression: the variance of its mean, and of that of squares, in closed form
    count = len(white) * 2 * np.array([(1 - rho) / (1 + rho), (1 - rho**2) / (1 + rho**2)])
    variance = 1 / (1 - eps / 2)
    assert np.abs(white.mean(axis=(0, 2))).max() < 4 * (variance / count[0]) ** 0.5
    covariance = np.einsum("sak,sbk->ab", white, white) / (2 * len(white))
    np.testing.assert_allclose(covariance, variance * np.eye(4), atol=4 * variance * (2 / count[1]) ** 0.5)
    assert 4 * (2 / count[1]) ** 0.5 < 0.1  # the bias of 18 % is seen


def test_steps_are_those_of_the_pure_chain():
    model = bw.bnn(network(4), bw.Gaussian(0.5), "standard")
    kernel = bw.comparators.NGD(model, learning_rate=0.05, batch_size=4, form="dual")
    state = kernel.init(KEY, 10, None, (X, Y), {})
    new = kernel.sample(state, (X, Y), {})
    params = lambda z: (  # noqa: E731
        {"w": z["hidden.0.w"], "b": z["hidden.0.b"]}, (), {"w": z["readout"][:-1], "b": z["readout"][-1]},
    )  # fmt: skip
    metric = bw.natgrad.fisher(model.net, params(state.z), X, model.likelihood, form="dual", damping=1.0)
    chain = natural_gradient(
        model.net, model.likelihood, X, Y, params(state.z), learning_rate=0.05, batch_size=4, fisher=metric
    )
    expected, _ = chain.step(jax.random.split(state.rng_key)[1], NGDState(params(state.z)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8), params(new.z), expected.params)
    assert new.num_grads == pytest.approx(2 + 4 / 7) and int(new.i) == 1
    assert jnp.isnan(new.accept_prob) and not new.diverging
    # The chain starts at the mode: one nat of it, as the decrement says.
    task, at = check_task("test", model.net, params(state.z), model.likelihood, X, Y)
    grad = jax.grad(lambda w: task.cost(w, 1.0))(at)
    assert sum(jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (grad, metric.solve(grad))), strict=True)) < 1


@pytest.mark.slow
def test_draws_go_where_those_of_mcmc_go_and_predict_as_exact_ones():
    model = bw.bnn(network(4), bw.Gaussian(0.7), "standard")
    run = bw.comparators.ngd(model, X, Y, key=KEY, learning_rate=0.1, num_warmup=100, num_samples=1500, num_chains=4)
    assert run.get_samples(group_by_chain=True)["hidden.0.w"].shape == (4, 1500, 3, 4)
    exact = bw.comparators.elliptical_slice(
        bw.bnn(network(4), bw.Gaussian(0.7), "repriorised"), X, Y, key=KEY, num_warmup=100, num_samples=1500
    )
    plain = bw.comparators.predict_plain(model, run.get_samples(), X, X_TEST)
    wanted = bw.predict(exact.model, exact.get_samples(), X, Y, X_TEST)
    # Steps of 0.1 widen a Gaussian by 5 %; 6000 draws forget in 20 steps.
    np.testing.assert_allclose(plain.mean, wanted.mean, atol=0.12)
    np.testing.assert_allclose(plain.epistemic, wanted.epistemic, rtol=0.3)
    tree = bw.to_arviz(run, x_test=X_TEST)
    assert tree.attrs["method"] == "ngd" and tree["sample_stats"]["step_length"].sizes == {"chain": 4, "draw": 1500}


def test_natural_gradient_takes_part_in_the_sweep():
    table = bw.ess_by_width(
        network, bw.Gaussian(0.7), X, Y, widths=[4], methods=["ngd-standard"], key=KEY, x_test=X_TEST,
        seconds=60.0, max_draws=60, num_chains=2, num_warmup=40, progress=False,
    )  # fmt: skip
    cell = table.isel(method=0, width=0)
    assert float(cell.num_grads) == pytest.approx(3 * float(cell.num_draws))  # 30 weights, 14 outputs: the dual form
    assert np.isfinite(cell.ess_min) and np.isnan(cell.accept_prob) and cell.diverging == 0


def test_errors(only_the_librarys_own_checks):
    ngd, data = bw.comparators.ngd, (X, Y)
    with pytest.raises(ValueError, match="`ngd`: model must have form='standard'; got 'collapsed'"):
        ngd(bw.bnn(network(4), bw.Gaussian(0.7)), *data, key=KEY)
    with pytest.raises(TypeError, match=r"`ngd`: model must be made by bnn\(\.\.\.\); got function"):
        ngd(lambda x, y: None, *data, key=KEY)
    with pytest.raises(ValueError, match="`ngd`: scales, parameters and the readout's prior must be fixed and normal"):
        ngd(bw.bnn(network(4), bw.Gaussian(dist.LogNormal(0.0, 1.0)), "standard"), *data, key=KEY)
    model = bw.bnn(network(4), bw.Gaussian(0.7), "standard")
    with pytest.raises(ValueError, match="`ngd`: form must be one of 'auto', 'dense', .*; got 'full'"):
        ngd(model, *data, key=KEY, form="full")
    with pytest.raises(ValueError, match="temperature must be at least 3.5, which minibatch noise alone holds"):
        ngd(model, *data, key=KEY, learning_rate=1.0, batch_size=1)
