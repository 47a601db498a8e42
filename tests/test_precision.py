"""Everything runs in float32 where x64 is off, and says what float64 says."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC
from numpyro.infer.util import log_density

import bnnwide as bw

N, D = 12, 20
NET = bw.Dense(32, w_scale=2**0.5, b_scale=0.1) >> bw.Gelu() >> bw.Dense(2, b_scale=0.1)
RNG = np.random.default_rng(0)
X, Y, X_TEST = RNG.normal(size=(N, D)), RNG.normal(size=(N, 2)), RNG.normal(size=(7, D))


def dtypes(tree):
    return {leaf.dtype for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)}


@pytest.mark.parametrize("form", ["standard", "repriorised", "collapsed"])
def test_densities_agree(form):
    model = bw.bnn(NET, bw.Gaussian(0.1), form)
    sites = {name: RNG.normal(size=leaf.shape) for name, leaf in model.feature_map(jnp.asarray(X)).shapes.items()}
    if form != "collapsed":
        sites["readout" if form == "standard" else "readout_base"] = RNG.normal(size=(33, 2))

    def value_and_slope():
        number = jnp.result_type(float)
        cast = {name: jnp.asarray(value, number) for name, value in sites.items()}
        return jax.value_and_grad(lambda sites: log_density(model, (X, Y), {}, sites)[0])(cast)

    exact, slope = value_and_slope()
    with jax.enable_x64(False):
        single, single_slope = value_and_slope()
    assert dtypes(exact) == {jnp.dtype(jnp.float64)} and dtypes((single, single_slope)) == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(single, exact, rtol=1e-4)
    for name in slope:
        np.testing.assert_allclose(single_slope[name], slope[name], atol=2e-3 * float(jnp.abs(slope[name]).max()))


@pytest.mark.parametrize("kernel", [bw.SplitHMC, bw.PCN, bw.PCNL])
def test_float32_run(kernel):
    """A whole run without x64, learned noise and input collapse included; predictions in both precisions."""
    with jax.enable_x64(False):
        model = bw.bnn(NET, bw.Gaussian(dist.LogNormal(-2.0, 0.3)))
        mcmc = MCMC(kernel(model), num_warmup=400, num_samples=20, progress_bar=False)
        mcmc.run(jax.random.key(0), X, Y, extra_fields=("accept_prob", "diverging"))
        samples = mcmc.get_samples()
        prediction = bw.predict(model, samples, X, Y, X_TEST)
        theta = bw.readout_draws(model, samples, X, Y, key=jax.random.key(1))
        params = bw.hidden_weights(model, samples, X, Y, key=jax.random.key(2))
        single = {jnp.dtype(jnp.float32)}
        assert dtypes((mcmc.last_state, samples, prediction.mean, prediction.variance, theta, params)) == single
        assert not mcmc.get_extra_fields()["diverging"].any()
        assert float(mcmc.get_extra_fields()["accept_prob"].mean()) > 0.1
    exact = bw.predict(model, {name: np.asarray(value, np.float64) for name, value in samples.items()}, X, Y, X)
    with jax.enable_x64(False):
        seen = bw.predict(model, samples, X, Y, X)  # at training inputs nothing is drawn afresh
    np.testing.assert_allclose(seen.mean, exact.mean, atol=5e-3)
    np.testing.assert_allclose(seen.variance, exact.variance, rtol=0.05, atol=1e-4)
