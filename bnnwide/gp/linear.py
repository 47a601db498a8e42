"""Matrices that are known by their products with columns."""

import dataclasses
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bnnwide.gp.preconditioner import Preconditioner


@runtime_checkable
class LinearOperator(Protocol):
    """A symmetric matrix that can be multiplied: an array, a `KernelOperator`, or what is made of them."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, n)."""
        ...

    def __matmul__(self, v: Any, /) -> Any:
        """Return the product with columns (n, k)."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Shifted:
    """A + shift I.

    Args:
      operator: A (n, n).
      shift: a number.
    """

    operator: LinearOperator
    shift: float | Float[Array, ""]

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, n)."""
        return self.operator.shape

    def __matmul__(self, v: Float[Array, "n k"]) -> Float[Array, "n k"]:
        """Return the product with columns."""
        return _shifted(self.operator @ v, self.shift, v)


@dataclasses.dataclass(frozen=True, eq=False)
class Deflated:
    """A - L L^T.

    Args:
      operator: A (n, n).
      factor: (n, r) L.
    """

    operator: LinearOperator
    factor: Float[Array, "n r"]

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, n)."""
        return self.operator.shape

    def __matmul__(self, v: Float[Array, "n k"]) -> Float[Array, "n k"]:
        """Return the product with columns."""
        return _deflated(self.operator @ v, self.factor, v)


@dataclasses.dataclass(frozen=True, eq=False)
class Preconditioned:
    """G^-1 A G^-T, with P = G G^T a preconditioner of A: near the identity where P is near A.

    Args:
      operator: A (n, n).
      preconditioner: P.
    """

    operator: LinearOperator
    preconditioner: Preconditioner

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, n)."""
        return self.operator.shape

    def __matmul__(self, v: Float[Array, "n k"]) -> Float[Array, "n k"]:
        """Return the product with columns."""
        return _half_solve(self.preconditioner, self.operator @ _half_solve_transposed(self.preconditioner, v))


@dataclasses.dataclass(frozen=True, eq=False)
class Joint:
    """The symmetric matrix [[A, B^T], [B, C]], from its blocks.

    Args:
      first: A (n, n).
      cross: B (t, n).
      transposed: B^T (n, t).
      second: C (t, t).
    """

    first: LinearOperator
    cross: LinearOperator
    transposed: LinearOperator
    second: LinearOperator

    @property
    def shape(self) -> tuple[int, ...]:
        """(n + t, n + t)."""
        size = self.first.shape[0] + self.second.shape[0]
        return size, size

    def __matmul__(self, v: Float[Array, "m k"]) -> Float[Array, "m k"]:
        """Return the product with columns."""
        top, bottom = _parted(v, self.first.shape[0])
        return _joined(self.first @ top, self.transposed @ bottom, self.cross @ top, self.second @ bottom)


_half_solve, _half_solve_transposed = (
    jax.jit(Preconditioner.half_solve),
    jax.jit(Preconditioner.half_solve_transposed),
)


@jax.jit
def _shifted(image: Array, shift: Array | float, v: Array) -> Array:
    return image + shift * v


@jax.jit
def _deflated(image: Array, factor: Array, v: Array) -> Array:
    return image - factor @ (factor.T @ v)


@partial(jax.jit, static_argnums=1)
def _parted(v: Array, n: int) -> tuple[Array, Array]:
    return v[:n], v[n:]


@jax.jit
def _joined(first: Array, transposed: Array, cross: Array, second: Array) -> Array:
    return jnp.concatenate([first + transposed, cross + second])
