# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Posterior sampling of a wide Bayesian neural network
#
# One-dimensional regression, from data to diagnostics:
#
# 1. an architecture, a likelihood, a model;
# 2. sampling with `SplitHMC` inside NumPyro's `MCMC`;
# 3. predictions: mean, epistemic and total standard deviation;
# 4. ArviZ diagnostics;
# 5. posterior draws of functions;
# 6. the three forms of the model against each other;
# 7. a learned noise scale.
#
# It takes about two minutes on two CPU cores. Set `BNNWIDE_NOTEBOOK_SIZE=small` for a quick run.

# %%
import os

import arviz as az
import jax
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist

import bnnwide as bw

jax.config.update("jax_enable_x64", True)

SMALL = os.environ.get("BNNWIDE_NOTEBOOK_SIZE") == "small"
WIDTH = 64 if SMALL else 512
NUM_WARMUP, NUM_SAMPLES = (30, 30) if SMALL else (300, 500)

# %% [markdown]
# ## Data
#
# Twenty-four noisy values of a smooth function, with a gap in the inputs. The noise has standard deviation 0.15.

# %%
rng = np.random.default_rng(0)
NOISE = 0.15


def true_function(x):
    """The function behind the data."""
    return np.sin(2.5 * x) + 0.3 * x


x = np.sort(np.concatenate([rng.uniform(-2.0, -0.4, 13), rng.uniform(0.7, 2.0, 11)]))[:, None]
y = true_function(x) + NOISE * rng.normal(size=x.shape)
x_test = np.linspace(-3.0, 3.0, 201)[:, None]

# %% [markdown]
# ## Architecture and model
#
# An architecture is a value, composed with `>>`. Every weight is N(0, 1) under the prior; the scales live in the
# layers. The biases of the hidden layer set where its units bend, so that for 1-d inputs `b_scale` should be of the
# order of `w_scale` times the inputs' range.
#
# `form="collapsed"` integrates the linear readout out exactly: only hidden weights are sampled.

# %%
net = bw.Dense(WIDTH, w_scale=2.0, b_scale=2.0) >> bw.Erf() >> bw.Dense(1, w_scale=1.5, b_scale=0.5)
model = bw.bnn(net, bw.Gaussian(scale=NOISE), form="collapsed")
print(model)

# %% [markdown]
# ## Sampling
#
# `SplitHMC(model)` is a NumPyro kernel. Warm-up adapts its step. `chain_method="vectorized"` advances the four chains
# together.


# %%
def run(kernel, *, seed=0, num_warmup=NUM_WARMUP, num_samples=NUM_SAMPLES):
    """Run four chains of a kernel and return NumPyro's MCMC object."""
    mcmc = numpyro.infer.MCMC(
        kernel,
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(seed), x, y, extra_fields=("accept_prob", "num_grads", "diverging"))
    return mcmc


mcmc = run(bw.SplitHMC(model))
info = mcmc.get_extra_fields()
print(f"acceptance {info['accept_prob'].mean():.2f}, gradients per draw {info['num_grads'].mean():.1f}")
print({name: site.shape for name, site in mcmc.get_samples().items()})

# %% [markdown]
# ## Predictions
#
# Given the hidden weights the function is Gaussian; `predict` averages these exact moments over the draws.
# `epistemic` is the variance of the function, `aleatoric` that of the noise, `variance` their sum: the variance of a
# new observation.

# %%
pred = bw.predict(model, mcmc.get_samples(), x, y, x_test)


def plot_bands(axis, pred, title):
    """Plot data, mean, and bands of two standard deviations of the function and of a new observation."""
    mean, epistemic, total = (np.asarray(a)[:, 0] for a in (pred.mean, pred.epistemic, pred.variance))
    grid = x_test[:, 0]
    axis.fill_between(
        grid, mean - 2 * total**0.5, mean + 2 * total**0.5, color="C0", alpha=0.15, lw=0, label="±2 sd, total"
    )
    axis.fill_between(
        grid,
        mean - 2 * epistemic**0.5,
        mean + 2 * epistemic**0.5,
        color="C0",
        alpha=0.3,
        lw=0,
        label="±2 sd, epistemic",
    )
    axis.plot(grid, mean, color="C0", label="mean")
    axis.plot(grid, true_function(grid), "k--", lw=0.8, label="truth")
    axis.plot(x[:, 0], y[:, 0], "k.", ms=5, label="data")
    axis.set(xlabel="x", title=title, xlim=(grid[0], grid[-1]))


figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
plot_bands(axis, pred, f"Posterior at width {WIDTH}")
axis.set_ylabel("y")
axis.legend(ncols=3, frameon=False, loc="upper left", fontsize=9)
axis.set_ylim(-3, 3)
plt.show()

# %% [markdown]
# The bands are narrow at the data, wider in the gap, and grow outside. Width matters little for the function here; it
# matters for how well the chain mixes.
#
# ## Diagnostics
#
# Single hidden weights are not identified (hidden units can be swapped), so what should be diagnosed is the function.
# `to_arviz` makes an ArviZ `DataTree`; with `x_test` it adds, per draw, the function's mean and standard deviation
# given the hidden weights. `max_size` leaves large weight arrays out. `f` below is that mean: its spread over draws
# is what the hidden weights contribute, less than the epistemic spread above.

