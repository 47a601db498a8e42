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
# 2. a cubic, without and with a gap: distance to the exact posterior, beside mean-field inference on the weights;
# 3. a sine and a periodic prior, which goes on where the data end, by variational inference and by MCMC;
# 4. steps and a piecewise prior, which is known by its draws only;
# 5. where to measure next.
#
# It takes about five minutes on one CPU core. Set `BNNWIDE_NOTEBOOK_SIZE=small` for a quick run.

# %%
import os
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import tinygp

import bnnwide as bw
from bnnwide.functional import FunctionalELBO, GPPrior, Measurement, fit, laplace, piecewise_constant, piecewise_linear

jax.config.update("jax_enable_x64", True)

SMALL = os.environ.get("BNNWIDE_NOTEBOOK_SIZE") == "small"
WIDTH, NUM_STEPS, NUM_SAMPLES, NUM_MCMC = (10, 20, 8, 10) if SMALL else (50, 800, 32, 150)
FAMILY = "factorised" if SMALL else "repriorised"  # the second compiles for longer; it comes again below
DATA = Path(os.environ.get("BNNWIDE_DATA", "../shared/data")) / "toy1d"
kernels = tinygp.kernels
options = {"key": jax.random.key(0), "num_steps": NUM_STEPS}


def first_if_small(choices):
    """One of several runs of the same code is enough for a quick look."""
    return dict(list(choices.items())[: 1 if SMALL else None])


