"""Layers of several branches over one input: sums, products, concatenations, and the residual block."""

import dataclasses
from functools import reduce
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from bnnwide.arch.kernel import KernelState
from bnnwide.arch.layer import Layer, Params, Shape, layer, propagate
from bnnwide.arch.scaling import Identity


@dataclasses.dataclass(frozen=True)
class Branches(Layer):
    """Several layers over one input; a subclass says how their outputs join.

    At infinite width branches are independent given what they share if all but one of them begin afresh, with weights
    of their own; the cross moments are then products of means.

    Args:
      branches: the layers; `Identity()` passes the input on.

    Raises:
      ValueError: if there is no branch.
    """

    branches: tuple[Layer, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "branches", tuple(self.branches))
        if not self.branches:
            raise ValueError(f"`{type(self).__name__}`: branches must hold at least one layer; got none")

    def output_shape(self, input_shape: Shape) -> Shape:  # noqa: D102
        shapes = [branch.output_shape(input_shape) for branch in self.branches]
        if len(set(shapes)) > 1:
            raise ValueError(f"`{type(self).__name__}`: branches must have one output shape; got {shapes}")
        return shapes[0]

    def weight_shapes(self, input_shape: Shape) -> Any:  # noqa: D102
        self.output_shape(input_shape)
        return tuple(branch.weight_shapes(input_shape) for branch in self.branches)

    def outputs(self, params: Params, x: Float[Array, "n ..."]) -> list[Float[Array, "n ..."]]:
        """Evaluate every branch."""
        return [branch.apply(weights, x) for branch, weights in zip(self.branches, params, strict=True)]

    def states(self, state: KernelState) -> list[KernelState]:
        """Propagate through every branch, and check that the cross moments are known."""
        inner = dataclasses.replace(state, fresh=False)
        states = [propagate(branch, inner) for branch in self.branches]
        if sum(not s.fresh for s in states) > 1:
            raise ValueError(
                f"`{type(self).__name__}`: all branches but one must have weights of their own for a kernel, or their "
                f"outputs depend on each other; got {self.branches}; begin the others with a Dense layer"
            )
        return states


@layer(data=("branches",))
@dataclasses.dataclass(frozen=True)
class Sum(Branches):
    """The sum of branches of one output shape.

    Args:
      branches: the layers.
    """

    def apply(self, params: Params, x: Float[Array, "n ..."]) -> Float[Array, "n ..."]:  # noqa: D102
        return sum(self.outputs(params, x), start=jnp.zeros((), x.dtype))

    def propagate(self, state: KernelState) -> KernelState:  # noqa: D102
        states = self.states(state)
        return reduce(_add, states[1:], states[0])


def _add(a: KernelState, b: KernelState) -> KernelState:
    total = a.each(jnp.add, b)
    cov, var1, var2 = total.cov, total.var1, total.var2
    means_a, means_b = a.means(), b.means()
    if means_a is not None and means_b is not None:
        cov = cov + means_a[0] * means_b[1] + means_b[0] * means_a[1]
        var1 = var1 + 2 * _multiply_means(a.mean1, b.mean1)
        var2 = var1 if total.var2 is total.var1 else var2 + 2 * _multiply_means(a.mean2, b.mean2)
    return dataclasses.replace(
        total,
        cov=cov,
        var1=var1,
        var2=var2,
        ntk=None if a.ntk is None or b.ntk is None else a.ntk + b.ntk,
        mean1=_add_means(a.mean1, b.mean1),
        mean2=_add_means(a.mean2, b.mean2),
        gaussian=a.gaussian and b.gaussian,
        fresh=a.fresh and b.fresh,
        wide=a.wide and b.wide,
    )


def _multiply_means(a: Array | None, b: Array | None) -> Any:
    return None if a is None or b is None else a * b


def _add_means(a: Array | None, b: Array | None) -> Array | None:
    return b if a is None else a if b is None else a + b


@layer(data=("branches",))
@dataclasses.dataclass(frozen=True)
class Product(Branches):
    """The entrywise product of branches of one output shape.

    Args:
      branches: the layers.
    """

    def apply(self, params: Params, x: Float[Array, "n ..."]) -> Float[Array, "n ..."]:  # noqa: D102
        return reduce(jnp.multiply, self.outputs(params, x))

    def propagate(self, state: KernelState) -> KernelState:  # noqa: D102
        states = self.states(state)
        return reduce(_multiply, states[1:], states[0])


def _multiply(a: KernelState, b: KernelState) -> KernelState:
    return dataclasses.replace(
        a.each(jnp.multiply, b),
        ntk=None if a.ntk is None or b.ntk is None else a.ntk * b.cov + a.cov * b.ntk,
        mean1=_multiply_means(a.mean1, b.mean1),
        mean2=_multiply_means(a.mean2, b.mean2),
        gaussian=False,
        fresh=a.fresh and b.fresh,
        wide=a.wide and b.wide,
    )


@layer(data=("branches",))
@dataclasses.dataclass(frozen=True)
class Concatenate(Branches):
    """The outputs of branches one after the other, along the feature axis; their widths weigh their kernels.

    Args:
      branches: the layers.
    """

    def output_shape(self, input_shape: Shape) -> Shape:  # noqa: D102
        shapes = [branch.output_shape(input_shape) for branch in self.branches]
        if len({shape[:-1] for shape in shapes}) > 1:
            raise ValueError(f"`Concatenate`: branches must agree but in their feature axis; got {shapes}")
        return (*shapes[0][:-1], sum(shape[-1] for shape in shapes))

    def apply(self, params: Params, x: Float[Array, "n ..."]) -> Float[Array, "n ..."]:  # noqa: D102
        return jnp.concatenate(self.outputs(params, x), axis=-1)

    def propagate(self, state: KernelState) -> KernelState:  # noqa: D102
        # Means over units need no cross moments, so that branches may depend on each other here.
        states = [propagate(branch, dataclasses.replace(state, fresh=False)) for branch in self.branches]
        total = sum(s.shape[-1] for s in states)
        shares = [s.shape[-1] / total for s in states]

        def average(values: list[Array | None]) -> Array | None:
            parts = [share * value for share, value in zip(shares, values, strict=True) if value is not None]
            return sum(parts[1:], start=parts[0]) if parts else None

        first = states[0]
        joined = first.each(lambda *values: average(list(values)), *states[1:])
        return dataclasses.replace(
            joined,
            ntk=average([s.ntk for s in states]),
            mean1=average([s.mean1 for s in states]),
            mean2=average([s.mean2 for s in states]),
            gaussian=False,
            fresh=all(s.fresh for s in states),
            wide=all(s.wide for s in states),
        )


@layer(data=("body",))
@dataclasses.dataclass(frozen=True)
class Residual(Layer):
    """A residual branch x + body(x); the body must keep the shape of its input.

    Args:
      body: the branch.
    """

    body: Layer

    def output_shape(self, input_shape: Shape) -> Shape:  # noqa: D102
        shape = self.body.output_shape(input_shape)
        if shape != tuple(input_shape):
            raise ValueError(f"`Residual`: the body must keep the input's shape {tuple(input_shape)}; it gives {shape}")
        return shape

    def weight_shapes(self, input_shape: Shape) -> Any:  # noqa: D102
        self.output_shape(input_shape)
        return self.body.weight_shapes(input_shape)

    def apply(self, params: Params, x: Float[Array, "n ..."]) -> Float[Array, "n ..."]:  # noqa: D102
        return x + self.body.apply(params, x)

    def propagate(self, state: KernelState) -> KernelState:  # noqa: D102
        return Sum((Identity(), self.body)).propagate(state)
