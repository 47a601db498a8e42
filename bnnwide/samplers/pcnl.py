"""Preconditioned Crank-Nicolson Langevin (infinity-MALA)."""

import math

import jax
import jax.numpy as jnp

from bnnwide.samplers.core import Reference, Rest, Sampler, State, accept_or_stay, dot, standard_normal_like


def pcnl(rest: Rest) -> Sampler:
    """Build pCNL: (2 + delta) z' = (2 - delta) z - 2 delta grad V(z) + sqrt(8 delta) xi, with its own accept ratio.

    The ratio is exp(rho(z, z') - rho(z', z)) with
    rho(u, v) = V(u) + <v - u, grad V(u)>/2 + delta/4 <u + v, grad V(u)> + delta/4 |grad V(u)|^2.
    The tuning angle is 2 atan(sqrt(delta / 2)), the rotation of (z, xi) by the proposal. One gradient per step.

    Source: Cotter, Roberts, Stuart & White 2013 (arXiv 1202.0709), section 4, pCNL.

    Args:
      rest: V for a target with potential U = |z|^2/2 + V.

    Returns:
      The (init, step) pair.
    """
    value_and_grad = jax.value_and_grad(rest)

    def init(position):
        return State(position, *value_and_grad(position))

    def step(key, state, angle, reference=Reference()):
        noise_key, accept_key = jax.random.split(key)
        white = reference.whiten(state.position)
        grad = reference.tilt_grad(state.kept, white)
        delta = 2 * jnp.tan(angle / 2) ** 2
        noise = standard_normal_like(noise_key, white)
        a, b, c = (2 - delta) / (2 + delta), -2 * delta / (2 + delta), jnp.sqrt(8 * delta) / (2 + delta)
        proposal = jax.tree.map(
            lambda z, g, xi: a.astype(z.dtype) * z + b.astype(z.dtype) * g + c.astype(z.dtype) * xi, white, grad, noise
        )
        new = init(reference.color(proposal))
        new_grad = reference.tilt_grad(new.kept, proposal)

        # rho(u, v) - rho(v, u), from differences and sums of the two points, which keeps its digits in float32.
        difference = jax.tree.map(jnp.subtract, proposal, white)
        total = jax.tree.map(jnp.add, proposal, white)
        grad_total = jax.tree.map(jnp.add, grad, new_grad)
        grad_difference = jax.tree.map(jnp.subtract, grad, new_grad)
        log_ratio = (
            (reference.tilt(state.rest, white) - reference.tilt(new.rest, proposal))
            + 0.5 * dot(difference, grad_total)
            + 0.25 * delta * dot(total, grad_difference)
            + 0.25 * delta * dot(grad_total, grad_difference)
        )
        return accept_or_stay(accept_key, log_ratio, state, new, 1, 1)

    return Sampler(init, step, lambda angle: angle, min_angle=1e-6, max_angle=math.pi / 2, target_accept=0.574)
