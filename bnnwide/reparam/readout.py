"""Repriorisation of a linear readout under Gaussian noise (Hron et al. 2022), and the readout integrated out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from bnnwide.checks import check_array, check_choice, check_positive
from bnnwide.linalg import cho_solve, cholesky, choose_solver, gram, log_diag_sum, log_marginal

SOLVERS = ("auto", "primal", "dual")


@dataclasses.dataclass(frozen=True)
class Repriorisation:
    """The bijection phi -> theta that turns N(0, I) into the exact posterior of the readout.

    For Y = Psi theta + scale noise and theta ~ N(0, I), the posterior of theta is N(mu, Sigma) with
    A = Psi^T Psi + scale^2 I, mu = A^-1 Psi^T Y, Sigma = scale^2 A^-1, and theta = mu + S phi with S S^T = Sigma.
    The primal form takes S = scale L^-T from the Cholesky factor A = L L^T, the dual form
    S = I - Psi^T L^-T (L + scale I)^-1 Psi from K = Psi Psi^T + scale^2 I = L L^T. Both are exact; they differ by a
    rotation of phi, under which N(0, I) is invariant.

    Source: Hron, Novak, Pennington & Sohl-Dickstein 2022 (arXiv 2206.07673), section 3 (primal); docs, "The
    mathematics", for the proof of the dual form.

    Args:
      psi: (n, m) readout features, scales and bias column included.
      y: (n, k) targets.
      scale: noise scale, in the units of y.
      solver: "primal" (O(m^3)), "dual" (O(n^3 + n^2 m)), or "auto": primal when m <= n.

    Raises:
      ValueError: for wrong shapes, numbers that are not finite, a scale that is not positive, or an unknown solver.
    """

    psi: Float[Array, "n m"]
    y: Float[Array, "n k"]
    scale: Float[Array, ""] | float
    solver: str = "auto"

    def __post_init__(self) -> None:
        check_array("Repriorisation", "psi", self.psi, ("n", "m"))
        check_array("Repriorisation", "y", self.y, (len(self.psi), "k"), f"n={len(self.psi)} from psi")
        check_positive("Repriorisation", "scale", self.scale)
        check_choice("Repriorisation", "solver", self.solver, SOLVERS)

    def forward_and_log_det(self, phi: Float[Array, "m k"]) -> tuple[Float[Array, "m k"], Float[Array, ""]]:
        """Map phi to theta.

        Args:
          phi: (m, k) coordinates, N(0, I) under the posterior.

        Returns:
          theta, (m, k) readout weights, bias row last; and log|det dtheta/dphi|.
        """
        factor, dual = self._factor()
        if dual:
            mean = self.psi.T @ cho_solve(factor, self.y)
            inner = solve_triangular(self._shifted(factor), self.psi @ phi, lower=True)
            theta = mean + phi - self.psi.T @ solve_triangular(factor, inner, lower=True, trans=1)
        else:
            fit = solve_triangular(factor, self.psi.T @ self.y, lower=True)
            theta = solve_triangular(factor, fit + self.scale * phi, lower=True, trans=1)
        return theta, self._log_det(factor)

    def inverse_and_log_det(self, theta: Float[Array, "m k"]) -> tuple[Float[Array, "m k"], Float[Array, ""]]:
        """Map theta to phi.

        Args:
          theta: (m, k) readout weights, bias row last.

        Returns:
          phi, (m, k) coordinates; and log|det dphi/dtheta|.
        """
        factor, dual = self._factor()
        if dual:
            delta = theta - self.psi.T @ cho_solve(factor, self.y)
            inner = solve_triangular(self._shifted(factor), self.psi @ delta, lower=True, trans=1)
            phi = delta + self.psi.T @ inner / self.scale
        else:
            fit = solve_triangular(factor, self.psi.T @ self.y, lower=True)
            phi = (factor.T @ theta - fit) / self.scale
        return phi, -self._log_det(factor)

    def _factor(self) -> tuple[Array, bool]:
        dual = choose_solver(self.solver, *self.psi.shape) == "dual"
        product = gram(self.psi if dual else self.psi.T)
        return cholesky(product + self.scale**2 * jnp.eye(len(product), dtype=self.psi.dtype)), dual

    def _shifted(self, factor: Array) -> Array:
        return factor + self.scale * jnp.eye(len(factor), dtype=factor.dtype)

    def _log_det(self, factor: Array) -> Array:
        # One expression for both forms: the factor is (n, n) or (m, m), and so is the number of scales.
        return self.y.shape[1] * (len(factor) * jnp.log(self.scale) - log_diag_sum(factor))


class ReadoutMarginal(dist.Distribution):
    """The law of Y = loc + Psi theta + scale noise with the readout theta ~ N(0, I) integrated out.

    Its columns are independent N(loc, Psi Psi^T + scale^2 I); `log_prob` is `bnnwide.linalg.log_marginal`.

    Args:
      psi: (n, m) readout features.
      scale: noise scale, in the units of y, or one per column (k,).
      outputs: k, the number of columns of Y.
      solver: "auto", "primal" or "dual", as for `Repriorisation`.
      loc: (n, 1) mean of every column, or 0.
    """

    support = dist.constraints.real_matrix  # pyright: ignore[reportAssignmentType]  # as in NumPyro's own
    pytree_data_fields = ("psi", "scale", "loc")
    pytree_aux_fields = ("solver",)

    def __init__(
        self, psi: Array, scale: Array | float, outputs: int, solver: str = "auto", *, loc: Array | float = 0.0
    ) -> None:
        self.psi, self.scale, self.solver, self.loc = psi, scale, solver, loc
        super().__init__(batch_shape=(), event_shape=(psi.shape[0], outputs), validate_args=False)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draw (*sample_shape, n, k) targets from the prior predictive."""
        readout_key, noise_key = jax.random.split(key)
        n, k = self.event_shape
        theta = jax.random.normal(readout_key, (*sample_shape, self.psi.shape[1], k), self.psi.dtype)
        function = self.loc + self.psi @ theta
        return function + self.scale * jax.random.normal(noise_key, (*sample_shape, n, k), self.psi.dtype)

    def log_prob(self, value: Array) -> Array:
        """Return the log density of (n, k) targets."""
        return log_marginal(self.psi, value - self.loc, jnp.asarray(self.scale, self.psi.dtype), solver=self.solver)
