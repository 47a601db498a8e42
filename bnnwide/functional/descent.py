"""Adam with a step that falls to 0, on a loss whose randomness is a key."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bnnwide.comparators.extra import require
from bnnwide.comparators.fit import take_steps


class Descent(NamedTuple):
    """Where a descent stands.

    Attributes:
      params: the parameters.
      moments: what Adam keeps of the gradients.
      keys: (num_steps,) one key per step.
      count: steps so far.
      data: what the loss reads besides, the same all along.
    """

    params: Any
    moments: Any
    keys: Array
    count: Array
    data: tuple[Any, ...]


def descent(
    door: str, loss: Any, start: Any, key: Array, data: tuple[Any, ...], num_steps: int, learning_rate: float
) -> tuple[Descent, Callable[[Descent], tuple[Descent, Array]]]:
    """Return the start and the step of Adam on loss(params, key, *data), its step falling to 0 along a cosine.

    Args:
      door: the public function that was called, for messages.
      loss: a function of (params, key, *data) to a number.
      start: parameters to start from, a pytree.
      key: PRNG key.
      data: arrays that the loss reads. Not closed over, they are no constants of the program, which other data of the
        same shapes then find in JAX's compilation cache (`jax_compilation_cache_dir`).
      num_steps: of Adam.
      learning_rate: at the start.

    Raises:
      ImportError: if optax is not installed.
    """
    optax = require(door, "optax", "functional")
    adam = optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))

    def step(state: Descent) -> tuple[Descent, Array]:
        value, slope = jax.value_and_grad(loss)(state.params, state.keys[state.count], *state.data)
        change, moments = adam.update(slope, state.moments)
        params = optax.apply_updates(state.params, change)
        return state._replace(params=params, moments=moments, count=state.count + 1), value

    return Descent(start, adam.init(start), jax.random.split(key, num_steps), jnp.int32(0), data), step


def descend(
    door: str,
    loss: Any,
    start: Any,
    key: Array,
    data: tuple[Any, ...],
    num_steps: int,
    learning_rate: float,
    *,
    remedy: str = "",
) -> tuple[Any, Float[Array, "steps"]]:
    """Take all steps of a `descent`, whose arguments these are.

    Args:
      door: the public function that was called, for messages.
      loss: a function of (params, key, *data) to a number.
      start: parameters to start from, a pytree.
      key: PRNG key.
      data: arrays that the loss reads.
      num_steps: of Adam.
      learning_rate: at the start.
      remedy: what else to try where the search diverges.

    Returns:
      The last parameters, and the losses along the way.

    Raises:
      ImportError: if optax is not installed.
      ValueError: if a loss or the last parameters are not finite.
    """
    state, step = descent(door, loss, start, key, data, num_steps, learning_rate)
    state, losses = take_steps(state, step, num_steps)
    finite = jnp.isfinite(losses)
    if not (finite.all() and all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))):
        where = "after the last step" if finite.all() else f"at step {int(jnp.argmin(finite))}"
        raise ValueError(
            f"`{door}`: the search is not finite {where}; use float64 or a smaller learning_rate than "
            f"{learning_rate:g}{remedy}"
        )
    return state.params, losses
