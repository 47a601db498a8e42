"""Predictions with the readout that was drawn, where `predict` integrates it out."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Real

from bnnwide.checks import Data
from bnnwide.likelihoods import Gaussian
from bnnwide.models.bnn import BNN, READOUT
from bnnwide.prediction import Prediction


def predict_plain(
    model: BNN,
    samples: Mapping[str, Data],
    x: Real[Data, "n d"],
    x_test: Real[Data, "t d"],
    *,
    key: Array | None = None,
) -> Prediction:
    """Return the predictive moments of the networks that were drawn, readout included.

    mean = avg f_s, epistemic = avg (f_s - mean)^2, aleatoric = avg scale_s^2 over draws s. For exact draws the limit is
    that of `predict`, which integrates the readout out for every draw. For an approximation the two differ: `predict`
    takes only hidden weights from it and mends its readout, and this does not.

    Args:
      model: a model made by `bnn`, of the standard or repriorised form.
      samples: what `get_samples()` of a run returns.
      x: (n, d) training inputs, those the samples were drawn with.
      x_test: (t, d) test inputs.
      key: PRNG key of what the input collapse left out; used only with the input collapse.

    Returns:
      Moments (t, k), in the units of y.

    Raises:
      TypeError: if the model is not made by `bnn`, or its likelihood is not Gaussian.
      ValueError: for wrong shapes, or samples without a readout.
    """
    if not isinstance(model, BNN) or not isinstance(model.likelihood, Gaussian):
        raise TypeError(f"`predict_plain`: model must be made by bnn(...) with a Gaussian likelihood; got {model!r}")
    x = model.check_inputs("predict_plain", x)
    x_test = model.check_inputs("predict_plain", x_test, "x_test", x.shape[1])
    if READOUT not in samples:
        raise ValueError(
            f"`predict_plain`: samples must hold the site {READOUT!r}; got {sorted(samples)}; use the standard or the "
            "repriorised form, or predict"
        )
    features = model.feature_map(x)
    basis = features.test_basis(x_test)
    names = [*features.shapes, READOUT]
    draws = {name: jnp.asarray(samples[name]) for name in names}
    keys = jax.random.split(jax.random.key(0) if key is None else key, len(draws[READOUT]))

    @jax.jit
    def outputs(draws: dict[str, Array], keys: Array) -> Array:
        return jax.lax.map(lambda item: features.test_features(item[0], basis, item[1]) @ item[0][READOUT], (draws, keys))

    f = outputs(draws, keys)
    scale = jnp.asarray(model.likelihood.at(samples).scale, f.dtype)
    return Prediction(f.mean(0), f.var(0), jnp.full(f.shape[1:], jnp.mean(scale**2)))
