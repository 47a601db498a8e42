"""The diagonal of the Fisher matrix."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bnnwide.natgrad.curvature import Fisher, Layout, operator, rounding
from bnnwide.natgrad.problem import flat_rows

ROWS_AT_ONCE = 64  # inputs whose Jacobian is held


@operator
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class DiagonalFisher(Fisher):
    """G = diag(F) + damping I.

    Args:
      values: (p,) the diagonal of G.
    """

    values: Float[Array, " p"]

    def _matvec(self, v: Array) -> Array:
        return self.values * v

    def _solve(self, v: Array) -> Array:
        return v / self.values

    def _sqrt_solve(self, z: Array) -> Array:
        return z / jnp.sqrt(self.values)

    def _diag(self) -> Array:
        return self.values

    def logdet(self) -> Array:  # noqa: D102  # as in the base class
        return jnp.sum(jnp.log(self.values))

    def effective_dimension(self) -> Array:  # noqa: D102  # as in the base class
        return jnp.sum(1 - self.damping / self.values)

    @property
    def margin(self) -> Array:  # noqa: D102  # as in the base class
        return jnp.min(self.values) / (jnp.max(self.values) * rounding(self.values))


def diagonal_fisher(f: Any, params: Any, x: Array, s: Float[Array, "n k r"], damping: Array) -> DiagonalFisher:
    """Sum the squares of the rows of J~, a few inputs at a time."""

    def squares(item: tuple[Array, Array]) -> Array:
        return jnp.sum(flat_rows(f, params, item[0][None], item[1][None])[0] ** 2, axis=0)

    size = min(ROWS_AT_ONCE, len(x))
    whole = len(x) // size * size
    parts = jax.tree.map(lambda rows: rows[:whole].reshape(-1, size, *rows.shape[1:]), (x, s))

    def add(total: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
        return total + jnp.sum(jax.vmap(squares)(part), axis=0), None

    layout = Layout.of(params)
    total, _ = jax.lax.scan(add, jnp.zeros(layout.size, s.dtype), parts)
    if whole < len(x):
        total = add(total, (x[whole:], s[whole:]))[0]
    return DiagonalFisher(layout, damping, total + damping)
