"""Structured derivatives of dense networks: no Jacobian with respect to a weight matrix is ever formed."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from bnnwide.arch import Dense, Layer, Params
from bnnwide.arch.layer import layer
from bnnwide.empirical.network import shapes


class DenseSize(NamedTuple):
    """The size of a Dense layer in one row: positions it is applied at, readout features, outputs."""

    positions: int
    features: int
    width: int


class Factors(NamedTuple):
    """The Jacobian with respect to a Dense layer's weights, as sum over positions of features times cotangents.

    Attributes:
      psi: (n, positions, m) inputs of the layer, scaled, with the constant of its bias.
      cotangents: (n, positions, c, width) derivatives of the network's outputs with respect to the layer's.
    """

    psi: Float[Array, "n p m"]
    cotangents: Float[Array, "n p c w"]


@layer(meta=("width", "meet", "w_prior", "b_prior"), data=("w_scale", "b_scale"))
@dataclasses.dataclass(frozen=True)
class _Tapped(Dense):
    """A Dense layer that reports its weights, inputs and outputs, and passes on what it is told."""

    meet: Callable[[Dense, Any, Array, Array], Array] = lambda dense, params, x, y: y

    def apply(self, params: Params, x: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
        return self.meet(self, params, x, super().apply(params, x))


class _Met(NamedTuple):
    """A Dense layer as the network ran it, with the places of its weights among the network's leaves."""

    dense: Dense
    x: Array
    y: Array
    places: tuple[int, ...]


def _run(net: Any, params: Any, x: Array, shifts: list[Array] | None) -> tuple[Array, list[_Met], bool]:
    """Run the network with `shifts` added to the outputs of its Dense layers, in the order in which they are met.

    Returns the outputs, the layers met, and whether every weight was met once, by a Dense layer over rows of inputs.
    """
    met, used = [], []
    place = {id(leaf): i for i, leaf in enumerate(jax.tree.leaves(params))}

    def meet(dense: Dense, weights: Any, x: Array, y: Array) -> Array:
        # Weights are known by identity: those that a layer reshapes, shares or maps over are not the network's own.
        used.extend(map(id, jax.tree.leaves(weights)))
        names = ["w"] if dense.b_scale is None else ["w", "b"]
        met.append(_Met(dense, x, y, tuple(place.get(id(weights[name]), -1) for name in names)))
        return y if shifts is None else y + shifts[len(met) - 1]

    def tap(part: Any) -> Any:
        # Weights of another prior enter through a function of their own: the layer is not linear in them.
        if type(part) is not Dense or not part.gaussian_weights:
            return part
        return _Tapped(part.width, part.w_scale, part.b_scale, meet, w_prior=part.w_prior, b_prior=part.b_prior)

    tapped = jax.tree.map(tap, net, is_leaf=lambda part: type(part) is Dense)
    y = tapped.apply(params, x)
    own = sorted(used) == sorted(map(id, jax.tree.leaves(params)))
    return y, met, own and all(one.x.ndim > 1 and len(one.x) == len(x) for one in met)


def dense_sizes(net: Any, params: Any, x: Any) -> tuple[DenseSize, ...] | None:
    """Return the sizes of a network's Dense layers, or None if some weight is not simply that of a Dense layer.

    Args:
      net: an architecture, or any other callable (for which the answer is None).
      params: its weights, or their shapes.
      x: (n, ...) inputs, or their shapes.
    """
    if not isinstance(net, Layer):
        return None
    known = []

    def run(params: Any, x: Array) -> None:
        _, met, simple = _run(net, params, x, None)
        known.append(tuple(map(_size, met)) if simple else None)

    # A prime number of rows, which no other axis has: a layer that moves the batch axis is found out.
    jax.eval_shape(run, shapes(params), jax.ShapeDtypeStruct((7919, *x.shape[1:]), x.dtype))
    return known[-1]


