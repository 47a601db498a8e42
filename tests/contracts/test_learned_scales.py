"""Scales with priors in models: one density in three forms, centred or not, started from a fit, and calibrated."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS
from numpyro.infer.util import constrain_fn, log_density
from scipy import stats

import bnnwide as bw
from bnnwide.diagnostics.ess import effective_sample_size

RNG = np.random.default_rng(0)
N, D, K = 6, 2, 1
X, Y = RNG.normal(size=(N, D)), RNG.normal(size=(N, K))
PRIOR = dist.LogNormal(0.0, 0.4)
NET = bw.Dense(8, w_scale=PRIOR, b_scale=dist.HalfNormal(0.5)) >> bw.Tanh() >> bw.Dense(K, w_scale=PRIOR, b_scale=0.2)
SCALES = {"hidden.0.w_scale": 1.3, "hidden.0.b_scale": 0.4, "readout.w_scale": 0.8, "noise_scale": 0.3}
NOISE = bw.Gaussian(dist.LogNormal(-1.0, 0.3))
FIXED = bw.Dense(8, w_scale=1.3, b_scale=0.4) >> bw.Tanh() >> bw.Dense(K, w_scale=0.8, b_scale=0.2)


def joint(model, sites, x=X, y=Y):
    return float(log_density(model, (x, y), {}, sites)[0])


def weights(key=0):
    params = FIXED.init(jax.random.key(key), (D,))
    return {f"hidden.0.{name}": leaf for name, leaf in params[0].items()}


PRIORS = sum(float(prior.log_prob(SCALES[name])) for name, prior in {
    "hidden.0.w_scale": PRIOR, "hidden.0.b_scale": dist.HalfNormal(0.5), "readout.w_scale": PRIOR,
    "noise_scale": dist.LogNormal(-1.0, 0.3)}.items())  # fmt: skip


@pytest.mark.parametrize("form", ["standard", "repriorised", "collapsed"])
def test_density_is_that_of_fixed_scales_times_their_priors(form):
    model, fixed = bw.bnn(NET, NOISE, form), bw.bnn(FIXED, bw.Gaussian(0.3), form)
    readout = {"standard": "readout", "repriorised": "readout_base"}.get(form)
    sites = weights() | ({readout: jnp.asarray(RNG.normal(size=(9, K)))} if readout else {})
    np.testing.assert_allclose(joint(model, sites | SCALES), joint(fixed, sites) + PRIORS, rtol=1e-10)


def test_centred_weights_are_the_same_posterior():
    """Under s = scale w the density gains the Jacobian of w -> s, and all else reads w."""
    model = bw.bnn(NET, NOISE, centred=("hidden.0.w", "hidden.0.b"))
    plain = weights()
    scaled = {
        "hidden.0.w_centred": plain["hidden.0.w"] * SCALES["hidden.0.w_scale"],
        "hidden.0.b_centred": plain["hidden.0.b"] * SCALES["hidden.0.b_scale"],
    }
    log_det = 16 * np.log(SCALES["hidden.0.w_scale"]) + 8 * np.log(SCALES["hidden.0.b_scale"])
    expected = joint(bw.bnn(NET, NOISE), plain | SCALES) - log_det
    np.testing.assert_allclose(joint(model, scaled | SCALES), expected, rtol=1e-10)
    z = scaled | {name: np.log(value) for name, value in SCALES.items()}
    for draw in (constrain_fn(model, (X, Y), {}, z, return_deterministic=True), model.constrain(z)):
        np.testing.assert_allclose(draw["hidden.0.w"], plain["hidden.0.w"], rtol=1e-12)


def run(model, kernel, num_samples, seed=0, x=X, y=Y):
    mcmc = MCMC(
        kernel, num_warmup=300, num_samples=num_samples, num_chains=2, chain_method="vectorized", progress_bar=False
    )
    mcmc.run(jax.random.key(seed), x, y)
    samples = mcmc.get_samples()
    scales = np.stack([np.log(samples[name]) for name in SCALES], axis=1).reshape(2, num_samples, -1)
    return scales, bw.predict(model, samples, x, y, x + 0.1)


@pytest.mark.slow
def test_centred_or_not_and_by_any_sampler_the_posterior_is_one():
    model = bw.bnn(NET, NOISE)
    centred = bw.bnn(NET, NOISE, centred=("hidden.0.b",))
    runs = [run(model, NUTS(model), 600), run(model, bw.SplitHMC(model), 1500), run(centred, NUTS(centred), 600)]
    reference = runs[0][0]
    for scales, prediction in runs[1:]:
        error = np.sqrt(sum(part.var(axis=(0, 1)) / effective_sample_size(part) for part in (scales, reference)))
        assert np.abs((scales.mean(axis=(0, 1)) - reference.mean(axis=(0, 1))) / error).max() < 4
        np.testing.assert_allclose(prediction.mean, runs[0][1].mean, atol=0.1 * np.sqrt(prediction.epistemic).max())


def test_a_start_at_the_largest_marginal_likelihood():
    x = RNG.normal(size=(60, D))
    y = np.sin(x[:, :1]) + 0.1 * RNG.normal(size=(60, 1))
    net = bw.Dense(512, w_scale=PRIOR, b_scale=0.3) >> bw.Relu() >> bw.Dense(1, w_scale=PRIOR)
    model = bw.bnn(net, bw.Gaussian(dist.LogNormal(0.0, 1.0)))
    start = bw.init_to_fit(model, x, y)
    for kernel in (bw.SplitHMC, NUTS):
        mcmc = MCMC(kernel(model, init_strategy=start), num_warmup=0, num_samples=1, progress_bar=False)
        mcmc.run(jax.random.key(0), x, y)
    fitted = bw.gp.fit(bw.with_scales(net, {"0.w_scale": 1.0, "2.w_scale": 1.0}), x, y, bw.Gaussian(1.0))
    start = start.keywords["values"]
    np.testing.assert_allclose(start["noise_scale"], fitted.likelihood.scale, rtol=1e-6)
    np.testing.assert_allclose(start["hidden.0.w_scale"], fitted.net[0].w_scale, rtol=1e-6)
    np.testing.assert_allclose(start["readout.w_scale"], fitted.net[2].w_scale, rtol=1e-6)
    assert abs(float(start["noise_scale"]) - 0.1) < 0.03
    with pytest.raises(ValueError, match="model must have Gaussian noise, and a scale with a prior"):
        bw.init_to_fit(bw.bnn(FIXED, bw.Gaussian(0.1)), X, Y)


def test_readouts_that_are_not_normal_are_for_the_standard_form():
    net = bw.Dense(8) >> bw.Tanh() >> bw.Dense(1, b_scale=0.5, w_prior=dist.Laplace(), b_prior=dist.StudentT(4.0))
    for form in ("repriorised", "collapsed"):
        with pytest.raises(ValueError, match=f"form '{form}' needs a readout of normal weights"):
            bw.bnn(net, bw.Gaussian(0.3), form)
    model = bw.bnn(net, bw.Gaussian(0.3), "standard")
    params = net.init(jax.random.key(0), (D,))
    sites = {"hidden.0.w": params[0]["w"], "readout.w": params[2]["w"], "readout.b": params[2]["b"]}
    expected = sum(stats.norm.logpdf(leaf).sum() for leaf in sites.values())
    expected += stats.norm.logpdf(Y, net(params, X), 0.3).sum()
    np.testing.assert_allclose(joint(model, sites), expected, rtol=1e-10)
    draw = constrain_fn(model, (X, Y), {}, sites, return_deterministic=True)
    np.testing.assert_allclose(net.features(params, X) @ draw["readout"], net(params, X), rtol=1e-10)
    samples = {name: jnp.asarray(leaf)[None] for name, leaf in draw.items()}
    np.testing.assert_allclose(bw.predict(model, samples, X, Y, X).mean, net(params, X), rtol=1e-10)


def test_the_input_collapse_needs_normal_weights_and_fixed_scales():
    x = RNG.normal(size=(3, 7))
    for first in (bw.Dense(8, w_prior=dist.Laplace()), bw.Dense(8, w_scale=PRIOR)):
        net = first >> bw.Tanh() >> bw.Dense(1)
        assert "hidden.0.w" in bw.bnn(net, bw.Gaussian(0.3)).feature_map(jnp.asarray(x)).shapes
        with pytest.raises(ValueError, match="input_collapse=True needs a Dense first layer of normal weights"):
            bw.bnn(net, bw.Gaussian(0.3), input_collapse=True).feature_map(jnp.asarray(x))


def test_centred_names_weights_of_layers_that_are_learned():
    with pytest.raises(ValueError, match="centred must name hidden weights whose layer's scale has a prior; got 'hid"):
        bw.bnn(FIXED, bw.Gaussian(0.1), centred=("hidden.0.w",))
