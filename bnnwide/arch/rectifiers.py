"""Activations with a kink or a jump at 0, and arc-cosine kernels."""

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bnnwide.arch.activation import Activation
from bnnwide.arch.angles import inverse, rectified_moments, root, root_and_arc
from bnnwide.arch.layer import layer
from bnnwide.checks import check_count


class Rectifier(Activation):
    """left min(u, 0) + right max(u, 0); a subclass states the slopes.

    E[phi(u) phi(v)] = (right - left)^2 E[u_+ v_+] + left right q12, u_+ = max(u, 0).

    Source: Cho & Saul 2009, eqs. 3-6; Tsuchida, Roosta-Khorasani & Gallagher 2018 (arXiv 1711.09090) for two slopes.
    """

    @property
    def slopes(self) -> tuple[Any, Any]:
        """The slopes left and right of 0."""
        raise NotImplementedError

    def fn(self, u: Array) -> Array:  # noqa: D102
        left, right = self.slopes
        return jnp.where(u >= 0, right * u, left * u)

    def dual(self, q11: Array, q12: Array, q22: Array) -> Array:  # noqa: D102
        return self.dual_and_derivative(q11, q12, q22)[0]

    def dual_and_derivative(self, q11: Array, q12: Array, q22: Array) -> tuple[Array, Array]:  # noqa: D102
        left, right = self.slopes
        kink, product = (right - left) ** 2, left * right
        both, positive = rectified_moments(*jnp.broadcast_arrays(q11, q12, q22))
        return kink * both + product * q12, kink * positive + product

    def dual_diag(self, q: Array) -> Array:  # noqa: D102
        left, right = self.slopes
        return 0.5 * (left**2 + right**2) * q

    def dual_mean(self, q: Array) -> Array:  # noqa: D102
        left, right = self.slopes
        return (right - left) / math.sqrt(2 * math.pi) * root(q)


@layer()
@dataclasses.dataclass(frozen=True)
class Relu(Rectifier):
    """max(u, 0)."""

    @property
    def slopes(self) -> tuple[Any, Any]:
        """The slopes left and right of 0."""
        return 0.0, 1.0

    def fn(self, u: Array) -> Array:  # noqa: D102
        return jax.nn.relu(u)


@layer(data=("slope",))
@dataclasses.dataclass(frozen=True)
class LeakyRelu(Rectifier):
    """max(u, 0) + slope min(u, 0).

    Args:
      slope: the slope on the negative side.
    """

    slope: Any = 0.01

    @property
    def slopes(self) -> tuple[Any, Any]:
        """The slopes left and right of 0."""
        return self.slope, 1.0


@layer(data=("left", "right"))
@dataclasses.dataclass(frozen=True)
class ABRelu(Rectifier):
    """left min(u, 0) + right max(u, 0).

    Args:
      left: the slope on the negative side.
      right: the slope on the positive side.
    """

    left: Any
    right: Any

    @property
    def slopes(self) -> tuple[Any, Any]:
        """The slopes left and right of 0."""
        return self.left, self.right


@layer()
@dataclasses.dataclass(frozen=True)
class Abs(Rectifier):
    """|u|."""

    @property
    def slopes(self) -> tuple[Any, Any]:
        """The slopes left and right of 0."""
        return -1.0, 1.0

    def fn(self, u: Array) -> Array:  # noqa: D102
        return jnp.abs(u)


@layer()
@dataclasses.dataclass(frozen=True)
class Sign(Activation):
    """The sign of u: -1, 0 or 1.

    Its derivative is 0 almost everywhere, and with it what gradients through it carry: E[phi' phi'] counts as 0, though
    the derivative of E[phi phi] is not.
    """

    def fn(self, u: Array) -> Array:  # noqa: D102
        return jnp.sign(u)

    def dual(self, q11: Array, q12: Array, q22: Array) -> Array:  # noqa: D102
        return (2 / math.pi) * root_and_arc(*jnp.broadcast_arrays(q11, q12, q22))[1]

    def dual_and_derivative(self, q11: Array, q12: Array, q22: Array) -> tuple[Array, Array]:  # noqa: D102
        value = self.dual(q11, q12, q22)
        return value, jnp.zeros_like(value)

    def dual_diag(self, q: Array) -> Array:  # noqa: D102
        return jnp.sign(q)

    def dual_mean(self, q: Array) -> Array:  # noqa: D102
        return jnp.zeros_like(q)


