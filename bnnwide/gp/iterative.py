"""Conjugate gradients: linear equations solved by products with the matrix."""

import dataclasses
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real
from tqdm.auto import tqdm

from bnnwide.checks import Data, check_array, check_count, check_positive
from bnnwide.gp.linear import LinearOperator
from bnnwide.gp.preconditioner import Preconditioner


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Solution:
    """What conjugate gradients reached.

    Args:
      value: (n, k) x with A x ~ b.
      left: (n, k) b - A x, from a last product with A.
      residual: (k,) |b - A x| / |b| of each column; 0 where b is 0.
      num_iterations: products with A on the way, without those that checked residuals.
    """

    value: Float[Array, "n k"]
    left: Float[Array, "n k"]
    residual: Float[Array, "k"]
    num_iterations: int = dataclasses.field(metadata={"static": True})


class _State(NamedTuple):
    value: Array
    left: Array
    direction: Array
    decrease: Array
    active: Array
    any_active: Array


def conjugate_gradients(
    operator: LinearOperator,
    b: Real[Data, "n k"],
    *,
    preconditioner: Preconditioner | None = None,
    tolerance: int | float | None = None,
    max_iterations: int = 1000,
    progress: bool = False,
) -> Solution:
    """Solve A x = b for several right-hand sides, with one product per iteration for all of them.

    Every column has step lengths of its own and stands still once the recurrence of its residual is below
    tolerance |b|. Residuals that are returned, and judged in the end, come from a product with A. Rounding leaves about
    10 eps |K| / noise variance of them, for entries of size |K|: 1e-4 in float32 for a noise variance of |K| / 100.

    Source: Gardner et al. 2018 (arXiv 1809.11165), modified batched conjugate gradients, preconditioned.

    Args:
      operator: A (n, n), symmetric and positive definite.
      b: (n, k) right-hand sides.
      preconditioner: an approximation P of A that is solved at each iteration; None for the identity.
      tolerance: largest relative residual; None for 1e-6 in float64 and 1e-3 in float32.
      max_iterations: after so many iterations it warns and returns what it has.
      progress: whether to show a progress bar, in iterations.

    Returns:
      The solution, its relative residuals and the number of iterations.

    Raises:
      ValueError: for wrong shapes, or NaN or infinite numbers.

    Warns:
      RuntimeWarning: if a residual stayed above the tolerance; it names the remedy.
    """
    n = operator.shape[0]
    check_array("conjugate_gradients", "b", b, (n, "k"), f"n={n} from operator")
    check_count("conjugate_gradients", "max_iterations", max_iterations)
    b = jnp.asarray(b, jnp.result_type(float))
    if tolerance is None:
        tolerance = default_tolerance(b)
    check_positive("conjugate_gradients", "tolerance", tolerance)
    size = _norms(b)
    # Aims a little lower, because rounding parts the recurrence of the residual from the truth.
    target = 0.9 * tolerance * size
    state, count = _start(b, target, preconditioner), 0
    with tqdm(unit="iteration", disable=not progress) as bar:
        while count < max_iterations and bool(state.any_active):
            state = _advance(state, operator @ state.direction, target, preconditioner)
            count += 1
            bar.update()
            if progress:
                bar.set_postfix_str(f"residual {float(_relative(state.left, size).max()):.1e} to {tolerance:.1e}")
    left, residual = _check(b, operator @ state.value, size)
    _warn_if_above(float(residual.max()), tolerance, count, max_iterations, b)
    return Solution(state.value, left, residual, count)


def default_tolerance(array: Float[Array, "..."]) -> float:
    """Return the largest relative residual that is asked for by default."""
    return 1e-6 if array.dtype == jnp.float64 else 1e-3


def _warn_if_above(residual: float, tolerance: float, count: int, max_iterations: int, b: Array) -> None:
    # A NaN counts as above.
    if residual <= tolerance:
        return
    if count >= max_iterations:
        remedy = "raise max_iterations, the rank of the preconditioner, or the noise scale"
    elif b.dtype == jnp.float64:
        remedy = "rounding allows no more; raise tolerance or the noise scale"
    else:
        remedy = "rounding allows no more; use float64 (jax.config.update('jax_enable_x64', True)), or raise tolerance"
    warnings.warn(
        f"`conjugate_gradients`: relative residual {residual:.1e} after {count} iterations, above "
        f"tolerance={tolerance:.1e}; {remedy}",
        RuntimeWarning,
        stacklevel=3,
    )


@jax.jit
def _norms(b: Array) -> Array:
    size = jnp.linalg.norm(b, axis=0)
    return jnp.where(size == 0, 1.0, size)


@jax.jit
def _relative(left: Array, size: Array) -> Array:
    return jnp.linalg.norm(left, axis=0) / size


@jax.jit
def _check(b: Array, image: Array, size: Array) -> tuple[Array, Array]:
    left = b - image
    return left, _relative(left, size)


def _solve(preconditioner: Preconditioner | None, v: Array) -> Array:
    return v if preconditioner is None else preconditioner.solve(v)


@jax.jit
def _start(b: Array, target: Array, preconditioner: Preconditioner | None) -> _State:
    active = jnp.linalg.norm(b, axis=0) > target
    direction = jnp.where(active, _solve(preconditioner, b), 0.0)
    return _State(jnp.zeros_like(b), b, direction, jnp.sum(b * direction, axis=0), active, active.any())


@jax.jit
def _advance(state: _State, image: Array, target: Array, preconditioner: Preconditioner | None) -> _State:
    curvature = jnp.sum(state.direction * image, axis=0)
    # Rounding can make a nearly singular matrix look indefinite along a direction: such a column has gone as far as it
    # can. A column that stands still has the direction 0.
    active = state.active & (curvature > 0)
    length = jnp.where(active, state.decrease / jnp.where(active, curvature, 1.0), 0.0)
    value = state.value + length * state.direction
    left = state.left - length * image
    active = active & (jnp.linalg.norm(left, axis=0) > target)
    gradient = _solve(preconditioner, left)
    decrease = jnp.sum(left * gradient, axis=0)
    direction = jnp.where(active, gradient + decrease / state.decrease * state.direction, 0.0)
    return _State(value, left, direction, decrease, active, active.any())
