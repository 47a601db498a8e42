"""Draws of a network's weights, and what they predict."""

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real, Shaped

from bnnwide.checks import Data, check_inputs
from bnnwide.likelihoods import Likelihood
from bnnwide.natgrad.curvature import Weights
from bnnwide.prediction import Prediction, over_draws


@dataclasses.dataclass(frozen=True)
class Draws:
    """Draws of all weights of a network.

    Args:
      method: what they were drawn by.
      net: the network, f(params, x) -> (n, k).
      likelihood: the law of targets given outputs.
      input_shape: the shape of one input.
      params: weights with leading axes (chain, draw).
      stats: figures of the draws, each (chain, draw).
    """

    method: str
    net: Callable[[Any, Any], Array]
    likelihood: Likelihood
    input_shape: tuple[int, ...]
    params: Weights
    stats: Mapping[str, Array]

    def flat(self) -> Weights:
        """Return the weights with chains and draws on one axis."""
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), self.params)

    def predict(self, x_test: Real[Data, "t ..."]) -> Prediction:
        """Return the predictive moments of the networks that were drawn.

        mean = avg E[y | f_s], epistemic = its variance over draws s, aleatoric = avg Var[y | f_s].

        Args:
          x_test: (t, ...) test inputs.

        Raises:
          ValueError: for wrong shapes, or NaN or infinite inputs.
        """
        x_test = check_inputs("predict", "x_test", x_test, self.input_shape, "x")
        return predict_with(self.net, self.likelihood, self.flat(), x_test)

    def log_score(self, x_test: Real[Data, "t ..."], y_test: Shaped[Data, "t *k"]) -> Float[Array, " t"]:
        """Return the log of the average predictive density at the targets of each test input, in nats.

        Args:
          x_test: (t, ...) test inputs.
          y_test: (t, k) targets, or (t,) labels.

        Raises:
          ValueError: for wrong shapes, or NaN or infinite numbers.
        """
        x_test = check_inputs("log_score", "x_test", x_test, self.input_shape, "x")
        return score_with(self.net, self.likelihood, self.flat(), x_test, y_test)

    def to_arviz(self) -> Any:
        """Return the draws as an ArviZ DataTree, sites named by their path in the weights: see `bnnwide.to_arviz`."""
        # The diagnostics stand above this row: they are looked up when they are asked for, and never imported here.
        return importlib.import_module("bnnwide").to_arviz(self)

    def __repr__(self) -> str:
        chains, draws = jax.tree.leaves(self.params)[0].shape[:2]
        return f"Draws(method={self.method!r}, chains={chains}, draws={draws})"


def predict_with(net: Any, likelihood: Likelihood, params: Weights, x_test: Array) -> Prediction:
    """Return the predictive moments of networks whose weights have one leading axis."""
    each = jax.jit(lambda params: jax.lax.map(lambda one: likelihood.outcome(net(one, x_test)), params))(params)
    return over_draws(each)


def score_with(net: Any, likelihood: Likelihood, params: Weights, x_test: Array, y_test: Any) -> Array:
    """Return log avg_s p(y | f_s(x)) for each test input."""
    outputs = jax.eval_shape(net, jax.tree.map(lambda leaf: leaf[0], params), x_test).shape[1]
    y_test = likelihood.check_targets("log_score", y_test, len(x_test), outputs, "y_test")
    run = jax.jit(lambda params: jax.lax.map(lambda one: likelihood.log_prob(net(one, x_test), y_test), params))
    each = run(params)
    return jax.nn.logsumexp(each, axis=0) - jnp.log(len(each))
