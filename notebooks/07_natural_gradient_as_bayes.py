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
# # Natural gradient as Bayes
#
# Minibatch natural gradient descent holds weights at a temperature that learning rate and batch size set. At
# temperature 1 its iterates are draws from the posterior, nearly. Here: how nearly, where posteriors are known; what
# the metric's corrections do; and how such draws, Laplace and noisy natural gradient compare with exact sampling.
#
# It takes about three minutes on two CPU cores. Set `BNNWIDE_NOTEBOOK_SIZE=small` for a quick run.

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
from jax.flatten_util import ravel_pytree
from scipy.special import gammaln

import bnnwide as bw

jax.config.update("jax_enable_x64", True)

SMALL = os.environ.get("BNNWIDE_NOTEBOOK_SIZE") == "small"
NUM_CHAINS, NUM_SAMPLES = (32, 10) if SMALL else (128, 40)
TEMPERATURES = {1.0: 16} if SMALL else {0.5: 16, 1.0: 8, 2.0: 8}  # and batch sizes
CORRECTIONS = {"posterior": 0.0, "none": 1.0} if SMALL else {"posterior": 0.0, "jeffreys": 0.5, "none": 1.0}
WIDTH, BNN_STEPS, BNN_CHAINS = (16, 10, 2) if SMALL else (64, 300, 8)
NQM_STEPS = 200 if SMALL else 6000

# %% [markdown]
# ## One calculator
#
# T = eps N / (2 B): learning rate, number of data, batch size. Leave one out.

# %%
print("temperature:", bw.natgrad.temperature(0.04, 8, 400))
print("learning rate:", bw.natgrad.temperature(batch_size=8, num_data=400, temperature=0.5))

# %% [markdown]
# ## Logistic regression at three temperatures
#
# Two weights, 400 labels, and minibatches of 8: noise alone holds T = 1 at learning rate 0.04. Below it the sampler
# refuses; above it, it adds what is missing. The contours are exp(-C/T) itself.

# %%
rng = np.random.default_rng(3)
x = np.repeat(rng.uniform(-1.5, 1.5, size=(20, 2)), 20, axis=0)
truth = np.array([0.8, -0.5])
y = (rng.uniform(size=400) < 1 / (1 + np.exp(-x @ truth))).astype(int)


def linear(w, x):
    """The simplest network: any function of weights and inputs will do."""
    return x @ w[:, None]


mode = bw.natgrad.minimise(linear, bw.Bernoulli(), x, y, jnp.zeros(2)).params
axis = np.linspace(-0.8, 0.8, 81)
grid = np.asarray(mode) + np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1)
logits = grid @ x.T
cost = np.sum(np.logaddexp(0, logits) - y * logits, axis=-1) + 0.5 * np.sum(grid**2, axis=-1)

figure, axes = plt.subplots(
    1, len(TEMPERATURES), figsize=(3 * len(TEMPERATURES), 3.1), sharex=True, sharey=True, squeeze=False,
    layout="constrained",
)  # fmt: skip
for panel, (temperature, batch_size) in zip(axes[0], TEMPERATURES.items(), strict=True):
    draws = bw.natgrad.sample(
        linear, bw.Bernoulli(), x, y, key=jax.random.key(0), learning_rate=0.04, batch_size=batch_size,
        temperature=temperature, params=mode, num_warmup=100, num_samples=NUM_SAMPLES, thinning=25,
        num_chains=NUM_CHAINS,
    )  # fmt: skip
    flat = np.asarray(draws.flat())
    density = np.exp(-(cost - cost.min()) / temperature)
    weights = density / density.sum()
    mean = np.einsum("ij,ijk->k", weights, grid)
    exact = np.sqrt(np.einsum("ij,ijk->k", weights, (grid - mean) ** 2))
    print(
        f"T = {temperature}, B = {batch_size}: standard deviations {flat.std(axis=0) / exact} of the exact ones, "
        f"measured temperature {float(draws.stats['temperature'].mean()):.2f}"
    )
    panel.plot(*flat[:1500].T, ".", ms=2, alpha=0.4)
    levels = np.exp(-np.array([4.5, 2.0, 0.5]))
    panel.contour(grid[..., 0], grid[..., 1], density, levels=levels, colors="k", linewidths=0.8)
    panel.set(title=f"T = {temperature}, B = {batch_size}", xlabel="first weight")
axes[0, 0].set(ylabel="second weight")
plt.show()

# %% [markdown]
# ## What the corrections do
#
# One weight, so that all laws are known: counts with rate exp(w), four of them, whose sum is 4. With a metric that
# depends on w, plain descent with the right noise does not draw from the posterior. "posterior" does; "jeffreys" draws
# from the posterior under Jeffreys' prior, which is the same law in every coordinate; "none" adds the metric as a
# factor.