@layer(meta=("degree",))
@dataclasses.dataclass(frozen=True)
class RectifiedMonomial(Activation):
    """max(u, 0)^degree, whose dual is the arc-cosine kernel of that degree; degree 0 is the step 1{u > 0}.

    The step's derivative is 0 almost everywhere, as that of `Sign`.

    Source: Cho & Saul 2009, eqs. 1-4 (their kernel is twice the dual).

    Args:
      degree: a whole number of at least 0.

    Raises:
      TypeError: if `degree` is not a whole number.
      ValueError: if `degree` is negative.
    """

    degree: int

    def __post_init__(self) -> None:
        check_count("RectifiedMonomial", "degree", self.degree, 0)

    def fn(self, u: Array) -> Array:  # noqa: D102
        return jax.nn.relu(u) ** self.degree if self.degree else (u > 0).astype(u.dtype)

    def dual(self, q11: Array, q12: Array, q22: Array) -> Array:  # noqa: D102
        return _arc_cosine(self.degree, *jnp.broadcast_arrays(q11, q12, q22))

    def dual_and_derivative(self, q11: Array, q12: Array, q22: Array) -> tuple[Array, Array]:  # noqa: D102
        value, k = self.dual(q11, q12, q22), self.degree
        if k == 0:
            return value, jnp.zeros_like(value)
        return value, k**2 * _arc_cosine(k - 1, *jnp.broadcast_arrays(q11, q12, q22))

    def dual_diag(self, q: Array) -> Array:  # noqa: D102
        return _half_moment(2 * self.degree) * q**self.degree if self.degree else 0.5 * jnp.sign(q)

    def dual_mean(self, q: Array) -> Array:  # noqa: D102
        return _half_moment(self.degree) * root(q) ** self.degree if self.degree else 0.5 * jnp.sign(q)


def _half_moment(power: int) -> float:
    """Return E[max(z, 0)^power] for z ~ N(0, 1)."""
    return 0.5 if power == 0 else 2 ** (power / 2 - 1) * math.gamma((power + 1) / 2) / math.sqrt(math.pi)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _arc_cosine(degree: int, q11: Array, q12: Array, q22: Array) -> Array:
    """Return E[max(u, 0)^degree max(v, 0)^degree], the step function for degree 0."""
    r, angle = root_and_arc(q11, q12, q22)
    scale = root(q11) * root(q22)
    rho, sin = q12 * inverse(scale), r * inverse(scale)
    table: dict[tuple[int, int], Array] = {}

    def moment(a: int, b: int) -> Array:
        # E[u_+^a v_+^b] of unit variances, by Stein's identity on the higher power: E[u g(u, v)] = E[g_u] + rho E[g_v].
        a, b = max(a, b), min(a, b)
        if (a, b) not in table:
            if a == 0:
                value = 0.25 + angle / (2 * math.pi)
            else:
                # At a = 1, g_u is a delta at u = 0, where v ~ N(0, 1 - rho^2).
                first = (a - 1) * moment(a - 2, b) if a > 1 else _half_moment(b) / math.sqrt(2 * math.pi) * sin**b
                # At b = 0, g_v is a delta at v = 0.
                second = (
                    b * moment(a - 1, b - 1) if b else _half_moment(a - 1) / math.sqrt(2 * math.pi) * sin ** (a - 1)
                )
                value = first + rho * second
            table[a, b] = value
        return table[a, b]

    return scale**degree * moment(degree, degree)


@_arc_cosine.defjvp
def _arc_cosine_jvp(degree: int, primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    (q11, q12, q22), (d11, d12, d22) = primals, tangents
    value = _arc_cosine(degree, q11, q12, q22)
    relative = 0.5 * (inverse(q11) * d11 + inverse(q22) * d22)
    if degree == 0:
        # d asin(rho), infinite at equal inputs and counted as 0 there.
        over = inverse(root_and_arc(q11, q12, q22)[0])
        return value, over * (d12 - q12 * relative) / (2 * math.pi)
    slope = degree**2 * _arc_cosine(degree - 1, q11, q12, q22)
    return value, slope * (d12 - q12 * relative) + degree * value * relative
