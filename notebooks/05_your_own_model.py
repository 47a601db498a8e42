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
# # A wide network in a model of your own
#
# `bw.bnn` states a whole model. Here the network is one part of a NumPyro model that you write:
#
# 1. a random effect per group, next to the network;
# 2. targets that are missing;
# 3. inputs that are observed with error;
# 4. a network from Equinox.
#
# Two functions do it. `bw.sample_params` samples the hidden weights. `bw.sample_readout` samples the last, linear
# layer in the coordinates of a repriorisation: it is told what the rest of the model is expected to say of the
# network's output, "near these targets, within this scale". The prior of the readout stays N(0, I) whatever it is told,
# and you state the likelihood as usual: a wrong hint costs efficiency, never correctness.
#
# It takes about two minutes on two CPU cores. Set `BNNWIDE_NOTEBOOK_SIZE=small` for a quick run.

# %%
import os

import arviz as az
import equinox as eqx
import jax
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers

import bnnwide as bw

jax.config.update("jax_enable_x64", True)

SMALL = os.environ.get("BNNWIDE_NOTEBOOK_SIZE") == "small"
WIDTH = 8 if SMALL else 128
NUM_WARMUP, NUM_SAMPLES = (30, 10) if SMALL else (300, 500)


def network(outputs=1):
    """One hidden layer of error functions."""
    return bw.Dense(WIDTH, w_scale=2.0, b_scale=2.0) >> bw.Erf() >> bw.Dense(outputs, w_scale=1.5, b_scale=0.5)


def run(kernel, *args, **kwargs):
    """Run four chains of a kernel and return NumPyro's MCMC object."""
    mcmc = numpyro.infer.MCMC(
        kernel, num_warmup=NUM_WARMUP, num_samples=NUM_SAMPLES, num_chains=4, chain_method="vectorized",
        progress_bar=False,
    )  # fmt: skip
    count = "num_steps" if isinstance(kernel, numpyro.infer.NUTS) else "num_grads"
    mcmc.run(jax.random.key(0), *args, extra_fields=("accept_prob", "diverging", count), **kwargs)
    info = mcmc.get_extra_fields()
    print(
        f"acceptance {info['accept_prob'].mean():.2f}, {info[count].mean():.0f} gradients per draw, "
        f"{int(info['diverging'].sum())} divergent of {len(info['diverging'])} draws"
    )
    return mcmc


# %% [markdown]
# ## A random effect per group
#
# Measurements of one smooth function by six devices, each with an offset of its own:
# y = f(x) + effect[group] + noise.
#
# The rest of the model expects f(x) near y less the effect, within the noise: those are the targets and the scale.
# Both are sites of the model themselves, and that is fine. `repriorised=False` is the same model with the readout
# in its own coordinates.

# %%
rng = np.random.default_rng(0)
NUM_GROUPS, N = 6, 24 if SMALL else 60
x = rng.uniform(-2, 2, (N, 1))
group = rng.integers(NUM_GROUPS, size=N)
true_effect = rng.normal(0.0, 0.8, NUM_GROUPS)
y = np.sin(2.5 * x) + true_effect[group][:, None] + 0.1 * rng.normal(size=(N, 1))
net = network()


def devices(x, group, y, *, repriorised=True):
    """A wide network and a random effect per group."""
    noise = numpyro.sample("noise", dist.LogNormal(-1.5, 0.7))
    spread = numpyro.sample("spread", dist.HalfNormal(1.0))
    raw = numpyro.sample("raw", dist.Normal(0.0, 1.0).expand([NUM_GROUPS]))
    effect = numpyro.deterministic("effect", spread * raw)[group][:, None]
    psi = net.features(bw.sample_params("hidden", net[:-1], x.shape[1:]), x)
    if repriorised:
        readout = bw.sample_readout("readout", psi, y - effect, noise)
    else:
        readout = bw.sample_readout("readout", psi, outputs=1)
    numpyro.sample("y", dist.Normal(psi @ readout + effect, noise).to_event(2), obs=y)


mcmc = run(bw.SplitHMC(devices), x, group, y)

# %% [markdown]
# The network's output at other inputs is its features times the readout, draw by draw. NumPyro's `substitute` puts the
# draws back into `sample_params`:


# %%
def functions(net, samples, x_test):
    """Posterior draws of the network's output (draws, n_test, outputs)."""

    def one(draw):
        params = handlers.substitute(bw.sample_params, data=draw)("hidden", net[:-1], x_test.shape[1:])
        return net.features(params, x_test) @ draw["readout"]

    hidden = {name: value for name, value in samples.items() if name.startswith("hidden.") or name == "readout"}
    return np.asarray(jax.lax.map(one, hidden, batch_size=100))


