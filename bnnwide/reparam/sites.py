"""Gaussian sites in place of a likelihood's factors: what repriorises a readout under any likelihood."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped
from scipy.stats import qmc

from bnnwide.checks import check_array
from bnnwide.likelihoods import Likelihood
from bnnwide.linalg import cho_solve, cholesky

METHODS = ("variational", "laplace")
NUM_POINTS = 128
MAX_STEPS = 200


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sites:
    """One Gaussian factor for each input and coordinate of its outputs, in place of the likelihood's.

    For coordinates g = f Q of the outputs, the product of the sites is t(f) = prod exp(-w_ij (g_ij - t_ij)^2 / 2).
    Samplers keep the exact ratio p(y | f) / t(f), so that sites decide how fast a chain mixes and nothing else.

    Args:
      targets: (n, q) pseudo-targets t.
      precision: (n, q) precisions w >= 0, or (n, 1) where all coordinates of an input share one: one Cholesky factor
        then serves them all.
      contrasts: (k, q) orthonormal columns Q, the coordinates of the outputs that the likelihood sees; None for all.
    """

    targets: Float[Array, "n q"]
    precision: Float[Array, "n g"]
    contrasts: Float[Array, "k q"] | None = None

    def coordinates(self, f: Float[Array, "... k"]) -> Float[Array, "... q"]:
        """Return g = f Q, of anything whose last axis is the outputs."""
        return f if self.contrasts is None else f @ self.contrasts

    def replace(self, f: Float[Array, "n k"], g: Float[Array, "n q"]) -> Float[Array, "n k"]:
        """Return f with its coordinates replaced by g; what Q does not see stays."""
        return g if self.contrasts is None else f + (g - f @ self.contrasts) @ self.contrasts.T

    def shifted(self, by: Float[Array, "n #k"] | float) -> "Sites":
        """Return the sites of the function plus `by`: t(f - by)."""
        k = self.targets.shape[1] if self.contrasts is None else len(self.contrasts)
        by = jnp.broadcast_to(jnp.asarray(by, self.targets.dtype), (len(self.targets), k))
        return dataclasses.replace(self, targets=self.targets + self.coordinates(by))

    def log_density(self, f: Float[Array, "n k"]) -> Float[Array, ""]:
        """Return log t(f), the logarithm of the product of all sites."""
        return -0.5 * jnp.sum(self.precision * (self.coordinates(f) - self.targets) ** 2)


def output_coordinates(likelihood: Likelihood, outputs: int) -> Float[Array, "k q"] | None:
    """Return the contrasts Q (k, q = k - 1) of a likelihood blind to a common shift of the outputs, else None."""
    if not likelihood.shift_invariant:
        return None
    columns = np.eye(outputs)
    columns[:, 0] = 1.0
    return jnp.asarray(np.linalg.qr(columns)[0][:, 1:], jnp.result_type(float))


def find_sites(
    likelihood: Likelihood,
    y: Shaped[Array, "n *k"],
    kernel: Float[Array, "n n"],
    outputs: int,
    *,
    mean: Float[Array, "n"] | None = None,
    method: str = "variational",
    tolerance: float = 1e-3,
) -> Sites:
    """Find sites for a Gaussian process prior on the outputs, f_j ~ N(prior mean, K) for each of them.

    The fixed point m = E_q[grad log p(y | f)] / w + mean, w = -E_q[d^2 log p(y | f) / df^2], with q the Gaussian
    posterior under the sites. "variational": expectations under q, which minimises KL(q || p) over such q (Opper &
    Archambeau 2009, eqs. 12-13); second derivatives by Stein's identity, so that kinks (Laplace) need none.
    "laplace": both at the mean of q, which is then the mode (Rasmussen & Williams 2006, section 3.4).

    Args:
      likelihood: with numbers in place of priors.
      y: (n, k) or (n,) targets, checked.
      kernel: (n, n) prior covariance of each output.
      outputs: number of outputs.
      mean: (n,) prior mean of each output; None for zero.
      method: "variational" or "laplace".
      tolerance: the largest change of a mean, in posterior standard deviations, at which the search stops.

    Returns:
      The sites; usable even where the search has not converged after 200 steps.

    Raises:
      ValueError: if `y` has another shape than the likelihood's law; one column short, it would be read n times over.
    """
    with jax.ensure_compile_time_eval():
        law = likelihood.law(jnp.zeros((len(y), outputs)))
    check_array("find_sites", "y", y, law.batch_shape + law.event_shape, "n and k from the likelihood's law")
    contrasts = output_coordinates(likelihood, outputs)
    n, q = len(y), outputs if contrasts is None else contrasts.shape[1]
    zeros = jnp.zeros((n, q), kernel.dtype)
    # A likelihood blind to shifts couples its outputs symmetrically: one precision serves all contrasts of an input.
    start = Sites(zeros, jnp.ones((n, 1 if contrasts is not None else q), kernel.dtype), contrasts)
    # Found for the function less its mean, and put back in the end.
    offset = 0.0 if mean is None else jnp.asarray(mean, kernel.dtype)[:, None]

    def update(carry: tuple[Array, Sites, Array, Array]) -> tuple[Array, Sites, Array, Array]:
        step, sites, old_mean, _ = carry
        new_mean, sd = posterior_moments(sites, kernel)
        moved = jnp.max(jnp.abs(new_mean - old_mean) / sd)
        slope = lambda g: gradient(likelihood, y, sites, g, offset)  # noqa: E731
        grad, curvature = (_averages if method == "variational" else _at_mean)(slope, new_mean, sd)
        matched = match(sites, new_mean, grad, curvature, jnp.sqrt(jnp.diagonal(kernel)))
        # Damped in the natural parameters (w, w t), in which the update is a natural-gradient step.
        precision = 0.5 * (sites.precision + matched.precision)
        shift = 0.5 * (sites.precision * sites.targets + matched.precision * matched.targets)
        return step + 1, dataclasses.replace(sites, targets=shift / precision, precision=precision), new_mean, moved

    def going(carry: tuple[Array, Sites, Array, Array]) -> Array:
        return (carry[0] < MAX_STEPS) & ~(carry[3] < tolerance)

    # No mean to compare the first with: NaN is not below the tolerance.
    first = (jnp.int32(0), start, jnp.full_like(zeros, jnp.nan), jnp.asarray(jnp.inf, kernel.dtype))
    found = jax.lax.while_loop(going, update, first)[1]
    return found if mean is None else found.shifted(offset)


def match_draws(
    likelihood: Likelihood, y: Shaped[Array, "n *k"], sites: Sites, draws: Float[Array, "s n k"], spread: Array
) -> Sites:
    """Return the sites whose gradient and curvature are the averages over draws of the function: the same fixed point.

    Args:
      likelihood: with numbers in place of priors.
      y: (n, k) or (n,) targets, checked.
      sites: whose layout is kept.
      draws: (s, n, k) posterior draws of the function at the training inputs.
      spread: (n,) prior standard deviations of the outputs.
    """
    g = sites.coordinates(draws)
    mean, variance = g.mean(axis=0), jnp.maximum(g.var(axis=0), 1e-12)
    grads = jax.lax.map(lambda values: gradient(likelihood, y, sites, values), g)
    return match(sites, mean, grads.mean(axis=0), -jnp.mean(grads * (g - mean), axis=0) / variance, spread)


def match(
    sites: Sites, mean: Float[Array, "n q"], grad: Float[Array, "n q"], curvature: Float[Array, "n q"], spread: Array
) -> Sites:
    """Return the sites with the given gradient and curvature at `mean`.

    Args:
      sites: whose layout is kept.
      mean: (n, q) where the factors are matched.
      grad: (n, q) gradient of log p(y | f).
      curvature: (n, q) minus its second derivatives; clipped where it is too small for its gradient.
      spread: (n,) prior standard deviations of the outputs, the scale of what is too small.
    """
    if sites.precision.shape[1] < mean.shape[1]:
        curvature = jnp.mean(curvature, axis=1, keepdims=True)
        steepest = jnp.sqrt(jnp.mean(grad**2, axis=1, keepdims=True))
    else:
        steepest = jnp.abs(grad)
    # A log-likelihood that is not concave (Student-t far from its target) has factors that no Gaussian matches: their
    # gradient is kept, and the pseudo-target at most five prior standard deviations away.
    least = jnp.maximum(steepest / (5 * spread[:, None]), 1e-6 / spread[:, None] ** 2)
    precision = jnp.maximum(curvature, least)
    return dataclasses.replace(sites, targets=mean + grad / precision, precision=precision)


def posterior_moments(sites: Sites, kernel: Float[Array, "n n"]) -> tuple[Float[Array, "n q"], Float[Array, "n q"]]:
    """Return mean and standard deviation of every coordinate under the prior N(0, K) and the sites."""

    def one(precision: Array, targets: Array) -> tuple[Array, Array]:
        root = jnp.sqrt(precision)
        factor = cholesky(jnp.eye(len(root)) + root[:, None] * kernel * root)
        scaled = kernel * root
        half = jax.scipy.linalg.solve_triangular(factor, scaled.T, lower=True)
        mean = scaled @ cho_solve(factor, root[:, None] * targets)
        return mean, jnp.sqrt(jnp.maximum(jnp.diagonal(kernel) - jnp.sum(half**2, axis=0), 1e-12))

    if sites.precision.shape[1] == 1:
        mean, sd = one(sites.precision[:, 0], sites.targets)
        return mean, jnp.broadcast_to(sd[:, None], mean.shape)
    mean, sd = jax.vmap(lambda w, t: one(w, t[:, None]), in_axes=1, out_axes=1)(sites.precision, sites.targets)
    return mean[..., 0], sd


def gradient(
    likelihood: Likelihood, y: Array, sites: Sites, g: Float[Array, "n q"], offset: Array | float = 0.0
) -> Float[Array, "n q"]:
    """Return the gradient of log p(y | f) in the coordinates of the sites; f is that of g plus an offset (n, 1)."""
    return jax.grad(lambda g: likelihood.log_prob(_outputs(sites, g) + offset, y).sum())(g)


def _outputs(sites: Sites, g: Array) -> Array:
    return g if sites.contrasts is None else g @ sites.contrasts.T


def _averages(slope: Callable[[Array], Array], mean: Array, sd: Array) -> tuple[Array, Array]:
    """Average gradient and curvature under independent N(mean, sd^2) coordinates, by points of exact second moments."""
    points = _points(mean.shape[1], mean.dtype)
    grads = jax.lax.map(lambda point: slope(mean + sd * point), points)
    return jnp.mean(grads, axis=0), -jnp.mean(grads * points[:, None, :], axis=0) / sd


def _at_mean(slope: Callable[[Array], Array], mean: Array, sd: Array) -> tuple[Array, Array]:
    """Return gradient and curvature at the mean, by differentiation."""
    del sd
    along = jax.vmap(lambda e: jax.jvp(slope, (mean,), (jnp.broadcast_to(e, mean.shape),))[1])
    rows = along(jnp.eye(mean.shape[1], dtype=mean.dtype))
    return slope(mean), -jnp.einsum("cnc->nc", rows)


def _points(q: int, dtype: jnp.dtype) -> Float[Array, "s q"]:
    """Return quasi-random points, symmetric and of identity sample covariance: exact for quadratic factors."""
    sobol = qmc.MultivariateNormalQMC(np.zeros(q), rng=0)
    half = sobol.random(max(NUM_POINTS // 2, 2 ** math.ceil(math.log2(2 * q))))
    half = np.linalg.solve(np.linalg.cholesky(half.T @ half / len(half)), half.T).T
    return jnp.asarray(np.concatenate([half, -half]), dtype)
