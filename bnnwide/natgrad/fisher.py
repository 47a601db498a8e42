"""The door to Fisher operators: one function, five forms."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real, Shaped

from bnnwide.checks import Data, check_choice, is_concrete
from bnnwide.empirical.structured import dense_sizes
from bnnwide.likelihoods import Likelihood
from bnnwide.natgrad.curvature import Fisher, Layout, Weights, check_regular
from bnnwide.natgrad.dense import dense_fisher
from bnnwide.natgrad.diagonal import diagonal_fisher
from bnnwide.natgrad.dual import dual_fisher
from bnnwide.natgrad.kronecker import kronecker_fisher
from bnnwide.natgrad.problem import Task, check_task

FORMS = ("auto", "dense", "dual", "diag", "kfac", "ekfac")


def fisher(
    net: Any,
    params: Weights,
    x: Real[Data, "n ..."],
    likelihood: Likelihood,
    *,
    form: str = "auto",
    damping: float | int | Array = 0.0,
    y: Shaped[Data, "n *k"] | None = None,
) -> Fisher:
    """Return the damped Fisher matrix of a network's weights, as an operator.

    G = F + damping I, F = sum_i J_i^T H_i J_i, with J_i = d f(x_i) / d w and H_i = E_{y | f_i}[s s^T], s the derivative
    of log p(y | f_i) in f_i. The sum runs over the data: F is n times the average that some papers call F, and the
    damping is in the same units, so that damping 1 is the precision of the prior N(0, I). For Gaussian, Categorical,
    Bernoulli and Poisson targets F is also the generalised Gauss-Newton matrix.

    Sources: Amari 1998, "Natural gradient works efficiently in learning"; Martens 2020 (arXiv 1412.1193).

    Args:
      net: an architecture, or any function f(params, x) -> (n, k) that maps each row of x on its own.
      params: its weights, a pytree of real arrays.
      x: (n, ...) inputs.
      likelihood: the law of targets given outputs, with numbers for its parameters.
      form: "dense" forms the p x p matrix; "dual" factors the n k x n k Gram matrix of the tangent kernel, exactly and
        without p x p numbers; "auto" is the one with the smaller matrix; "diag" keeps the diagonal; "kfac" and "ekfac"
        keep one Kronecker-factored block per Dense layer (Martens & Grosse 2015, arXiv 1503.05671; George et al. 2018,
        arXiv 1806.03884), biases included as a constant feature.
      damping: what is added to the diagonal, 0 or more.
      y: targets; with these the empirical Fisher matrix is returned instead, sum_i g_i g_i^T of the gradients at the
        targets that were seen. It is another matrix (Kunstner, Balles & Hennig 2019, arXiv 1905.12558).

    Returns:
      The operator: `matvec`, `solve`, `sqrt_solve`, `logdet`, `diag`.

    Raises:
      TypeError: if the network cannot be called, or an array is not real.
      ValueError: for wrong shapes, NaN or infinite numbers, a form that does not fit the network, or a singular matrix.
    """
    check_choice("fisher", "form", form, FORMS)
    task, params = check_task("fisher", net, params, likelihood, x, y)
    damping = check_damping("fisher", damping)
    form = choose_form("fisher", form, task, params)
    if form == "dual":
        check_dual("fisher", damping)
    value = _build(task.f, params, task.x, information(task, params), damping, form)
    check_regular("fisher", value)
    return value


def check_damping(door: str, damping: Any) -> Array:
    """Return the damping as an array.

    Raises:
      ValueError: if it is negative or not finite.
    """
    if is_concrete(damping) and not (np.ndim(damping) == 0 and 0 <= damping < np.inf):
        raise ValueError(f"`{door}`: damping must be one number of at least 0; got {damping}")
    return jnp.asarray(damping, jnp.result_type(float))


def check_dual(door: str, damping: Array) -> None:
    """Check that the dual form has a damping.

    Raises:
      ValueError: if it has none.
    """
    if is_concrete(damping) and not damping > 0:
        raise ValueError(
            f"`{door}`: the dual form of the Fisher matrix needs a positive damping, as the matrix alone is singular "
            f"with more weights than outputs on the data; got {damping}; use damping=1.0, the precision of the prior"
        )


def choose_form(door: str, form: str, task: Task, params: Weights) -> str:
    """Return the form to use, with "auto" resolved.

    Raises:
      ValueError: if the form needs layers that the network does not have.
    """
    if form == "auto":
        return "dense" if Layout.of(params).size <= len(task.x) * task.outputs else "dual"
    if form in ("kfac", "ekfac") and dense_sizes(task.f, params, task.x) is None:
        raise ValueError(
            f"`{door}`: form {form!r} must be given an architecture whose weights all sit in Dense layers; use "
            "'dense', 'dual' or 'diag', which take any function"
        )
    return form


def curvature(task: Task, params: Weights, damping: Array, form: str) -> Fisher:
    """Return the operator of a checked problem; to be traced."""
    return _build(task.f, params, task.x, information(task, params), damping, form)


@partial(jax.jit, static_argnums=5)
def _build(f: Any, params: Weights, x: Array, s: Float[Array, "n k r"], damping: Array, form: str) -> Fisher:
    if form == "dense":
        return dense_fisher(f, params, x, s, damping)
    if form == "dual":
        return dual_fisher(f, params, x, s, damping)
    if form == "diag":
        return diagonal_fisher(f, params, x, s, damping)
    return kronecker_fisher(f, params, x, s, damping, corrected=form == "ekfac")


def information(task: Task, params: Weights) -> Float[Array, "n k r"]:
    """Return S with S S^T = H per input, or the scores at the targets (r = 1) for the empirical Fisher matrix."""
    outputs, y = task.f(params, task.x), task.y
    if y is None:
        return task.likelihood.fisher_factor(outputs)
    return jax.grad(lambda outputs: jnp.sum(task.likelihood.log_prob(outputs, y)))(outputs)[:, :, None]
