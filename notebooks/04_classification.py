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
# # Classification
#
# Handwritten digits with a softmax likelihood: probabilities, their calibration, and what the model says of images
# unlike any that it was trained on. Two of the ten classes are held out from training for that.
#
# It takes about four minutes on two CPU cores. Set `BNNWIDE_NOTEBOOK_SIZE=small` for a quick run.

# %%
import os

import arviz as az
import jax
import matplotlib.pyplot as plt
import numpy as np
import numpyro
from sklearn.metrics import roc_auc_score, roc_curve

import bnnwide as bw

jax.config.update("jax_enable_x64", True)

SMALL = os.environ.get("BNNWIDE_NOTEBOOK_SIZE") == "small"
NUM_TRAIN, WIDTH = (40, 48) if SMALL else (200, 256)
NUM_WARMUP, NUM_SAMPLES = (20, 20) if SMALL else (200, 300)

# %% [markdown]
# ## Data
#
# 8 x 8 images. Labels are integers (n,). The digits 8 and 9 are left out of the training images, and kept apart among
# the test images.

# %%
data = bw.datasets.load_digits(num_train=NUM_TRAIN)
kept = data.labels < 8
x, labels = data.x[kept], data.labels[kept]
known = data.labels_test < 8
x_test, labels_test = data.x_test[known], data.labels_test[known]
print(f"{len(x)} training images, {len(x_test)} test images of the same classes, {(~known).sum()} of the other two")

# %% [markdown]
# Images of three other kinds will be of use below: the digits 8 and 9, known test images rotated by 90 degrees, and
# known test images with their pixels shuffled.

# %%
images = {
    "known classes": x_test,
    "digits 8 and 9": data.x_test[~known],
    "rotated": np.rot90(x_test.reshape(-1, 8, 8), axes=(1, 2)).reshape(-1, 64),
    "shuffled pixels": np.random.default_rng(0).permuted(x_test, axis=1),
}
figure, axes = plt.subplots(1, 4, figsize=(9, 1.9), layout="constrained")
for axis, (kind, rows) in zip(axes, images.items(), strict=True):
    axis.imshow(np.hstack(rows[:3].reshape(-1, 8, 8)), cmap="gray_r")
    axis.set(title=kind, xticks=[], yticks=[])
plt.show()

# %% [markdown]
# ## Model
#
# One output per class, `bw.Categorical()`, and the collapsed form by default: Gaussian sites stand in for the softmax
# to choose coordinates, the exact ratio stays in the target, and of the readout only its values at the training inputs
# are sampled ("function").
#
# The network has ten outputs although two classes have no labels: that they exist is prior knowledge.
#
# The readout's `w_scale` sets how large the logits are a priori, and with it how sure the model can be. So there are
# two models, with scales 1 and 8. (A prior, `w_scale=dist.LogNormal(1.0, 1.0)`, leaves the choice to the data. Its
# chains must be several times longer: the scale of the logits and the logits themselves move together.)


# %%
def network(w_scale):
    """One hidden layer, ten classes."""
    return bw.Dense(WIDTH, w_scale=2**0.5, b_scale=0.1) >> bw.Gelu() >> bw.Dense(10, w_scale=w_scale, b_scale=0.1)


models = {
    "scale 1": bw.bnn(network(1.0), bw.Categorical()),
    "scale 8": bw.bnn(network(8.0), bw.Categorical()),
}
if SMALL:
    del models["scale 1"]
runs = {}
for name, model in models.items():
    mcmc = numpyro.infer.MCMC(
        bw.SplitHMC(model), num_warmup=NUM_WARMUP, num_samples=NUM_SAMPLES, num_chains=4, chain_method="vectorized",
        progress_bar=False,
    )  # fmt: skip
    mcmc.run(jax.random.key(0), x, labels, extra_fields=("accept_prob", "num_grads"))
    info = mcmc.get_extra_fields()
    print(f"{name}: acceptance {info['accept_prob'].mean():.2f}, gradients per draw {info['num_grads'].mean():.1f}")
    runs[name] = mcmc

# %% [markdown]
# `predict` gives probabilities, their entropy, and the mutual information of label and function. One call for all
# images compiles once.


# %%
def predict_all(name):
    """Predict all kinds of images with one model: probabilities and scores by kind."""
    pred = bw.predict(models[name], runs[name].get_samples(), x, labels, np.concatenate(list(images.values())))
    edges = np.cumsum([len(rows) for rows in images.values()])[:-1]
    values = {"probs": pred.probs, "entropy": pred.entropy, "mutual information": pred.mutual_information}
    values["1 - confidence"] = 1 - pred.probs.max(axis=1)
    parts = {value: np.split(np.asarray(array), edges) for value, array in values.items()}
    return {kind: {value: part[i] for value, part in parts.items()} for i, kind in enumerate(images)}


predictions = {name: predict_all(name) for name in models}

# %% [markdown]
# ## Accuracy, log-likelihood, calibration
#
# `pred.probs` are the probabilities of the classes. A model is calibrated if, of all images for which it gives its
# first choice the probability p, a fraction p is classified correctly. The expected calibration error is the average
# distance between the two over bins of equally many images.


