"""The scalar functions of a draw whose effective sample sizes a sweep reports."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro.infer.util import constrain_fn

from bnnwide.likelihoods import Likelihood
from bnnwide.models.bnn import BNN, READOUT
from bnnwide.models.features import Draw
from bnnwide.models.predict import conditional_moments, outcome_moments
from bnnwide.samplers.core import standard_normal_like

NUM_INPUTS = 20
NUM_PROJECTIONS = 20


def constrained(model: BNN, x: Array, y: Array) -> Callable[[Draw], Draw]:
    """Return z -> all sites of a draw, deterministic ones included, from the unconstrained ones that kernels hold."""
    return lambda z: constrain_fn(model, (x, y), {}, z, return_deterministic=True)


def predictions_of(model: BNN, x: Array, y: Array, x_test: Array) -> Callable[[Draw, Array], Array]:
    """Return (draw, key) -> (t, k), the predictions at `x_test` whose mixing is measured.

    For the standard and repriorised forms these are the network's outputs, readout included. For the collapsed form
    they are the conditional means given what the chain holds: an output with its exact, independent readout draw would
    only add independent noise and flatter the sampler. Outputs that count only relative to each other (softmax) have
    their mean taken off.

    Args:
      model: the BNN.
      x: (n, d) training inputs.
      y: (n, k) training targets, or (n,) labels.
      x_test: (t, d) test inputs.
    """
    features = model.feature_map(x)
    basis = features.test_basis(x_test)

    def predictions(draw: Draw, key: Array) -> Array:
        return _told_apart(model.likelihood, conditional_moments(model, features, draw, y, basis, key)[0])

    return predictions


def _told_apart(likelihood: Likelihood, f: Array) -> Array:
    return f - f.mean(axis=1, keepdims=True) if likelihood.shift_invariant else f


def parts_read(
    likelihood: Likelihood, read: Callable[[Draw, Array], Array], x_test: Array
) -> tuple[Callable[[Draw, Array], Array], Callable[[Draw, Array], Array]]:
    """Return what `predictions_of` (at the first inputs) and `outcomes_of` do, for draws that are no sites of a model.

    Args:
      likelihood: of the targets, with numbers for its parameters.
      read: from (draw, x) to the function (t, k).
      x_test: (t, d) test inputs.
    """
    return (
        lambda draw, key: _told_apart(likelihood, read(draw, x_test[:NUM_INPUTS])),
        lambda draw, key: likelihood.outcome(read(draw, x_test)).mean,
    )


def outcomes_of(model: BNN, x: Array, y: Array, x_test: Array) -> Callable[[Draw, Array], Array]:
    """Return (draw, key) -> (t, k), the mean of a new observation at `x_test` given a draw.

    Args:
      model: the BNN.
      x: (n, d) training inputs.
      y: (n, k) training targets, or (n,) labels.
      x_test: (t, d) test inputs.
    """
    features = model.feature_map(x)
    basis = features.test_basis(x_test)

    def outcomes(draw: Draw, key: Array) -> Array:
        basis_key, function_key = jax.random.split(key)
        if model.exact:  # the readout is integrated out instead
            draw = {name: value for name, value in draw.items() if name != READOUT}
        moments = conditional_moments(model, features, draw, y, basis, basis_key)
        return outcome_moments(model, draw, *moments, function_key)[0].mean

    return outcomes


def projections_of(model: BNN, x: Array, key: Array) -> Callable[[Draw], Array]:
    """Return draw -> (20,), fixed random projections of the sampled hidden weights, of prior variance 1.

    Args:
      model: the BNN.
      x: (n, d) training inputs.
      key: PRNG key of the directions.
    """
    shapes = model.feature_map(x).shapes
    size = sum(int(np.prod(leaf.shape)) for leaf in shapes.values())

    @jax.jit
    def draw_directions() -> Draw:
        rows = {name: jax.ShapeDtypeStruct((NUM_PROJECTIONS, *leaf.shape), leaf.dtype) for name, leaf in shapes.items()}
        return jax.tree.map(lambda normal: normal / size**0.5, standard_normal_like(key, rows))

    directions = draw_directions()

    def projections(draw: Draw) -> Array:
        return sum(
            (jnp.tensordot(directions[name], draw[name], draw[name].ndim) for name in directions),
            start=jnp.zeros(NUM_PROJECTIONS),
        )

    return projections
