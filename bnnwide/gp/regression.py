"""Gaussian process regression, given kernel matrices: conditioning, marginal likelihood, leave-one-out."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, Real

from bnnwide.checks import Data, check_array
from bnnwide.gp.conditioning import check_factor
from bnnwide.gp.ridge import Ridge, add_diagonal, diagonal, noise_variance
from bnnwide.likelihoods import Gaussian
from bnnwide.linalg import cho_solve, cholesky, log_diag_sum


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Regression:
    """A Gaussian process conditioned on training targets; built by `regression` from a kernel matrix.

    Every column of y is an independent draw of f + noise, with f ~ N(0, K) and A = K + (scale^2 + ridge) I = L L^T.

    Args:
      factor: (n, n) the Cholesky factor L.
      alpha: (n, k) A^-1 y.
      y: (n, k) the targets.
      diagonal: scale^2 + ridge, in squared units of y.
    """

    factor: Float[Array, "n n"]
    alpha: Float[Array, "n k"]
    y: Float[Array, "n k"]
    diagonal: Float[Array, ""]

    def moments(
        self, k_td: Real[Data, "t n"], k_tt: Real[Data, "t t"]
    ) -> tuple[Float[Array, "t k"], Float[Array, "t t"]]:
        """Return mean and covariance of the function at test inputs (no noise is added).

        mean = K_td A^-1 y, cov = K_tt - K_td A^-1 K_dt (Rasmussen & Williams 2006, eqs. 2.23-2.24).

        Args:
          k_td: (t, n) kernel between test and training inputs.
          k_tt: (t, t) kernel of the test inputs.

        Returns:
          The mean (t, k), and the covariance (t, t) of each output.

        Raises:
          ValueError: for wrong shapes, or NaN or infinite numbers.
        """
        cross = self._check_cross("moments", k_td)
        check_array("moments", "k_tt", k_tt, (len(cross), len(cross)), f"t={len(cross)} from k_td")
        half = solve_triangular(self.factor, cross.T, lower=True)
        return cross @ self.alpha, jnp.asarray(k_tt, cross.dtype) - half.T @ half

    def marginals(
        self, k_td: Real[Data, "t n"], k_tt_diag: Real[Data, "t"]
    ) -> tuple[Float[Array, "t k"], Float[Array, "t"]]:
        """Return mean (t, k) and variance (t,) of the function: `moments` without the rest of the covariance.

        Args:
          k_td: (t, n) kernel between test and training inputs.
          k_tt_diag: (t,) diagonal of the kernel of the test inputs.

        Raises:
          ValueError: for wrong shapes, or NaN or infinite numbers.
        """
        cross = self._check_cross("marginals", k_td)
        check_array("marginals", "k_tt_diag", k_tt_diag, (len(cross),), f"t={len(cross)} from k_td")
        half = solve_triangular(self.factor, cross.T, lower=True)
        spread = jnp.asarray(k_tt_diag, cross.dtype) - jnp.sum(half**2, axis=0)
        return cross @ self.alpha, jnp.maximum(spread, 0.0)

    def _check_cross(self, door: str, k_td: Data) -> Float[Array, "t n"]:
        check_array(door, "k_td", k_td, ("t", len(self.y)), f"n={len(self.y)} from y")
        return jnp.asarray(k_td, self.y.dtype)

    def log_marginal_likelihood(self) -> Float[Array, ""]:
        """Return log p(y) = -1/2 tr(y^T A^-1 y) - k/2 log det A - nk/2 log 2 pi, of all outputs together.

        The ridge, if there is one, counts as part of the prior. Source: Rasmussen & Williams 2006, eq. 2.30.
        """
        n, k = self.y.shape
        fit = jnp.sum(self.y * self.alpha)
        return -0.5 * fit - k * log_diag_sum(self.factor) - 0.5 * n * k * math.log(2 * math.pi)

    def leave_one_out(self) -> tuple[Float[Array, "n k"], Float[Array, "n"]]:
        """Return mean (n, k) and variance (n,) of each observation y_i given all the others, in closed form.

        mean_i = y_i - alpha_i / [A^-1]_ii, variance_i = 1 / [A^-1]_ii: of the noisy observation (Rasmussen & Williams
        2006, eq. 5.12).
        """
        half_inverse = solve_triangular(self.factor, jnp.eye(len(self.y), dtype=self.y.dtype), lower=True)
        variance = 1.0 / jnp.sum(half_inverse**2, axis=0)
        return self.y - self.alpha * variance[:, None], variance

    def leave_one_out_log_prob(self) -> Float[Array, "n k"]:
        """Return log p(y_ij | y without row i) (n, k); its sum is eq. 5.11 of Rasmussen & Williams 2006."""
        mean, variance = self.leave_one_out()
        return -0.5 * ((self.y - mean) ** 2 / variance[:, None] + jnp.log(2 * math.pi * variance)[:, None])


def regression(
    k_dd: Real[Data, "n n"], y: Real[Data, "n k"], likelihood: Gaussian | None, *, ridge: Ridge | None = None
) -> Regression:
    """Condition a Gaussian process on targets, given its kernel at the training inputs.

    Args:
      k_dd: (n, n) kernel of the training inputs, without noise.
      y: (n, k) targets; the outputs are independent and share the kernel.
      likelihood: `Gaussian(scale)`: scale^2 is added to the diagonal; None for targets without noise.
      ridge: regularisation added to the diagonal besides the noise.

    Returns:
      The conditioned process.

    Raises:
      ValueError: for wrong shapes, NaN or infinite numbers, a learned noise scale, or a matrix with no Cholesky factor.
    """
    variance = noise_variance("regression", likelihood)
    check_array("regression", "y", y, ("n", "k"))
    n = len(y)
    check_array("regression", "k_dd", k_dd, (n, n), f"n={n} from y")
    number = jnp.result_type(float)
    return condition("regression", jnp.asarray(k_dd, number), jnp.asarray(y, number), variance, ridge)


def condition(
    door: str, k_dd: Float[Array, "n n"], y: Float[Array, "n k"], variance: Array, ridge: Ridge | None
) -> Regression:
    """Condition on checked arrays, and check the factor in the voice of the public door that was called."""
    matrix, result = _condition(k_dd, y, variance, ridge)
    check_factor(door, "K + (scale^2 + ridge) I", matrix, result.factor)
    return result


@jax.jit
def _condition(k_dd: Array, y: Array, variance: Array, ridge: Ridge | None) -> tuple[Array, Regression]:
    amount = diagonal(k_dd, variance, ridge)
    matrix = add_diagonal(k_dd, amount)
    factor = cholesky(matrix)
    return matrix, Regression(factor, cho_solve(factor, y), y, amount)


@jax.custom_jvp
def log_density(matrix: Float[Array, "n n"], y: Float[Array, "n k"]) -> Float[Array, ""]:
    """Return log N(y; 0, A), summed over the columns of y (n, k); its derivative costs one inverse.

    d log p = <G, dA> - <alpha, dy>, with alpha = A^-1 y and G = (alpha alpha^T - k A^-1) / 2 (Rasmussen & Williams
    2006, eq. 5.9).
    """
    return _terms(matrix, y)[0]


def _terms(matrix: Array, y: Array) -> tuple[Array, Array, Array]:
    factor = cholesky(matrix)
    alpha = cho_solve(factor, y)
    return Regression(factor, alpha, y, jnp.zeros((), y.dtype)).log_marginal_likelihood(), factor, alpha


@log_density.defjvp
def _log_density_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (matrix, y), (dmatrix, dy) = primals, tangents
    value, factor, alpha = _terms(matrix, y)
    half_inverse = solve_triangular(factor, jnp.eye(len(y), dtype=y.dtype), lower=True)
    g = 0.5 * (alpha @ alpha.T - y.shape[1] * half_inverse.T @ half_inverse)
    return value, jnp.sum(g * dmatrix) - jnp.sum(alpha * dy)
