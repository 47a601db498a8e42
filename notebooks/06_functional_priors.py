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
# # Priors over functions
#
# What is known before the data is mostly about functions: smooth, periodic, in steps. `bw.functional` takes such a
# prior and fits a network to it and to data. The toy problems are those of Sun, Zhang, Shi & Grosse 2019
# (arXiv 1903.05779):
#
# 1. what the priors look like;
# 2. a cubic: distance to the exact posterior, beside mean-field inference on the weights;
# 3. a sine and a periodic prior, which goes on where the data end;
# 4. steps and a piecewise prior, which has no density;
# 5. where to measure next.
#
# It takes a few minutes on two CPU cores. Set `BNNWIDE_NOTEBOOK_SIZE=small` for a quick run.

# %%
import os

import jax
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
import tinygp

import bnnwide as bw
from bnnwide.functional import FunctionalELBO, GPPrior, Measurement, fit, laplace, piecewise_constant, piecewise_linear

jax.config.update("jax_enable_x64", True)

SMALL = os.environ.get("BNNWIDE_NOTEBOOK_SIZE") == "small"
WIDTH, NUM_STEPS, NUM_SAMPLES = (10, 30, 8) if SMALL else (50, 1500, 48)
kernels = tinygp.kernels


def show(axis, grid, pred, title, x=None, y=None, draws=None):
    """Draw a predictive mean with two standard deviations of the function, and perhaps data and draws."""
    mean, sd = pred.mean[:, 0], np.sqrt(pred.epistemic[:, 0])
    axis.fill_between(grid[:, 0], mean - 2 * sd, mean + 2 * sd, alpha=0.25, lw=0)
    axis.plot(grid, mean, lw=2)
    if draws is not None:
        axis.plot(grid, draws.T, lw=0.7, color="tab:green")
    if x is not None:
        axis.plot(x, y, "k.", ms=6)
    axis.set_title(title)


# %% [markdown]
# ## Four priors
#
# A kernel of tinygp, sums and products of kernels, an architecture (its infinite-width limit), or any sampler.

# %%
grid = np.linspace(-3, 3, 301)[:, None]
priors = {
    "smooth: ExpSquared": GPPrior(kernels.ExpSquared(0.7)),
    "periodic": GPPrior(kernels.ExpSineSquared(scale=1.5, gamma=1.0)),
    "steps": piecewise_constant(-3.0, 3.0, rate=4.0),
    "polygons": piecewise_linear(-3.0, 3.0, rate=4.0),
}
figure, axes = plt.subplots(1, 4, figsize=(14, 2.8), sharey=True, layout="constrained")
for axis, (name, prior) in zip(axes, priors.items(), strict=True):
    axis.plot(grid, prior.sample(jax.random.key(2), grid, 4).T, lw=1)
    axis.set_title(name)
plt.show()

# %% [markdown]
# ## A cubic
#
# Twenty observations of x^3, in units of ten. With a Gaussian process prior and Gaussian noise the posterior is known:
# it is the left panel, and all that a method can be asked for. The hyper-parameters are found by marginal likelihood.

# %%
rng = np.random.default_rng(0)
x = rng.uniform(-4, 4, (20, 1))
y = (x**3 + 3 * rng.normal(size=x.shape)) / 10
grid = np.linspace(-6, 6, 121)[:, None]
prior, noise = GPPrior(9.0 * kernels.ExpSquared(2.0)).fit(x, y, bw.Gaussian(0.3))
print(prior, noise)
exact = prior.posterior(x, y, noise).predict(grid)

net = bw.Dense(WIDTH, w_scale=1.0, b_scale=2.0) >> bw.Tanh() >> bw.Dense(1, w_scale=5.0)
objective = FunctionalELBO(
    prior, measurement=Measurement(20, 20, (-6.0, 6.0)), score="gaussian", num_samples=NUM_SAMPLES
)
options = {"key": jax.random.key(0), "num_steps": NUM_STEPS}
found = fit(net, prior, noise, x, y, objective=objective, family="repriorised", **options)
mode = laplace(net, prior, noise, x, y, measurement=objective.measurement, **options)
model = bw.bnn(net, noise, "standard")
weights = bw.comparators.mean_field(model, x, y, num_samples=500, **options)

predictions = {
    "exact posterior": exact,
    "functional ELBO": found.predict(grid),
    "Laplace in function space": mode.predict(grid),
    "mean field on the weights": bw.comparators.predict_plain(model, weights.get_samples(), x, grid),
}
figure, axes = plt.subplots(1, 4, figsize=(14, 3), sharey=True, layout="constrained")
for axis, (name, pred) in zip(axes, predictions.items(), strict=True):
    show(axis, grid, pred, name, x, y)
    axis.set_ylim(-20, 20)
    sd = np.sqrt(pred.epistemic) - np.sqrt(exact.epistemic)
    print(f"{name:28s} distance of means {np.sqrt(np.mean((pred.mean - exact.mean) ** 2)):.3f}, "
          f"of standard deviations {np.sqrt(np.mean(sd**2)):.3f}")  # fmt: skip
plt.show()

# %% [markdown]
# ## A sine
#
# Data on two short stretches, measurement points far beyond them. Under the periodic prior the network goes on with the
# period where there is no observation; under the smooth one it goes back to the prior.

