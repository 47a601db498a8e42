"""Functions of matrices that are known by their products only, from Krylov spaces."""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from bnnwide.checks import Data, check_array, check_count
from bnnwide.gp.linear import LinearOperator


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tridiagonal:
    """Q^T A Q = T for each of k starting columns, with T tridiagonal and the first column of Q that column, normalised.

    Args:
      basis: (m, n, k) Q; zero from where the Krylov space of a column is exhausted.
      diagonal: (k, m) of T.
      beside: (k, m - 1) of T, above and below its diagonal.
      size: (k,) norms of the starting columns.
    """

    basis: Float[Array, "m n k"]
    diagonal: Float[Array, "k m"]
    beside: Float[Array, "k m-1"]
    size: Float[Array, "k"]

    def apply(self, function: Callable[[Array], Array], *, num_steps: int | None = None) -> Float[Array, "k l"]:
        """Return function(T) e_1, for a function of numbers that acts on eigenvalues; T of all steps, or of fewer."""
        steps = self.diagonal.shape[1] if num_steps is None else num_steps
        return _first_column(self.diagonal[:, :steps], self.beside[:, : steps - 1], function)

    def combine(self, weights: Float[Array, "k m"]) -> Float[Array, "n k"]:
        """Return |z| Q weights."""

        def add(i: Array, total: Array) -> Array:
            return total + weights[:, i] * self.basis[i]

        return jax.lax.fori_loop(0, len(self.basis), add, jnp.zeros_like(self.basis[0])) * self.size


def lanczos(operator: LinearOperator, z: Real[Data, "n k"], num_steps: int) -> Tridiagonal:
    """Return the Lanczos tridiagonalisation of A for each column, with full reorthogonalisation.

    Holds num_steps (n, k) arrays.

    Source: Golub & Van Loan 2013 (Matrix Computations, 4th edition), section 10.1.

    Args:
      operator: A (n, n), symmetric.
      z: (n, k) columns, none of them zero.
      num_steps: number of products with A; more than n are cut to n.

    Raises:
      ValueError: for wrong shapes, or NaN or infinite numbers.
    """
    n = operator.shape[0]
    check_array("lanczos", "z", z, (n, "k"), f"n={n} from operator")
    check_count("lanczos", "num_steps", num_steps, 2)
    z = jnp.asarray(z, jnp.result_type(float))
    space = _begin(z, min(num_steps, n))
    for step in range(min(num_steps, n)):
        space = _step(operator @ space.basis[step], space, step)
    return space


@partial(jax.jit, static_argnums=1)
def _begin(z: Array, num_steps: int) -> Tridiagonal:
    size = jnp.linalg.norm(z, axis=0)
    none = jnp.zeros((z.shape[1], num_steps), z.dtype)
    basis = jnp.zeros((num_steps, *z.shape), z.dtype).at[0].set(z / size)
    return Tridiagonal(basis, none, none[:, 1:], size)


@partial(jax.jit, donate_argnums=1)
def _step(image: Array, space: Tridiagonal, step: Array | int) -> Tridiagonal:
    basis = space.basis
    alpha = jnp.sum(basis[step] * image, axis=0)

    def project(i: Array, left: Array) -> Array:
        direction = basis[step - i % (step + 1)]
        return left - jnp.sum(direction * left, axis=0) * direction

    # Against the whole basis, latest first, twice: rounding would otherwise bring back directions that were taken.
    left = jax.lax.fori_loop(0, 2 * (step + 1), project, image)
    beta = jnp.linalg.norm(left, axis=0)
    # Where the space is exhausted beta is rounding, and T falls apart in two of which only the first counts.
    exhausted = beta <= 100 * jnp.finfo(image.dtype).eps * jnp.linalg.norm(image, axis=0)
    following = jnp.where(exhausted, 0.0, left / jnp.where(exhausted, 1.0, beta))
    # What follows the last step has no place, and none is needed.
    return dataclasses.replace(
        space,
        basis=basis.at[step + 1].set(following, mode="drop"),
        diagonal=space.diagonal.at[:, step].set(alpha),
        beside=space.beside.at[:, step].set(jnp.where(exhausted, 0.0, beta), mode="drop"),
    )


def _first_column(diagonal: Array, beside: Array, function: Callable[[Array], Array]) -> Array:
    spread = jax.vmap(jnp.diag, in_axes=(0, None))
    values, vectors = jnp.linalg.eigh(spread(diagonal, 0) + spread(beside, 1) + spread(beside, -1))
    return jnp.einsum("kim,km,km->ki", vectors, function(values), vectors[:, 0])


def square_root(operator: LinearOperator, z: Real[Data, "n k"], *, num_steps: int = 32) -> tuple[Array, Array]:
    """Return A^(1/2) z, from the Krylov spaces of A and each column of z.

    A^(1/2) z ~ |z| Q T^(1/2) e_1. It is as good as the best polynomial of degree num_steps - 1 in A: off by about
    1 / (3 num_steps) of the largest singular value of A^(1/2) at worst, much less on decaying spectra.

    Source: Chow & Saad 2014 (SIAM J. Sci. Comput. 36, A588-A608), the Lanczos method there without a preconditioner.

    Args:
      operator: A (n, n), symmetric and positive semi-definite.
      z: (n, k) columns, none of them zero.
      num_steps: number of products with A.

    Returns:
      The approximation (n, k), and how far the last quarter of the steps moved it, (k,) norms: about its error.

    Raises:
      ValueError: for wrong shapes, or NaN or infinite numbers.
    """
    return _square_root(lanczos(operator, z, num_steps))


@jax.jit
def _square_root(space: Tridiagonal) -> tuple[Array, Array]:
    weights = space.apply(_root)
    steps = weights.shape[1]
    fewer = space.apply(_root, num_steps=steps - steps // 4)
    change = weights.at[:, : fewer.shape[1]].add(-fewer)
    return space.combine(weights), jnp.linalg.norm(change, axis=-1) * space.size


def _root(values: Array) -> Array:
    return jnp.sqrt(jnp.maximum(values, 0.0))


def log_determinant(
    operator: LinearOperator, key: Array, *, num_probes: int = 16, num_steps: int = 32
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Estimate log det A by stochastic Lanczos quadrature.

    tr log A = E[z^T log(A) z] over signs z, and z^T log(A) z ~ |z|^2 e_1^T log(T) e_1.

    Source: Ubaru, Chen & Saad 2017 (SIAM J. Matrix Anal. Appl. 38, 1075-1099), algorithm 1.

    Args:
      operator: A (n, n), symmetric and positive definite; the nearer to the identity, the smaller the error.
      key: PRNG key of the probes.
      num_probes: number of vectors z.
      num_steps: number of products with A.

    Returns:
      The estimate and its standard error over the probes.
    """
    check_count("log_determinant", "num_probes", num_probes, 2)
    z = jax.random.rademacher(key, (operator.shape[0], num_probes), jnp.result_type(float))
    return _mean_log(lanczos(operator, z, num_steps))


@jax.jit
def _mean_log(space: Tridiagonal) -> tuple[Array, Array]:
    values = space.size**2 * space.apply(_log)[:, 0]
    return jnp.mean(values), jnp.std(values, ddof=1) / len(values) ** 0.5


def _log(values: Array) -> Array:
    # Eigenvalues of T lie among those of A; what exhausted spaces leave is zero, and counts for nothing.
    return jnp.log(jnp.where(values > 0, values, 1.0))
