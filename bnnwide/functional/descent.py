"""Adam with a step that falls to 0, on a loss whose randomness is a key."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bnnwide.comparators.extra import require


def descend(
    door: str,
    loss: Any,
    start: Any,
    key: Array,
    num_steps: int,
    learning_rate: float,
    *,
    data: tuple[Any, ...] = (),
    remedy: str = "",
) -> tuple[Any, Float[Array, "steps"]]:
    """Minimise loss(params, key, *data) by Adam, its step falling to 0 along a cosine, with a fresh key per step.

    Args:
      door: the public function that was called, for messages.
      loss: a function of (params, key, *data) to a number.
      start: parameters to start from, a pytree.
      key: PRNG key.
      num_steps: of Adam.
      learning_rate: at the start.
      data: arrays that the loss reads. Not closed over, they are no constants of the program, which other data of the
        same shapes then find in JAX's compilation cache (`jax_compilation_cache_dir`).
      remedy: what else to try where the search diverges.

    Returns:
      The last parameters, and the losses along the way.

    Raises:
      ImportError: if optax is not installed.
      ValueError: if a loss or the last parameters are not finite.
    """
    optax = require(door, "optax", "functional")
    adam = optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))

    def step(data: tuple[Any, ...], state: Any, key: Array) -> tuple[Any, Array]:
        params, moments = state
        value, slope = jax.value_and_grad(loss)(params, key, *data)
        change, moments = adam.update(slope, moments)
        return (optax.apply_updates(params, change), moments), value

    scan = jax.jit(lambda start, keys, data: jax.lax.scan(partial(step, data), (start, adam.init(start)), keys))
    (params, _), losses = scan(start, jax.random.split(key, num_steps), data)
    finite = jnp.isfinite(losses)
    if not (finite.all() and all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params))):
        where = "after the last step" if finite.all() else f"at step {int(jnp.argmin(finite))}"
        raise ValueError(
            f"`{door}`: the search is not finite {where}; use float64 or a smaller learning_rate than "
            f"{learning_rate:g}{remedy}"
        )
    return params, losses