def dense_places(net: Layer, params: Any, x: Any) -> tuple[tuple[int, ...], ...]:
    """Return, for each Dense layer, where its weights and then its biases are among `jax.tree.leaves(params)`.

    Args:
      net: a network for which `dense_sizes` is not None.
      params: its weights, or their shapes.
      x: (n, ...) inputs, or their shapes.
    """
    known = []
    jax.eval_shape(
        lambda params, x: known.append(tuple(one.places for one in _run(net, params, x, None)[1])),
        shapes(params), jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype),
    )  # fmt: skip
    return known[-1]


def _size(met: _Met) -> DenseSize:
    _, *positions, fan_in = met.x.shape
    return DenseSize(math.prod(positions), fan_in + (met.dense.b_scale is not None), met.dense.width)


def factors(net: Layer, params: Any, x: Real[Array, "n ..."], cotangents: Float[Array, "c k"]) -> list[Factors]:
    """Return the factors of the Jacobian at `x`, one entry per Dense layer.

    Args:
      net: a network for which `dense_sizes` is not None.
      params: its weights.
      x: (n, ...) inputs.
      cotangents: (c, k) combinations of outputs to differentiate.
    """
    n, (c, k) = len(x), cotangents.shape
    zeros = [
        jnp.zeros(y.shape, y.dtype) for y in jax.eval_shape(lambda: [one.y for one in _run(net, params, x, None)[1]])
    ]

    def shifted(shifts: list[Array]) -> tuple[Array, list[Array]]:
        y, met, _ = _run(net, params, x, shifts)
        return y, [one.dense.features(one.x.reshape(-1, one.x.shape[-1])) for one in met]

    _, pull, psi = jax.vjp(shifted, zeros, has_aux=True)
    # Rows do not depend on each other, so that one cotangent per output pulls back all of them.
    (pulled,) = jax.vmap(lambda row: pull(jnp.broadcast_to(row, (n, k))))(cotangents)
    return [
        Factors(one.reshape(n, -1, one.shape[-1]), jnp.moveaxis(back.reshape(c, n, -1, back.shape[-1]), 0, 2))
        for one, back in zip(psi, pulled, strict=True)
    ]


def contract(left: list[Factors], right: list[Factors], *, mean: bool) -> Array:
    """Return the NTK block, the sum over Dense layers of (Gram of features) times (Gram of cotangents).

    Theta_cd(x, x') = sum_l sum_pq (psi_lp . psi'_lq) (g_lpc . g'_lqd).

    Source: Novak, Sohl-Dickstein & Schoenholz 2022 (arXiv 2206.08720), "Structured derivatives".

    Args:
      left: factors at x1.
      right: factors at x2.
      mean: whether to average over c = d, or keep (n1, n2, c, d).
    """
    return sum(
        (_block(a, b, mean=mean) for a, b in zip(left[1:], right[1:], strict=True)),
        _block(left[0], right[0], mean=mean),
    )


def _block(a: Factors, b: Factors, *, mean: bool) -> Array:
    c = a.cotangents.shape[2]
    if a.psi.shape[1] == 1:
        gram = a.psi[:, 0] @ b.psi[:, 0].T
        if mean:
            return gram * jnp.einsum("icw,jcw->ij", a.cotangents[:, 0], b.cotangents[:, 0]) / c
        return gram[:, :, None, None] * jnp.einsum("icw,jdw->ijcd", a.cotangents[:, 0], b.cotangents[:, 0])
    gram = jnp.einsum("ipm,jqm->ijpq", a.psi, b.psi)
    if mean:
        return jnp.sum(gram * jnp.einsum("ipcw,jqcw->ijpq", a.cotangents, b.cotangents), axis=(2, 3)) / c
    back = jnp.einsum("ipcw,jqdw->ijpqcd", a.cotangents, b.cotangents)
    return jnp.einsum("ijpq,ijpqcd->ijcd", gram, back)
