"""Hyper-parameters of an infinitely wide network by maximum marginal likelihood or leave-one-out."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real
from scipy.optimize import minimize

from bnnwide.arch import Layer
from bnnwide.arch.scales import check_numbers
from bnnwide.checks import Data, check_choice, check_count, check_positive
from bnnwide.gp.conditioning import REMEDY
from bnnwide.gp.posterior import check_problem, covariance
from bnnwide.gp.regression import Regression, log_density
from bnnwide.gp.ridge import Ridge, add_diagonal, diagonal
from bnnwide.likelihoods import Gaussian
from bnnwide.linalg import cho_solve, cholesky

OBJECTIVES = ("marginal_likelihood", "leave_one_out")
KERNELS = ("nngp", "ntk")
NOISE = "noise"
# How far a scale may go from where it starts: the data say nothing of one that would go further.
FACTOR = 1e6


@dataclasses.dataclass(frozen=True)
class Fit:
    """What `fit` found.

    Args:
      net: the architecture with its fitted scales.
      likelihood: the noise with its fitted scale.
      trace: (steps + 1,) the objective per target entry (log density), from the start to the end.
      converged: whether it stopped by its tolerance, and not at the last step or at the limits of rounding.
    """

    net: Any
    likelihood: Gaussian
    trace: np.ndarray
    converged: bool

    def __repr__(self) -> str:
        return (
            f"Fit(objective={self.trace[-1]:.4f} per target, {len(self.trace) - 1} steps, converged={self.converged}, "
            f"{self.likelihood}, net={self.net})"
        )


def fit(
    net: Layer,
    x: Real[Data, "n ..."],
    y: Real[Data, "n k"],
    likelihood: Gaussian,
    *,
    objective: str = "marginal_likelihood",
    kernel: str = "nngp",
    parameters: Sequence[str] = ("w_scale", "b_scale", NOISE),
    ridge: Ridge | None = None,
    num_steps: int = 100,
    tolerance: float = 1e-5,
    optimizer: Any = None,
) -> Fit:
    """Fit the scales of every layer, and the noise scale, to data; all on the log scale.

    objective="marginal_likelihood": log N(y; 0, K + (scale^2 + ridge) I) (Rasmussen & Williams 2006, eq. 5.8).
    objective="leave_one_out": sum_ij log p(y_ij | y without row i) (eqs. 5.10-5.12).

    Args:
      net: the architecture, where the search starts. A scale of None (no biases) stays None.
      x: (n, *input_shape) training inputs.
      y: (n, k) training targets.
      likelihood: `Gaussian(scale)`, where the search starts.
      objective: "marginal_likelihood" or "leave_one_out".
      kernel: the prior covariance, "nngp" or "ntk".
      parameters: names of the layers' fields that are fitted, in every layer that has them, and "noise"; what is left
        out stays as it is.
      ridge: regularisation added to the diagonal besides the noise, held fixed.
      num_steps: how many steps at most.
      tolerance: stop when the largest gradient entry (of the objective per target) is below it, or when a step gains
        less than a hundredth of it.
      optimizer: None for SciPy's L-BFGS-B, which keeps each scale within a factor 1e6 of its start; or an optax
        optimiser of a minimum without line search, e.g. optax.adam(0.05), which takes all steps unless the gradient
        vanishes.

    Returns:
      The fitted network and noise, ready for `nngp`, and the trace of the objective.

    Raises:
      TypeError: if `net` is no architecture or `likelihood` no likelihood.
      ValueError: for wrong shapes, NaN or infinite numbers, an unknown choice, a scale that is not positive or has a
        prior, or an objective that is not finite.
    """
    door = "fit"
    check_choice(door, "objective", objective, OBJECTIVES)
    check_choice(door, "kernel", kernel, KERNELS)
    check_count(door, "num_steps", num_steps)
    if likelihood is None:
        raise TypeError(
            f"`{door}`: likelihood must be Gaussian(scale), where the search for the noise starts; got None"
        )
    x, y, variance = check_problem(door, net, x, y, likelihood, ridge)
    check_numbers(door, net)
    places, start = _scales(door, net, parameters)
    learn_noise = NOISE in parameters
    if learn_noise:
        start = [*start, jnp.sqrt(variance)]
    if not start:
        raise ValueError(f"`{door}`: parameters must name something that net={net} has; got {tuple(parameters)}")

    @jax.jit
    def loss_and_slope(logs: Array, x: Array, y: Array) -> tuple[Array, Array]:
        def loss(logs: Array) -> Array:
            scales = jnp.exp(logs)
            k_dd = covariance(_with_scales(net, places, list(scales)), kernel, x)
            amount = diagonal(k_dd, scales[-1] ** 2 if learn_noise else variance, ridge)
            return -_OBJECTIVE[objective](add_diagonal(k_dd, amount), y) / y.size

        return jax.value_and_grad(loss)(logs)

    search = quasi_newton if optimizer is None else partial(_first_order, optimizer)
    logs, trace, converged = search(
        lambda logs: loss_and_slope(logs, x, y), jnp.log(jnp.stack(start)), num_steps, tolerance
    )
    if not np.isfinite(trace).all():
        raise ValueError(f"`{door}`: the objective is not finite after {len(trace) - 1} steps; {REMEDY}")
    scales = [float(scale) for scale in jnp.exp(logs)]
    fitted = Gaussian(scales[-1]) if learn_noise else likelihood
    return Fit(_with_scales(net, places, scales), fitted, -trace, converged)


def _leave_one_out(matrix: Float[Array, "n n"], y: Float[Array, "n k"]) -> Float[Array, ""]:
    factor = cholesky(matrix)
    conditioned = Regression(factor, cho_solve(factor, y), y, jnp.zeros((), y.dtype))
    return jnp.sum(conditioned.leave_one_out_log_prob())


_OBJECTIVE = {"marginal_likelihood": log_density, "leave_one_out": _leave_one_out}


def _scales(door: str, net: Layer, names: Sequence[str]) -> tuple[list[int], list[Array]]:
    """Return which leaves of a network bear one of the names, and their values."""
    leaves = jax.tree_util.tree_flatten_with_path(net)[0]
    places = [index for index, (path, _) in enumerate(leaves) if getattr(path[-1], "name", None) in names]
    for path, leaf in (leaves[index] for index in places):
        check_positive(door, jax.tree_util.keystr(path, simple=True, separator="."), leaf)
    return places, [jnp.asarray(leaves[index][1], jnp.result_type(float)) for index in places]


def _with_scales(net: Layer, places: list[int], scales: Sequence[Any]) -> Layer:
    leaves, tree = jax.tree.flatten(net)
    for place, scale in zip(
        places, scales, strict=False
    ):  # the noise scale, if there, comes after those of the network
        leaves[place] = scale
    return jax.tree.unflatten(tree, leaves)


Evaluate = Callable[[Array], tuple[Array, Array]]
Found = tuple[Array, np.ndarray, bool]


def quasi_newton(evaluate: Evaluate, logs: Float[Array, "p"], num_steps: int, tolerance: float) -> Found:
    """Minimise by L-BFGS-B, each entry within log FACTOR of its start; return the end, the trace, and if it stopped."""
    number = logs.dtype
    first = float(evaluate(logs)[0])
    trace = [first]

    def objective(at: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = (np.asarray(part, np.float64) for part in evaluate(jnp.asarray(at, number)))
        if np.isfinite(value) and np.isfinite(slope).all():
            return float(value), slope
        # A wall, for the line search to step back from.
        return abs(first) + 1e6, np.zeros_like(slope)

    done = minimize(
        objective,
        np.asarray(logs, np.float64),
        jac=True,
        method="L-BFGS-B",
        bounds=[(log - np.log(FACTOR), log + np.log(FACTOR)) for log in np.asarray(logs, np.float64)],
        callback=lambda intermediate_result: trace.append(intermediate_result.fun),
        options={"maxiter": num_steps, "gtol": tolerance, "ftol": 1e-2 * tolerance},
    )
    return jnp.asarray(done.x, number), np.asarray(trace), bool(done.success)


def _first_order(optimizer: Any, evaluate: Evaluate, logs: Array, num_steps: int, tolerance: float) -> Found:
    state, update = optimizer.init(logs), jax.jit(optimizer.update)
    value, slope = evaluate(logs)
    trace = [float(value)]
    while len(trace) <= num_steps and not jnp.max(jnp.abs(slope)) <= tolerance:
        step, state = update(slope, state, logs)
        logs = logs + step
        value, slope = evaluate(logs)
        trace.append(float(value))
    return logs, np.asarray(trace), len(trace) <= num_steps
