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
# # Infinite width
#
# One architecture, three readings: here the second, the Gaussian process that a network becomes as it grows wide. What
# its kernels are, how fast finite networks approach it, and how to choose scales for a deep one.
#
# It takes about three minutes on two CPU cores. Set `BNNWIDE_NOTEBOOK_SIZE=small` for a quick run.

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro

import bnnwide as bw

jax.config.update("jax_enable_x64", True)

SMALL = os.environ.get("BNNWIDE_NOTEBOOK_SIZE") == "small"


def network(width):
    """One hidden layer of error functions."""
    return bw.Dense(width, w_scale=2.0, b_scale=1.0) >> bw.Erf() >> bw.Dense(1, w_scale=1.0, b_scale=0.1)


# %% [markdown]
# ## Kernels
#
# `net.kernel` gives the covariance of the prior over functions (NNGP) and the kernel of gradient descent (NTK).

# %%
grid = np.linspace(-3, 3, 61)[:, None]
kernels = network(1).kernel(grid)

figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
for axis, name, kernel in zip(axes, ("NNGP", "NTK"), kernels, strict=False):
    shown = axis.imshow(kernel, extent=(-3, 3, 3, -3), cmap="magma")
    axis.set(title=name, xlabel="x'", ylabel="x")
    figure.colorbar(shown, ax=axis)
draws = np.linalg.cholesky(kernels.nngp + 1e-9 * np.eye(len(grid))) @ np.random.default_rng(0).normal(
    size=(len(grid), 5)
)
axes[2].plot(grid, draws)
axes[2].set(title="draws of the prior", xlabel="x")
plt.show()

# %% [markdown]
# ## Bayesian networks of growing width
#
# Seven observations. The posterior of the infinite network is a Gaussian process posterior, in closed form; those of
# finite networks are sampled, with the readout integrated out.

# %%
x = np.array([-2.4, -1.6, -1.1, -0.2, 0.9, 1.5, 2.3])[:, None]
y = np.sin(2 * x) + 0.3 * x
noise = bw.Gaussian(scale=0.1)
limit = bw.gp.nngp(network(1), x, y, noise).predict(grid)

WIDTHS = [4, 16] if SMALL else [4, 16, 64, 256]
NUM_SAMPLES = 100 if SMALL else 4000
posteriors = {}
for width in WIDTHS:
    model = bw.bnn(network(width), noise)
    mcmc = numpyro.infer.MCMC(
        bw.SplitHMC(model), num_warmup=300, num_samples=NUM_SAMPLES, num_chains=4, chain_method="vectorized",
        progress_bar=False,
    )  # fmt: skip
    mcmc.run(jax.random.key(0), x, y)
    posteriors[width] = bw.predict(model, mcmc.get_samples(), x, y, grid)

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
for axis, (title, prediction) in zip(
    axes, ((f"width {WIDTHS[0]}", posteriors[WIDTHS[0]]), ("infinite width", limit)), strict=True
):
    mean, deviation = prediction.mean[:, 0], np.sqrt(prediction.epistemic[:, 0])
    axis.fill_between(
        grid[:, 0], mean - 2 * deviation, mean + 2 * deviation, alpha=0.3, label="two standard deviations"
    )
    axis.plot(grid, mean, label="mean")
    axis.plot(x, y, "k.", label="data")
    axis.set(title=title, xlabel="x")
axes[0].legend()
plt.show()

# %% [markdown]
# How far is a finite network's posterior from its limit? Root mean squares over the grid; the dashed line falls as
# 1/width, the order of the first correction. The narrowest networks are too far away for that order to rule; further
# right the lines turn parallel to it, until the Monte-Carlo error of the chains is left.

# %%
distance = {
    "posterior mean": [float(np.sqrt(np.mean((posteriors[w].mean - limit.mean) ** 2))) for w in WIDTHS],
    "posterior variance": [float(np.sqrt(np.mean((posteriors[w].epistemic - limit.epistemic) ** 2))) for w in WIDTHS],
}
figure, axis = plt.subplots(figsize=(5, 3.6), layout="constrained")
for name, values in distance.items():
    axis.plot(WIDTHS, values, "o-", label=name)
axis.plot(WIDTHS, distance["posterior mean"][0] * WIDTHS[0] / np.array(WIDTHS), "k--", label="1/width")
axis.set(xscale="log", yscale="log", xlabel="width", ylabel="distance to the limit")
axis.legend()
plt.show()
print({name: np.round(values, 4).tolist() for name, values in distance.items()})

# %% [markdown]
# ## Trained networks
#
# Gradient descent on a wide network, from random weights, follows the NTK. `bw.gp.ntk` gives the law of what an
# ensemble of infinitely wide networks predicts at any time. Here it is next to an ensemble of trained finite ones.

# %%
WIDTH, NUM_NETWORKS, STEPS, LEARNING_RATE = (64, 8, 200, 0.5) if SMALL else (2048, 40, 2000, 0.5)
wide = network(WIDTH)


def train(key):
    """Full-batch gradient descent on half the mean squared error."""
    loss = lambda params: 0.5 * jnp.mean((wide(params, jnp.asarray(x)) - y) ** 2)  # noqa: E731
    descend = lambda _, params: jax.tree.map(lambda p, g: p - LEARNING_RATE * g, params, jax.grad(loss)(params))  # noqa: E731
    return wide(jax.lax.fori_loop(0, STEPS, descend, wide.init(key, (1,))), grid)[:, 0]


trained = jax.jit(lambda keys: jax.lax.map(train, keys))(jax.random.split(jax.random.key(1), NUM_NETWORKS))
flow = bw.gp.ntk(network(1), x, y, None, time=STEPS, learning_rate=LEARNING_RATE).predict(grid)

figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
axis.plot(grid, trained.T, color="C7", alpha=0.3, linewidth=0.7)
axis.plot(grid, trained.mean(0), "C0", label=f"mean of {NUM_NETWORKS} networks of width {WIDTH}")
axis.plot(grid, flow.mean[:, 0], "C1--", label="infinite width")
deviation = np.sqrt(flow.epistemic[:, 0])
axis.fill_between(grid[:, 0], flow.mean[:, 0] - 2 * deviation, flow.mean[:, 0] + 2 * deviation, color="C1", alpha=0.2)
axis.plot(x, y, "k.")
axis.legend()
plt.show()

# %% [markdown]
# ## Deep networks
#
# With depth, two inputs become alike (ordered) or come apart (chaotic), but on a line of scales. Priors for deep
# networks belong near it.

# %%
bw.plot_phase_diagram(bw.Tanh(), resolution=12 if SMALL else 80)

# %%
for b_scale in (0.0, 0.1, 0.5):
    print(f"b_scale {b_scale}: critical w_scale {bw.critical_w_scale(bw.Erf(), b_scale):.4f}")
