"""What the function-space samplers share: states, the Gaussian reference, and the accept step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

Position = PyTree[Float[Array, "..."]]
Rest = Callable[[Position], Float[Array, ""]]


class State(NamedTuple):
    """A chain's state: where it is, the rest there, and what else the sampler keeps of that place.

    PCNL keeps the rest's gradient, alternating split HMC what its cheap block needs of the others.
    """

    position: Position
    rest: Float[Array, ""]
    kept: Any = None


class Info(NamedTuple):
    """What one step did."""

    accept_prob: Float[Array, "*blocks"]
    accepted: Any
    diverging: Any
    num_grads: Any
    num_evals: Any


class Reference(NamedTuple):
    """A diagonal Gaussian N(loc, scale^2) on some entries of a dict position; N(0, 1) on all others.

    The samplers are exact for any reference; the closer it is to the target, the better they mix. The rest R of a
    position z is then U(z) - |z|^2/2 over the *other* entries, and V = R - |zeta|^2/2 over the referenced ones, with
    zeta = (z - loc) / scale.
    """

    loc: dict[str, Array] = {}
    scale: dict[str, Array] = {}

    def whiten(self, position: Position) -> Position:
        """Return zeta."""
        if not self.loc:
            return position
        return position | {name: (position[name] - self.loc[name]) / self.scale[name] for name in self.loc}

    def color(self, white: Position) -> Position:
        """Return z, the inverse of `whiten`."""
        if not self.loc:
            return white
        return white | {name: self.loc[name] + self.scale[name] * white[name] for name in self.loc}

    def tilt(self, rest: Array, white: Position) -> Array:
        """Turn R into V."""
        return rest - sum((0.5 * jnp.sum(white[name] ** 2) for name in self.loc), start=jnp.zeros((), rest.dtype))

    def tilt_grad(self, rest_grad: Position, white: Position) -> Position:
        """Turn the gradient of R with respect to z into the gradient of V with respect to zeta."""
        if not self.loc:
            return rest_grad
        return rest_grad | {name: self.scale[name] * rest_grad[name] - white[name] for name in self.loc}


class Sampler(NamedTuple):
    """A sampler as a pure pair: `init(position) -> State` and `step(key, state, angle, reference) -> (State, Info)`.

    `angle` is the one tuning number of each sampler, the rotation in radians of (position, noise) by one integrator
    step or proposal, in (0, max_angle]; adaptation stays above min_angle. `settle(angle)` rounds an
    adapted angle to one that suits long runs. A sampler of several blocks has an angle for each, and `accept_prob` in
    its `Info` and `target_accept` then have as many entries.
    """

    init: Callable[[Position], State]
    step: Callable[..., tuple[State, Info]]
    settle: Callable[[Array], Array]
    min_angle: float
    max_angle: float
    target_accept: float | tuple[float, ...]
    num_angles: int = 1


def rest_of(potential: Rest) -> Rest:
    """Return V(z) = U(z) - |z|^2/2, what a potential U adds to the standard Gaussian's."""
    return lambda position: potential(position) - 0.5 * dot(position, position)


def dot(a: Position, b: Position) -> Float[Array, ""]:
    """Return the inner product of two positions."""
    return sum(jnp.vdot(u, v) for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))  # type: ignore


def standard_normal_like(key: Array, position: Any) -> Position:
    """Draw a standard normal pytree of the shapes of `position`, arrays or `jax.ShapeDtypeStruct`."""
    leaves, tree = jax.tree.flatten(position)
    keys = jax.random.split(key, len(leaves))
    return tree.unflatten([jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)])


def rotate(position: Position, velocity: Position, angle: Array) -> tuple[Position, Position]:
    """Rotate every (position, velocity) pair by `angle`: the exact flow of the Gaussian part."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    turned = jax.tree.map(lambda z, p: cos.astype(z.dtype) * z + sin.astype(z.dtype) * p, position, velocity)
    velocity = jax.tree.map(lambda z, p: cos.astype(z.dtype) * p - sin.astype(z.dtype) * z, position, velocity)
    return turned, velocity


def accept_or_stay(key: Array, log_ratio: Array, state: State, proposal: State, num_grads: Any, num_evals: Any):
    """Take the proposal with probability min(1, exp(log_ratio)); a ratio that is not a number is never taken."""
    diverging = ~(jnp.isfinite(log_ratio) & jnp.isfinite(proposal.rest))
    accept_prob = jnp.where(diverging, 0.0, jnp.exp(jnp.minimum(log_ratio, 0.0)))
    accepted = jax.random.uniform(key, dtype=accept_prob.dtype) < accept_prob
    new = jax.tree.map(lambda a, b: jnp.where(accepted, a, b), proposal, state)
    count = jnp.asarray(num_grads, jnp.int32), jnp.asarray(num_evals, jnp.int32)
    return new, Info(accept_prob, accepted, diverging, *count)