# %%
counts = np.array([[1.0], [0.0], [2.0], [1.0]])
axis = np.linspace(-2.5, 2.0, 200)
figure, axes = plt.subplots(1, len(CORRECTIONS), figsize=(9, 2.6), sharey=True, layout="constrained")
for panel, (correction, power) in zip(axes, CORRECTIONS.items(), strict=True):
    draws = bw.natgrad.sample(
        lambda w, x: w * x, bw.Poisson(), np.ones((4, 1)), counts, key=jax.random.key(1), learning_rate=0.03,
        batch_size=None, correction=correction, damping=0.0, prior_precision=0.0, params=jnp.asarray(0.0),
        num_warmup=150, num_samples=NUM_SAMPLES, thinning=40, num_chains=NUM_CHAINS,
    )  # fmt: skip
    shape = counts.sum() + power
    panel.hist(np.asarray(draws.params).ravel(), bins=40, density=True, alpha=0.4)
    panel.plot(axis, np.exp(shape * axis - 4 * np.exp(axis) + shape * np.log(4) - gammaln(shape)), "k", lw=1)
    panel.set(title=f'correction="{correction}"', xlabel="log rate", xlim=(-2.5, 2.0))
axes[0].set(ylabel="density")
plt.show()

# %% [markdown]
# ## A Bayesian neural network
#
# Twenty points and one hidden layer. `SplitHMC` is exact; natural gradient Langevin draws (exact gradients, the metric
# through the tangent kernel, since there are more weights than data), Laplace and noisy K-FAC are not. All are shown by
# the standard deviation of the function.
#
# The noise scale is small against the prior, and so the learning rate must be: steps leave stiff directions of the
# function off by their third order, which all relax at the same rate. At 0.02 these chains are twice as far from the
# data as at 0.005.

# %%
x = np.sort(np.concatenate([rng.uniform(-1.6, -0.5, 10), rng.uniform(0.4, 1.5, 10)]))[:, None]
noise = bw.Gaussian(0.15)
y = np.sin(2 * x) + 0.15 * rng.normal(size=x.shape)
x_test = np.linspace(-2.5, 2.5, 60)[:, None]
net = bw.Dense(WIDTH, w_scale=2.0, b_scale=1.0) >> bw.Tanh() >> bw.Dense(1)

model = bw.bnn(net, noise)
mcmc = numpyro.infer.MCMC(
    bw.SplitHMC(model), num_warmup=BNN_STEPS, num_samples=BNN_STEPS, num_chains=4, chain_method="vectorized",
    progress_bar=False,
)  # fmt: skip
mcmc.run(jax.random.key(2), x, y)
predictions = {"SplitHMC (exact)": bw.predict(model, mcmc.get_samples(), x, y, x_test)}

mode = bw.natgrad.minimise(net, noise, x, y, net.init(jax.random.key(4), (1,))).params
draws = bw.natgrad.sample(
    net, noise, x, y, key=jax.random.key(3), params=mode, learning_rate=0.005, batch_size=None,
    num_warmup=10 * BNN_STEPS, num_samples=5 * BNN_CHAINS, thinning=BNN_STEPS, num_chains=BNN_CHAINS,
)  # fmt: skip
predictions["natural gradient"] = draws.predict(x_test)
print(f"measured temperature {float(draws.stats['temperature'].mean()):.2f}; the target has 1")
predictions["Laplace, exact"] = bw.natgrad.laplace(net, noise, x, y, params=mode).predict(x_test)
predictions["Laplace, K-FAC"] = bw.natgrad.laplace(net, noise, x, y, form="kfac", params=mode).predict(x_test)
noisy = bw.natgrad.noisy_vi(net, noise, x, y, key=jax.random.key(5), family="ekfac", num_steps=5 * BNN_STEPS)
predictions["noisy EK-FAC"] = noisy.sample(jax.random.key(6), 200).predict(x_test)

figure, axes = plt.subplots(1, 5, figsize=(12, 2.6), sharey=True, layout="constrained")
for panel, (name, pred) in zip(axes, predictions.items(), strict=True):
    mean, sd = np.asarray(pred.mean)[:, 0], np.sqrt(np.asarray(pred.epistemic)[:, 0])
    panel.fill_between(x_test[:, 0], mean - 2 * sd, mean + 2 * sd, alpha=0.3)
    panel.plot(x_test[:, 0], mean, lw=1)
    panel.plot(x[:, 0], y[:, 0], "k.", ms=3)
    panel.set(title=name, ylim=(-3, 3))
plt.show()

# %% [markdown]
# The distance of each predictive distribution of the function from the exact one, as a Kullback-Leibler divergence of
# Gaussians of these moments, averaged over the test inputs; and the median ratio of variances.

# %%
exact = predictions["SplitHMC (exact)"]
for name, pred in list(predictions.items())[1:]:
    ratio = np.asarray(pred.epistemic / exact.epistemic)
    shift = np.asarray((pred.mean - exact.mean) ** 2 / exact.epistemic)
    print(
        f"{name}: {np.mean(0.5 * (ratio + shift - 1 - np.log(ratio))):.2f} nats; variance ratio {np.median(ratio):.2f}"
    )

