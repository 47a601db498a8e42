"""A linear readout under Gaussian sites: repriorised, or seen through its values at the training inputs alone."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from bnnwide.linalg import cholesky, gram, half_lower, log_diag_sum, log_marginal, triangular_inverse
from bnnwide.reparam.readout import Repriorisation
from bnnwide.reparam.sites import Sites


@dataclasses.dataclass(frozen=True)
class SitedRepriorisation:
    """The bijection phi -> theta that turns N(0, I) into the posterior of the readout under Gaussian sites.

    For one precision w_i per input it is `Repriorisation` of the rows of Psi and of the pseudo-targets scaled by
    sqrt(w_i), with unit noise; with one per coordinate, that for each column. What the sites do not see of theta is
    phi's.

    Args:
      psi: (n, m) readout features, scales and bias column included.
      sites: of the n inputs.
      solver: "primal", "dual" or "auto", as for `Repriorisation`.
    """

    psi: Float[Array, "n m"]
    sites: Sites
    solver: str = "auto"

    def forward_and_log_det(self, phi: Float[Array, "m k"]) -> tuple[Float[Array, "m k"], Float[Array, ""]]:
        """Map phi to theta (m, k), and return log|det dtheta/dphi| as well."""
        return self._map(Repriorisation.forward_and_log_det, phi)

    def inverse_and_log_det(self, theta: Float[Array, "m k"]) -> tuple[Float[Array, "m k"], Float[Array, ""]]:
        """Map theta to phi (m, k), and return log|det dphi/dtheta| as well."""
        return self._map(Repriorisation.inverse_and_log_det, theta)

    def log_marginal(self) -> Float[Array, ""]:
        """Return log int N(theta; 0, I) t(Psi theta) dtheta, with t the product of all sites."""
        values = self._by_precision(lambda psi, targets: log_marginal(psi, targets, 1.0, solver=self.solver))
        return jnp.sum(values) + 0.5 * self.sites.targets.size * math.log(2 * math.pi)

    def _map(self, direction, readout: Array) -> tuple[Array, Array]:
        def one(psi: Array, targets: Array, columns: Array) -> tuple[Array, Array]:
            return direction(Repriorisation(psi, targets, 1.0, self.solver), columns)

        columns, log_det = self._by_precision(one, self.sites.coordinates(readout))
        return self.sites.replace(readout, columns), jnp.sum(log_det)

    def _by_precision(self, fn, *columns: Array):
        """Call fn(scaled features, scaled pseudo-targets, columns) once for each precision of an input."""
        root = jnp.sqrt(self.sites.precision)
        if root.shape[1] == 1:
            return fn(root * self.psi, root * self.sites.targets, *columns)

        def one(root: Array, targets: Array, *columns: Array):
            out = fn(root[:, None] * self.psi, (root * targets)[:, None], *(c[:, None] for c in columns))
            return jax.tree.map(lambda leaf: leaf[..., 0] if leaf.ndim else leaf, out)

        outputs = jax.eval_shape(one, root[:, 0], self.sites.targets[:, 0], *(c[:, 0] for c in columns))
        out_axes = jax.tree.map(lambda leaf: leaf.ndim, outputs)
        return jax.vmap(one, in_axes=1, out_axes=out_axes)(root, self.sites.targets, *columns)


def repriorisation(psi: Float[Array, "n m"], y: Float[Array, "n k"], scale: Any, solver: str = "auto"):
    """Return the repriorisation under Gaussian noise of one scale (), or of one scale per output (k,)."""
    if jnp.ndim(scale) == 0:
        return Repriorisation(psi, y, scale, solver)
    precision = jnp.broadcast_to(1 / jnp.asarray(scale, psi.dtype) ** 2, y.shape)
    return SitedRepriorisation(psi, Sites(y, precision), solver)


def nugget(kernel: Float[Array, "n n"]) -> Float[Array, ""]:
    """Return eps^(2/3) times the mean of the diagonal: the variance below which function values are not resolved."""
    return float(jnp.finfo(kernel.dtype).eps) ** (2 / 3) * jnp.mean(jnp.diagonal(kernel))


@dataclasses.dataclass(frozen=True)
class FunctionValues:
    """Coordinates e -> f of the network's outputs at the training inputs, N(0, I) under prior and sites.

    Given hidden weights, f = C v with C C^T = Psi Psi^T (n, n) and v ~ N(0, I): a likelihood sees no more of the
    readout. Under sites of precision w the posterior of v has precision B = I + C^T diag(w) C = L L^T, and
    v = B^-1 C^T diag(w) t + L^-T e. With fewer features than inputs C = Psi, and v is the readout itself.

    The Cholesky factor of Psi Psi^T is taken with a nugget on its diagonal: a relative 4e-11 in float64 (2e-5 in
    float32) of independent variance in each function value, without which directions below rounding would have
    derivatives of nothing but rounding errors.

    Args:
      psi: (n, m) readout features.
      sites: of the n inputs.
    """

    psi: Float[Array, "n m"]
    sites: Sites

    @property
    def rank(self) -> int:
        """The number of coordinates of each output, min(n, m)."""
        return min(self.psi.shape)

    def factor(self) -> "FactoredValues":
        """Compute C and L, all that depends on the hidden weights."""
        n, m = self.psi.shape
        return factored_values(self.psi if m <= n else cholesky(self._kernel()), self.sites)

    def forward_and_log_marginal(self, e: Float[Array, "r k"]) -> tuple[Float[Array, "n k"], Float[Array, ""]]:
        """Return the function values f and log int N(f; 0, C C^T) t(f) df, for a derivative in half the time.

        What `factor` gives, differentiated through both factorisations at once; precisions are constants to it.
        """
        n, m = self.psi.shape
        sites = dataclasses.replace(self.sites, precision=jax.lax.stop_gradient(self.sites.precision))
        if m <= n:
            factored = factored_values(self.psi, sites)
            return factored.forward(e), factored.log_marginal()
        return _values(self._kernel(), e, sites)

    def _kernel(self) -> Array:
        kernel = gram(self.psi)
        return kernel + nugget(kernel) * jnp.eye(len(kernel), dtype=kernel.dtype)


def factored_values(root: Float[Array, "n r"], sites: Sites) -> "FactoredValues":
    """Factor the precision I + C^T diag(w) C of v, with C (n, r) the root: once for each precision of an input."""

    def one(precision: Array, targets: Array) -> tuple[Array, Array]:
        scaled = jnp.sqrt(precision)[:, None] * root
        lower = cholesky(jnp.eye(root.shape[1], dtype=root.dtype) + gram(scaled.T))
        return lower, solve_triangular(lower, root.T @ (precision[:, None] * targets), lower=True)

    if sites.precision.shape[1] == 1:
        lower, fit = one(sites.precision[:, 0], sites.targets)
        return FactoredValues(root, lower[None], fit, sites)
    lower, fit = jax.vmap(lambda w, t: one(w, t[:, None]), in_axes=1)(sites.precision, sites.targets)
    return FactoredValues(root, lower, fit[..., 0].T, sites)


@dataclasses.dataclass(frozen=True)
class FactoredValues:
    """What `FunctionValues` needs of the hidden weights; made by its `factor`.

    Args:
      root: (n, r) C.
      lower: (g, r, r) Cholesky factors L, one for each precision of an input.
      fit: (r, q) L^-1 C^T diag(w) t.
      sites: the sites.
    """

    root: Float[Array, "n r"]
    lower: Float[Array, "g r r"]
    fit: Float[Array, "r q"]
    sites: Sites

    def prior_coordinates(self, e: Float[Array, "r k"]) -> Float[Array, "r k"]:
        """Return v, N(0, I) under the prior, with f = C v."""
        inner = self.fit + self.sites.coordinates(e)
        if len(self.lower) == 1:
            columns = solve_triangular(self.lower[0], inner, lower=True, trans=1)
        else:
            columns = jax.vmap(lambda low, b: solve_triangular(low, b, lower=True, trans=1), (0, 1), 1)(
                self.lower, inner
            )
        return self.sites.replace(e, columns)

    def forward(self, e: Float[Array, "r k"]) -> Float[Array, "n k"]:
        """Return the function values f (n, k)."""
        return self.root @ self.prior_coordinates(e)

    def log_marginal(self) -> Float[Array, ""]:
        """Return log int N(f; 0, C C^T) t(f) df, with t the product of all sites."""
        sites = self.sites
        constant = -0.5 * jnp.sum(sites.precision * sites.targets**2) + 0.5 * jnp.sum(self.fit**2)
        columns = sites.targets.shape[1] // len(self.lower)
        return constant - columns * sum(log_diag_sum(lower) for lower in self.lower)


@jax.custom_jvp
def _values(kernel: Array, e: Array, sites: Sites) -> tuple[Array, Array]:
    factored = factored_values(cholesky(kernel), sites)
    return factored.forward(e), factored.log_marginal()


@_values.defjvp
def _values_jvp(primals: tuple[Array, Array, Sites], tangents: tuple[Array, Array, Sites]) -> tuple:
    # With H the lower triangle that holds half the diagonal: dC = C P for P = H(C^-1 dK C^-T), so that
    # dB = P^T (B - I) + (B - I) P; and dL = L Q for Q = H(L^-1 dB L^-T) = H(M + M^T), M = (L^T - L^-1) P L^-T.
    (kernel, e, sites), (d_kernel, d_e, d_sites) = primals, tangents
    factored = factored_values(cholesky(kernel), sites)
    root, inverse = factored.root, triangular_inverse(factored.root)
    p = half_lower(inverse @ d_kernel @ inverse.T)
    v = factored.prior_coordinates(e)

    def one(lower: Array, fit: Array, inner: Array, d_pull: Array, d_e: Array) -> tuple[Array, Array]:
        inverse = triangular_inverse(lower)
        m = (lower.T - inverse) @ p @ inverse.T
        q = half_lower(m + m.T)
        d_fit = inverse @ d_pull - q @ fit
        d_columns = solve_triangular(lower, d_fit + d_e - q.T @ inner, lower=True, trans=1)
        return d_columns, jnp.vdot(fit, d_fit) - fit.shape[1] * jnp.trace(q)

    pulled = sites.precision * sites.targets
    d_pull = p.T @ (root.T @ pulled) + root.T @ (sites.precision * d_sites.targets)
    columns = (factored.fit, factored.fit + sites.coordinates(e), d_pull, sites.coordinates(d_e))
    if len(factored.lower) == 1:
        d_columns, d_log_marginal = one(factored.lower[0], *columns)
    else:
        each = lambda lower, *columns: one(lower, *(c[:, None] for c in columns))  # noqa: E731
        d_columns, d_log_marginal = jax.vmap(each, (0, 1, 1, 1, 1))(factored.lower, *columns)
        d_columns, d_log_marginal = d_columns[..., 0].T, jnp.sum(d_log_marginal)
    d_f = root @ (p @ v + sites.replace(d_e, d_columns))
    d_log_marginal -= jnp.vdot(pulled, d_sites.targets)
    return (root @ v, factored.log_marginal()), (d_f, d_log_marginal)
