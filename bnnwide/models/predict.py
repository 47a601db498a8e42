"""Posterior predictions, Rao-Blackwellised over the readout, and exact draws of the weights."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real, Shaped

from bnnwide.arch import Params
from bnnwide.checks import Data, check_count
from bnnwide.likelihoods import Outcome
from bnnwide.linalg import cho_solve, cholesky, gram
from bnnwide.models.bnn import BNN, FUNCTION, READOUT, READOUT_BASE
from bnnwide.models.features import Draw, FeatureMap, offset_of
from bnnwide.prediction import Prediction
from bnnwide.reparam import nugget, repriorisation

NUM_FUNCTION_DRAWS = 16  # of the function given a draw, over which outcomes that are not linear in it are averaged


def predict(
    model: BNN,
    samples: Mapping[str, Data],
    x: Real[Data, "n d"],
    y: Shaped[Data, "n *k"],
    x_test: Real[Data, "t d"],
    *,
    key: Array | None = None,
    batch_size: int = 1024,
) -> Prediction:
    """Return the posterior predictive moments at test inputs.

    Given the hidden weights, f* | Y is Gaussian with mean Psi* Psi^T K^-1 Y and covariance
    Psi* Psi*^T - Psi* Psi^T K^-1 Psi Psi*^T (per output): the readout is integrated out exactly for every draw, in
    every form. The mean is the average of these means; the epistemic variance the average of these variances plus the
    variance of these means; the aleatoric variance the average of scale^2.

    Under any other likelihood the same holds of the outcome: `mean` is the average of E[y | f], `epistemic` its
    variance over the posterior, `aleatoric` the average of Var[y | f], and for classes and binary targets `probs`,
    `entropy` and `mutual_information` are there as well.

    Args:
      model: a model made by `bnn`.
      samples: what `mcmc.get_samples()` returns: sites with one leading axis of draws.
      x: (n, d) training inputs, those the samples were drawn with.
      y: (n, k) training targets, or (n,) labels.
      x_test: (t, d) test inputs.
      key: PRNG key of what the input collapse left out; used only with the input collapse.
      batch_size: how many test inputs are held at once; memory does not grow with the number of draws or of inputs.

    Returns:
      Moments (t, k), in the units of y.

    Raises:
      ValueError: for wrong shapes, missing sites, NaN or infinite data, or a Gram matrix with no Cholesky factor.
    """
    x, y, features = _check_data("predict", model, x, y)
    x_test = model.check_inputs("predict", x_test, "x_test", x.shape[1])
    check_count("predict", "batch_size", batch_size)
    draws = _check_samples("predict", model, features, samples)
    key = jax.random.key(0) if key is None else key
    size = min(batch_size, len(x_test))
    batches = jax.tree.map(lambda rows: _in_batches(rows, size), features.test_basis(x_test))
    outcome, epistemic = jax.jit(partial(_moments, model, features))(draws, y, batches, key)
    if not jnp.isfinite(outcome.mean).all():
        raise ValueError(
            "`predict`: Psi Psi^T + scale^2 I has no finite Cholesky factor, even with jitter, or a sample is not "
            "finite; use float64 (jax.config.update('jax_enable_x64', True)) or a larger noise scale"
        )
    rows = lambda batches: batches.reshape(-1, *batches.shape[2:])[: len(x_test)]  # noqa: E731
    outcome, epistemic = jax.tree.map(rows, (outcome, epistemic))
    return Prediction(
        outcome.mean,
        epistemic,
        outcome.variance,
        probs=outcome.probs,
        expected_entropy=outcome.entropy,
    )


def predict_draws(
    model: BNN,
    samples: Mapping[str, Data],
    x: Real[Data, "n d"],
    y: Shaped[Data, "n *k"],
    x_test: Real[Data, "t d"],
    *,
    key: Array | None = None,
) -> tuple[Float[Array, "s t k"], Float[Array, "s t k"]]:
    """Return, for every draw of the hidden weights, the mean and standard deviation of the function at test inputs.

    Args:
      model: a model made by `bnn`.
      samples: what `mcmc.get_samples()` returns.
      x: (n, d) training inputs.
      y: (n, k) training targets, or (n,) labels.
      x_test: (t, d) test inputs.
      key: PRNG key of what the input collapse left out; used only with the input collapse.

    Returns:
      Means and standard deviations of f* given the hidden weights and Y, (s, t, k) each, in the units of y.

    Raises:
      ValueError: for wrong shapes, missing sites, or NaN or infinite data.
    """
    x, y, features = _check_data("predict_draws", model, x, y)
    x_test = model.check_inputs("predict_draws", x_test, "x_test", x.shape[1])
    draws = _check_samples("predict_draws", model, features, samples)
    basis = features.test_basis(x_test)
    keys = jax.random.split(jax.random.key(0) if key is None else key, jax.tree.leaves(draws)[0].shape[0])
    moments = jax.jit(
        lambda draws, keys, y, basis: jax.lax.map(
            lambda item: conditional_moments(model, features, item[0], y, basis, item[1]), (draws, keys)
        )
    )
    mean, variance = moments(draws, keys, y, basis)
    return mean, jnp.broadcast_to(jnp.sqrt(variance), mean.shape)


def conditional_moments(
    model: BNN, features: FeatureMap, draw: Draw, y: Array, basis: tuple[Array, ...], key: Array
) -> tuple[Float[Array, "t k"], Float[Array, "t #k"]]:
    """Return mean (t, k) and variance (t, 1 or k) of the function at one batch of test inputs, given one draw.

    Given the hidden weights and the targets, or the function at the training inputs, or the readout: whichever of
    these the form keeps.
    """
    means, variances = _conditional(model, features, draw, y, jax.tree.map(lambda rows: rows[None], basis), key)
    return means[0], variances[0]


def _conditional(model: BNN, features: FeatureMap, draw: Draw, y: Array, batches: tuple[Array, ...], key: Array):
    psi, mean, test_features = features.reading(draw, key)
    if READOUT in draw:
        weights = draw[READOUT] if mean is None else draw[READOUT] + mean
        at = lambda basis: test_features(basis) @ weights  # noqa: E731
        means = jax.lax.map(at, batches)
        return means, jnp.zeros((*means.shape[:-1], 1), means.dtype)
    kernel = gram(psi)
    if model.exact:
        targets, variance = y, jnp.asarray(model.likelihood.at(draw).scale, psi.dtype) ** 2
    else:
        targets, variance = draw[FUNCTION], nugget(kernel)
    targets = targets - offset_of(psi, mean)
    # Solved once per draw (and noise scale); a test batch then costs its features and two products.
    gains = jax.vmap(lambda v: cho_solve(cholesky(kernel + v * jnp.eye(len(psi), dtype=psi.dtype)), psi))(
        jnp.atleast_1d(variance)
    )
    readout = jnp.einsum("gnm,ng->mg", gains, targets) if len(gains) > 1 else gains[0].T @ targets
    readout = readout if mean is None else readout + mean

    def one_batch(basis: tuple[Array, ...]) -> tuple[Array, Array]:
        psi_test = test_features(basis)
        shared = psi_test @ psi.T
        explained = jax.vmap(lambda gain: jnp.sum(shared * (psi_test @ gain.T), axis=1), out_axes=1)(gains)
        return psi_test @ readout, jnp.maximum(jnp.sum(psi_test**2, axis=1)[:, None] - explained, 0.0)

    return jax.lax.map(one_batch, batches)


def outcome_moments(
    model: BNN, draw: Draw, mean: Float[Array, "... k"], variance: Float[Array, "... #k"], key: Array
) -> tuple[Outcome, Array]:
    """Return the average outcome over a function of the given moments, and the variance of the outcome's mean."""
    likelihood = model.likelihood.at(draw)
    if model.exact:
        noise = jnp.broadcast_to(jnp.asarray(likelihood.scale, mean.dtype) ** 2, mean.shape)
        return Outcome(mean, noise), jnp.broadcast_to(variance, mean.shape)
    # Outcomes are not linear in the function: averaged over draws of it, in pairs either side of its mean.
    half = jax.random.normal(key, (1 if READOUT in draw else NUM_FUNCTION_DRAWS // 2, *mean.shape), mean.dtype)
    f = mean + jnp.sqrt(variance) * jnp.concatenate([half, -half])
    outcome = jax.tree.map(
        lambda leaf: leaf.reshape(*f.shape[:-1], *leaf.shape[1:]), likelihood.outcome(f.reshape(-1, f.shape[-1]))
    )
    return jax.tree.map(lambda leaf: leaf.mean(axis=0), outcome), outcome.mean.var(axis=0)


def _moments(model: BNN, features: FeatureMap, draws: Draw, y: Array, batches: tuple[Array, ...], key: Array):
    """Average over draws with Welford's recursion: one draw and one batch in memory at a time.

    Returns the average outcome, and the variance of its mean over draws (and the function, given a draw).
    """
    num_draws = jax.tree.leaves(draws)[0].shape[0]

    def of_draw(draw: Draw, key: Array) -> tuple[Outcome, Array]:
        basis_key, function_key = jax.random.split(key)
        mean, variance = _conditional(model, features, draw, y, batches, basis_key)
        return outcome_moments(model, draw, mean, variance, function_key)

    def add(carry: Any, draw_and_key: Any) -> Any:
        count, average, spread, within = carry
        outcome, variance = of_draw(*draw_and_key)
        count = count + 1
        new = jax.tree.map(lambda mean, value: mean + (value - mean) / count, average, outcome)
        spread = spread + (outcome.mean - average.mean) * (outcome.mean - new.mean)
        return (count, new, spread, within + variance), None

    keys = jax.random.split(key, num_draws)
    like = jax.eval_shape(of_draw, jax.tree.map(lambda leaf: leaf[0], draws), keys[0])
    average, within = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
    start = (jnp.zeros((), y.dtype if model.exact else within.dtype), average, within, within)
    (count, average, spread, within), _ = jax.lax.scan(add, start, (draws, keys))
    return average, (spread + within) / count


def readout_draws(
    model: BNN, samples: Mapping[str, Data], x: Real[Data, "n d"], y: Shaped[Data, "n *k"], *, key: Array
) -> Float[Array, "s m k"]:
    """Return exact posterior draws of the readout, one for each draw of the hidden weights.

    For the collapsed form under Gaussian noise a fresh phi ~ N(0, I) is mapped through the repriorisation; under any
    other likelihood a fresh readout from the prior is moved to the function's values at the training inputs
    (Matheron's rule). For the other forms the readout is in the samples already (of a `functional_bnn`, in coordinates
    that are mapped to the network's own).

    Args:
      model: a model made by `bnn`.
      samples: what `mcmc.get_samples()` returns.
      x: (n, d) training inputs.
      y: (n, k) training targets, or (n,) labels.
      key: PRNG key.

    Returns:
      (s, m, k) readout weights, the bias row last: net.features(params, x) @ draw is a posterior draw of f.

    Raises:
      ValueError: for wrong shapes, missing sites, or NaN or infinite data.
    """
    x, y, features = _check_data("readout_draws", model, x, y)
    draws = _check_samples("readout_draws", model, features, samples)
    draws |= {name: jnp.asarray(samples[name]) for name in (READOUT, READOUT_BASE) if name in samples}
    num_draws = jax.tree.leaves(draws)[0].shape[0]

    def one_draw(item: tuple[Draw, Array]) -> Array:
        draw, draw_key = item
        if READOUT in draw:
            return features.readout(draw, draw[READOUT])
        psi, mean = features.features_and_mean(draw)
        phi = draw.get(READOUT_BASE, jax.random.normal(draw_key, (psi.shape[1], model.outputs), psi.dtype))
        if FUNCTION in draw:
            targets, scale = draw[FUNCTION], jnp.sqrt(nugget(gram(psi)))
        else:
            targets, scale = y, model.likelihood.at(draw).scale
        targets = targets - offset_of(psi, mean)
        theta = repriorisation(psi, targets, scale, model.solver).forward_and_log_det(phi)[0]
        return features.readout(draw, theta)

    return jax.jit(partial(jax.lax.map, one_draw))((draws, jax.random.split(key, num_draws)))


def hidden_weights(
    model: BNN, samples: Mapping[str, Data], x: Real[Data, "n d"], y: Shaped[Data, "n *k"], *, key: Array
) -> Params:
    """Return the full hidden parameters of every draw, undoing the input collapse.

    Args:
      model: a model made by `bnn`.
      samples: what `mcmc.get_samples()` returns.
      x: (n, d) training inputs.
      y: (n, k) training targets, or (n,) labels.
      key: PRNG key of the first layer's part outside the span of `x`, which keeps its prior.

    Returns:
      Parameters of `model.net[:-1]` with one leading axis of draws.

    Raises:
      ValueError: for wrong shapes, missing sites, or NaN or infinite data.
    """
    _, _, features = _check_data("hidden_weights", model, x, y)
    draws = _check_samples("hidden_weights", model, features, samples)
    keys = jax.random.split(key, jax.tree.leaves(draws)[0].shape[0])
    return jax.lax.map(lambda item: features.hidden_params(*item), (draws, keys))


def _check_data(door: str, model: BNN, x: Data, y: Data) -> tuple[Array, Array, FeatureMap]:
    if not isinstance(model, BNN):
        raise TypeError(f"`{door}`: model must be made by bnn(...); got {type(model).__name__}")
    x = model.check_inputs(door, x)
    return x, model.check_targets(door, x, y), model.feature_map(x)


def _check_samples(door: str, model: BNN, features: FeatureMap, samples: Mapping[str, Data]) -> Draw:
    """Pick the sites that predictions read, and check that they are there with one axis of draws."""
    wanted = {name: leaf.shape for name, leaf in features.shapes.items()}
    wanted |= {name: prior.shape() for name, prior in model.priors.items()}
    if not model.exact:
        n, m, k = len(features.x), features.num_features, model.outputs
        wanted |= {FUNCTION: (n, k)} if model.form == "collapsed" and m > n else {READOUT: (m, k)}
    for name, shape in wanted.items():
        if name not in samples:
            raise ValueError(
                f"`{door}`: samples must hold the site {name!r}; got {sorted(samples)}; pass the samples of this model "
                "drawn with this x"
            )
        if samples[name].shape[1:] != shape:
            raise ValueError(
                f"`{door}`: samples[{name!r}] must have shape (draws, {', '.join(map(str, shape))}); got "
                f"{samples[name].shape}; pass mcmc.get_samples() without group_by_chain, and the x it was run with"
            )
    return {name: jnp.asarray(samples[name]) for name in wanted}


def _in_batches(rows: Array, size: int) -> Array:
    """Split rows into equal batches, the last one filled up with zeros."""
    count = -(-len(rows) // size)
    padded = jnp.pad(rows, ((0, count * size - len(rows)), (0, 0)))
    return padded.reshape(count, size, rows.shape[1])
