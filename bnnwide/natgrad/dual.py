"""The Fisher matrix through the Gram matrix of the tangent kernel: n k x n k numbers, for wide networks."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from bnnwide.empirical.kernels import blocked_ntk, plan
from bnnwide.empirical.network import Problem
from bnnwide.linalg import cho_solve, log_diag_sum
from bnnwide.natgrad.curvature import Fisher, Layout, operator, rounding
from bnnwide.natgrad.diagonal import diagonal_fisher


@operator
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class DualFisher(Fisher):
    """G = J~^T J~ + damping I, never formed: J~ = S^T J acts by derivatives, and K = J~ J~^T + damping I is factored.

    With lambda = damping and K = L L^T (n k x n k),

      G^-1 v = (v - J~^T K^-1 J~ v) / lambda,                                        (Woodbury)
      G^-1/2 z = (z - J~^T L^-T (L + sqrt(lambda) I)^-1 J~ z) / sqrt(lambda),        (as the dual repriorisation)
      log det G = log det K + (p - n k) log lambda.

    Args:
      f: the network.
      params: the weights at which it is differentiated.
      x: (n, ...) inputs.
      s: (n, k, r) factors of the outputs' information.
      factor: (n r, n r) L.
    """

    f: Any
    params: Any
    x: Array
    s: Float[Array, "n k r"]
    factor: Float[Array, "q q"]

    def _push(self, v: Array) -> Array:
        """Return J~ v."""
        _, tangent = jax.jvp(lambda params: self.f(params, self.x), (self.params,), (self.layout.unravel(v),))
        return jnp.einsum("nkr,nk->nr", self.s, tangent).ravel()

    def _pull(self, u: Array) -> Array:
        """Return J~^T u."""
        _, pull = jax.vjp(lambda params: self.f(params, self.x), self.params)
        n, _, r = self.s.shape
        return self.layout.ravel(pull(jnp.einsum("nkr,nr->nk", self.s, u.reshape(n, r)))[0])

    def _matvec(self, v: Array) -> Array:
        return self._pull(self._push(v)) + self.damping * v

    def _solve(self, v: Array) -> Array:
        return (v - self._pull(cho_solve(self.factor, self._push(v)[:, None])[:, 0])) / self.damping

    def _sqrt_solve(self, z: Array) -> Array:
        root = jnp.sqrt(self.damping)
        shifted = self.factor + root * jnp.eye(len(self.factor), dtype=z.dtype)
        u = solve_triangular(shifted, self._push(z), lower=True)
        return (z - self._pull(solve_triangular(self.factor, u, lower=True, trans=1))) / root

    def _diag(self) -> Array:
        return diagonal_fisher(self.f, self.params, self.x, self.s, self.damping).values

    def logdet(self) -> Array:  # noqa: D102  # as in the base class
        return 2 * log_diag_sum(self.factor) + (self.layout.size - len(self.factor)) * jnp.log(self.damping)

    def effective_dimension(self) -> Array:  # noqa: D102  # as in the base class
        root = solve_triangular(self.factor, jnp.eye(len(self.factor), dtype=self.factor.dtype), lower=True)
        return len(root) - self.damping * jnp.sum(root**2)

    @property
    def margin(self) -> Array:  # noqa: D102  # as in the base class
        return self.damping / (jnp.max(jnp.diagonal(self.factor) ** 2) * rounding(self.factor))


def dual_fisher(f: Any, params: Any, x: Array, s: Float[Array, "n k r"], damping: Array) -> DualFisher:
    """Factor the Gram matrix, from the empirical tangent kernel computed in the cheapest way for the architecture."""
    n, k, r = s.shape
    method, batch = plan("fisher", Problem(f, params, x, None, k), "full", "auto", None)
    theta = blocked_ntk(f, params, x, None, k, "full", method, batch)
    gram = jnp.einsum("iar,ijab,jbs->irjs", s, theta, s).reshape(n * r, n * r)
    factor = jnp.linalg.cholesky(gram + damping * jnp.eye(n * r, dtype=gram.dtype))
    return DualFisher(Layout.of(params), damping, f, params, x, s, factor)
