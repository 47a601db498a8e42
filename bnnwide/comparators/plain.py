"""Predictions with the readout that was drawn, where `predict` integrates it out."""

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Real

from bnnwide.checks import Data
from bnnwide.likelihoods import Outcome
from bnnwide.models.bnn import BNN, READOUT
from bnnwide.prediction import Prediction, over_draws


def predict_plain(
    model: BNN,
    samples: Mapping[str, Data],
    x: Real[Data, "n d"],
    x_test: Real[Data, "t d"],
    *,
    key: Array | None = None,
) -> Prediction:
    """Return the predictive moments of the networks that were drawn, readout included.

    mean = avg E[y | f_s], epistemic = its variance over draws s, aleatoric = avg Var[y | f_s]. For exact draws the
    limit is that of `predict`, which integrates the readout out for every draw. For an approximation under Gaussian
    noise the two differ: `predict` takes only hidden weights from it and mends its readout, and this does not.

    Args:
      model: a model made by `bnn`, of the standard or repriorised form.
      samples: what `get_samples()` of a run returns.
      x: (n, d) training inputs, those the samples were drawn with.
      x_test: (t, d) test inputs.
      key: PRNG key of what the input collapse left out; used only with the input collapse.

    Returns:
      Moments (t, k), in the units of y.

    Raises:
      TypeError: if the model is not made by `bnn`.
      ValueError: for wrong shapes, or samples without a readout.
    """
    if not isinstance(model, BNN):
        raise TypeError(f"`predict_plain`: model must be made by bnn(...); got {model!r}")
    x = model.check_inputs("predict_plain", x)
    x_test = model.check_inputs("predict_plain", x_test, "x_test", x.shape[1])
    if READOUT not in samples:
        raise ValueError(
            f"`predict_plain`: samples must hold the site {READOUT!r}; got {sorted(samples)}; use the standard or the "
            "repriorised form, or predict"
        )
    features = model.feature_map(x)
    basis = features.test_basis(x_test)
    draws = {name: jnp.asarray(samples[name]) for name in [*features.shapes, *model.priors, READOUT]}
    keys = jax.random.split(jax.random.key(0) if key is None else key, len(draws[READOUT]))

    def outcome(item: tuple[dict[str, Array], Array]) -> Outcome:
        draw, draw_key = item
        return model.likelihood.at(draw).outcome(features.function(draw, draw[READOUT], basis, draw_key))

    each = jax.jit(partial(jax.lax.map, outcome))((draws, keys))
    return over_draws(each)