# %% [markdown]
# ## What a preconditioner pays
#
# The noisy quadratic model predicts, from moments alone, where an optimiser with a constant learning rate ends: given
# the curvatures h at a minimum and the variances c of one datum's gradient along them. Here both are those of a small
# network, and the dots are runs of that network from its minimum. Loss above the minimum falls in proportion to the
# batch size. Averaging iterates takes noise away for nothing. Natural gradient holds about one temperature in all
# directions whose curvature is above its damping (0.1), but for the labels' own law; descent holds one that grows with
# the curvature: hot where the loss is steep, frozen where it is flat. Without damping the flattest directions take
# steps so long that the network is no quadratic there, and the runs diverge.

# %%
x = jnp.asarray(rng.normal(size=(60, 2)))
y = jnp.sin(2 * x[:, :1]) + 0.5 * rng.normal(size=(60, 1))
net, noise = bw.Dense(4, w_scale=1.5, b_scale=0.5) >> bw.Tanh() >> bw.Dense(1, b_scale=0.5), bw.Gaussian(0.5)
found = bw.natgrad.minimise(net, noise, x, y, net.init(jax.random.key(0), (2,)), num_steps=200, tolerance=1e-12)
center, unravel = ravel_pytree(found.params)


def loss(w, weights):
    """Cost of one datum on average, weights those of the data in it, with its share of the prior."""
    return -weights @ noise.log_prob(net(unravel(w), x), y) + 0.5 * jnp.sum(w**2) / 60


@jax.jit
def curvature_and_noise():
    h, directions = jnp.linalg.eigh(jax.hessian(loss)(center, jnp.full(60, 1 / 60)))
    each = jax.vmap(jax.grad(loss), (None, 0))(center, jnp.eye(60))
    return h, directions, jnp.var(each @ directions, axis=0)


h, directions, c = curvature_and_noise()


@jax.jit
def run(key, batch_size, metric, learning_rate, momentum, averaging):
    """Excess loss and second moments along each direction, averaged over the second half of 16 chains."""

    def step(carry, key):
        w, v, mean = carry
        rows = jax.random.randint(key, (128,), 0, 60)
        weights = jnp.zeros(60).at[rows].add((jnp.arange(128) < batch_size) / batch_size)
        v = momentum * v - learning_rate * metric @ jax.grad(loss)(w, weights)
        mean = averaging * mean + (1 - averaging) * (w + v)
        return (w + v, v, mean), (loss(mean, jnp.full(60, 1 / 60)), ((mean - center) @ directions) ** 2)

    chain = lambda key: jax.lax.scan(step, (center, 0 * center, center), jax.random.split(key, NQM_STEPS))[1]  # noqa: E731
    losses, squares = jax.vmap(chain)(jax.random.split(key, 16))
    half = NQM_STEPS // 2
    return losses[:, half:].mean() - loss(center, jnp.full(60, 1 / 60)), squares[:, half:].mean((0, 1))


optimisers = {
    "descent": dict(learning_rate=0.02), "momentum 0.8": dict(learning_rate=0.02, momentum=0.8),
    "natural": dict(learning_rate=0.02, power=1.0, damping=0.1),
    "natural, averaged": dict(learning_rate=0.02, power=1.0, damping=0.1, averaging=0.98),
}  # fmt: skip
batches = [8] if SMALL else [8, 32, 128]
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
print(f"{'optimiser':18} {'batch':>5} {'predicted':>10} {'measured':>10}")
for color, (name, options) in zip(("C0", "C1", "C2", "C3"), optimisers.items(), strict=True):
    model = bw.natgrad.NoisyQuadratic(h, c, **options)
    metric = (directions * (h + model.damping) ** -model.power) @ directions.T
    predicted = [float(0.5 * h @ model.stationary(b)) for b in batches]
    measured = []
    for batch, expected in zip(batches, predicted, strict=True):
        excess, squares = run(
            jax.random.key(batch), batch, metric, model.learning_rate, model.momentum, model.averaging
        )
        measured.append(excess)
        print(f"{name:18} {batch:5d} {expected:10.5f} {excess:10.5f}")
        if batch == 8 and name in ("descent", "natural"):
            axes[1].loglog(h, model.temperature(8, num_data=60), color=color, label=f"{name}, predicted")
            axes[1].loglog(h, 60 * h * squares, "o", ms=4, color=color, label="measured")
    axes[0].loglog(batches, predicted, color=color, label=name)
    axes[0].loglog(batches, measured, "o", ms=4, color=color)
axes[0].set(xlabel="batch size", ylabel="loss above the minimum", title="lines predicted, dots measured")
axes[1].set(xlabel="curvature", ylabel="temperature, N h E[w²]", title="batch size 8")
for axis in axes:
    axis.legend(frameon=False, fontsize=8)
plt.show()
