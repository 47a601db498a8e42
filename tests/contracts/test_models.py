"""The three forms are one posterior, exactly; and each is an ordinary NumPyro model."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer import HMC, MCMC, NUTS, Predictive
from numpyro.infer.util import log_density
from scipy import stats

import bnnwide as bw

N, D, K = 5, 3, 2
FORMS = ["standard", "repriorised", "collapsed"]
NETS = {
    "wide": bw.Dense(9, w_scale=2**0.5, b_scale=0.3) >> bw.Gelu() >> bw.Dense(K, b_scale=0.2),
    "narrow": bw.Dense(6) >> bw.Tanh() >> bw.Dense(3, b_scale=0.1) >> bw.Relu() >> bw.Dense(K),
}
NOISES = {"fixed": bw.Gaussian(0.3), "learned": bw.Gaussian(dist.LogNormal(-1.0, 0.5))}


def data(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(N, D)), rng.normal(size=(N, K))


def hidden_sites(net, key=0):
    params = net.init(jax.random.key(key), (D,))
    return params, {
        f"hidden.{i}.{name}": value for i, layer in enumerate(params[:-1]) if layer for name, value in layer.items()
    }


def log_joint(model, x, y, sites):
    return float(log_density(model, (x, y), {}, sites)[0])


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("solver", ["primal", "dual"])
@pytest.mark.parametrize("net", NETS)
def test_three_forms_are_one_density(net, solver, noise):
    net, noise, (x, y) = NETS[net], NOISES[noise], data()
    params, sites = hidden_sites(net)
    scale = 0.45 if noise.learned else noise.scale
    if noise.learned:
        sites["noise_scale"] = jnp.asarray(scale)
    psi = net.features(params, x)
    phi = jax.random.normal(jax.random.key(5), (psi.shape[1], K))
    theta, log_det = bw.Repriorisation(psi, jnp.asarray(y), scale, solver).forward_and_log_det(phi)
    models = {form: bw.bnn(net, noise, form, solver=solver) for form in FORMS}
    standard = log_joint(models["standard"], x, y, sites | {"readout": theta})
    repriorised = log_joint(models["repriorised"], x, y, sites | {"readout_base": phi})
    collapsed = log_joint(models["collapsed"], x, y, sites)
    np.testing.assert_allclose(repriorised, standard + log_det, rtol=1e-10)
    np.testing.assert_allclose(repriorised, collapsed + stats.norm.logpdf(phi).sum(), rtol=1e-12)

    # The standard form against its definition.
    priors = sum(stats.norm.logpdf(value).sum() for name, value in sites.items() if name.startswith("hidden"))
    if noise.learned:
        priors += stats.lognorm(0.5, scale=np.exp(-1.0)).logpdf(scale)
    expected = priors + stats.norm.logpdf(theta).sum() + stats.norm.logpdf(y, psi @ theta, scale).sum()
    np.testing.assert_allclose(standard, expected, rtol=1e-11)


@pytest.mark.parametrize("form", FORMS)
def test_sites_and_handlers(form):
    net, (x, y) = NETS["wide"], data()
    model = bw.bnn(net, NOISES["learned"], form)
    trace = handlers.trace(handlers.seed(model, 0)).get_trace(x, y)
    latent = {name for name, site in trace.items() if site["type"] == "sample" and not site["is_observed"]}
    extra = {"standard": {"readout"}, "repriorised": {"readout_base"}, "collapsed": set()}[form]
    assert latent == {"hidden.0.w", "hidden.0.b", "noise_scale"} | extra
    assert ("readout" in trace) == (form != "collapsed")
    np.testing.assert_array_equal(trace["y"]["value"], y)

    fixed = {name: trace[name]["value"] for name in latent}
    again = handlers.trace(handlers.seed(handlers.condition(model, fixed), 1)).get_trace(x, y)
    for name in latent:
        np.testing.assert_array_equal(again[name]["value"], fixed[name])
    np.testing.assert_array_equal(
        handlers.trace(handlers.seed(model, 0)).get_trace(x, y)["hidden.0.w"]["value"], fixed["hidden.0.w"]
    )


@pytest.mark.parametrize("form", FORMS)
def test_prior_predictive_is_the_same_in_every_form(form):
    net, (x, _) = NETS["wide"], data()
    draws = Predictive(bw.bnn(net, NOISES["fixed"], form), num_samples=4000)(jax.random.key(0), x)["y"]
    assert draws.shape == (4000, N, K)
    keys = jax.random.split(jax.random.key(1), 40_000)
    f = jax.vmap(lambda key: net(net.init(key, (D,)), x))(keys)
    variance = f.var(0) + 0.3**2
    error = jnp.std(f**2, axis=0) / np.sqrt(len(draws)) + 3 * variance / np.sqrt(len(draws))
    assert (jnp.abs(draws.mean(0)) < 5 * jnp.sqrt(variance / len(draws))).all()
    assert (jnp.abs((draws**2).mean(0) - variance) < 5 * error).all()


def test_predictive_from_samples_uses_the_posteriors_readout():
    net, (x, y) = NETS["wide"], data()
    params, sites = hidden_sites(net)
    model = bw.bnn(net, bw.Gaussian(1e-6), "repriorised")
    phi = jax.random.normal(jax.random.key(2), (10, K))
    theta, _ = bw.Repriorisation(net.features(params, x), jnp.asarray(y), 1e-6).forward_and_log_det(phi)
    samples = {name: value[None] for name, value in (sites | {"readout_base": phi, "readout": theta}).items()}
    x_test = data(1)[0]
    drawn = Predictive(model, samples)(jax.random.key(3), x_test)["y"][0]
    np.testing.assert_allclose(drawn, net.features(params, x_test) @ theta, atol=1e-4)


@pytest.mark.parametrize("kernel", [NUTS, HMC])
@pytest.mark.parametrize("form", FORMS)
def test_stock_kernels_run(form, kernel):
    x, y = data()
    mcmc = MCMC(kernel(bw.bnn(NETS["wide"], NOISES["fixed"], form)), num_warmup=10, num_samples=10, progress_bar=False)
    mcmc.run(jax.random.key(0), x, y)
    samples = mcmc.get_samples()
    assert all(jnp.isfinite(value).all() for value in samples.values())
    assert numpyro.diagnostics.summary(mcmc.get_samples(group_by_chain=True))["hidden.0.w"]["n_eff"].shape == (D, 9)
