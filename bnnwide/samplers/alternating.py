"""Split HMC in two blocks: one whose every gradient is dear, and one that is cheap while the other stands still."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bnnwide.samplers.core import Info, Position, Reference, Rest, Sampler, State
from bnnwide.samplers.split_hmc import split_hmc


def alternating_split_hmc(
    rest: Rest,
    keep: Callable[[Position], Any],
    given: Callable[[Any, Array], Array],
    block: str,
    *,
    trajectory_length: float = math.pi / 2,
    jitter: float = 0.1,
    num_inner: int = 3,
) -> Sampler:
    """Build a Gibbs sweep of split HMC over the entry `block` of a dict position, and over all others.

    Each step moves the others by one trajectory with the block fixed, then the block by `num_inner` trajectories with
    the others fixed. Both are reversible moves that leave the target invariant, and so does their sequence. Where the
    two blocks become independent, as hidden weights and function values do with growing width, the coarse steps that
    suit the others are not held back by the block's finer ones: one gradient of the others per independent draw.

    The state's `accept_prob` has two entries, of the others and of the block, and so has the angle. Only the gradients
    and evaluations of the others are counted: the block's do not evaluate what makes the others dear.

    Args:
      rest: V of a whole position.
      keep: what the block needs of the other entries; best made of parts of V, which a compiler then shares.
      given: from that and the block's array to V, but for a constant.
      block: the name of the cheap entry; standard normal under the prior.
      trajectory_length: total rotation of each trajectory, in radians.
      jitter: relative spread of the angle between trajectories.
      num_inner: trajectories of the block per step.

    Returns:
      The (init, step) pair.
    """
    whole = split_hmc(rest, trajectory_length=trajectory_length, jitter=jitter, keep=keep)

    def step(key, state, angle, reference=Reference()):
        others_key, block_key = jax.random.split(key)
        angles = jnp.broadcast_to(angle, (2,))
        base = state.position[block]
        others = split_hmc(
            lambda z: rest(z | {block: base}), trajectory_length=trajectory_length, jitter=jitter, keep=keep
        )
        start = state._replace(position={name: z for name, z in state.position.items() if name != block})
        moved, info = others.step(others_key, start, angles[0], reference)

        inner = split_hmc(lambda z: given(moved.kept, z[block]), trajectory_length=trajectory_length, jitter=jitter)
        first = inner.init({block: base})

        def trajectory(state, key):
            state, info = inner.step(key, state, angles[1])
            return state, info.accept_prob

        last, accept_probs = jax.lax.scan(trajectory, first, jax.random.split(block_key, num_inner))
        new = State(moved.position | last.position, moved.rest + (last.rest - first.rest), moved.kept)
        accept_prob = jnp.stack([info.accept_prob, jnp.mean(accept_probs)])
        return new, Info(accept_prob, info.accepted, info.diverging, info.num_grads, info.num_evals)

    # A trajectory accepted at rate a has a / (2 - a) effective draws: one step at 0.55 and two at 0.8 come to about the
    # same per gradient, and two to more per second, because each draw has an evaluation as well.
    return Sampler(
        whole.init, step, whole.settle, min_angle=trajectory_length / 256,
        max_angle=trajectory_length, target_accept=(0.55, 0.8), num_angles=2,
    )  # fmt: skip
