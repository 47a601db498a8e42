"""An approximation of a posterior that is fitted by gradient steps: the pair (step, draws)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import Array


class Fit(NamedTuple):
    """How to fit an approximation, and how to draw from it; the comparators that are no Markov chains are each one.

    Attributes:
      start: the state before any step.
      step: from a state to (state, loss), one gradient step; pure.
      num_steps: how many steps the step sizes are planned for.
      grads_per_step: gradients of the potential that a step evaluates.
      draws: from (state, key, number) to constrained sites, deterministic ones included, with one leading axis.
      read: from (state, draw, x) to the function (t, k) that one draw stands for, where draws are no sites of the model
        (those of a linearised network); None where they are.
    """

    start: Any
    step: Callable[[Any], tuple[Any, Array]]
    num_steps: int
    grads_per_step: int
    draws: Callable[[Any, Array, int], dict[str, Array]]
    read: Callable[[Any, dict[str, Array], Array], Array] | None = None


def run_steps(fit: Fit) -> tuple[Any, Array]:
    """Take all steps; return the last state and the losses (num_steps, ...)."""
    return take_steps(fit.start, fit.step, fit.num_steps)


def take_steps(start: Any, step: Callable[[Any], tuple[Any, Array]], num_steps: int) -> tuple[Any, Array]:
    """Take steps from a state to (state, loss), in one program; return the last state and the losses."""
    return jax.jit(lambda state: jax.lax.scan(lambda s, _: step(s), state, length=num_steps))(start)


def as_one_chain(draws: dict[str, Array]) -> dict[str, Array]:
    """Give draws the axes (chain, draw) of a run."""
    return {name: site[None] for name, site in draws.items()}
