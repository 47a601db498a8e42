"""Layers without weights that rescale, normalise or reshape."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from bnnwide.arch.kernel import KernelState
from bnnwide.arch.layer import Layer, Params, Shape, layer
from bnnwide.checks import check_positive


class Weightless(Layer):
    """A layer without weights that keeps the shape of its input, unless it says otherwise."""

    def output_shape(self, input_shape: Shape) -> Shape:  # noqa: D102
        return tuple(input_shape)

    def weight_shapes(self, input_shape: Shape) -> Any:  # noqa: D102
        return ()


@layer()
@dataclasses.dataclass(frozen=True)
class Identity(Weightless):
    """The input itself."""

    def apply(self, params: Params, x: Float[Array, "n ..."]) -> Float[Array, "n ..."]:  # noqa: D102
        return x

    def propagate(self, state: KernelState) -> KernelState:  # noqa: D102
        return state


@layer(data=("factor",))
@dataclasses.dataclass(frozen=True)
class Rescale(Weightless):
    """The input times a number.

    Args:
      factor: the number.
    """

    factor: Any

    def apply(self, params: Params, x: Float[Array, "n ..."]) -> Float[Array, "n ..."]:  # noqa: D102
        return self.factor * x

    def propagate(self, state: KernelState) -> KernelState:  # noqa: D102
        means = [None if mean is None else self.factor * mean for mean in (state.mean1, state.mean2)]
        return dataclasses.replace(state.affine(self.factor**2), mean1=means[0], mean2=means[1])


@layer(data=("epsilon",))
@dataclasses.dataclass(frozen=True)
class LayerNorm(Weightless):
    """Layer normalisation over the feature axis, without gain and bias: (h - mean) / sqrt(variance + epsilon).

    At infinite width the mean and variance over units are those of their law, so that K and T are divided by the
    standard deviations. Directly after an activation the mean E[phi(u)] is taken off as well, exactly.

    Source: Ba, Kiros & Hinton 2016 (arXiv 1607.06450).

    Args:
      epsilon: added to the variance, positive.
    """

    epsilon: Any = 1e-12

    def __post_init__(self) -> None:
        if isinstance(self.epsilon, (int, float)):
            check_positive("LayerNorm", "epsilon", self.epsilon)

    def apply(self, params: Params, x: Float[Array, "n ..."]) -> Float[Array, "n ..."]:  # noqa: D102
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        return centred / jnp.sqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + self.epsilon)

    def propagate(self, state: KernelState) -> KernelState:  # noqa: D102
        means = state.means()
        cov, var1, var2 = state.cov, state.var1, state.var2
        if means is not None:
            cov = cov - means[0] * means[1]
            var1 = var1 - state.mean1**2  # pyright: ignore[reportOptionalOperand]
            var2 = var1 if state.var2 is state.var1 else var2 - state.mean2**2  # pyright: ignore
        one, other = state.spread(var1, var2)
        scale = 1 / jnp.sqrt((one + self.epsilon) * (other + self.epsilon))
        new1 = var1 / (var1 + self.epsilon)
        return dataclasses.replace(
            state,
            cov=cov * scale,
            ntk=None if state.ntk is None else state.ntk * scale,
            var1=new1,
            var2=new1 if var2 is var1 else var2 / (var2 + self.epsilon),
            mean1=None,
            mean2=None,
        )


@layer()
@dataclasses.dataclass(frozen=True)
class Flatten(Weightless):
    """All axes but the batch's as one feature axis."""

    def output_shape(self, input_shape: Shape) -> Shape:  # noqa: D102
        return (math.prod(input_shape),)

    def apply(self, params: Params, x: Float[Array, "n ..."]) -> Float[Array, "n ..."]:  # noqa: D102
        return x.reshape(len(x), -1)

    def propagate(self, state: KernelState) -> KernelState:  # noqa: D102
        if len(state.shape) == 1:
            return state
        positions = tuple(range(-(len(state.shape) - 1), 0))
        average = lambda values: None if values is None else jnp.mean(values, axis=positions)  # noqa: E731
        ntk = state.ntk if state.ntk is None or state.ntk.ndim == 0 else average(state.ntk)
        # Units of different positions have different variances: not i.i.d. any more, whatever they were.
        return dataclasses.replace(
            state.each(lambda values: jnp.mean(values, axis=positions)),
            ntk=ntk,
            mean1=average(state.mean1),
            mean2=average(state.mean2),
            gaussian=False,
        )
