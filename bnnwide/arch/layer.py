"""What every architecture is: a value that declares its weights and maps inputs to outputs."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Real

from bnnwide.arch.kernel import Cross, Diagonal, Folded, Kernels, KernelState, input_state
from bnnwide.arch.scales import check_numbers
from bnnwide.checks import Data, check_inputs

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

    A subclass states its weights' shapes, its map, and how it acts on second moments; everything else follows. All
    weights are i.i.d. N(0, 1) under the prior (the scales live in the architecture), so that initialising and sampling
    the prior are one function.
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

    @abc.abstractmethod
    def propagate(self, state: KernelState) -> KernelState:
        """Map the second moments of this layer's inputs to those of its outputs, in the limit of infinite width.

        Raises:
          ValueError: if the limit does not exist in closed form for such inputs.
        """

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
          ValueError: if the shapes of `params` and `x` do not fit the architecture, or a scale is a distribution.
        """
        check_numbers(type(self).__name__, self)
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

    def kernel(self, x1: Real[Data, "n1 ..."], x2: Real[Data, "n2 ..."] | None = None, *, ntk: bool = True) -> Kernels:
        """Return the kernels of the infinitely wide network.

        The NNGP kernel is the covariance of an output unit under the prior as all hidden widths grow (Neal 1996; Lee et
        al. 2018, arXiv 1711.00165, eq. 5), the NTK that of its parameter gradients (Jacot, Gabriel & Hongler 2018,
        arXiv 1806.07572, theorem 1), in the NTK parameterisation. The widths of the architecture do not matter.

        Args:
          x1: (n1, *input_shape) inputs.
          x2: (n2, *input_shape) inputs; None takes x1 and computes each pair once.
          ntk: whether to compute the NTK as well.

        Returns:
          `nngp` (n1, n2), in the squared units of the outputs, and `ntk`, of the same shape, or None.

        Raises:
          ValueError: for wrong shapes, NaN or infinite inputs, an architecture without such a limit, or a scale that is
            a distribution.
        """
        check_numbers("kernel", self)
        x1 = check_inputs("kernel", "x1", x1)
        if x2 is not None:
            x2 = check_inputs("kernel", "x2", x2, x1.shape[1:], "x1")
        self._check_ends_flat(x1.shape[1:])
        return _kernel(self, x1, x2, ntk)

    def kernel_diag(self, x: Real[Data, "n ..."], *, ntk: bool = True) -> Kernels:
        """Return the diagonals of `kernel(x)`, without the rest.

        Args:
          x: (n, *input_shape) inputs.
          ntk: whether to compute the NTK as well.

        Returns:
          `nngp` (n,) and `ntk` (n,) or None.

        Raises:
          ValueError: as `kernel`.
        """
        check_numbers("kernel_diag", self)
        x = check_inputs("kernel_diag", "x", x)
        self._check_ends_flat(x.shape[1:])
        return _kernel_diag(self, x, ntk)

    def _check_ends_flat(self, input_shape: Shape) -> None:
        shape = self.output_shape(input_shape)
        if len(shape) != 1:
            raise ValueError(
                f"`kernel`: outputs must be vectors for a kernel of inputs; got output shape {shape} for inputs "
                f"{input_shape}; put Flatten() before the readout"
            )

    def __rshift__(self, other: Layer) -> Network:
        """Compose: `a >> b` feeds the output of `a` to `b`."""
        from bnnwide.arch.network import Network

        if not isinstance(other, Layer):
            raise TypeError(f"`>>`: the right-hand side must be a Layer; got {type(other).__name__}")
        return Network((*_parts(self), *_parts(other)))


@partial(jax.jit, static_argnums=3)
def _kernel(net: Layer, x1: Array, x2: Array | None, ntk: bool) -> Kernels:
    pairs = Folded(len(x1)) if x2 is None else Cross()
    state = propagate(net, input_state(x1, x2, pairs, ntk=ntk))
    unfold = pairs.unfold if isinstance(pairs, Folded) else lambda array: array
    return Kernels(
        unfold(state.cov), None if state.ntk is None else unfold(jnp.broadcast_to(state.ntk, state.cov.shape))
    )


@partial(jax.jit, static_argnums=2)
def _kernel_diag(net: Layer, x: Array, ntk: bool) -> Kernels:
    state = propagate(net, input_state(x, None, Diagonal(), ntk=ntk))
    return Kernels(state.cov, None if state.ntk is None else jnp.broadcast_to(state.ntk, state.cov.shape))


def propagate(part: Layer, state: KernelState) -> KernelState:
    """Apply a layer's `propagate` and keep count of the shape of one output."""
    return dataclasses.replace(part.propagate(state), shape=part.output_shape(state.shape))


def _parts(part: Layer) -> tuple[Layer, ...]:
    return getattr(part, "layers", (part,))


def weight(shape: Shape) -> jax.ShapeDtypeStruct:
    """Declare one weight array in the default floating-point type."""
    return jax.ShapeDtypeStruct(shape, jnp.result_type(float))