def plot_bands(axis, x_test, f, **options):
    """Plot mean and two standard deviations of draws (draws, n_test)."""
    mean, deviation = f.mean(axis=0), f.std(axis=0)
    axis.fill_between(x_test[:, 0], mean - 2 * deviation, mean + 2 * deviation, alpha=0.3, lw=0)
    axis.plot(x_test[:, 0], mean, **options)


grid = np.linspace(-3, 3, 121)[:, None]
f = functions(net, mcmc.get_samples(), grid)[..., 0]
effect = np.asarray(mcmc.get_samples()["effect"])

figure, axes = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
plot_bands(axes[0], grid, f, color="C0", label="f: mean ± 2 sd")
axes[0].plot(grid, np.sin(2.5 * grid), "k--", lw=0.8, label="truth")
axes[0].scatter(x[:, 0], y[:, 0], c=group, cmap="tab10", s=12, label="data, by device")
axes[0].set(xlabel="x", ylabel="y", title="the function", ylim=(-4, 4))
axes[0].legend(frameon=False, fontsize=8)
axes[1].errorbar(np.arange(NUM_GROUPS), effect.mean(0), 2 * effect.std(0), fmt="o", label="mean ± 2 sd")
contrast = effect - effect.mean(axis=1, keepdims=True)
axes[1].errorbar(
    np.arange(NUM_GROUPS) + 0.2, contrast.mean(0), 2 * contrast.std(0), fmt="s", label="less the mean of all"
)
axes[1].plot(np.arange(NUM_GROUPS), true_effect, "k_", ms=16, label="truth")
axes[1].plot(np.arange(NUM_GROUPS) + 0.2, true_effect - true_effect.mean(), "k_", ms=16)
axes[1].set(xlabel="device", title="the effects")
axes[1].legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# The level of f and the mean of the effects can hardly be told apart: what one gains the other loses. Differences
# between devices are known far better than any effect itself.
#
# What did the coordinates bring? The same model with the readout as it is, by NUTS, which adapts a scale to each
# coordinate. (Split HMC takes N(0, I) as its reference for every standard normal site, and a readout under its own
# coordinates is far from that a posteriori.)

# %%
plain = run(numpyro.infer.NUTS(devices, max_tree_depth=4 if SMALL else 8), x, group, y, repriorised=False)

at = np.array([[-1.5], [0.0], [1.5], [2.5]])
for title, chains in (("sample_readout, SplitHMC", mcmc), ("plain readout, NUTS", plain)):
    samples, info = chains.get_samples(), chains.get_extra_fields()
    values = {"f": functions(net, samples, at)[..., 0]} | {
        name: samples[name] for name in ("effect", "noise", "spread")
    }
    values = {name: np.asarray(value).reshape(4, NUM_SAMPLES, *value.shape[1:]) for name, value in values.items()}
    table = az.summary(az.from_dict({"posterior": values}), round_to="none")[["mean", "sd", "ess_bulk", "r_hat"]]
    table = table.astype(float)
    grads = int((info["num_grads"] if "num_grads" in info else info["num_steps"]).sum())
    table["ess per 1000 gradients"] = 1000 * table["ess_bulk"] / grads
    print(f"\n{title}: {grads} gradients, {4 * NUM_SAMPLES} draws\n{table.round(2)}")

# %% [markdown]
# ## Missing targets
#
# Two sensors, one network with two outputs; the second sensor was off for a while, and single readings are lost.
# A missing target gets an infinite scale in `sample_readout`, and `.mask(observed)` leaves it out of the likelihood.
# What is written in its place is not read there; NumPyro's `Normal` needs some number that is not NaN.

# %%
rng = np.random.default_rng(1)
x = np.sort(rng.uniform(-2, 2, (40, 1)), axis=0)
NOISE = 0.1
truth = lambda x: np.concatenate([np.sin(2.5 * x), np.cos(2.5 * x)], axis=1)  # noqa: E731
complete = truth(x) + NOISE * rng.normal(size=(40, 2))
observed = rng.random(complete.shape) > 0.15
observed[:, 1] &= (x[:, 0] < -0.2) | (x[:, 0] > 0.9)
y = np.where(observed, complete, np.nan)
two = network(2)


def sensors(x, y):
    """Two outputs, some of whose targets are NaN."""
    observed = ~np.isnan(y)
    psi = two.features(bw.sample_params("hidden", two[:-1], x.shape[1:]), x)
    readout = bw.sample_readout("readout", psi, y, np.where(observed, NOISE, np.inf))
    f = numpyro.deterministic("f", psi @ readout)
    numpyro.sample("y", dist.Normal(f, NOISE).mask(observed), obs=np.nan_to_num(y))


mcmc_sensors = run(bw.SplitHMC(sensors), x, y)