# %%
def calibration(probs, labels, num_bins=8):
    """Return mean confidence and accuracy of each bin, and the expected calibration error."""
    confidence, correct = probs.max(axis=1), probs.argmax(axis=1) == labels
    bins = np.array_split(np.argsort(confidence), num_bins)
    points = np.array([(confidence[rows].mean(), correct[rows].mean(), len(rows)) for rows in bins])
    return points, np.average(np.abs(points[:, 0] - points[:, 1]), weights=points[:, 2])


figure, axis = plt.subplots(figsize=(4.6, 4.2), layout="constrained")
axis.plot([0, 1], [0, 1], "k--", lw=0.8)
for name, pred in predictions.items():
    probs = pred["known classes"]["probs"]
    points, error = calibration(probs, labels_test)
    deviation = np.sqrt(points[:, 1] * (1 - points[:, 1]) / points[:, 2])
    axis.errorbar(points[:, 0], points[:, 1], 2 * deviation, fmt="o-", ms=4, label=f"{name}: error {error:.3f}")
    accuracy = (probs.argmax(axis=1) == labels_test).mean()
    log_likelihood = np.log(probs[np.arange(len(probs)), labels_test]).mean()
    print(
        f"{name}: accuracy {accuracy:.3f}, mean confidence {probs.max(axis=1).mean():.3f}, "
        f"log-likelihood {log_likelihood:.3f} per image, expected calibration error {error:.3f}"
    )
axis.set(xlabel="confidence", ylabel="accuracy (± 2 standard errors)", title="Reliability", xlim=(0, 1), ylim=(0, 1.02))
axis.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# ## Mixing
#
# Single weights are not identified; the function is. Its ESS and R-hat, through ArviZ, for a few logits and then over
# all of them:

# %%
model, mcmc = models["scale 8"], runs["scale 8"]
posterior = bw.to_arviz(mcmc, max_size=len(x) * 10)["posterior"].to_dataset()
some = posterior[["function"]].isel(function_dim_0=[0, 1], function_dim_1=[0, 1, 9])
print(az.summary(some))

# %%
for name, chains in runs.items():
    function = np.asarray(chains.get_samples(group_by_chain=True)["function"])
    function = function.reshape(*function.shape[:2], -1)
    every = function[:, :, :: max(1, function.shape[2] // 200)]
    ess, r_hat = bw.diagnostics.effective_sample_size(every), bw.diagnostics.potential_scale_reduction(every)
    print(
        f"{name}: bulk ESS of the logits minimum {ess.min():.0f}, median {np.median(ess):.0f} of {4 * NUM_SAMPLES} "
        f"draws; largest R-hat {r_hat.max():.3f}"
    )

# %% [markdown]
# ## Images of another kind
#
# The entropy of the predicted label is total uncertainty. The mutual information of label and function is the part that
# more data would remove, which should be large away from the training images. How well does each tell the known test
# images from the three other kinds? The area under the ROC curve is the probability that an image of the other kind
# gets the larger value; 0.5 is chance.

# %%
SCORES = ("entropy", "mutual information", "1 - confidence")


def detection(pred, kind, score):
    """Return the truth, known or other, and the score of each image."""
    known, other = pred["known classes"][score], pred[kind][score]
    return np.repeat([0, 1], [len(known), len(other)]), np.concatenate([known, other])


for name, pred in predictions.items():
    print(f"{name}: area under the ROC curve")
    for kind in list(images)[1:]:
        areas = {score: roc_auc_score(*detection(pred, kind, score)) for score in SCORES}
        print(f"  {kind}: " + ", ".join(f"{score} {area:.2f}" for score, area in areas.items()))

# %%
pred = predictions["scale 8"]
figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
for axis, score in zip(axes, SCORES[:2], strict=False):
    edges = np.linspace(0, max(part[score].max() for part in pred.values()), 25)
    for color, (kind, part) in enumerate(pred.items()):
        filled = {"alpha": 0.5, "color": "k"} if color == 0 else {"histtype": "step", "lw": 1.5, "color": f"C{color}"}
        axis.hist(part[score], edges, density=True, label=kind, **filled)
    axis.set(xlabel=f"{score} (nats)", ylabel="density")
axes[0].legend(frameon=False, fontsize=8)
for color, kind in enumerate(list(images)[1:], start=1):
    for score, style in (("entropy", "-"), ("mutual information", "--")):
        axes[2].plot(*roc_curve(*detection(pred, kind, score))[:2], style, color=f"C{color}")
axes[2].plot([0, 1], [0, 1], "k:", lw=0.8)
axes[2].set(xlabel="false alarms", ylabel="detected", title="ROC: entropy (full), mutual information (dashed)")
axes[2].title.set_size(9)
plt.show()

# %% [markdown]
# ## Classes without a label
#
# What probability do 8 and 9 get, of which no training image had the label?

# %%
for name, pred in predictions.items():
    print(name)
    for kind, part in pred.items():
        missing = part["probs"][:, 8:].sum(axis=1)
        print(f"  {kind}: P(8 or 9) is {missing.mean():.3f} on average, at most {missing.max():.3f}; a priori 0.2")
