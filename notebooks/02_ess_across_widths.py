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
# # Effective sample size across widths
#
# How much work does one independent posterior draw cost, and how does that change with the width of the network?
# `ess_by_width` answers by giving every method the same time at every width.
#
# It takes about four minutes on two CPU cores. Set `BNNWIDE_NOTEBOOK_SIZE=small` for a quick run.

# %%
import os

import jax
import matplotlib.pyplot as plt

import bnnwide as bw

jax.config.update("jax_enable_x64", True)

SMALL = os.environ.get("BNNWIDE_NOTEBOOK_SIZE") == "small"
NUM_TRAIN = 16 if SMALL else 64
WIDTHS = [16, 32] if SMALL else [64, 256, 1024]
METHODS = ["paper", "splithmc-collapsed"] if SMALL else ["nuts-standard", "paper", "splithmc-collapsed"]
SECONDS = 0.5 if SMALL else 15.0

# %% [markdown]
# ## The problem
#
# Scikit-learn's handwritten digits: real images of 8 × 8 pixels, standardised. Targets are one-hot − 0.1, one column
# per class, and the noise scale is 0.1: regression on labels, as in the experiments of Hron et al. (2022).

# %%
data = bw.datasets.load_digits(num_train=NUM_TRAIN, num_test=200)

figure, axes = plt.subplots(1, 8, figsize=(8, 1.4), layout="constrained")
for axis, image, label in zip(axes, data.x, data.labels, strict=False):
    axis.imshow(image.reshape(8, 8), cmap="gray_r")
    axis.set(title=label, xticks=[], yticks=[])
plt.show()

# %% [markdown]
# ## The sweep
#
# An architecture for each width, and three methods:
#
# - `nuts-standard`: NumPyro's NUTS on the weights as they are;
# - `paper`: the algorithm released with Hron et al. (2022), leapfrog on repriorised weights;
# - `splithmc-collapsed`: exact moves under the prior, the readout integrated out.


# %%
def network(width):
    """One hidden layer of GELU units."""
    return bw.Dense(width, w_scale=2**0.5, b_scale=0.1) >> bw.Gelu() >> bw.Dense(10, w_scale=1.0, b_scale=0.1)


table = bw.ess_by_width(
    network,
    bw.Gaussian(scale=0.1),
    data.x,
    data.y,
    widths=WIDTHS,
    methods=METHODS,
    key=jax.random.key(0),
    x_test=data.x_test,
    y_test=data.y_test,
    seconds=SECONDS,
    num_warmup=50 if SMALL else 200,
    progress=False,
)
print(bw.format_ess_table(table))

# %% [markdown]
# What the columns say:
#
# - **accept**: mean acceptance probability.
# - **R-hat**: the largest over all functions measured; 1 for chains that agree. Above about 1.1 the chain has not
#   converged, and its ESS means nothing.
# - **draws**: of all four chains, within the time.
# - **ESS/grad**: bulk effective sample size per gradient evaluation; the minimum over predictions at 20 test inputs
#   (all outputs) and 20 random projections of the hidden weights, then the median. 1 would be an independent draw per
#   gradient.
# - **ESS/s**: the same per second of sampling, without warm-up and compilation.
# - **test RMSE**, **accuracy**: of the posterior mean. All methods sample one posterior, so these agree where chains
#   have converged.
#
# A dash: too few draws for an ESS in the time given.

# %%
bw.plot_ess_by_width(table)

# %% [markdown]
# For `splithmc-collapsed` the line on the left rises: what is left to integrate, V, shrinks with the width. On the
# right it competes with the cost of a gradient, which grows in proportion to the width. NUTS pays for the readout's
# curvature with hundreds of gradients per draw at every width. The paper's algorithm factors a matrix of the width's
# size, and takes small steps with a momentum that it keeps.
#
# ## Where the time went
#
# The table is an `xarray` dataset, so everything can be computed on.

# %%
table["grads_per_draw"] = table.num_grads / table.num_draws
table["ms_per_grad"] = 1e3 * table.sampling_seconds / table.num_grads
table[["grads_per_draw", "ms_per_grad", "compile_seconds"]].to_dataframe().round(3)

# %% [markdown]
# Gains over the paper's algorithm, in minimum ESS per second:

# %%
ratio = table.ess_per_second_min / table.ess_per_second_min.sel(method="paper")
ratio.to_pandas().round(1)
