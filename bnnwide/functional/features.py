"""Readout features whose standard normal weights have, at some points, the prior of a Gaussian process."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bnnwide.arch import Network
from bnnwide.checks import is_concrete
from bnnwide.functional.process import ProcessPrior, at_draw, law_at
from bnnwide.functional.transform import ReadoutTransform, match_points
from bnnwide.models.features import Draw, FeatureMap, Reader, feature_map


@dataclasses.dataclass(frozen=True)
class FunctionalFeatures(FeatureMap):
    """How a functional BNN reads its hidden weights: the network's features times the `ReadoutTransform` of a draw.

    Args:
      net: the architecture, last layer Dense.
      x: (n, d) training inputs.
      collapse: the input collapse over `inputs`, or None.
      inputs: (u, d) where features are evaluated: the p points first, then the training inputs that are none.
      rows: (n,) the row of each training input in `inputs`.
      points: (p, d) the points.
      prior: of the function at the points.
      law: factor and mean of the function at the points; None where hyper-parameters are part of a draw.
    """

    inputs: Float[Array, "u d"]
    rows: Int[Array, " n"]
    points: Float[Array, "p d"]
    prior: ProcessPrior
    law: tuple[Float[Array, "p p"], Float[Array, "p 1"] | None] | None

    def features(self, draw: Draw) -> Float[Array, "n m"]:
        """Return the transformed features (n, m) at the training inputs for one draw."""
        return self._transformed(draw)[1]

    def features_and_mean(self, draw: Draw) -> tuple[Float[Array, "n m"], Float[Array, "m 1"] | None]:
        """Return `features` and the prior mean of their weights, from that of the function at the points."""
        transform, psi = self._transformed(draw)
        return psi, transform.mean

    def reading(self, draw: Draw, key: Array) -> tuple[Float[Array, "n m"], Float[Array, "m 1"] | None, Reader]:
        """Return `features_and_mean` and `reader` for one draw, with one factorisation at the points."""
        transform, psi = self._transformed(draw)
        read = super().reader(draw, key)
        return psi, transform.mean, lambda basis: transform.features(read(basis))

    def reader(self, draw: Draw, key: Array) -> Reader:
        """Return basis -> the transformed features (t, m) at test inputs for one draw."""
        return self.reading(draw, key)[-1]

    def readout(self, draw: Draw, theta: Float[Array, "m k"]) -> Float[Array, "m k"]:
        """Return the weights of the network's last layer for coordinates `theta` ~ N(0, I) under the prior."""
        return self._transformed(draw)[0].readout(theta)

    def at(self, rows: Int[Array, " b"]) -> "FunctionalFeatures":
        """Return the map of some rows of the training inputs, and of all points."""
        p = len(self.points)
        kept = jnp.concatenate([jnp.arange(p), self.rows[rows]])
        collapse = self.collapse
        if collapse is not None:
            collapse = dataclasses.replace(collapse, r=collapse.r[kept])
        return dataclasses.replace(
            self, x=self.x[rows], collapse=collapse, inputs=self.inputs[kept], rows=p + jnp.arange(len(rows))
        )

    def _transformed(self, draw: Draw) -> tuple[ReadoutTransform, Array]:
        psi = FeatureMap(self.net, self.inputs, self.collapse).features(draw)
        law = law_at(at_draw(self.prior, draw), self.points) if self.law is None else self.law
        transform = match_points(psi[: len(self.points)], *law)
        return transform, transform.features(psi[self.rows])


def functional_features(
    net: Network,
    x: Float[Array, "n d"],
    input_collapse: bool | None,
    points: Float[Array, "p d"],
    prior: ProcessPrior,
) -> FunctionalFeatures:
    """Decide on the input collapse and build the map; the network is evaluated once where a training input is a point.

    Args:
      net: the architecture, last layer Dense.
      x: (n, d) training inputs.
      input_collapse: as for `feature_map`, with the points among the inputs.
      points: (p, d) distinct points.
      prior: of the function at the points.
    """
    rows, new = np.arange(len(points), len(points) + len(x)), x
    if is_concrete(x) and is_concrete(points):
        known = {row.tobytes(): place for place, row in enumerate(np.asarray(points) + 0.0)}
        rows = np.array([known.get(row.tobytes(), -1) for row in np.asarray(x) + 0.0])
        apart = rows < 0
        rows[apart] = len(points) + np.arange(apart.sum())
        new = np.asarray(x)[apart]
    inputs = jnp.concatenate([points, jnp.asarray(new, points.dtype)])
    law = None
    if not prior.hyper:
        with jax.ensure_compile_time_eval():
            law = law_at(prior, points)
    collapse = feature_map(net, inputs, input_collapse).collapse
    return FunctionalFeatures(net, x, collapse, inputs, jnp.asarray(rows), points, prior, law)


def distinct(points: Float[Array, "p d"]) -> Float[Array, "q d"]:
    """Return the points without repetitions, in order of their first appearance (all of them while traced)."""
    if not is_concrete(points):
        return points
    _, first = np.unique(np.asarray(points), axis=0, return_index=True)
    return points[np.sort(first)]
