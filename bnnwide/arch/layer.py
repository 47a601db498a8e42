"""What every architecture is: a value that declares its weights and maps inputs to outputs."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Real

from bnnwide.checks import Data

if TYPE_CHECKING:
    from bnnwide.arch.network import Network

Params = PyTree[Float[Array, "..."]]
Shape = tuple[int, ...]
L = TypeVar("L", bound=type)


def layer(*, meta: tuple[str, ...] = (), data: tuple[str, ...] = ()) -> Callable[[L], L]:
    """Register a frozen dataclass as a pytree: `data` fields are leaves (scales), `meta` fields are static (widths)."""

    def register(cls: L) -> L:
        return jax.tree_util.register_dataclass(cls, data_fields=list(data), meta_fields=list(meta))

    return register


class Layer(abc.ABC):
    """An architecture: one definition with three readings, a finite network, an infinite-width kernel, and a prior.

    A subclass states two facts, its weights' shapes and its map; everything else follows. All weights are i.i.d.
    N(0, 1) under the prior (the scales live in the architecture), so that initialising and sampling the prior are
    one function.
    """

    @abc.abstractmethod
    def output_shape(self, input_shape: Shape) -> Shape:
        """Return the shape of one output, without the batch axis.

        Args:
          input_shape: the shape of one input, without the batch axis.

        Raises:
          ValueError: if the layer cannot take such an input.
        """

    @abc.abstractmethod
    def weight_shapes(self, input_shape: Shape) -> Any:
        """Return a pytree of `jax.ShapeDtypeStruct`, one per weight array; `()` for a layer without weights."""

    @abc.abstractmethod
    def apply(self, params: Params, x: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
        """Map a batch of inputs to a batch of outputs, given weights shaped as `weight_shapes` says."""

    def init(self, key: Array, input_shape: Shape) -> Params:
        """Draw the weights from their prior: every leaf is N(0, 1).

        Args:
          key: a PRNG key.
          input_shape: the shape of one input, without the batch axis.

        Returns:
          A pytree of standard normal arrays, shaped as `weight_shapes(input_shape)`.

        Raises:
          ValueError: if the architecture cannot take such an input.
        """
        leaves, tree = jax.tree.flatten(self.weight_shapes(tuple(input_shape)))
        keys = jax.random.split(key, max(len(leaves), 1))
        draws = [jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=False)]
        return jax.tree.unflatten(tree, draws)

    def __call__(self, params: Params, x: Real[Data, "n ..."]) -> Float[Array, "n ..."]:
        """Evaluate the finite network.

        Args:
          params: weights as `init` returns them.
          x: (n, *input_shape) inputs.

        Returns:
          (n, *output_shape) outputs.

        Raises:
          ValueError: if the shapes of `params` and `x` do not fit the architecture.
        """
        x = jnp.asarray(x)
        if x.ndim < 2:
            raise ValueError(f"`{type(self).__name__}`: x must have a batch axis, shape (n, d); got {x.shape}")
        wanted = self.weight_shapes(x.shape[1:])
        got, expected = jax.tree.map(jnp.shape, params), jax.tree.map(lambda leaf: leaf.shape, wanted)
        if got != expected:
            raise ValueError(
                f"`{type(self).__name__}`: params must have the shapes {expected} for inputs {x.shape[1:]}; got {got}; "
                "make them with init(key, input_shape)"
            )
        return self.apply(params, x)

    def __rshift__(self, other: Layer) -> Network:
        """Compose: `a >> b` feeds the output of `a` to `b`."""
        from bnnwide.arch.network import Network

        if not isinstance(other, Layer):
            raise TypeError(f"`>>`: the right-hand side must be a Layer; got {type(other).__name__}")
        return Network((*_parts(self), *_parts(other)))


def _parts(part: Layer) -> tuple[Layer, ...]:
    return getattr(part, "layers", (part,))


def weight(shape: Shape) -> jax.ShapeDtypeStruct:
    """Declare one weight array in the default floating-point type."""
    return jax.ShapeDtypeStruct(shape, jnp.result_type(float))
