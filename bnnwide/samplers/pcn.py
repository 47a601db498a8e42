"""Preconditioned Crank-Nicolson: the random walk that leaves the Gaussian reference invariant."""

import math

import jax
import jax.numpy as jnp

from bnnwide.samplers.core import Reference, Rest, Sampler, State, accept_or_stay, rotate, standard_normal_like


def pcn(rest: Rest) -> Sampler:
    """Build pCN: z' = sqrt(1 - beta^2) z + beta xi, xi ~ N(0, I), accepted with min(1, exp(V(z) - V(z'))).

    The tuning angle is asin(beta), so that beta = 1 is the independence sampler at pi/2. One evaluation per step.

    Source: Cotter, Roberts, Stuart & White 2013 (arXiv 1202.0709), section 4.

    Args:
      rest: V for a target with potential U = |z|^2/2 + V.

    Returns:
      The (init, step) pair.
    """

    def init(position):
        return State(position, rest(position))

    def step(key, state, angle, reference=Reference()):
        noise_key, accept_key = jax.random.split(key)
        white = reference.whiten(state.position)
        proposal, _ = rotate(white, standard_normal_like(noise_key, white), jnp.asarray(angle))
        new = init(reference.color(proposal))
        log_ratio = reference.tilt(state.rest, white) - reference.tilt(new.rest, proposal)
        return accept_or_stay(accept_key, log_ratio, state, new, 0, 1)

    return Sampler(init, step, lambda angle: angle, min_angle=1e-6, max_angle=math.pi / 2, target_accept=0.3)
