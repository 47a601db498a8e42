"""Elementwise activations."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bnnwide.arch.layer import Layer, Params, Shape, layer


class Activation(Layer):
    """A function applied entry by entry: no weights, same shape out as in. A subclass writes `fn` for one entry."""

    fn: Callable[[Array], Array]

    def output_shape(self, input_shape: Shape) -> Shape:  # noqa: D102
        return tuple(input_shape)

    def weight_shapes(self, input_shape: Shape) -> Any:  # noqa: D102
        return ()

    def apply(self, params: Params, x: Float[Array, "n ..."]) -> Float[Array, "n ..."]:  # noqa: D102
        return self.fn(x)


@layer(meta=("fn",))
@dataclasses.dataclass(frozen=True)
class Elementwise(Activation):
    """Any function of one entry as an activation.

    Args:
      fn: a function of an array that acts entry by entry, built from `jax.numpy`.

    Raises:
      TypeError: if `fn` cannot be called.
    """

    fn: Callable[[Array], Array]

    def __post_init__(self) -> None:
        if not callable(self.fn):
            raise TypeError(f"`Elementwise`: fn must be a function of an array; got {self.fn!r}")


@layer()
@dataclasses.dataclass(frozen=True)
class Relu(Activation):
    """max(u, 0)."""

    def fn(self, u: Array) -> Array:  # noqa: D102
        return jax.nn.relu(u)


@layer(data=("slope",))
@dataclasses.dataclass(frozen=True)
class LeakyRelu(Activation):
    """max(u, 0) + slope min(u, 0).

    Args:
      slope: the slope on the negative side.
    """

    slope: Any = 0.01

    def fn(self, u: Array) -> Array:  # noqa: D102
        return jnp.where(u >= 0, u, self.slope * u)


@layer()
@dataclasses.dataclass(frozen=True)
class Abs(Activation):
    """|u|."""

    def fn(self, u: Array) -> Array:  # noqa: D102
        return jnp.abs(u)


@layer()
@dataclasses.dataclass(frozen=True)
class Erf(Activation):
    """The error function 2/sqrt(pi) int_0^u exp(-t^2) dt."""

    def fn(self, u: Array) -> Array:  # noqa: D102
        return jax.lax.erf(u)


@jax.custom_jvp
def _gelu(u: Array) -> Array:
    return 0.5 * u * jax.lax.erfc(-u * math.sqrt(0.5))


@_gelu.defjvp
def _gelu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # One erfc serves the value and the slope; without this, autodiff and fusion evaluate it up to three times, and
    # erfc would cost as much as the matrix products around it.
    (u,), (du,) = primals, tangents
    cdf = 0.5 * jax.lax.erfc(-u * math.sqrt(0.5))
    value, slope = jax.lax.optimization_barrier((u * cdf, cdf + u * jnp.exp(-0.5 * u * u) / math.sqrt(2 * math.pi)))
    return value, slope * du


@layer()
@dataclasses.dataclass(frozen=True)
class Gelu(Activation):
    """The Gaussian error linear unit u Phi(u), with the exact Gaussian distribution function Phi."""

    def fn(self, u: Array) -> Array:  # noqa: D102
        return _gelu(u)


@layer()
@dataclasses.dataclass(frozen=True)
class Sin(Activation):
    """sin(u)."""

    def fn(self, u: Array) -> Array:  # noqa: D102
        return jnp.sin(u)


@layer()
@dataclasses.dataclass(frozen=True)
class Cos(Activation):
    """cos(u)."""

    def fn(self, u: Array) -> Array:  # noqa: D102
        return jnp.cos(u)


@layer()
@dataclasses.dataclass(frozen=True)
class Tanh(Activation):
    """tanh(u)."""

    def fn(self, u: Array) -> Array:  # noqa: D102
        return jnp.tanh(u)


@layer()
@dataclasses.dataclass(frozen=True)
class Sigmoid(Activation):
    """The logistic function 1 / (1 + exp(-u))."""

    def fn(self, u: Array) -> Array:  # noqa: D102
        return jax.nn.sigmoid(u)


@layer()
@dataclasses.dataclass(frozen=True)
class Silu(Activation):
    """u times the logistic function of u (also called swish)."""

    def fn(self, u: Array) -> Array:  # noqa: D102
        return jax.nn.silu(u)


@layer()
@dataclasses.dataclass(frozen=True)
class Softplus(Activation):
    """log(1 + exp(u))."""

    def fn(self, u: Array) -> Array:  # noqa: D102
        return jax.nn.softplus(u)
