"""Cholesky factors that climb a jitter ladder, and the Gaussian marginal likelihood of a linear readout."""

import math

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float


@jax.custom_jvp
def cholesky(a: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """Return the lower Cholesky factor of a symmetric matrix, adding jitter to its diagonal only if it must.

    A failed factorisation is tried again with jitter c * mean(diag), c growing tenfold from about 1e-14 (float64) or
    1e-6 (float32) over four rungs; past the last one the factor is NaN, which samplers report as `diverging` and
    `predict` as an error.

    Args:
      a: (n, n) symmetric matrix; only its lower triangle is read.

    Returns:
      (n, n) lower triangular factor.
    """
    first = 32 * float(jnp.finfo(a.dtype).eps)
    scale = jnp.mean(jnp.diagonal(a))
    eye = jnp.eye(a.shape[-1], dtype=a.dtype)

    def climb(state: tuple[Array, Array]) -> tuple[Array, Array]:
        rung, _ = state
        return rung + 1, jnp.linalg.cholesky(a + first * 10.0**rung * scale * eye, symmetrize_input=False)

    def failed(state: tuple[Array, Array]) -> Array:
        rung, factor = state
        return (rung < 4) & ~jnp.isfinite(factor[-1, -1])

    plain = jnp.linalg.cholesky(a, symmetrize_input=False)
    return jax.lax.while_loop(failed, climb, (jnp.zeros((), a.dtype), plain))[1]


@cholesky.defjvp
def _cholesky_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # dL = L lower(L^-1 dA L^-T), with the diagonal halved (Murray 2016, arXiv 1602.07527, eq. 8); the ladder's loop
    # itself cannot be differentiated in reverse.
    (a,), (da,) = primals, tangents
    factor = cholesky(a)
    inverse = triangular_inverse(factor)
    return factor, factor @ half_lower(inverse @ da @ inverse.T)


def half_lower(a: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """Return the lower triangle with half the diagonal: X with X + X^T = A, for a symmetric A."""
    return jnp.tril(a) - 0.5 * jnp.diag(jnp.diagonal(a))


def triangular_inverse(factor: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """Return L^-1, by blocks: nearly all of it matrix products, several times as fast as triangular solves."""
    n = len(factor)
    if n <= 32:
        return solve_triangular(factor, jnp.eye(n, dtype=factor.dtype), lower=True)
    half = n // 2
    first, last = triangular_inverse(factor[:half, :half]), triangular_inverse(factor[half:, half:])
    corner = -last @ (factor[half:, :half] @ first)
    return jnp.block([[first, jnp.zeros((half, n - half), factor.dtype)], [corner, last]])


@jax.custom_jvp
def gram(a: Float[Array, "n m"]) -> Float[Array, "n n"]:
    """Return A A^T; its derivative costs one product, where that of the expression itself costs two."""
    return a @ a.T


@gram.defjvp
def _gram_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (a,), (da,) = primals, tangents
    half = da @ a.T
    return gram(a), half + half.T


def cho_solve(factor: Float[Array, "n n"], b: Float[Array, "n k"]) -> Float[Array, "n k"]:
    """Solve A X = B given the lower Cholesky factor of A."""
    return solve_triangular(factor, solve_triangular(factor, b, lower=True), lower=True, trans=1)


def log_diag_sum(factor: Float[Array, "n n"]) -> Float[Array, ""]:
    """Return sum_i log L_ii, half the log-determinant of L L^T."""
    return jnp.sum(jnp.log(jnp.diagonal(factor)))


def log_marginal(
    psi: Float[Array, "n m"], y: Float[Array, "n k"], scale: Float[Array, "..."] | float, *, solver: str = "auto"
) -> Float[Array, ""]:
    """Return log p(Y | Psi) for Y = Psi theta + scale noise with theta and the noise standard normal.

    log p(Y | Psi) = -1/2 tr(Y^T K^-1 Y) - k/2 log det K - nk/2 log 2 pi, with K = Psi Psi^T + scale^2 I.

    Args:
      psi: (n, m) readout features.
      y: (n, k) targets.
      scale: the noise scale, or one per column of y (k,).
      solver: "dual" factors the (n, n) matrix K, "primal" the (m, m) matrix Psi^T Psi + scale^2 I; "auto" takes the
        smaller.

    Returns:
      The log density.
    """
    if jnp.ndim(scale):
        column = lambda y, scale: log_marginal(psi, y[:, None], scale, solver=solver)  # noqa: E731
        return jnp.sum(jax.vmap(column, in_axes=(1, 0))(y, scale))
    if choose_solver(solver, *psi.shape) == "dual":
        return _log_marginal_dual(psi, y, jnp.asarray(scale, psi.dtype))
    (n, m), k = psi.shape, y.shape[1]
    factor = cholesky(psi.T @ psi + scale**2 * jnp.eye(m, dtype=psi.dtype))
    fit = solve_triangular(factor, psi.T @ y, lower=True)
    quadratic = (jnp.sum(y * y) - jnp.sum(fit * fit)) / scale**2
    return (
        -0.5 * quadratic - k * (log_diag_sum(factor) + (n - m) * jnp.log(scale)) - 0.5 * n * k * math.log(2 * math.pi)
    )


def choose_solver(solver: str, n: int, m: int) -> str:
    """Return "primal" or "dual": what was asked for, or for "auto" the one with the smaller matrix to factor."""
    return ("primal" if m <= n else "dual") if solver == "auto" else solver


@jax.custom_jvp
def _log_marginal_dual(psi: Array, y: Array, scale: Array) -> Array:
    return _dual_terms(psi, y, scale)[0]


def _dual_terms(psi: Array, y: Array, scale: Array) -> tuple[Array, Array, Array]:
    n, k = y.shape
    factor = cholesky(psi @ psi.T + scale**2 * jnp.eye(n, dtype=psi.dtype))
    alpha = cho_solve(factor, y)
    value = -0.5 * jnp.sum(y * alpha) - k * log_diag_sum(factor) - 0.5 * n * k * math.log(2 * math.pi)
    return value, factor, alpha


@_log_marginal_dual.defjvp
def _log_marginal_dual_jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    # d log p = <G, dK> - <alpha, dY>, with alpha = K^-1 Y and G = (alpha alpha^T - k K^-1) / 2: one product with Psi
    # instead of the chain through the factorisation.
    (psi, y, scale), (dpsi, dy, dscale) = primals, tangents
    value, factor, alpha = _dual_terms(psi, y, scale)
    half_inverse = solve_triangular(factor, jnp.eye(len(y), dtype=psi.dtype), lower=True)
    g = 0.5 * (alpha @ alpha.T - y.shape[1] * half_inverse.T @ half_inverse)
    dpsi_part = jnp.sum(jax.lax.optimization_barrier(2 * (g @ psi)) * dpsi)
    return value, dpsi_part + 2 * scale * jnp.trace(g) * dscale - jnp.sum(alpha * dy)
