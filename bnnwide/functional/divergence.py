"""The divergence of a variational law from a prior at measurement points, and its gradient through scores."""

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from bnnwide.functional.priors import FunctionPrior
from bnnwide.functional.score import SteinScore
from bnnwide.linalg import cholesky, log_diag_sum


def gaussian_divergence(
    mean: Float[Array, "m k"],
    covariance: Float[Array, "km km"],
    prior_mean: Float[Array, "m"],
    prior_covariance: Float[Array, "m m"],
    nugget: Float[Array, ""],
) -> Float[Array, ""]:
    """Return KL( N(mean, covariance + nugget I) || N(prior_mean, prior_covariance + nugget I) of every output ).

    With a nugget of `gamma` m this is the estimate of the regularised KL at m points (Cinquin & Bamler 2024,
    arXiv 2406.04317, section 4; Quang 2019), and with a fixed one the KL between noisy functions.

    Args:
      mean: (m, k) of the variational law.
      covariance: (k m, k m) of the same, the points of the first output first.
      prior_mean: (m,) of the prior of one output.
      prior_covariance: (m, m) of the same.
      nugget: variance of the independent noise.
    """
    m, k = mean.shape
    eye = jnp.eye(m, dtype=mean.dtype)
    factor = cholesky(prior_covariance + nugget * eye)
    own = cholesky(covariance + nugget * jnp.eye(k * m, dtype=mean.dtype))
    # tr(P^-1 S) as a sum of squares of L_P^-1 L_S, output by output.
    spread = jax.vmap(lambda rows: jnp.sum(solve_triangular(factor, rows, lower=True) ** 2))(own.reshape(k, m, k * m))
    shift = solve_triangular(factor, mean - prior_mean[:, None], lower=True)
    return 0.5 * (jnp.sum(spread) + jnp.sum(shift**2) - k * m) + k * log_diag_sum(factor) - log_diag_sum(own)


def moments(f: Float[Array, "s m k"]) -> tuple[Float[Array, "m k"], Float[Array, "km km"]]:
    """Return mean and covariance of draws of a function."""
    mean = f.mean(axis=0)
    off = (f - mean).swapaxes(1, 2).reshape(len(f), -1)
    return mean, off.T @ off / (len(f) - 1)


def stein_divergence(
    key: Array,
    f: Float[Array, "s m k"],
    prior: FunctionPrior,
    prior_moments: tuple[Float[Array, "m"], Float[Array, "m m"]],
    points: Float[Array, "m d"],
    nugget: Float[Array, ""],
    fraction: float,
    num_prior_samples: int,
) -> Float[Array, ""]:
    """Return a number whose gradient is that of the KL at the points, E[(score_q - score_p) df].

    Its value is the KL between Gaussians of the same moments: a figure to look at, not what is minimised. Both laws are
    those of functions plus independent noise of variance `nugget`.

    Source: Sun, Zhang, Shi & Grosse 2019 (arXiv 1903.05779), eq. 5 (section 3.3); the path derivative's other term
    vanishes because scores have mean zero.

    Args:
      key: PRNG key of the noise and of the prior's draws.
      f: (s, m, k) draws of the variational law at the points, differentiable.
      prior: over functions.
      prior_moments: mean (m,) and covariance (m, m) of the prior at the points, for the figure.
      points: (m, d) measurement points.
      nugget: variance of the noise.
      fraction: of the spectrum that `SteinScore` keeps.
      num_prior_samples: draws of a prior without a density.
    """
    s, m, k = f.shape
    noise_key, prior_key, prior_noise_key = jax.random.split(key, 3)
    noisy = f + jnp.sqrt(nugget) * jax.random.normal(noise_key, f.shape, f.dtype)
    fixed = stop_gradient(noisy)
    flat = fixed.reshape(s, m * k)
    own = SteinScore(flat, fraction=fraction)(flat).reshape(s, m, k)
    columns = fixed.swapaxes(1, 2).reshape(s * k, m)
    if prior.explicit:
        towards = prior.score(columns, points, nugget)
    else:
        draws = prior.sample(prior_key, points, num_prior_samples)
        draws = draws + jnp.sqrt(nugget) * jax.random.normal(prior_noise_key, draws.shape, draws.dtype)
        towards = SteinScore(draws, fraction=fraction)(columns)
    pull = stop_gradient(own - towards.reshape(s, k, m).swapaxes(1, 2))
    surrogate = jnp.sum(pull * noisy) / s
    figure = gaussian_divergence(*moments(stop_gradient(f)), *prior_moments, nugget)
    return surrogate + stop_gradient(figure - surrogate)
