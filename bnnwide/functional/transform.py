"""The linear map of a readout that makes its prior, at some points, that of a Gaussian process."""

import dataclasses

import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from bnnwide.functional.process import root_of
from bnnwide.linalg import gram


@dataclasses.dataclass(frozen=True)
class ReadoutTransform:
    """theta = T (theta' + Q^T u), T = I + Q^T (L^-1 G - I) Q (m, m), theta' ~ N(0, I); made by `match_points`.

    For features Psi_M = L Q at p points, L lower triangular and Q with orthonormal rows, Psi_M T = G Q: the function at
    the points is G (Q theta' + u) ~ N(G u, G G^T). What the points do not see of theta is that of theta'.

    Args:
      q: (p, m) orthonormal rows Q.
      inner: (p, p) L^-1 G - I.
      white: (p, 1) u, the mean asked for at the points in units of G; None for zero.
    """

    q: Float[Array, "p m"]
    inner: Float[Array, "p p"]
    white: Float[Array, "p 1"] | None = None

    @property
    def mean(self) -> Float[Array, "m 1"] | None:
        """The mean Q^T u of the coordinates theta' + Q^T u of the readout, None for zero."""
        return None if self.white is None else self.q.T @ self.white

    def features(self, psi: Float[Array, "t m"]) -> Float[Array, "t m"]:
        """Return Psi T, the features whose weights are theta' + Q^T u."""
        return psi + ((psi @ self.q.T) @ self.inner) @ self.q

    def readout(self, base: Float[Array, "m k"]) -> Float[Array, "m k"]:
        """Return theta = T (theta' + Q^T u) (m, k)."""
        base = base if self.mean is None else base + self.mean
        return base + self.q.T @ (self.inner @ (self.q @ base))


def match_points(
    psi: Float[Array, "p m"], root: Float[Array, "p p"], white: Float[Array, "p 1"] | None = None
) -> ReadoutTransform:
    """Return the transform for features (p, m) at the points and the factor G of the covariance wanted there.

    Psi_M Psi_M^T is factored with c = 32 eps of its mean diagonal added, so that close points, or hidden units that do
    not tell points apart, leave a finite map. Of the variance asked for in a direction in which the features have
    variance v, a fraction of the order of (c/v)^2 is then lost: see the docs, "Functional priors by MCMC".

    Args:
      psi: (p, m) readout features at the points, p <= m.
      root: (p, p) G, with G G^T the covariance wanted.
      white: (p, 1) u, with G u the mean wanted; None for zero.
    """
    lower = root_of(gram(psi))
    rows = solve_triangular(lower, psi, lower=True)
    # rows rows^T = I - D with D = c (L L^T)^-1, and what rounding adds. One Newton-Schulz step towards the orthonormal
    # rows leaves an error of D^2, and at most doubles what is not resolved (a second factorisation would divide by it).
    correction = jnp.eye(len(rows), dtype=rows.dtype) * 1.5 - 0.5 * gram(rows)
    matched = correction @ solve_triangular(lower, root, lower=True)
    return ReadoutTransform(correction @ rows, matched - jnp.eye(len(rows), dtype=rows.dtype), white)