# %%
f = functions(two, mcmc_sensors.get_samples(), grid)
figure, axes = plt.subplots(1, 2, figsize=(11, 3.4), sharey=True, layout="constrained")
for j, axis in enumerate(axes):
    plot_bands(axis, grid, f[..., j], color="C0", label="mean ± 2 sd")
    axis.plot(grid, truth(grid)[:, j], "k--", lw=0.8, label="truth")
    axis.plot(x[observed[:, j], 0], complete[observed[:, j], j], "k.", label="observed")
    axis.plot(x[~observed[:, j], 0], complete[~observed[:, j], j], "C3x", ms=5, label="missing: not seen by the model")
    axis.set(xlabel="x", title=f"sensor {j + 1}", ylim=(-3, 3))
axes[0].legend(frameon=False, fontsize=8)
plt.show()

draws = np.asarray(mcmc_sensors.get_samples()["f"])[:, ~observed]
z = (complete[~observed] - draws.mean(axis=0)) / np.sqrt(draws.var(axis=0) + NOISE**2)
print(
    f"{(~observed).sum()} missing targets: root mean square of their standardised errors {np.sqrt(np.mean(z**2)):.2f}"
)

# %% [markdown]
# The bands widen where a sensor was off, and the other sensor's readings there are of little help: outputs of a wide
# network share hidden weights only, and are independent in the limit.
#
# ## Inputs observed with error
#
# The inputs may be latent, too. Here each is known within a standard error s, so that its true value is a site; written
# as s times a standard normal one, it has the reference that split HMC wants.
#
# The network is one from Equinox this time, two hidden layers of an `eqx.nn.MLP`: anything that `bw.from_equinox`,
# `bw.from_nnx` or `bw.from_features` makes has features and sites as well.

# %%
rng = np.random.default_rng(2)
S = 0.2
x_true = rng.uniform(-2, 2, (40, 1))
x_seen = x_true + S * rng.normal(size=x_true.shape)
y = np.sin(2.5 * x_true) + NOISE * rng.normal(size=x_true.shape)

module = eqx.nn.MLP(1, 1, WIDTH, depth=2, activation=jax.lax.erf, key=jax.random.key(0))
mlp = bw.from_equinox(module, x_seen[:2], w_scale=2.0, b_scale=1.0, readout_w_scale=1.5, readout_b_scale=0.5)
print(mlp)


def errors_in_inputs(x_seen, y, s):
    """The network at inputs that are known within s."""
    x = x_seen
    if s:
        x = numpyro.deterministic("x", x_seen + s * numpyro.sample("z", dist.Normal().expand(x_seen.shape).to_event(2)))
    psi = mlp.features(bw.sample_params("hidden", mlp[:-1], x_seen.shape[1:]), x)
    readout = bw.sample_readout("readout", psi, y, NOISE)
    numpyro.sample("y", dist.Normal(psi @ readout, NOISE).to_event(2), obs=y)


latent = {s: run(bw.SplitHMC(errors_in_inputs), x_seen, y, s) for s in ([S] if SMALL else [0.0, S])}

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 3.4), sharey=True, layout="constrained")
for axis, (s, chains) in zip(axes[2 - len(latent) :], latent.items(), strict=True):
    f = functions(mlp, chains.get_samples(), grid)[..., 0]
    plot_bands(axis, grid, f, color="C0", label="mean ± 2 sd")
    axis.plot(grid, np.sin(2.5 * grid), "k--", lw=0.8, label="truth")
    axis.plot(x_seen[:, 0], y[:, 0], "k.", ms=4, label="data as seen")
    if s:
        x_mean = np.asarray(chains.get_samples()["x"]).mean(axis=0)
        axis.plot(x_mean[:, 0], y[:, 0], "C1.", ms=4, label="inputs: posterior mean")
    inside = np.abs(grid[:, 0]) < 2
    z = (np.sin(2.5 * grid[inside, 0]) - f[:, inside].mean(0)) / f[:, inside].std(0)
    axis.set(xlabel="x", title=f"s = {s}", ylim=(-3, 3))
    print(
        f"s = {s}: root mean square error of f in (-2, 2) "
        f"{np.sqrt(np.mean((np.sin(2.5 * grid[inside, 0]) - f[:, inside].mean(0)) ** 2)):.2f}, standardised "
        f"{np.sqrt(np.mean(z**2)):.1f}"
    )
axes[1].legend(frameon=False, fontsize=8)
plt.show()
x_draws = np.asarray(latent[S].get_samples()["x"])
print(
    f"error of the inputs: as seen {np.sqrt(np.mean((x_seen - x_true) ** 2)):.3f}, posterior mean "
    f"{np.sqrt(np.mean((x_draws.mean(axis=0) - x_true) ** 2)):.3f}"
)
