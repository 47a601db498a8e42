"""One posterior, many ways to it: the forms and samplers against a long NUTS run on the standard form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS
from scipy import stats

import bnnwide as bw

pytestmark = pytest.mark.optimised

CHAINS = 8
NET = bw.Dense(16, w_scale=2**0.5, b_scale=0.5) >> bw.Gelu() >> bw.Dense(1, b_scale=0.2)
X = np.linspace(-1.5, 1.5, 6)[:, None]
Y = np.sin(2 * X) + 0.2 * np.cos(9 * X)
X_TEST = np.array([[-2.0], [-0.4], [0.2], [1.0], [2.5]])
NOISE = bw.Gaussian(dist.LogNormal(-1.2, 0.4))


@functools.cache  # two tests look at one of the runs
def posterior(kernel, form, *, num_warmup=300, num_samples=600, thinning=1, solver="auto"):
    """Return, chain by chain, functionals of the posterior: f and f^2 at test inputs, the noise, a hidden weight."""
    model = bw.bnn(NET, NOISE, form, solver=solver)
    options = {"chain_method": "vectorized", "progress_bar": False, "thinning": thinning}
    mcmc = MCMC(kernel(model), num_warmup=num_warmup, num_samples=num_samples, num_chains=CHAINS, **options)
    mcmc.run(jax.random.key(1), X, Y)
    samples = mcmc.get_samples()
    theta = bw.readout_draws(model, samples, X, Y, key=jax.random.key(2))
    params = bw.hidden_weights(model, samples, X, Y, key=jax.random.key(3))
    f = jax.vmap(lambda params, theta: NET.features(params, X_TEST) @ theta)(params, theta)[..., 0]
    w, noise = samples["hidden.0.w"], jnp.log(samples["noise_scale"])
    columns = [*f.T, *(f**2).T, noise, noise**2, jnp.mean(w**2, (1, 2)), w[:, 0, 0], w[:, 0, 1] * w[:, 0, 2]]
    return np.stack(columns, -1).reshape(CHAINS, -1, len(columns)), mcmc, model


@pytest.fixture(scope="module")
def reference():
    return posterior(NUTS, "standard", num_warmup=400, num_samples=800)


def assert_same(draws, reference):
    """Compare means by the spread between independent chains (Welch's t, with its few degrees of freedom)."""
    p_values = stats.ttest_ind(draws.mean(1), reference.mean(1), equal_var=False).pvalue
    assert p_values.min() > 1e-4, p_values
    # The comparison means something: means are known to a fraction of the posterior's own spread.
    spread = reference.reshape(-1, reference.shape[-1]).std(0)
    for run in (draws, reference):
        assert (run.mean(1).std(0, ddof=1) / np.sqrt(CHAINS) < 0.15 * spread).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel", "form", "options"),
    [
        (NUTS, "repriorised", {"solver": "dual"}),
        (NUTS, "collapsed", {"solver": "primal"}),
        (bw.SplitHMC, "standard", {"num_samples": 3000}),
        (bw.SplitHMC, "repriorised", {"num_samples": 1500}),
        (bw.SplitHMC, "collapsed", {"num_samples": 1500}),
        (bw.PCN, "repriorised", {"num_samples": 20_000, "thinning": 10}),
        (bw.PCNL, "collapsed", {"num_samples": 8000, "thinning": 5}),
    ],
    ids=lambda value: getattr(value, "__name__", value) if not isinstance(value, dict) else "",
)
def test_agrees_with_a_long_run_of_nuts(reference, kernel, form, options):
    draws, mcmc, _ = posterior(kernel, form, **options)
    assert_same(draws, reference[0])
    if form == "repriorised":
        # The readout's coordinates are N(0, I), whatever the hidden weights and the noise.
        phi = np.asarray(mcmc.get_samples(group_by_chain=True)["readout_base"])
        for moment, expected in ((phi, 0.0), (phi**2, 1.0)):
            means = moment.mean((2, 3)).mean(1)
            assert abs(means.mean() - expected) < 5 * means.std(ddof=1) / np.sqrt(CHAINS)
        thinned = phi[:, :: max(1, phi.shape[1] // 100)].ravel()
        assert stats.kstest(thinned, "norm").pvalue > 1e-4


@pytest.mark.slow
def test_predictions_agree_between_forms(reference):
    _, mcmc, model = reference
    a = bw.predict(model, mcmc.get_samples(), X, Y, X_TEST)
    draws, other, collapsed = posterior(bw.SplitHMC, "collapsed", num_samples=1500)
    b = bw.predict(collapsed, other.get_samples(), X, Y, X_TEST)
    spread = np.sqrt(np.asarray(a.epistemic))
    assert (np.abs(a.mean - b.mean) < 0.15 * spread).all()
    np.testing.assert_allclose(a.epistemic, b.epistemic, rtol=0.2)
    np.testing.assert_allclose(a.aleatoric, b.aleatoric, rtol=0.2)
    # Rao-Blackwellised moments are those of the draws themselves.
    f = draws.reshape(-1, draws.shape[-1])[:, : len(X_TEST)]
    np.testing.assert_allclose(f.mean(0), b.mean[:, 0], atol=0.15 * float(spread.max()))
    np.testing.assert_allclose(f.var(0), b.epistemic[:, 0], rtol=0.2)
