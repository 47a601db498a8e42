"""Whether a decomposition can be trusted: an estimate of its condition number, and the jitter that it took."""

import os
import warnings
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from bnnwide.checks import is_concrete

STEPS = 16
PACKAGE = os.path.dirname(os.path.dirname(__file__))  # whose frames are not where a warning comes from
# eps times the condition number bounds the relative error of a solution, and a posterior warns above this bound. Seen
# there in float32: 1e-3 in means, 1e-2 in standard deviations, 1e-2 per target in the log marginal likelihood.
LARGEST_ERROR = 0.1
REMEDY = "use float64 (jax.config.update('jax_enable_x64', True)), or a larger noise scale or ridge"


@jax.jit
def condition_number(factor: Float[Array, "n n"]) -> Float[Array, ""]:
    """Estimate the condition number of A = L L^T by power iteration on A and on its inverse.

    Both iterations approach from within, so that the estimate is a lower bound; it costs 64 products of order n^2.

    Args:
      factor: (n, n) lower Cholesky factor L.

    Returns:
      The estimate of lambda_max / lambda_min; NaN for a factor with NaN.
    """
    start = jax.random.normal(jax.random.key(0), (len(factor),), factor.dtype)

    def largest(apply) -> Array:
        def step(_: Any, v: Array) -> Array:
            return apply(v / jnp.linalg.norm(v))

        return jnp.linalg.norm(jax.lax.fori_loop(0, STEPS, step, start))

    def inverse(v: Array) -> Array:
        return solve_triangular(factor, solve_triangular(factor, v, lower=True), lower=True, trans=1)

    return largest(lambda v: factor @ (factor.T @ v)) * largest(inverse)


@jax.jit
def relative_jitter(matrix: Float[Array, "n n"], factor: Float[Array, "n n"]) -> Float[Array, ""]:
    """Return what a jittered factor L of A has on its diagonal beyond A, mean(diag(L L^T - A)) / mean(diag A)."""
    wanted = jnp.diagonal(matrix)
    return jnp.mean(jnp.sum(factor**2, axis=1) - wanted) / jnp.mean(wanted)


def check_factor(door: str, name: str, matrix: Float[Array, "n n"], factor: Float[Array, "n n"]) -> None:
    """Refuse a factor that is not finite, and warn where its solutions cannot be trusted; tracers pass.

    Args:
      door: the public function that was called, for the message.
      name: what the matrix is, for the message.
      matrix: (n, n) the matrix that was factored.
      factor: (n, n) its lower Cholesky factor, perhaps with jitter.

    Raises:
      ValueError: if the factor is not finite.
    """
    if not is_concrete(factor):
        return
    if not jnp.isfinite(matrix).all():
        raise ValueError(f"`{door}`: {name} is not finite; scale inputs or weights down, or use float64")
    if not jnp.isfinite(factor[-1, -1]):
        raise ValueError(f"`{door}`: {name} has no finite Cholesky factor, even with jitter; {REMEDY}")
    jitter = float(relative_jitter(matrix, factor))
    # The ladder of linalg.cholesky starts at 32 eps; rounding alone stays below half of that.
    took = f"took a jitter of {jitter:.0e} of its mean diagonal and " if jitter > 16 * _eps(factor) else ""
    _warn(door, f"{name} {took}", float(condition_number(factor)), factor, always=bool(took))


def check_spectrum(door: str, name: str, eigenvalues: Float[Array, "n"], gain: Float[Array, "n"]) -> None:
    """Do the same for what is solved in an eigenbasis, f = V gain V^T y; tracers pass.

    Args:
      door: the public function that was called, for the message.
      name: what the matrix is, for the message.
      eigenvalues: (n,) of the matrix, in rising order.
      gain: (n,) what stands in place of their inverses; training that stops early bounds it, and so the error.

    Raises:
      ValueError: if the gain is not finite.
    """
    if not is_concrete(eigenvalues) or not is_concrete(gain):
        return
    if not jnp.isfinite(gain).all():
        raise ValueError(f"`{door}`: {name} is not positive definite to rounding, or training diverged; {REMEDY}")
    _warn(door, f"{name} ", float(jnp.max(jnp.abs(eigenvalues)) * jnp.max(jnp.abs(gain))), eigenvalues)


def _warn(door: str, what: str, condition: float, array: Array, *, always: bool = False) -> None:
    error = _eps(array) * condition
    if always or error > LARGEST_ERROR:
        warnings.warn(
            f"`{door}`: {what}has a condition number of about {condition:.0e}: in {array.dtype} the results "
            f"may be off by up to {min(error, 1.0):.0%}; {REMEDY}",
            RuntimeWarning,
            skip_file_prefixes=(PACKAGE,),
        )


def _eps(array: Array) -> float:
    return float(jnp.finfo(array.dtype).eps)
