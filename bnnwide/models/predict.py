"""Posterior predictions, Rao-Blackwellised over the readout, and exact draws of the weights."""

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from bnnwide.arch import Params
from bnnwide.checks import Data, check_count
from bnnwide.linalg import cho_solve, cholesky
from bnnwide.models.bnn import BNN, NOISE, READOUT, READOUT_BASE
from bnnwide.models.features import Draw, FeatureMap
from bnnwide.prediction import Prediction
from bnnwide.reparam import Repriorisation


def predict(
    model: BNN,
    samples: Mapping[str, Data],
    x: Real[Data, "n d"],
    y: Real[Data, "n k"],
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

    Args:
      model: a model made by `bnn`.
      samples: what `mcmc.get_samples()` returns: sites with one leading axis of draws.
      x: (n, d) training inputs, those the samples were drawn with.
      y: (n, k) training targets.
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
    basis = features.test_basis(x_test)
    size = min(batch_size, len(x_test))
    batches = jax.tree.map(lambda rows: _in_batches(rows, size), basis)
    mean, epistemic, aleatoric = jax.jit(partial(_moments, model, features))(draws, y, batches, key)
    shape = (len(x_test), y.shape[1])
    if not jnp.isfinite(mean).all():
        raise ValueError(
            "`predict`: Psi Psi^T + scale^2 I has no finite Cholesky factor, even with jitter, or a sample is not "
            "finite; use float64 (jax.config.update('jax_enable_x64', True)) or a larger noise scale"
        )
    return Prediction(
        mean.reshape(-1, y.shape[1])[: len(x_test)],
        epistemic.reshape(-1, y.shape[1])[: len(x_test)],
        jnp.broadcast_to(aleatoric, shape),
    )


def predict_draws(
    model: BNN,
    samples: Mapping[str, Data],
    x: Real[Data, "n d"],
    y: Real[Data, "n k"],
    x_test: Real[Data, "t d"],
    *,
    key: Array | None = None,
) -> tuple[Float[Array, "s t k"], Float[Array, "s t k"]]:
    """Return, for every draw of the hidden weights, the mean and standard deviation of the function at test inputs.

    Args:
      model: a model made by `bnn`.
      samples: what `mcmc.get_samples()` returns.
      x: (n, d) training inputs.
      y: (n, k) training targets.
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
        lambda draws, keys: jax.lax.map(
            lambda item: conditional_moments(model, features, item[0], y, basis, item[1]), (draws, keys)
        )
    )
    mean, variance = moments(draws, keys)
    return mean, jnp.broadcast_to(jnp.sqrt(variance)[..., None], mean.shape)


def conditional_moments(
    model: BNN, features: FeatureMap, draw: Draw, y: Array, basis: tuple[Array, ...], key: Array
) -> tuple[Float[Array, "t k"], Float[Array, "t"]]:
    """Return mean (t, k) and variance (t,) of f* | Y, hidden weights of one draw, at one batch of test inputs."""
    (means, variances) = _conditional(model, features, draw, y, jax.tree.map(lambda rows: rows[None], basis), key)
    return means[0], variances[0]


def _conditional(model: BNN, features: FeatureMap, draw: Draw, y: Array, batches: tuple[Array, ...], key: Array):
    psi = features.features(draw)
    scale = noise_scale(model, draw)
    factor = cholesky(psi @ psi.T + scale**2 * jnp.eye(len(psi), dtype=psi.dtype))
    # Solved once per draw; a test batch then costs its features and two products.
    weights = psi.T @ cho_solve(factor, jnp.concatenate([y, jnp.eye(len(y), dtype=y.dtype)], axis=1))
    readout_mean, gain = weights[:, : y.shape[1]], weights[:, y.shape[1] :]

    def one_batch(basis: tuple[Array, ...]) -> tuple[Array, Array]:
        psi_test = features.test_features(draw, basis, key)
        shared = psi_test @ psi.T
        variance = jnp.sum(psi_test**2, axis=1) - jnp.sum(shared * (psi_test @ gain), axis=1)
        return psi_test @ readout_mean, jnp.maximum(variance, 0.0)

    return jax.lax.map(one_batch, batches)


def _moments(model: BNN, features: FeatureMap, draws: Draw, y: Array, batches: tuple[Array, ...], key: Array):
    """Average conditional moments over draws with Welford's recursion: one draw and one batch in memory at a time."""
    num_draws = jax.tree.leaves(draws)[0].shape[0]
    batch_count, size = batches[0].shape[:2]

    def add(carry, draw_and_key):
        count, mean, spread, variance, noise = carry
        draw, draw_key = draw_and_key
        means, variances = _conditional(model, features, draw, y, batches, draw_key)
        count = count + 1
        step = means - mean
        mean = mean + step / count
        noise = noise + noise_scale(model, draw) ** 2
        return (count, mean, spread + step * (means - mean), variance + variances[..., None], noise), None

    zeros = jnp.zeros((batch_count, size, y.shape[1]), y.dtype)
    start = (jnp.zeros((), y.dtype), zeros, zeros, zeros, jnp.zeros((), y.dtype))
    keys = jax.random.split(key, num_draws)
    (count, mean, spread, variance, noise), _ = jax.lax.scan(add, start, (draws, keys))
    return mean, (spread + variance) / count, noise / count


def readout_draws(
    model: BNN, samples: Mapping[str, Data], x: Real[Data, "n d"], y: Real[Data, "n k"], *, key: Array
) -> Float[Array, "s m k"]:
    """Return exact posterior draws of the readout, one for each draw of the hidden weights.

    For the collapsed form a fresh phi ~ N(0, I) is mapped through the repriorisation; for the others the readout is in
    the samples already.

    Args:
      model: a model made by `bnn`.
      samples: what `mcmc.get_samples()` returns.
      x: (n, d) training inputs.
      y: (n, k) training targets.
      key: PRNG key.

    Returns:
      (s, m, k) readout weights, the bias row last: net.features(params, x) @ draw is a posterior draw of f.

    Raises:
      ValueError: for wrong shapes, missing sites, or NaN or infinite data.
    """
    x, y, features = _check_data("readout_draws", model, x, y)
    if READOUT in samples:
        return jnp.asarray(samples[READOUT])
    draws = _check_samples("readout_draws", model, features, samples)
    if READOUT_BASE in samples:
        draws[READOUT_BASE] = jnp.asarray(samples[READOUT_BASE])
    num_draws = jax.tree.leaves(draws)[0].shape[0]

    def one_draw(item: tuple[Draw, Array]) -> Array:
        draw, draw_key = item
        psi = features.features(draw)
        phi = draw[READOUT_BASE] if READOUT_BASE in draw else jax.random.normal(draw_key, (psi.shape[1], y.shape[1]))
        return Repriorisation(psi, y, noise_scale(model, draw), model.solver).forward_and_log_det(phi)[0]

    return jax.jit(partial(jax.lax.map, one_draw))((draws, jax.random.split(key, num_draws)))


def hidden_weights(
    model: BNN, samples: Mapping[str, Data], x: Real[Data, "n d"], y: Real[Data, "n k"], *, key: Array
) -> Params:
    """Return the full hidden parameters of every draw, undoing the input collapse.

    Args:
      model: a model made by `bnn`.
      samples: what `mcmc.get_samples()` returns.
      x: (n, d) training inputs.
      y: (n, k) training targets.
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
    """Pick the latent sites that predictions read, and check that they are there with one axis of draws."""
    wanted = {name: leaf.shape for name, leaf in features.shapes.items()}
    if model.likelihood.learned:
        wanted[NOISE] = ()
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


def noise_scale(model: BNN, draw: Draw) -> Array:
    """Return the noise scale of one draw, fixed or learned."""
    return draw[NOISE] if model.likelihood.learned else jnp.asarray(model.likelihood.scale, jnp.result_type(float))


def _in_batches(rows: Array, size: int) -> Array:
    """Split rows into equal batches, the last one filled up with zeros."""
    count = -(-len(rows) // size)
    padded = jnp.pad(rows, ((0, count * size - len(rows)), (0, 0)))
    return padded.reshape(count, size, rows.shape[1])
