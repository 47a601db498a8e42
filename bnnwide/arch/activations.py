"""Smooth activations whose duals have no closed form: their kernels are by quadrature."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bnnwide.arch.activation import Activation
from bnnwide.arch.layer import layer


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


@layer(data=("beta",))
@dataclasses.dataclass(frozen=True)
class Swish(Activation):
    """u times the logistic function of beta u.

    Args:
      beta: how sharply the function bends at 0; 1 is `Silu`.
    """

    beta: Any = 1.0

    def fn(self, u: Array) -> Array:  # noqa: D102
        return u * jax.nn.sigmoid(self.beta * u)


@layer()
@dataclasses.dataclass(frozen=True)
class Softplus(Activation):
    """log(1 + exp(u))."""

    def fn(self, u: Array) -> Array:  # noqa: D102
        return jax.nn.softplus(u)


@layer(data=("alpha",))
@dataclasses.dataclass(frozen=True)
class Elu(Activation):
    """The exponential linear unit: u for u > 0, alpha (exp(u) - 1) below; its slope jumps at 0 unless alpha is 1.

    Args:
      alpha: minus the limit at minus infinity.
    """

    alpha: Any = 1.0

    def fn(self, u: Array) -> Array:  # noqa: D102
        return jnp.where(u > 0, u, self.alpha * jnp.expm1(jnp.minimum(u, 0)))
