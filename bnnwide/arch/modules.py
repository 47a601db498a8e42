"""What modules of other libraries become here: a static template, arrays by path, and hidden activations."""

import dataclasses
from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from bnnwide.arch.dense import Dense
from bnnwide.arch.foreign import FromFunction
from bnnwide.arch.layer import Params, layer
from bnnwide.arch.network import Network
from bnnwide.checks import Data, check_array

Arrays = dict[str, Array]
Keys = tuple[Any, ...]  # attribute names, indices, keys of dicts


@dataclasses.dataclass(frozen=True)
class Place:
    """Where an array was, by its path in the module."""

    path: str


@dataclasses.dataclass(frozen=True)
class Template:
    """A module without its arrays: static, hashable, and called with arrays by path.

    Args:
      tree: the module's pytree structure.
      leaves: its leaves, arrays replaced by their places.
    """

    tree: Any
    leaves: tuple[Any, ...]

    @property
    def paths(self) -> list[str]:
        """The paths of its arrays."""
        return [leaf.path for leaf in self.leaves if isinstance(leaf, Place)]

    def module(self, arrays: Arrays) -> Any:
        """Return the module with these arrays."""
        leaves = [arrays[leaf.path] if isinstance(leaf, Place) else leaf for leaf in self.leaves]
        return jax.tree.unflatten(self.tree, leaves)

    def outputs(self, arrays: Arrays, x: Float[Array, "n ..."]) -> Any:
        """Return the module's outputs at a batch of inputs; here of a module that acts on one input."""
        return jax.vmap(self.module(arrays))(x)


class Part(NamedTuple):
    """An array of a module, the keys that lead to it, and the layer that holds it."""

    array: Array
    keys: Keys
    owner: Any


@layer(data=("fixed",), meta=("hidden", "whole", "weight", "bias", "width", "outputs", "transposed"))
@dataclasses.dataclass(frozen=True)
class ModuleFeatures:
    """The hidden activations of a module, as a function of its arrays by path.

    Args:
      fixed: the arrays that keep their values.
      hidden: the module with the identity in place of its readout.
      whole: the module.
      weight: path of the readout's weight.
      bias: path of its bias; None without one.
      width: number of its inputs.
      outputs: number of its outputs.
      transposed: whether the weight is (outputs, width), not (width, outputs).
    """

    fixed: Arrays
    hidden: Template
    whole: Template
    weight: str
    bias: str | None
    width: int
    outputs: int
    transposed: bool

    def __call__(self, params: Arrays, x: Float[Array, "n ..."]) -> Any:
        """Return the activations (n, width)."""
        return self.hidden.outputs(self.fixed | params, x)

    def arrays(self, params: Arrays, w: Float[Array, "width k"], b: Float[Array, "k"]) -> Arrays:
        """Return all arrays of the module, given the hidden ones and the readout's."""
        readout = {self.weight: w.T if self.transposed else w} | ({} if self.bias is None else {self.bias: b})
        return self.fixed | params | readout

    def __repr__(self) -> str:
        return "module"


def to_module(net: Network, hidden: Params, readout: Real[Data, "m k"]) -> Any:
    """Return a module of the library that the architecture came from, with the weights of one draw.

        hidden = bw.hidden_weights(model, samples, x, y, key=key)         # one leading axis of draws each
        readout = bw.readout_draws(model, samples, x, y, key=other_key)
        module = bw.to_module(net, jax.tree.map(lambda leaf: leaf[0], hidden), readout[0])

    Args:
      net: an architecture made by `from_equinox` or `from_nnx`.
      hidden: standard normal weights of `net[:-1]`.
      readout: (m, k) standard normal weights of the readout, the bias row last if it has biases.

    Returns:
      The module: at x it is net.features(hidden, x) @ readout. Dropout and batch statistics are as in evaluation, and
      arrays have the floating-point type of the weights.

    Raises:
      TypeError: if `net` was not made from a module.
      ValueError: if `readout` does not have the readout's shape.
    """
    first = net[0] if isinstance(net, Network) and len(net) == 2 else None
    features = first.feature_fn if isinstance(first, FromFunction) else None
    if not isinstance(first, FromFunction) or not isinstance(features, ModuleFeatures):
        raise TypeError(f"`to_module`: net must be made by from_equinox or from_nnx; got {net!r}")
    last: Dense = net.readout
    rows = features.width + (last.b_scale is not None)
    check_array("to_module", "readout", readout, (rows, last.width), "one row per readout feature")
    theta = jnp.asarray(readout)
    w = theta[: features.width] * (last.w_scale / features.width**0.5)
    b = jnp.zeros(last.width, theta.dtype) if last.b_scale is None else last.b_scale * theta[-1]
    return features.whole.module(features.arrays(first.parameters(hidden[0]), w, b))


def take_apart(tree: Any, module: Any, keys_of: Callable[[Any], Keys]) -> tuple[Any, tuple[Any, ...], dict[str, Part]]:
    """Return the structure of a module's pytree, its leaves with places for arrays, and its arrays by path.

    Args:
      tree: the pytree.
      module: what the keys lead into.
      keys_of: from a pytree path to keys.
    """
    flat, structure = jax.tree_util.tree_flatten_with_path(tree)
    leaves, parts = [], {}
    for path, leaf in flat:
        if isinstance(leaf, (jax.Array, np.ndarray)):
            keys = keys_of(path)
            parts[dotted(keys)] = Part(jnp.asarray(leaf), keys, reduce(child, keys[:-1], module))
            leaf = Place(dotted(keys))
        leaves.append(leaf)
    return structure, tuple(leaves), parts


def plain_keys(path: Any) -> Keys:
    """Return the attribute names, indices and keys of a pytree path."""
    return tuple(key.name if hasattr(key, "name") else key.idx if hasattr(key, "idx") else key.key for key in path)


def dotted(keys: Keys) -> str:
    """Return the path that users see, such as "layers.0.weight"."""
    return ".".join(map(str, keys))


def child(node: Any, key: Any) -> Any:
    """Return what a key of a path leads to; None where there is no such thing."""
    try:
        return node[key] if isinstance(key, int) or isinstance(node, dict) else getattr(node, key)
    except (AttributeError, LookupError, TypeError):
        return None
