"""Fit an approximation within a time budget."""

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array
from threadpoolctl import threadpool_limits

from bnnwide.comparators.fit import Fit

MAX_STEPS = 20_000
TRIAL_STEPS = 5
MAX_DRAWS = 200


def fit_in_time(
    build: Callable[[int], Fit], key: Array, *, seconds: int | float, num_draws: int = MAX_DRAWS
) -> tuple[dict[str, Array], Callable[[dict[str, Array], Array], Array] | None, dict[str, float]]:
    """Fit for about `seconds`, with step sizes planned for the number of steps that this leaves, and draw.

    Args:
      build: from a number of steps to a fit.
      key: PRNG key of the draws.
      seconds: of fitting.
      num_draws: how many draws to take; an ensemble gives its members.

    Returns:
      Draws by site, with one leading axis; how to read one at inputs, (draw, x) to (t, k), where they are no sites of
      the model, otherwise None; and the figures of a cell that an approximation has.
    """
    trial = build(MAX_STEPS)
    steps, compiled = _compile(trial)
    _timed(steps, trial.start, 1)  # the first call allocates
    _, trial_seconds = _timed(steps, trial.start, TRIAL_STEPS)
    num_steps = max(1, min(MAX_STEPS, math.floor(seconds * TRIAL_STEPS / trial_seconds)))
    fit = trial
    if num_steps < MAX_STEPS:
        fit = build(num_steps)
        steps, again = _compile(fit)
        compiled += again
    state, fitting = _timed(steps, fit.start, num_steps)
    begin = time.perf_counter()
    draws = jax.block_until_ready(fit.draws(state, key, num_draws))
    return (
        draws,
        fit.read and partial(fit.read, state),
        {
            "num_draws": float(len(jax.tree.leaves(draws)[0])),
            "num_grads": float(num_steps * fit.grads_per_step),
            # Laplace's Hessian is part of its work and is formed when it draws; compiling it cannot be told apart.
            "sampling_seconds": fitting + time.perf_counter() - begin,
            "compile_seconds": compiled,
        },
    )


def _compile(fit: Fit) -> tuple[Callable[[Any, Array], Any], float]:
    begin = time.perf_counter()
    steps = jax.jit(lambda state, count: jax.lax.fori_loop(0, count, lambda _, s: fit.step(s)[0], state))
    compiled = steps.lower(fit.start, jnp.int32(1)).compile()
    return compiled, time.perf_counter() - begin


def _timed(steps: Callable[[Any, Array], Any], state: Any, count: int) -> tuple[Any, float]:
    begin = time.perf_counter()
    with threadpool_limits(1, user_api="blas"):  # as for samplers: see TimedRun
        state = jax.block_until_ready(steps(state, jnp.int32(count)))
    return state, time.perf_counter() - begin