# %%
x = np.r_[rng.uniform(-2, -0.5, (10, 1)), rng.uniform(0.5, 2, (10, 1))]
y = 2 * np.sin(4 * x) + 0.2 * rng.normal(size=x.shape)
grid = np.linspace(-5, 5, 201)[:, None]
noise = bw.Gaussian(0.2)
net = bw.Dense(WIDTH, w_scale=4.0, b_scale=3.0) >> bw.Sin() >> bw.Dense(1, w_scale=2.0)
measurement = Measurement(20, 40, (-5.0, 5.0))

figure, axes = plt.subplots(2, 2, figsize=(12, 5), sharex=True, sharey=True, layout="constrained")
for row, (name, prior) in zip(
    axes,
    {
        "smooth prior": GPPrior(4.0 * kernels.ExpSquared(0.4)),
        "periodic prior": GPPrior(4.0 * kernels.ExpSineSquared(scale=np.pi / 2, gamma=0.5)),
    }.items(),
    strict=True,
):
    objective = FunctionalELBO(prior, measurement=measurement, score="gaussian", num_samples=NUM_SAMPLES)
    found = fit(net, prior, noise, x, y, objective=objective, family="repriorised", **options)
    show(row[0], grid, prior.posterior(x, y, noise).predict(grid), f"exact posterior, {name}", x, y)
    show(row[1], grid, found.predict(grid), f"functional ELBO, {name}", x, y)
    axes[0, 0].set_ylim(-6, 6)
plt.show()

# %% [markdown]
# ## Steps
#
# A piecewise constant prior is known by its draws only: both scores come from the spectral Stein estimator. A network
# of steep sigmoids can draw steps; which steps it draws between the observations is what the prior decides.

# %%
x = np.sort(rng.uniform(0, 1, (40, 1)), axis=0)
y = np.select([x < 0.3, x < 0.65], [0.2, 1.2], -0.6) + 0.05 * rng.normal(size=x.shape)
kept = np.abs(x[:, 0] - 0.5) > 0.2
x, y = x[kept], y[kept]
grid = np.linspace(0, 1, 201)[:, None]
noise = bw.Gaussian(0.1)
net = bw.Dense(WIDTH, w_scale=60.0, b_scale=30.0) >> bw.Tanh() >> bw.Dense(1, w_scale=2.0)
figure, axes = plt.subplots(1, 2, figsize=(12, 3), sharey=True, layout="constrained")
for axis, (name, prior) in zip(
    axes,
    {
        "steps": piecewise_constant(0.0, 1.0, rate=3.0, value=dist.Normal(0.0, 1.0)),
        "smooth": GPPrior(kernels.ExpSquared(0.2)),
    }.items(),
    strict=True,
):
    objective = FunctionalELBO(
        prior, measurement=Measurement(10, 30, (0.0, 1.0)), num_samples=NUM_SAMPLES, noise=0.1, fraction=0.99
    )
    found = fit(net, prior, noise, x, y, objective=objective, family="factorised", **options)
    show(axis, grid, found.predict(grid), f"prior of {name} functions", x, y,
         found.draws(jax.random.key(1), grid, 6)[..., 0])  # fmt: skip
plt.show()

# %% [markdown]
# ## Where to measure next
#
# Six observations of a function, and room for five more. Measure where the function is least known, or anywhere?
# Uncertainty is of use where it changes a decision: each choice is followed by a new fit, and judged by the error on
# the whole range. Inputs are chosen one after the other, as the exact posterior variance of a process with the same
# prior would fall, which needs no target; the network's own variance decides on the first.

# %%
prior, noise = GPPrior(kernels.ExpSquared(0.5)), bw.Gaussian(0.05)
net = bw.Dense(WIDTH, w_scale=2.0, b_scale=3.0) >> bw.Tanh() >> bw.Dense(1, w_scale=2.0)
grid = np.linspace(-3, 3, 121)[:, None]


def truth(x):
    return np.sin(2 * x) + 0.5 * np.cos(5 * x)


def observe(x, seed):
    return truth(x) + 0.05 * np.random.default_rng(seed).normal(size=x.shape)


def fitted(x, y):
    return laplace(net, prior, noise, x, y, measurement=Measurement(20, 30, (-3.0, 3.0)), **options).predict(grid)


x = rng.uniform(-1, 1, (6, 1))
y = observe(x, 0)
before = fitted(x, y)
chosen = x
spread = before.epistemic[:, 0]
for _ in range(5):
    chosen = np.r_[chosen, grid[[np.argmax(spread)]]]
    spread = prior.posterior(chosen, np.zeros(chosen.shape), noise).predict(grid).epistemic[:, 0]
where = {"where least known": chosen[6:], "anywhere": rng.uniform(-3, 3, (5, 1))}

figure, axes = plt.subplots(1, 3, figsize=(14, 3), sharey=True, layout="constrained")
show(axes[0], grid, before, "six observations", x, y)
for axis, (name, new) in zip(axes[1:], where.items(), strict=True):
    x_all, y_all = np.r_[x, new], np.r_[y, observe(new, 1)]
    after = fitted(x_all, y_all)
    error = np.sqrt(np.mean((after.mean - truth(grid)) ** 2))
    show(axis, grid, after, f"five more, {name}: error {error:.2f}", x_all, y_all)
for axis in axes:
    axis.plot(grid, truth(grid), "k--", lw=0.8)
plt.show()
