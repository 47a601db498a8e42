"""Natural gradient descent as an optimiser: damped, with a line search, through the smaller of two matrices."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real, Shaped

from bnnwide.checks import Data, check_choice, check_count, check_positive
from bnnwide.likelihoods import Likelihood
from bnnwide.natgrad.curvature import Weights
from bnnwide.natgrad.fisher import FORMS, choose_form, curvature
from bnnwide.natgrad.problem import Task, add, check_task
from bnnwide.samplers.core import dot

FRACTIONS = 0.5 ** np.arange(8)  # of a step, tried by the line search
LEAST, MOST = 1e-10, 1e10  # damping, relative to the mean diagonal of F


class Minimum(NamedTuple):
    """Where a descent ended.

    Attributes:
      params: the weights.
      cost: (num_steps + 1,) the cost before each step and after the last, constant once no step lowers it.
      decrement: g^T (F + prior_precision I + damping I)^-1 g at the end: twice the decrease that is left, about.
      num_steps: steps that lowered the cost.
    """

    params: Any
    cost: Float[Array, " steps"]
    decrement: Float[Array, ""]
    num_steps: Array


def minimise(
    net: Any,
    likelihood: Likelihood,
    x: Real[Data, "n ..."],
    y: Shaped[Data, "n *k"],
    params: Weights,
    *,
    prior_precision: float | int = 1.0,
    learning_rate: float | int = 1.0,
    form: str = "auto",
    num_steps: int = 50,
    tolerance: float | int = 1e-8,
) -> Minimum:
    """Minimise C = -sum_i log p(y_i | f(x_i)) + prior_precision |w|^2 / 2 by natural gradient descent on all data.

    w' = w - a G^-1 grad C, G = F + (prior_precision + damping) I. The damping falls by 4 after a full step and rises by
    4 after one that had to be shortened; a is the best of learning_rate times 1, 1/2, ..., 1/128. Under Gaussian noise
    this is Levenberg-Marquardt. The dual form keeps it cheap with more weights than outputs on the data; there, without
    prior and while the tangent kernel stays regular, residuals shrink by the factor 1 - learning_rate per step.

    Sources: Amari 1998, "Natural gradient works efficiently in learning"; Zhang, Martens & Grosse 2019 (arXiv
    1905.10961), on the linear rate of wide networks; Nocedal & Wright 2006, section 10.3, for the damping.

    Args:
      net: an architecture, or any function f(params, x) -> (n, k).
      likelihood: the law of targets given outputs, with numbers for its parameters.
      x: (n, ...) inputs.
      y: (n, k) targets, or (n,) labels.
      params: the weights to start from.
      prior_precision: of the weights: 1 for N(0, I), whose mode is then the MAP estimate; 0 for none.
      learning_rate: the largest step, as a fraction of the natural gradient's; above 0, at most 1.
      form: of the Fisher matrix, as for `fisher`.
      num_steps: the largest number of steps.
      tolerance: the decrement below which the descent stops.

    Returns:
      The weights, with the cost along the way.

    Raises:
      TypeError: if the network cannot be called, or an array is not real.
      ValueError: for wrong shapes, NaN or infinite numbers, or options out of range.
    """
    check_choice("minimise", "form", form, FORMS)
    check_count("minimise", "num_steps", num_steps)
    check_prior("minimise", prior_precision)
    check_positive("minimise", "tolerance", tolerance)
    if not 0 < learning_rate <= 1:
        raise ValueError(f"`minimise`: learning_rate must be above 0 and at most 1; got {learning_rate}")
    task, params = check_task("minimise", net, params, likelihood, x, y)
    form = choose_form("minimise", form, task, params)
    run = partial(descend, task, prior_precision=prior_precision, learning_rate=learning_rate, form=form,
                  num_steps=num_steps, tolerance=tolerance)  # fmt: skip
    return jax.jit(run)(params)


def check_prior(door: str, prior_precision: Any) -> None:
    """Check a precision of the prior, 0 for none.

    Raises:
      ValueError: if it is negative or not finite.
    """
    if not (np.ndim(prior_precision) == 0 and 0 <= prior_precision < np.inf):
        raise ValueError(f"`{door}`: prior_precision must be one number of at least 0; got {prior_precision}")


def descend(
    task: Task,
    params: Weights,
    *,
    prior_precision: float | int,
    form: str,
    learning_rate: float | int = 1.0,
    num_steps: int = 50,
    tolerance: float | int = 1e-8,
) -> Minimum:
    """Run the descent of a checked problem; to be traced."""
    task_cost = lambda params: task.cost(params, prior_precision)  # noqa: E731
    blind = task._replace(y=None)
    dtype = jnp.result_type(*jax.tree.leaves(params))
    fractions = jnp.asarray(learning_rate * FRACTIONS, dtype)
    # The mean diagonal of F from one probe of its square root would do; the trace of H J J^T at the start is exact.
    scale = jnp.maximum(jnp.mean(curvature(blind, params, jnp.ones((), dtype), "diag")._diag() - 1.0), 1e-30)

    def step(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        i, params, damping, costs, _, taken = carry
        grad = jax.grad(task_cost)(params)
        fisher = curvature(blind, params, prior_precision + damping * scale, form)
        direction = fisher.solve(grad)
        tried = jax.lax.map(lambda a: task_cost(add(params, direction, -a)), fractions)
        tried = jnp.where(jnp.isfinite(tried), tried, jnp.inf)
        best = jnp.argmin(tried)
        lower = tried[best] < costs[i]
        new = jax.tree.map(lambda w, d: jnp.where(lower, w - fractions[best] * d, w), params, direction)
        damping = jnp.clip(jnp.where(lower & (best == 0), damping / 4, damping * 4), LEAST, MOST)
        costs = costs.at[i + 1].set(jnp.where(lower, tried[best], costs[i]))
        return i + 1, new, damping, costs, dot(grad, direction), taken + lower

    def go_on(carry: tuple[Any, ...]) -> Array:
        i, _, damping, _, decrement, _ = carry
        return (i < num_steps) & (decrement > tolerance) & (damping < MOST)

    costs = jnp.zeros(num_steps + 1, dtype).at[0].set(task_cost(params))
    start = (0, params, jnp.asarray(1e-6, dtype), costs, jnp.asarray(jnp.inf, dtype), 0)
    i, params, _, costs, decrement, taken = jax.lax.while_loop(go_on, step, start)
    costs = jnp.where(jnp.arange(num_steps + 1) <= i, costs, costs[i])
    return Minimum(params, costs, decrement, jnp.asarray(taken))
