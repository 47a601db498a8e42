"""The Fisher matrix formed: p x p numbers, for networks with no more weights than outputs on the data."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from bnnwide.linalg import cho_solve, log_diag_sum
from bnnwide.natgrad.curvature import Fisher, Layout, operator, rounding
from bnnwide.natgrad.problem import flat_rows


@operator
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class DenseFisher(Fisher):
    """G = sum_i J_i^T H_i J_i + damping I, with its Cholesky factor.

    Args:
      matrix: (p, p) G.
      factor: (p, p) its lower Cholesky factor, without jitter: NaN if G is singular.
    """

    matrix: Float[Array, "p p"]
    factor: Float[Array, "p p"]

    def _matvec(self, v: Array) -> Array:
        return self.matrix @ v

    def _solve(self, v: Array) -> Array:
        return cho_solve(self.factor, v[:, None])[:, 0]

    def _sqrt_solve(self, z: Array) -> Array:
        return solve_triangular(self.factor, z, lower=True, trans=1)

    def _diag(self) -> Array:
        return jnp.diagonal(self.matrix)

    def logdet(self) -> Array:  # noqa: D102  # as in the base class
        return 2 * log_diag_sum(self.factor)

    def effective_dimension(self) -> Array:  # noqa: D102  # as in the base class
        root = solve_triangular(self.factor, jnp.eye(len(self.factor), dtype=self.factor.dtype), lower=True)
        return len(root) - self.damping * jnp.sum(root**2)

    @property
    def margin(self) -> Array:  # noqa: D102  # as in the base class
        pivots = jnp.diagonal(self.factor) ** 2
        return jnp.min(pivots) / (jnp.max(pivots) * len(pivots) * rounding(pivots))


def dense_fisher(f: Any, params: Any, x: Array, s: Float[Array, "n k r"], damping: Array) -> DenseFisher:
    """Form the Fisher matrix from the factors S of the outputs' information."""
    rows = flat_rows(f, params, x, s)
    rows = rows.reshape(-1, rows.shape[-1])
    return from_matrix(Layout.of(params), rows.T @ rows, damping)


def from_matrix(layout: Layout, matrix: Float[Array, "p p"], damping: Array) -> DenseFisher:
    """Return the operator of a given F, damped."""
    damped = matrix + damping * jnp.eye(len(matrix), dtype=matrix.dtype)
    return DenseFisher(layout, damping, damped, jnp.linalg.cholesky(damped))
