"""Warm-up: dual averaging of a sampler's angle, and a diagonal Gaussian reference from the chain's moments."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bnnwide.samplers.core import Position, Reference, Sampler


class AdaptState(NamedTuple):
    """What warm-up carries: the angle in use, dual averaging's sums, the reference, and the window's moments."""

    angle: Float[Array, "*blocks"]
    log_angle_mean: Float[Array, "*blocks"]
    error_sum: Float[Array, "*blocks"]
    center: Float[Array, "*blocks"]
    count: Array
    reference: Reference
    window_mean: dict[str, Array]
    window_m2: dict[str, Array]
    window_count: Array


class Adaptation(NamedTuple):
    """A pure pair: `init(position) -> AdaptState` and `update(i, state, accept_prob, position) -> AdaptState`."""

    init: Callable[[Position], AdaptState]
    update: Callable[..., AdaptState]


def adaptation(
    sampler: Sampler,
    num_warmup: int,
    *,
    target_accept: float | None = None,
    angle: float | None = None,
    referenced: Sequence[str] = (),
) -> Adaptation:
    """Build the warm-up of a sampler.

    The angle follows the dual averaging of Hoffman & Gelman 2014 (arXiv 1111.4246, section 3.2.1), within the
    sampler's smallest and largest. The reference of the entries named in `referenced` is re-estimated at the end of
    windows that double in length, after which dual averaging starts afresh. Past `num_warmup` nothing moves.

    Args:
      sampler: the sampler to tune.
      num_warmup: number of warm-up steps.
      target_accept: the acceptance to aim at; None takes the sampler's own.
      angle: a fixed angle, in radians; None adapts it.
      referenced: entries of the (dict) position that are not standard normal under the prior.

    Returns:
      The (init, update) pair.
    """
    target = jnp.asarray(sampler.target_accept if target_accept is None else target_accept)
    shape = () if sampler.num_angles == 1 else (sampler.num_angles,)
    window_start, window_ends = _windows(num_warmup) if referenced else (0, ())
    ends = jnp.asarray(window_ends or (-1,))

    def init(position: Position) -> AdaptState:
        first = jnp.asarray(sampler.settle(jnp.asarray(sampler.max_angle / 4)) if angle is None else angle, float)
        first = jnp.broadcast_to(first, shape)
        zero = jnp.zeros_like(first)
        moments = {name: jnp.zeros_like(position[name]) for name in referenced}
        reference = Reference(
            {name: position[name] for name in referenced}, {name: jnp.ones_like(position[name]) for name in referenced}
        )
        return AdaptState(
            first, jnp.log(first), zero, jnp.log(2 * first), jnp.int32(0), reference, moments, moments, jnp.int32(0)
        )

    def update(i: Array, state: AdaptState, accept_prob: Array, position: Position) -> AdaptState:
        moved = _average_angle(state, target - accept_prob, sampler) if angle is None else state
        if angle is None:
            last = i == num_warmup - 1
            moved = moved._replace(angle=jnp.where(last, sampler.settle(jnp.exp(moved.log_angle_mean)), moved.angle))
        if referenced:
            moved = jax.lax.cond(i >= window_start, lambda s: _gather(s, position), lambda s: s, moved)
            moved = jax.lax.cond(jnp.isin(i, ends), _close_window, lambda s: s, moved)
        return jax.tree.map(lambda new, old: jnp.where(i < num_warmup, new, old), moved, state)

    return Adaptation(init, update)


def _windows(num_warmup: int) -> tuple[int, tuple[int, ...]]:
    """Return where the first window starts and the last step of each; the tail is left to the angle alone."""
    start, stop, length = num_warmup * 3 // 20, num_warmup * 17 // 20, max(25, num_warmup // 20)
    ends, end = [], start
    while end + length <= stop:
        end = end + length if end + 3 * length <= stop else stop
        ends.append(end - 1)
        length *= 2
    return start, tuple(ends)


def _average_angle(state: AdaptState, error: Array, sampler: Sampler) -> AdaptState:
    # A softer gain than NUTS's usual 0.05: trajectories have a fixed length, so an angle that undershoots by e^5
    # after a few early rejections would cost hundreds of gradients per draw.
    gamma, shift, decay = 0.2, 10.0, 0.75
    count = state.count + 1
    step = count.astype(state.angle.dtype)
    error_sum = state.error_sum + error.astype(state.angle.dtype)
    log_angle = state.center - jnp.sqrt(step) / (gamma * (step + shift)) * error_sum
    log_angle = jnp.clip(log_angle, math.log(sampler.min_angle), math.log(sampler.max_angle))
    weight = step**-decay
    return state._replace(
        angle=jnp.exp(log_angle),
        log_angle_mean=weight * log_angle + (1 - weight) * state.log_angle_mean,
        error_sum=error_sum,
        count=count,
    )


def _gather(state: AdaptState, position: Position) -> AdaptState:
    count = state.window_count + 1
    delta = {name: position[name] - mean for name, mean in state.window_mean.items()}
    mean = {name: m + delta[name] / count for name, m in state.window_mean.items()}
    m2 = {name: s + delta[name] * (position[name] - mean[name]) for name, s in state.window_m2.items()}
    return state._replace(window_mean=mean, window_m2=m2, window_count=count)


def _close_window(state: AdaptState) -> AdaptState:
    n = state.window_count
    # Shrunk towards unit variance by five observations: a reference wider than the target costs little, one narrower
    # (of a chain that has hardly moved) would hold the chain where it is.
    scale = {name: jnp.sqrt((m2 / jnp.maximum(n - 1, 1) * n + 5) / (n + 5)) for name, m2 in state.window_m2.items()}
    zeros = jax.tree.map(jnp.zeros_like, state.window_mean)
    return state._replace(
        reference=Reference(state.window_mean, scale),
        window_mean=zeros,
        window_m2=zeros,
        window_count=jnp.zeros_like(n),
        error_sum=jnp.zeros_like(state.error_sum),
        center=jnp.log(2 * state.angle),
        count=jnp.zeros_like(state.count),
    )
