"""A linear readout under Gaussian sites, seen through a few projections of its values; the rest of it as it is."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from bnnwide.checks import is_concrete
from bnnwide.linalg import cholesky
from bnnwide.reparam.sited import FactoredValues, factored_values
from bnnwide.reparam.sites import Sites

LEAST_INFORMATION = 0.1
LARGEST_SHARE = 1 / 2


def find_projection(sites: Sites, kernel: Float[Array, "n n"], rank: int | None = None) -> Float[Array, "r n"] | None:
    """Return the projections of the function values that sites say most about: a matrix B (r, n).

    With E the leading eigenvectors of W^(1/2) K W^(1/2), B = E^T W^(1/2), W the average precision of an input's
    sites. An eigenvalue is the information on its direction, in units of the prior's: the posterior variance under the
    sites is 1/(1 + eigenvalue) of the prior's.

    Args:
      sites: of the n inputs.
      kernel: (n, n) prior covariance of each output.
      rank: r; None takes the directions of an information of at least 0.1.

    Returns:
      B, or None where `rank` is None and more than half of all directions would be taken (or the data are traced, so
      that their number is not known).
    """
    if rank is None and not (is_concrete(kernel) and is_concrete(sites.precision)):
        return None
    root = jnp.sqrt(jnp.mean(sites.precision, axis=1))
    information, vectors = jnp.linalg.eigh(root[:, None] * kernel * root)
    if rank is None:
        rank = max(int(np.sum(np.asarray(information) > LEAST_INFORMATION)), 1)
        if rank > LARGEST_SHARE * len(kernel):
            return None
    return (root[:, None] * vectors[:, len(kernel) - rank :]).T


@dataclasses.dataclass(frozen=True)
class ProjectedValues:
    """Coordinates (e, theta_0) -> f of the network's outputs at the training inputs, N(0, I) under prior and sites.

    Given hidden weights, A = B Psi (r, m), A A^T = L_A L_A^T and R = Psi A^T L_A^-T (n, r), the readout is
    theta = theta_0 + A^T L_A^-T (v - L_A^-1 A theta_0) with v ~ N(0, I_r) and theta_0 ~ N(0, I_m): N(0, I) again. So

        f = R v + g,  g = (I - R L_A^-1 B) Psi theta_0,

    and given g the sites are those of R v with the pseudo-targets t - g. From e to v as in `FunctionValues`, with R in
    place of C. Every factorisation is of r x r matrices; no kernel matrix is formed, and no nugget added.

    As width grows R tends to a constant, and the hidden weights move f through g only, of which the sites know little.

    Args:
      psi: (n, m) readout features.
      sites: of the n inputs.
      projection: (r, n) B, of rank r, at most m.
    """

    psi: Float[Array, "n m"]
    sites: Sites
    projection: Float[Array, "r n"]

    def factor(self, theta: Float[Array, "m k"]) -> tuple[FactoredValues, Float[Array, "n k"]]:
        """Return the coordinates of R v given theta_0, and g (n, k)."""
        cross = self.psi @ (self.projection @ self.psi).T
        lower = cholesky(self.projection @ cross)
        root = solve_triangular(lower, cross.T, lower=True).T
        outside = self.psi @ theta
        outside -= root @ solve_triangular(lower, self.projection @ outside, lower=True)
        return factored_values(root, self.sites.shifted(-outside)), outside
