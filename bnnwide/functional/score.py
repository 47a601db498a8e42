"""The spectral Stein estimator of a score, grad log q, from draws of q."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from bnnwide.checks import check_array, check_count, check_positive, is_concrete


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class SteinScore:
    """The spectral Stein gradient estimator: a function that approximates d log q(z) / dz from M draws of q.

    With k the Gaussian kernel, K = k(Z, Z) = U diag(lambda) U^T at the draws Z (M, d), psi_j the Nystrom
    eigenfunctions and J of them kept,
    g(z) = sum_j beta_j psi_j(z), beta_j = -1/M sum_m grad psi_j(z_m), psi_j(z) = sqrt(M)/lambda_j sum_m U_mj k(z, z_m).
    Put together, g(z) = k(z, Z) W with W = -U_J diag(lambda_J)^-2 U_J^T G and G_n = sum_m grad_1 k(z_m, z_n).

    The error has two parts: few draws, which falls with M, and the part of the score outside of the J eigenfunctions,
    which falls with J. A larger `fraction` keeps more of them, and so has less bias and more noise.

    Source: Shi, Sun & Zhu 2018 (arXiv 1806.02925), eqs. 6, 9, 13 and 14; bandwidth and J as in its section 3.4.

    Args:
      samples: (M, d) draws of q, at least two.
      bandwidth: the length scale of k, in the units of the draws; None for the median distance between two draws.
      fraction: the share of the spectrum's sum that is kept: J is the smallest number of eigenvalues that has it.
      num_eigenfunctions: J itself, instead.

    Raises:
      TypeError: if the draws are no array of real numbers.
      ValueError: for wrong shapes, NaN or infinite draws, or an option out of range.
    """

    samples: Any
    bandwidth: Any = None
    fraction: float = 0.99
    num_eigenfunctions: int | None = None
    weights: Any = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        check_array("SteinScore", "samples", self.samples, ("M", "d"))
        samples = jnp.asarray(self.samples, jnp.result_type(float))
        num = len(samples)
        if num < 2:
            raise ValueError(f"`SteinScore`: samples must be at least 2 draws; got {num}")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"`SteinScore`: fraction must lie above 0 and not above 1; got {self.fraction}")
        if self.num_eigenfunctions is not None:
            check_count("SteinScore", "num_eigenfunctions", self.num_eigenfunctions)
        bandwidth = median_distance(samples) if self.bandwidth is None else jnp.asarray(self.bandwidth, samples.dtype)
        check_positive("SteinScore", "bandwidth", bandwidth)
        for name, value in (("samples", samples), ("bandwidth", bandwidth)):
            object.__setattr__(self, name, value)
        kernel = self._kernel(samples)
        values, vectors = jnp.linalg.eigh(kernel)
        kept = self._kept(values)
        # G_n = sum_m -(z_m - z_n) / bandwidth^2 k(z_m, z_n)
        slopes = (samples * kernel.sum(axis=0)[:, None] - kernel @ samples) / bandwidth**2
        inverse = jnp.where(kept, 1.0 / jnp.where(kept, values, 1.0), 0.0)
        object.__setattr__(self, "weights", -vectors @ (inverse[:, None] ** 2 * (vectors.T @ slopes)))

    def __call__(self, z: Float[Array, "n d"]) -> Float[Array, "n d"]:
        """Return the estimate (n, d) of the score at points, in inverse units of the draws."""
        return self._kernel(z) @ self.weights

    def _kernel(self, z: Array) -> Float[Array, "n m"]:
        return jnp.exp(-0.5 * squared_distances(z, self.samples) / self.bandwidth**2)

    def _kept(self, values: Float[Array, "m"]) -> Array:
        """Say which of the eigenvalues, in rising order, are kept; none that rounding could have made."""
        num = len(values)
        falling = jnp.maximum(values[::-1], 0.0)
        if self.num_eigenfunctions is None:
            before = jnp.cumsum(falling) - falling
            chosen = before < self.fraction * falling.sum()
        else:
            chosen = jnp.arange(num) < self.num_eigenfunctions
        rounding = 10 * num * jnp.finfo(values.dtype).eps
        return (chosen & (falling > rounding * falling[0]))[::-1]

    def __repr__(self) -> str:
        num, d = self.samples.shape
        shown = f"{float(self.bandwidth):.3g}" if is_concrete(self.bandwidth) else "traced"
        return f"SteinScore(samples=({num}, {d}), bandwidth={shown})"


def squared_distances(a: Float[Array, "n d"], b: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """Return |a_i - b_j|^2, never below zero."""
    # Around one centre, so that squares of far-away points do not swallow their differences.
    centre = b.mean(axis=0)
    a, b = a - centre, b - centre
    squares = jnp.sum(a * a, axis=1)[:, None] + jnp.sum(b * b, axis=1) - 2.0 * a @ b.T
    return jnp.maximum(squares, 0.0)


def median_distance(samples: Float[Array, "m d"]) -> Float[Array, ""]:
    """Return the median distance between two different draws."""
    rows, columns = jnp.triu_indices(len(samples), 1)
    return jnp.sqrt(jnp.median(squared_distances(samples, samples)[rows, columns]))
