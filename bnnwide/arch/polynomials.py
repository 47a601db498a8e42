"""Polynomial activations."""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array

from bnnwide.arch.activation import Activation
from bnnwide.arch.layer import layer
from bnnwide.checks import check_array, check_count


class PolynomialActivation(Activation):
    """A polynomial p; a subclass states the means of its derivatives.

    E[p(u) p(v)] = sum_j q12^j / j! A_j(q11) A_j(q22), with A_j(q) = E[p^(j)(u)], u ~ N(0, q) (Mehler's expansion),
    exact for any variance.
    """

    def mean_derivatives(self, q: Array) -> list[Array]:
        """Return A_j(q) for j = 0 up to the degree."""
        raise NotImplementedError

    def dual(self, q11: Array, q12: Array, q22: Array) -> Array:  # noqa: D102
        left, right = self.mean_derivatives(q11), self.mean_derivatives(q22)
        total = jnp.zeros_like(q12)
        for j in range(len(left) - 1, -1, -1):  # Horner's rule in q12 / j
            total = left[j] * right[j] + total * q12 / (j + 1)
        return total

    def dual_mean(self, q: Array) -> Array:  # noqa: D102
        return self.mean_derivatives(q)[0]


def _normal_moment(power: int) -> int:
    """Return E[z^power] for z ~ N(0, 1) and an even power: (power - 1)!!."""
    return math.prod(range(power - 1, 0, -2))


@layer(meta=("coefficients",))
@dataclasses.dataclass(frozen=True)
class Polynomial(PolynomialActivation):
    """sum_i coefficients[i] u^i.

    Args:
      coefficients: finite numbers, lowest power first; at least one.
    """

    coefficients: tuple[float, ...]

    def __post_init__(self) -> None:
        check_array("Polynomial", "coefficients", self.coefficients, ("degree + 1",))
        object.__setattr__(self, "coefficients", tuple(float(c) for c in self.coefficients))

    def fn(self, u: Array) -> Array:  # noqa: D102
        return jnp.polyval(jnp.asarray(self.coefficients[::-1], u.dtype), u)

    def mean_derivatives(self, q: Array) -> list[Array]:  # noqa: D102
        c = self.coefficients
        return [
            sum(
                (
                    c[j + m] * math.perm(j + m, j) * _normal_moment(m) * q ** (m // 2)
                    for m in range(0, len(c) - j, 2)
                    if c[j + m]
                ),
                start=jnp.zeros_like(q),
            )
            for j in range(len(c))
        ]


@layer(meta=("degree",))
@dataclasses.dataclass(frozen=True)
class Monomial(PolynomialActivation):
    """u^degree.

    Args:
      degree: a whole number of at least 0.

    Raises:
      TypeError: if `degree` is not a whole number.
      ValueError: if `degree` is negative.
    """

    degree: int

    def __post_init__(self) -> None:
        check_count("Monomial", "degree", self.degree, 0)

    def fn(self, u: Array) -> Array:  # noqa: D102
        return u**self.degree

    def mean_derivatives(self, q: Array) -> list[Array]:  # noqa: D102
        return Polynomial((0.0,) * self.degree + (1.0,)).mean_derivatives(q)


@layer(meta=("degree",))
@dataclasses.dataclass(frozen=True)
class Hermite(PolynomialActivation):
    """The Hermite polynomial He_k(u) / sqrt(k!), normalised so that E[phi(z)^2] = 1 for z ~ N(0, 1).

    For unit variances its dual is q12^k; it is exact for any others as well.

    Args:
      degree: k, a whole number of at least 0.
    """

    degree: int

    def __post_init__(self) -> None:
        check_count("Hermite", "degree", self.degree, 0)

    def fn(self, u: Array) -> Array:  # noqa: D102
        # The normalised recurrence sqrt(j + 1) h_{j+1} = u h_j - sqrt(j) h_{j-1}: no large numbers cancel.
        before, now = jnp.zeros_like(u), jnp.ones_like(u)
        for j in range(self.degree):
            before, now = now, (u * now - math.sqrt(j) * before) / math.sqrt(j + 1)
        return now

    def mean_derivatives(self, q: Array) -> list[Array]:  # noqa: D102
        # He_k^(j) = k!/(k - j)! He_{k-j}, and E[He_m(u)] = (m - 1)!! (q - 1)^(m/2) for even m.
        k = self.degree
        return [
            math.perm(k, k - m) / math.sqrt(math.factorial(k)) * _normal_moment(m) * (q - 1) ** (m // 2)
            if m % 2 == 0
            else jnp.zeros_like(q)
            for m in range(k, -1, -1)
        ]
