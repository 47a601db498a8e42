"""Posteriors under any likelihood: against long NUTS runs on the standard form, and against quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer import MCMC, NUTS

import bnnwide as bw
from bnnwide.diagnostics.ess import effective_sample_size, potential_scale_reduction
from bnnwide.reparam import FunctionValues

RNG = np.random.default_rng(1)
N = 12
X, X_TEST = RNG.normal(size=(N, 2)), RNG.normal(size=(4, 2))
NET = lambda outputs, width=6: (  # noqa: E731
    bw.Dense(width, w_scale=2**0.5, b_scale=0.3) >> bw.Tanh() >> bw.Dense(outputs, w_scale=1.5, b_scale=0.3)
)
SIGNAL = np.sin(2 * X[:, 0])
PROBLEMS = {
    "categorical": (bw.Categorical(), 3, (SIGNAL > 0).astype(int) + (X[:, 1] > 0.5)),
    "bernoulli": (bw.Bernoulli(), 1, (SIGNAL > 0).astype(int)),
    "poisson": (bw.Poisson(), 1, RNG.poisson(np.exp(1 + SIGNAL))),
}


def draws_of(model, kernel, y, num_samples, seed=0):
    """Return per-draw means of the outcome at the test inputs (chains, draws, t * k), and the prediction."""
    mcmc = MCMC(
        kernel, num_warmup=250, num_samples=num_samples, num_chains=2, chain_method="vectorized", progress_bar=False
    )
    mcmc.run(jax.random.key(seed), X, y)
    samples = mcmc.get_samples()
    mean, sd = bw.predict_draws(model, samples, X, y, X_TEST)
    f = mean + sd * jax.random.normal(jax.random.key(seed), mean.shape)
    outcome = jax.vmap(lambda f: model.likelihood.outcome(f).mean)(f)
    return np.asarray(outcome).reshape(2, num_samples, -1), bw.predict(model, samples, X, y, X_TEST)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBLEMS)
def test_agrees_with_a_long_nuts_run(name):
    likelihood, outputs, y = PROBLEMS[name]
    net = NET(outputs)
    nuts = bw.bnn(net, likelihood, "standard")
    exact, _ = draws_of(nuts, NUTS(nuts), y, 600)
    assert potential_scale_reduction(exact).max() < 1.06
    for form, kernel in (("collapsed", bw.SplitHMC), ("repriorised", bw.SplitHMC)):
        model = bw.bnn(net, likelihood, form)
        found, prediction = draws_of(model, kernel(model), y, 1200)
        assert potential_scale_reduction(found).max() < 1.06
        error = np.sqrt(sum(draws.var(axis=(0, 1)) / effective_sample_size(draws) for draws in (exact, found)))
        difference = found.mean(axis=(0, 1)) - exact.mean(axis=(0, 1))
        assert np.abs(difference / error).max() < 4, (form, difference / error)
        np.testing.assert_allclose(prediction.mean.ravel(), found.mean(axis=(0, 1)), atol=5 * error.max())
        np.testing.assert_allclose(found.std(axis=(0, 1)), exact.std(axis=(0, 1)), rtol=0.15)
        if prediction.probs is not None:
            assert (prediction.mutual_information >= 0).all() and (prediction.entropy > 0).all()
            np.testing.assert_allclose(prediction.variance, prediction.probs * (1 - prediction.probs), atol=0.02)


def test_frozen_hidden_weights_against_quadrature():
    """One input: the posterior of f and the prediction at another input are two-dimensional Gaussian integrals."""
    net, likelihood = NET(1, width=5), bw.Poisson()
    x, x_test, y = X[:1], X[1:2], np.array([4])
    model = bw.bnn(net, likelihood, input_collapse=False)
    hidden = net.init(jax.random.key(3), (2,))[0]
    frozen = {f"hidden.0.{name}": leaf for name, leaf in hidden.items()}

    features = model.feature_map(jnp.asarray(x))
    keep, given = model.function_rest(x, y)
    kept = keep(frozen)
    base = np.linspace(-8, 8, 2001)
    log_posterior = np.asarray(jax.vmap(lambda e: -given(kept, jnp.full((1, 1), e)))(jnp.asarray(base))) - 0.5 * base**2
    weights = np.exp(log_posterior - log_posterior.max())
    weights /= weights.sum()
    psi = features.features(frozen)
    factored = FunctionValues(psi, model.find_sites(jnp.asarray(x), jnp.asarray(y)[:, None])).factor()
    f = np.asarray(jax.vmap(lambda e: factored.forward(jnp.full((1, 1), e))[0, 0])(jnp.asarray(base)))

    # The same by the prior of f and the likelihood alone.
    k = float((psi @ psi.T)[0, 0])
    grid = np.linspace(-10, 10, 4001) * np.sqrt(k)
    direct = np.exp(4 * grid - np.exp(grid) - 0.5 * grid**2 / k)
    direct /= direct.sum()
    for power in (1, 2):
        np.testing.assert_allclose(weights @ f**power, direct @ grid**power, rtol=1e-5)

    # Predictions: draws of f by inverse cdf, the rest by `predict`.
    places = np.searchsorted(np.cumsum(weights), (np.arange(4000) + 0.5) / 4000)
    samples = {name: jnp.broadcast_to(leaf, (4000, *leaf.shape)) for name, leaf in frozen.items()}
    prediction = bw.predict(model, samples | {"function": f[places][:, None, None]}, x, y, x_test)
    psi_test = net.features((hidden, ()), x_test)
    gain = float((psi_test @ psi.T)[0, 0]) / k
    spread = float((psi_test @ psi_test.T)[0, 0]) - gain**2 * k
    rate = direct @ np.exp(gain * grid + spread / 2)
    second = direct @ np.exp(2 * gain * grid + 2 * spread)
    np.testing.assert_allclose(prediction.mean[0, 0], rate, rtol=0.02)
    np.testing.assert_allclose(prediction.aleatoric[0, 0], rate, rtol=0.02)
    np.testing.assert_allclose(prediction.epistemic[0, 0], second - rate**2, rtol=0.1)


@pytest.mark.parametrize("rank", [4, N])
def test_readout_draws_pass_through_the_function_values(rank):
    likelihood, outputs, y = PROBLEMS["categorical"]
    model = bw.bnn(NET(outputs, width=40), likelihood, rank=rank)
    mcmc = MCMC(bw.SplitHMC(model), num_warmup=20, num_samples=30, progress_bar=False)
    mcmc.run(jax.random.key(0), X, y)
    samples = mcmc.get_samples()
    assert samples["function"].shape == (30, N, 3) and samples["function_base"].shape == (30, rank, 3)
    theta = bw.readout_draws(model, samples, X, y, key=jax.random.key(1))
    params = bw.hidden_weights(model, samples, X, y, key=jax.random.key(2))
    f = jax.vmap(lambda params, theta: model.net.features(params, X) @ theta)(params, theta)
    np.testing.assert_allclose(f, samples["function"], atol=1e-4)


def test_how_many_projections_are_taken():
    likelihood, outputs, y = PROBLEMS["bernoulli"]
    x, y = jnp.asarray(X), jnp.asarray(y)[:, None]

    def taken(width, **options):
        return bw.bnn(NET(outputs, width), likelihood, **options).find_projection(x, y)

    number = len(taken(40))
    assert 1 <= number <= N / 2
    assert len(taken(40, rank=number + 2)) == number + 2
    for width, options in ((40, {"rank": N}), (8 * N, {}), (N - 1, {}), (N - 1, {"rank": 2})):
        assert taken(width, **options) is None
    # Traced data have no eigenvalues to count.
    model = bw.bnn(NET(outputs, 40), likelihood)
    assert jax.jit(lambda x, y: jnp.zeros(model.find_projection(x, y) is None))(x, y).shape == (1,)
    with pytest.raises(ValueError, match="`bnn`: rank must be at least 1; got 0"):
        bw.bnn(NET(outputs), likelihood, rank=0)


def test_data_may_be_arguments_of_a_chains_program():
    """NumPyro starts such chains with concrete data, and steps them with traced ones."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(20, 2))
    model = bw.bnn(NET(1, width=40), bw.Bernoulli())
    mcmc = MCMC(bw.SplitHMC(model), num_warmup=3, num_samples=3, jit_model_args=True, progress_bar=False)
    for y in ((x[:, 0] > 0).astype(int), (x[:, 0] * x[:, 1] > 0).astype(int)):
        mcmc.run(jax.random.key(0), x, y)
        number = len(model.find_projection(jnp.asarray(x), jnp.asarray(y)[:, None]))
        assert mcmc.get_samples()["function_base"].shape == (3, number, 1)


@pytest.mark.parametrize("rank", [4, N])
def test_the_cheap_block_is_the_potential_up_to_a_constant(rank):
    """What the alternating sampler adds to its rest must be what the whole potential would have changed by."""
    likelihood, outputs, y = PROBLEMS["categorical"]
    model = bw.bnn(NET(outputs, width=40), likelihood, rank=rank)
    kernel = bw.SplitHMC(model)
    state = kernel.init(jax.random.key(0), 10, None, (X, y), {})
    step = jax.jit(lambda state: kernel.sample(state, (X, y), {}))
    for _ in range(5):
        state = step(state)
    again = bw.SplitHMC(model, alternate=False).init(jax.random.key(1), 0, state.z, (X, y), {})
    np.testing.assert_allclose(state.rest, again.rest, rtol=1e-9)
    np.testing.assert_allclose(state.potential_energy, again.potential_energy, rtol=1e-9)