# %%
at = np.array([[-2.5], [-1.0], [0.2], [2.5]])
tree = bw.to_arviz(mcmc, x_test=at, max_size=1)
means = tree["predictions"]["mean"].values[..., 0]  # (chain, draw, input)
functions = az.from_dict({"posterior": {"f": means}}, dims={"f": ["x"]}, coords={"x": at[:, 0]})
az.summary(functions)

# %% [markdown]
# `ess_bulk` is to be compared with the number of draws, and R-hat should be below 1.01 in a long run. Per gradient:

# %%
draws = NUM_SAMPLES * 4
ess = np.asarray(az.ess(functions)["f"])
print(f"bulk ESS of f: minimum {ess.min():.0f} of {draws} draws")
print(f"per gradient: {ess.min() / info['num_grads'].sum():.3f}")

# %%
_ = az.plot_trace(functions, col_wrap=2, figure_kwargs={"figsize": (9, 5), "layout": "constrained"})
plt.show()

# %% [markdown]
# Rank plots: for each chain, how far the distribution of its draws' ranks is from uniform. Lines that stay near zero
# mean chains that agree; `p` tests it.

# %%
_ = az.plot_rank(functions, col_wrap=2, figure_kwargs={"figsize": (9, 5), "layout": "constrained"})
plt.show()

# %% [markdown]
# ## Draws of functions
#
# `readout_draws` gives one exact draw of the readout per draw of the hidden weights; `hidden_weights` the hidden
# parameters (with the input collapse, it would fill in what was left out). Their product through `net.features` is a
# posterior draw of the function.

# %%
samples = mcmc.get_samples()
hidden = bw.hidden_weights(model, samples, x, y, key=jax.random.key(1))
readout = bw.readout_draws(model, samples, x, y, key=jax.random.key(2))
curves = jax.vmap(lambda params, theta: net.features(params, x_test) @ theta)(hidden, readout)  # (draws, t, 1)

figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
for curve in np.asarray(curves)[:: max(1, len(curves) // 20), :, 0]:
    axis.plot(x_test[:, 0], curve, color="C0", lw=0.8, alpha=0.6)
axis.plot(x[:, 0], y[:, 0], "k.", ms=5)
axis.set(xlabel="x", ylabel="f(x)", xlim=(-3, 3), ylim=(-3, 3), title="Posterior draws of the function")
plt.show()

# %% [markdown]
# Their moments over draws agree with `predict`, up to Monte-Carlo error; `predict` has less of it, as it does not
# sample the readout.

# %%
by_draws = np.asarray(curves).var(axis=0)[:, 0]
print(f"largest sd of f: from draws {by_draws.max() ** 0.5:.3f}, from predict {float(pred.epistemic.max()) ** 0.5:.3f}")

# %% [markdown]
# ## One posterior, three forms
#
# "standard" has the weights as they are, "repriorised" maps the readout so that the posterior is close to the prior,
# "collapsed" integrates it out. They are one posterior; samplers find them differently hard. SplitHMC on the standard
# form needs small steps for the readout, so NUTS is used there.

# %%
fewer = {"num_warmup": NUM_WARMUP // 2, "num_samples": NUM_SAMPLES // 2}
figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), sharey=True, layout="constrained")
for axis, form in zip(axes, ("standard", "repriorised", "collapsed"), strict=True):
    # A narrower network keeps NUTS affordable here; the standard form costs it up to a thousand gradients per draw.
    narrow = (
        bw.Dense(16 if SMALL else 32, w_scale=2.0, b_scale=2.0) >> bw.Erf() >> bw.Dense(1, w_scale=1.5, b_scale=0.5)
    )
    variant = bw.bnn(narrow, bw.Gaussian(scale=NOISE), form=form)
    if form == "standard":
        chains = numpyro.infer.MCMC(
            numpyro.infer.NUTS(variant, max_tree_depth=3 if SMALL else 8),
            num_warmup=fewer["num_warmup"],
            num_samples=fewer["num_samples"],
            num_chains=4,
            chain_method="vectorized",
            progress_bar=False,
        )
        chains.run(jax.random.key(3), x, y, extra_fields=("num_steps",))
        grads = chains.get_extra_fields()["num_steps"].mean()
    else:
        chains = run(bw.SplitHMC(variant), seed=3, **fewer)
        grads = chains.get_extra_fields()["num_grads"].mean()
    plot_bands(axis, bw.predict(variant, chains.get_samples(), x, y, x_test), f"{form}: {grads:.0f} gradients per draw")
axes[0].set(ylabel="y", ylim=(-3, 3))
plt.show()

# %% [markdown]
# ## Learned noise
#
# A scale may have a prior. The kernel gives such a site a Gaussian reference of its own, learned in warm-up.

# %%
learned = bw.bnn(net, bw.Gaussian(scale=dist.HalfNormal(0.5)))
mcmc_learned = run(bw.SplitHMC(learned), seed=4)
scale = mcmc_learned.get_samples()["noise_scale"]
print(f"noise scale: {scale.mean():.3f} ± {scale.std():.3f} (sd); truth {NOISE}")
_ = az.plot_dist(bw.to_arviz(mcmc_learned, max_size=1), var_names=["noise_scale"])
plt.show()

# %% [markdown]
# Next: `02_ess_across_widths` measures how much work one independent draw costs, by method and width.
