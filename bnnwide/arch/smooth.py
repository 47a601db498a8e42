"""Smooth activations whose duals are known in closed form: error functions, waves and bells."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bnnwide.arch.activation import Activation
from bnnwide.arch.angles import arc, determinant
from bnnwide.arch.layer import layer
from bnnwide.checks import check_positive


@layer()
@dataclasses.dataclass(frozen=True)
class Erf(Activation):
    """The error function 2/sqrt(pi) int_0^u exp(-t^2) dt.

    E[phi(u) phi(v)] = 2/pi asin(2 q12 / sqrt((1 + 2 q11)(1 + 2 q22))) (Williams 1997).
    """

    def fn(self, u: Array) -> Array:  # noqa: D102
        return jax.lax.erf(u)

    def dual(self, q11: Array, q12: Array, q22: Array) -> Array:  # noqa: D102
        return self.dual_and_derivative(q11, q12, q22)[0]

    def dual_and_derivative(self, q11: Array, q12: Array, q22: Array) -> tuple[Array, Array]:  # noqa: D102
        # asin(x / h) = atan(x / sqrt(h^2 - x^2)), with a difference that loses no digits.
        side = jnp.sqrt(_widening(2.0, q11, q12, q22))
        return (2 / math.pi) * arc(2 * q12, side), (4 / math.pi) / side

    def dual_mean(self, q: Array) -> Array:  # noqa: D102
        return jnp.zeros_like(q)


@layer()
@dataclasses.dataclass(frozen=True)
class SigmoidLike(Activation):
    """(1 + erf(u / 2.402)) / 2, close to the logistic function, with a closed form."""

    def fn(self, u: Array) -> Array:  # noqa: D102
        return 0.5 * jax.lax.erf(u / _LOGISTIC) + 0.5

    def dual(self, q11: Array, q12: Array, q22: Array) -> Array:  # noqa: D102
        return self.dual_and_derivative(q11, q12, q22)[0]

    def dual_and_derivative(self, q11: Array, q12: Array, q22: Array) -> tuple[Array, Array]:  # noqa: D102
        value, derivative = Erf().dual_and_derivative(*(q / _LOGISTIC**2 for q in (q11, q12, q22)))
        return 0.25 * value + 0.25, 0.25 / _LOGISTIC**2 * derivative

    def dual_mean(self, q: Array) -> Array:  # noqa: D102
        return jnp.full_like(q, 0.5)


_LOGISTIC = 2.4020563531719796


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
    """The Gaussian error linear unit u Phi(u), with the exact Gaussian distribution function Phi.

    With D = (1 + q11)(1 + q22) - q12^2,
    E[phi(u) phi(v)] = q12 (1/4 + asin(q12 / sqrt((1 + q11)(1 + q22))) / 2 pi)
    + (q11 q22 - q12^2 + q12^2 (1/(1 + q11) + 1/(1 + q22))) / (2 pi sqrt(D)).

    Source: Tsuchida, Pearce, van der Heide, Roosta & Gallagher 2021 (arXiv 2002.08517), proposition 6.
    """

    def fn(self, u: Array) -> Array:  # noqa: D102
        return _gelu(u)

    def dual(self, q11: Array, q12: Array, q22: Array) -> Array:  # noqa: D102
        return self.dual_and_derivative(q11, q12, q22)[0]

    def dual_and_derivative(self, q11: Array, q12: Array, q22: Array) -> tuple[Array, Array]:  # noqa: D102
        det = determinant(*jnp.broadcast_arrays(q11, q12, q22))
        square = 1 + q11 + q22 + det
        side = jnp.sqrt(square)
        weights = 1 / (1 + q11) + 1 / (1 + q22)
        both, density = 0.25 + arc(q12, side) / (2 * math.pi), 1 / (2 * math.pi * side)
        inner = det + q12 * q12 * weights
        return q12 * both + density * inner, both + density * q12 * (2 * weights - 1 + inner / square)

    def dual_mean(self, q: Array) -> Array:  # noqa: D102
        return q / jnp.sqrt(2 * math.pi * (1 + q))


def _damped_sinh(q: Array, rate: Array) -> Array:
    """Return sinh(q) exp(-rate) for rate >= |q|, without overflow, and without cancellation at small q."""
    up, down = jnp.where(q >= 0, q, 0), jnp.where(q >= 0, 0, -q)
    return jnp.where(
        q >= 0, -0.5 * jnp.expm1(-2 * up) * jnp.exp(up - rate), 0.5 * jnp.expm1(-2 * down) * jnp.exp(down - rate)
    )


@layer()
@dataclasses.dataclass(frozen=True)
class Sin(Activation):
    """sin(u); E[phi(u) phi(v)] = exp(-(q11 + q22)/2) sinh(q12)."""

    def fn(self, u: Array) -> Array:  # noqa: D102
        return jnp.sin(u)

    def dual(self, q11: Array, q12: Array, q22: Array) -> Array:  # noqa: D102
        return _damped_sinh(q12, 0.5 * (q11 + q22))

    def dual_and_derivative(self, q11: Array, q12: Array, q22: Array) -> tuple[Array, Array]:  # noqa: D102
        return self.dual(q11, q12, q22), Cos().dual(q11, q12, q22)

    def dual_mean(self, q: Array) -> Array:  # noqa: D102
        return jnp.zeros_like(q)


@layer()
@dataclasses.dataclass(frozen=True)
class Cos(Activation):
    """cos(u); E[phi(u) phi(v)] = exp(-(q11 + q22)/2) cosh(q12)."""

    def fn(self, u: Array) -> Array:  # noqa: D102
        return jnp.cos(u)

    def dual(self, q11: Array, q12: Array, q22: Array) -> Array:  # noqa: D102
        rate = 0.5 * (q11 + q22)
        return 0.5 * (jnp.exp(q12 - rate) + jnp.exp(-q12 - rate))

    def dual_and_derivative(self, q11: Array, q12: Array, q22: Array) -> tuple[Array, Array]:  # noqa: D102
        return self.dual(q11, q12, q22), Sin().dual(q11, q12, q22)

    def dual_mean(self, q: Array) -> Array:  # noqa: D102
        return jnp.exp(-0.5 * q)


@layer(data=("gamma",))
@dataclasses.dataclass(frozen=True)
class Rbf(Activation):
    """sqrt(2) sin(sqrt(2 gamma) u + pi/4), whose dual is the squared-exponential kernel exp(-gamma E[(u - v)^2]).

    Source: Rahimi & Recht 2007.

    Args:
      gamma: inverse squared length scale, positive.

    Raises:
      ValueError: if `gamma` is not positive.
    """

    gamma: Any = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.gamma, (int, float)):
            check_positive("Rbf", "gamma", self.gamma)

    def fn(self, u: Array) -> Array:  # noqa: D102
        return math.sqrt(2) * jnp.sin((2 * self.gamma) ** 0.5 * u + math.pi / 4)

    def dual(self, q11: Array, q12: Array, q22: Array) -> Array:  # noqa: D102
        return jnp.exp(-self.gamma * (q11 + q22 - 2 * q12))

    def dual_mean(self, q: Array) -> Array:  # noqa: D102
        return jnp.exp(-self.gamma * q)


@layer(data=("factor", "rate"))
@dataclasses.dataclass(frozen=True)
class Exp(Activation):
    """factor exp(rate u).

    Args:
      factor: a number.
      rate: a number.
    """

    factor: Any = 1.0
    rate: Any = 1.0

    def fn(self, u: Array) -> Array:  # noqa: D102
        return self.factor * jnp.exp(self.rate * u)

    def dual(self, q11: Array, q12: Array, q22: Array) -> Array:  # noqa: D102
        return self.factor**2 * jnp.exp(self.rate**2 * (0.5 * (q11 + q22) + q12))

    def dual_mean(self, q: Array) -> Array:  # noqa: D102
        return self.factor * jnp.exp(0.5 * self.rate**2 * q)


@layer(data=("factor", "rate"))
@dataclasses.dataclass(frozen=True)
class GaussianBump(Activation):
    """factor exp(-rate u^2).

    Args:
      factor: a number.
      rate: a positive number.

    Raises:
      ValueError: if `rate` is not positive.
    """

    factor: Any = 1.0
    rate: Any = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.rate, (int, float)):
            check_positive("GaussianBump", "rate", self.rate)

    def fn(self, u: Array) -> Array:  # noqa: D102
        return self.factor * jnp.exp(-self.rate * u**2)

    def dual(self, q11: Array, q12: Array, q22: Array) -> Array:  # noqa: D102
        return self.factor**2 / jnp.sqrt(_widening(2 * self.rate, q11, q12, q22))

    def dual_mean(self, q: Array) -> Array:  # noqa: D102
        return self.factor / jnp.sqrt(1 + 2 * self.rate * q)


@layer()
@dataclasses.dataclass(frozen=True)
class Gabor(Activation):
    """exp(-u^2) sin(u): the dual of `Sin` at the covariance that the bell leaves, (Sigma^-1 + 2 I)^-1."""

    def fn(self, u: Array) -> Array:  # noqa: D102
        return jnp.exp(-(u**2)) * jnp.sin(u)

    def dual(self, q11: Array, q12: Array, q22: Array) -> Array:  # noqa: D102
        wide = _widening(2.0, q11, q12, q22)
        det = determinant(*jnp.broadcast_arrays(q11, q12, q22))
        return _damped_sinh(q12 / wide, 0.5 * (q11 + q22 + 4 * det) / wide) / jnp.sqrt(wide)

    def dual_mean(self, q: Array) -> Array:  # noqa: D102
        return jnp.zeros_like(q)


def _widening(rate: Any, q11: Array, q12: Array, q22: Array) -> Array:
    """Return det(I + rate Sigma)."""
    return 1 + rate * (q11 + q22) + rate**2 * determinant(*jnp.broadcast_arrays(q11, q12, q22))