def toy(name, pieces, truth, noise):
    """Twenty observations: those of the paper's released data where the file is at hand, else some of the same law."""
    if (DATA / f"fbnn_{name}.txt").exists():
        return np.loadtxt(DATA / f"fbnn_{name}.txt").T[:, :, None]
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(*piece, (20 // len(pieces), 1)) for piece in pieces])
    return x, truth(x) + noise * rng.normal(size=x.shape)


def show(axis, grid, pred, title, x, y):
    """Draw a predictive mean with two standard deviations of the function, and data."""
    band(axis, grid, pred.mean[:, 0], np.sqrt(pred.epistemic[:, 0]), title, x, y)


def band(axis, grid, mean, sd, title, x, y):
    axis.fill_between(grid[:, 0], mean - 2 * sd, mean + 2 * sd, alpha=0.25, lw=0)
    axis.plot(grid, mean, lw=2)
    axis.plot(x, y, "k.", ms=6)
    axis.set_title(title, fontsize=10)


# %% [markdown]
# ## Four priors
#
# A kernel of tinygp, sums and products of kernels, an architecture (its infinite-width limit), or any sampler.

# %%
grid = np.linspace(-3, 3, 301)[:, None]
priors = {
    "smooth: ExpSquared": GPPrior(kernels.ExpSquared(0.7)),
    "periodic: ExpSineSquared": GPPrior(kernels.ExpSineSquared(scale=1.5, gamma=1.0)),
    "steps: piecewise_constant": piecewise_constant(-3.0, 3.0, rate=4.0),
    "polygons: piecewise_linear": piecewise_linear(-3.0, 3.0, rate=4.0),
}
figure, axes = plt.subplots(1, 4, figsize=(14, 2.8), sharey=True, layout="constrained")
for axis, (name, prior) in zip(axes, priors.items(), strict=True):
    axis.plot(grid, prior.sample(jax.random.key(2), grid, 4).T, lw=1)
    axis.set_title(name, fontsize=10)
plt.show()

# %% [markdown]
# ## A cubic
#
# Twenty observations of x^3, in units of ten, on all of [-4, 4] or with a gap. With a Gaussian process prior and
# Gaussian noise the posterior is known: it is the left panel, and all that a method can be asked for. The
# hyper-parameters are found by marginal likelihood.
#
# What to look for: beyond the ends, and a little in the gap (upper row), the functional approximations widen as the
# process does. Mean field on the weights is too unsure on the data and too sure beyond them.

# %%
problems = {"cubic_gap": [(-4, -1), (1, 4)], "cubic": [(-4, 4)]}
grid = np.linspace(-6, 6, 121)[:, None]
net = bw.Dense(WIDTH, w_scale=1.0, b_scale=2.0) >> bw.Tanh() >> bw.Dense(1, w_scale=5.0)
figure, axes = plt.subplots(2, 4, figsize=(14, 5), sharex=True, sharey=True, layout="constrained")
for row, (problem, pieces) in zip(axes, first_if_small(problems).items(), strict=False):
    x, y = toy(problem, pieces, lambda x: x**3, 3.0)
    y = y / 10
    prior, noise = GPPrior(9.0 * kernels.ExpSquared(2.0)).fit(x, y, bw.Gaussian(0.3))
    exact = prior.posterior(x, y, noise).predict(grid)
    print(f"{problem}: {prior}, {noise}")

    objective = FunctionalELBO(
        prior, measurement=Measurement(20, 20, (-6.0, 6.0)), score="gaussian", num_samples=NUM_SAMPLES
    )
    found = fit(net, prior, noise, x, y, objective=objective, family=FAMILY, **options)
    mode = laplace(net, prior, noise, x, y, measurement=objective.measurement, **options)
    model = bw.bnn(net, noise, "standard")
    weights = bw.comparators.mean_field(model, x, y, num_samples=500, **options)
    predictions = {
        "exact posterior": exact,
        "functional ELBO": found.predict(grid),
        "Laplace in function space": mode.predict(grid),
        "mean field on the weights": bw.comparators.predict_plain(model, weights.get_samples(), x, grid),
    }
    for axis, (name, pred) in zip(row, predictions.items(), strict=True):
        show(axis, grid, pred, name, x, y)
        axis.set_ylim(-15, 15)
        sd = np.sqrt(pred.epistemic) - np.sqrt(exact.epistemic)
        print(f"  {name:28s} distance of means {np.sqrt(np.mean((pred.mean - exact.mean) ** 2)):.3f}, "
              f"of standard deviations {np.sqrt(np.mean(sd**2)):.3f}")  # fmt: skip
plt.show()

# %% [markdown]
# ## A sine
#
# Data on two short stretches, predictions far beyond them. Under the periodic prior the network goes on with the period
# where there is no observation; under the smooth one it goes back to the prior. Middle: variational, with random
# measurement points. Right: `functional_bnn`, the same network whose prior is *exactly* the process at the crosses,
# sampled by MCMC; between the crosses it interpolates.

# %%
x, y = toy("sin", [(-2, -0.5), (0.5, 2)], lambda x: 2 * np.sin(4 * x), 0.2)
grid = np.linspace(-5, 5, 201)[:, None]
points = np.linspace(-5, 5, WIDTH // 2 + 1)[:, None]
noise = bw.Gaussian(0.2)
net = bw.Dense(WIDTH, w_scale=4.0, b_scale=3.0) >> bw.Sin() >> bw.Dense(1, w_scale=2.0)
wide = bw.Dense(4 * WIDTH, w_scale=4.0, b_scale=3.0) >> bw.Sin() >> bw.Dense(1, w_scale=2.0)
measurement = Measurement(20, 40, (-5.0, 5.0))
priors = {
    "periodic prior": GPPrior(4.0 * kernels.ExpSineSquared(scale=np.pi / 2, gamma=0.5)),
    "smooth prior": GPPrior(4.0 * kernels.ExpSquared(0.4)),
}

figure, axes = plt.subplots(2, 3, figsize=(14, 5), sharex=True, sharey=True, layout="constrained")
for row, (name, prior) in zip(axes, first_if_small(priors).items(), strict=False):
    objective = FunctionalELBO(prior, measurement=measurement, score="gaussian", num_samples=NUM_SAMPLES)
    found = fit(net, prior, noise, x, y, objective=objective, family="repriorised", **options)
    model = bw.functional_bnn(wide, prior, points, noise)
    mcmc = numpyro.infer.MCMC(bw.SplitHMC(model), num_warmup=NUM_MCMC, num_samples=NUM_MCMC, progress_bar=False)
    mcmc.run(jax.random.key(0), x, y)
    show(row[0], grid, prior.posterior(x, y, noise).predict(grid), f"exact posterior, {name}", x, y)
    show(row[1], grid, found.predict(grid), f"functional ELBO, {name}", x, y)
    show(row[2], grid, bw.predict(model, mcmc.get_samples(), x, y, grid), f"functional BNN by MCMC, {name}", x, y)
    row[2].plot(points, np.full(points.shape, -5.5), "kx", ms=4)
    row[0].set_ylim(-6, 6)
plt.show()

# %% [markdown]
# ## Steps
#
# Piecewise priors are known by their draws only: both scores come from the spectral Stein estimator. A network of
# steep sigmoids can draw steps, one of rectifiers can draw polygons; *where* between the observations it does so is
# what the prior decides. Under a smooth prior the same network of steep sigmoids leads down in a slope.

# %%
rng = np.random.default_rng(0)
x = np.sort(rng.uniform(0, 1, (40, 1)), axis=0)
y = np.select([x < 0.3, x < 0.65], [0.2, 1.2], -0.6) + 0.05 * rng.normal(size=x.shape)
kept = np.abs(x[:, 0] - 0.5) > 0.2  # the middle step is not seen
x, y = x[kept], y[kept]
grid = np.linspace(0, 1, 401)[:, None]
noise = bw.Gaussian(0.1)
steep = bw.Dense(WIDTH, w_scale=100.0, b_scale=50.0) >> bw.Tanh() >> bw.Dense(1, w_scale=2.0)
kinks = bw.Dense(WIDTH, w_scale=4.0, b_scale=2.0) >> bw.Relu() >> bw.Dense(1, w_scale=2.0)
cases = {
    "a prior of steps": (piecewise_constant(0.0, 1.0, rate=3.0), steep),
    "a prior of polygons, rectifiers": (piecewise_linear(0.0, 1.0, rate=3.0), kinks),
    "a smooth prior, the network of the first": (GPPrior(kernels.ExpSquared(0.2)), steep),
}
figure, axes = plt.subplots(1, 3, figsize=(14, 3.2), sharey=True, layout="constrained")
for axis, (name, (prior, net)) in zip(axes, first_if_small(cases).items(), strict=False):
    objective = FunctionalELBO(prior, measurement=Measurement(10, 20, (0.0, 1.0)), num_samples=NUM_SAMPLES, noise=0.1)
    found = fit(net, prior, noise, x, y, objective=objective, family="repriorised", **options)
    draws = found.draws(jax.random.key(1), grid, 500)[..., 0]
    band(axis, grid, draws.mean(axis=0), draws.std(axis=0), name, x, y)
    axis.plot(grid, draws[:6].T, lw=0.7, color="tab:green")
plt.show()

# %% [markdown]
# ## Where to measure next
#
# Six observations of a function, and room for eight more. Uncertainty is of use where it changes a decision: measure
# where it tells most, or anywhere? The approximation is a joint law of the function at all inputs. So eight inputs can
# be chosen before any of them is measured, one after the other: each is the one that, given those before it, leaves
# the least variance on the whole range. (The input of largest variance alone would often be an end of the range, which
# says nothing of what lies beyond.) Judged by the error on the whole range, against inputs at random.

# %%
prior, noise = GPPrior(kernels.ExpSquared(0.5)), bw.Gaussian(0.05)
net = bw.Dense(WIDTH, w_scale=2.0, b_scale=3.0) >> bw.Tanh() >> bw.Dense(1, w_scale=2.0)
grid = np.linspace(-3, 3, 121)[:, None]


def truth(x):
    return np.sin(2 * x) + 0.5 * np.cos(5 * x)


def observe(x, seed):
    return truth(x) + noise.scale * np.random.default_rng(seed).normal(size=x.shape)


def fitted(x, y):
    return laplace(net, prior, noise, x, y, measurement=Measurement(20, 30, (-3.0, 3.0)), **options)


def telling(approximation, number):
    """Return inputs of the grid, each the one that leaves least variance given a measurement at those before it."""
    covariance = np.cov(approximation.draws(jax.random.key(3), grid, 2000)[..., 0].T)
    chosen = []
    for _ in range(number):
        noisy = np.diagonal(covariance) + noise.scale**2
        chosen.append(np.argmax(np.sum(covariance**2, axis=0) / noisy))
        column = covariance[:, chosen[-1]]
        covariance = covariance - np.outer(column, column) / noisy[chosen[-1]]
    return grid[chosen]


x = rng.uniform(-1, 1, (6, 1))
y = observe(x, 0)
before = fitted(x, y)
where = {"where it tells most": telling(before, 8)}
where |= {f"anywhere ({i})": rng.uniform(-3, 3, (8, 1)) for i in range(1 if SMALL else 4)}

figure, axes = plt.subplots(1, 4, figsize=(14, 3), sharey=True, layout="constrained")
show(axes[0], grid, before.predict(grid), "six observations", x, y)
errors = {}
for number, (name, new) in enumerate(where.items(), start=1):
    x_all, y_all = np.r_[x, new], np.r_[y, observe(new, 1)]
    after = fitted(x_all, y_all).predict(grid)
    errors[name] = np.sqrt(np.mean((after.mean - truth(grid)) ** 2))
    if number < len(axes):
        show(axes[number], grid, after, f"eight more, {name}: error {errors[name]:.2f}", x_all, y_all)
for axis in axes:
    axis.plot(grid, truth(grid), "k--", lw=0.8)
plt.show()
at_random = [error for name, error in errors.items() if name.startswith("anywhere")]
print(f"error where it tells most {errors['where it tells most']:.2f}; "
      f"anywhere {np.mean(at_random):.2f} on average, {min(at_random):.2f} at best")  # fmt: skip
