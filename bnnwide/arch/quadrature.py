"""Expectations of functions of two correlated Gaussian variables, by quadrature.

In polar coordinates u = s1 r cos(a), v = s2 r cos(a - theta), with cos(theta) the correlation, a kink at 0 is a ray.
Between rays the integrand is analytic, whatever the correlation; it varies fastest, on a scale of 1/s, at small r and
close to the rays. Gauss-Legendre nodes are gathered there by a sinh map (Johnston & Elliott 2005,
doi 10.1002/nme.1208).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Function = Callable[[Array], Array]


class Moment(NamedTuple):
    """A second moment to compute, E[left(u) right(v)].

    Attributes:
      left: a function of u, analytic but for a kink or a jump at 0.
      right: the same of v.
      continuous: whether neither jumps at 0.
    """

    left: Function
    right: Function
    continuous: bool


# exp(-r^2/2) is 2e-22 there, which leaves room for functions that grow like exp(|u|).
_RADIUS = 10.0
# Nodes in r, and in the angle for each of four panels, by the largest standard deviation: enough for 1e-10 of functions
# as wild as tanh(u - 2), sin(u) and u sigmoid(20 u), and for a few more digits of the usual activations.
_RULES = ((3.0, 56, 28), (math.inf, 128, 64))
_LINE_NODES = 160
# Pairs that are evaluated at once; at most 4 million nodes.
_BLOCK = 128
_SINE = tuple((-1) ** k / math.factorial(2 * k + 1) for k in range(11))


def plane(theta: Array, largest: Array, radial: int, angular: int) -> tuple[list[tuple[Array, Array]], Array]:
    """Return nodes and weights of the standard bivariate normal with correlation cos(theta).

    Args:
      theta: (*p) angles in [0, pi].
      largest: (*p) or scalar, the larger of the two standard deviations that x and y will be multiplied by.
      radial: number of nodes in r.
      angular: number of nodes in each of four panels of the angle on one side of the line v = 0.

    Returns:
      Four sets of nodes (x, y), arrays (angular, 2, radial, *p), and the weights that they share.
    """
    scale = _scale(jnp.broadcast_to(largest, theta.shape))
    r, w = _gathered(jnp.full_like(scale, _RADIUS), scale, radial)
    w = w * r * jnp.exp(-0.5 * r * r) / (2 * math.pi)
    # Two wedges, between the rays u = 0 and v = 0; each in two halves, gathered at one ray and at the other.
    width = jnp.stack([math.pi - theta, theta])[:, None]
    side = jnp.asarray([1.0, -1.0], theta.dtype).reshape(2, *[1] * r.ndim)
    near, wa = _gathered(0.5 * width * jnp.ones_like(r), scale / r, angular)
    far = width - near
    nodes = r * _sine(near), r * _sine(jnp.minimum(far, math.pi - far)), wa * w
    # Fused into what follows, they would be computed again for each function.
    short, long, w = jax.lax.optimization_barrier(nodes)
    xs, ys = (side * short, side * long), (long, short)
    return [(sign * x, sign * y) for sign in (1, -1) for x, y in zip(xs, ys, strict=True)], w


def by_spread(evaluate: Callable[[int, int], Any], largest: Array) -> Any:
    """Return `evaluate(radial, angular)` with the numbers of nodes that the largest standard deviation needs."""
    level = sum((largest > bound).astype(int) for bound, *_ in _RULES[:-1])
    return jax.lax.switch(level, [lambda sizes=sizes: evaluate(*sizes) for _, *sizes in _RULES])


def expectations(
    moments: Sequence[Moment], s1: Float[Array, "*p"], s2: Float[Array, "*p"], theta: Float[Array, "*p"]
) -> tuple[Array, ...]:
    """Return E[left(s1 x) right(s2 y)] for each moment, with x and y standard normal of correlation cos(theta).

    Differentiable in s1, s2, theta and in what the functions close over, by the derivatives of nodes and weights.

    Args:
      moments: what to compute.
      s1: standard deviations.
      s2: standard deviations.
      theta: angles in [0, pi].

    Returns:
      One array for each moment, of the arguments' shape.
    """
    shape, count = s1.shape, s1.size
    size = min(count, _BLOCK)
    blocks = -(-count // size)
    # Pairs that need equally many nodes come together.
    order = jnp.argsort(jnp.maximum(s1, s2).reshape(-1))

    @jax.checkpoint
    def one_block(block: tuple[Array, Array, Array]) -> tuple[Array, ...]:
        one, other, angle = block
        largest = jnp.maximum(one, other)

        def evaluate(radial: int, angular: int) -> tuple[Array, ...]:
            nodes, w = plane(angle, largest, radial, angular)
            # Terms first, then their sum: XLA would otherwise compute them one by one, not in vectors.
            terms = [w * sum(f(one * x) * g(other * y) for x, y in nodes) for f, g, _ in moments]
            return tuple(jnp.sum(term, axis=(0, 1, 2)) for term in jax.lax.optimization_barrier(terms))

        return by_spread(evaluate, jnp.max(largest))

    rows = tuple(
        jnp.pad(a.reshape(-1)[order], (0, blocks * size - count)).reshape(blocks, size) for a in (s1, s2, theta)
    )
    back = jnp.argsort(order)
    return tuple(result.reshape(-1)[back].reshape(shape) for result in jax.lax.map(one_block, rows))


def line_expectation(fn: Function, s: Array) -> Array:
    """Return E[fn(s x)] for a standard normal x, by quadrature on either side of 0."""
    scale = _scale(s)
    x, w = _gathered(jnp.full_like(s, _RADIUS), scale, _LINE_NODES)
    w = w * jnp.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return jnp.sum(w * (fn(s * x) + fn(-s * x)), axis=0)


def _scale(s: Array) -> Array:
    """The scale on which nodes are gathered; no derivative passes through it, as the integral does not depend on it."""
    return 0.5 / jnp.maximum(jax.lax.stop_gradient(s), 1.0)


def _gathered(length: Array, scale: Array, count: int) -> tuple[Array, Array]:
    """Return `count` nodes (on a new first axis) and weights on [0, length], gathered at 0 on the scale given."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    rank = max(scale.ndim, length.ndim)
    t, w = (jnp.asarray(a, scale.dtype).reshape(-1, *[1] * rank) for a in ((nodes + 1) / 2, weights / 2))
    stretch = jnp.arcsinh(length / scale)
    # sinh and cosh from one expm1.
    e = jnp.expm1(stretch * t)
    over = e / (e + 1)
    return scale * 0.5 * (e + over), w * stretch * scale * (1 + 0.5 * e * over)


def _sine(x: Array) -> Array:
    """Return sin(x) on [0, pi/2]: XLA's own is a call for each number."""
    z = x * x
    total = jnp.full_like(z, _SINE[-1])
    for coefficient in _SINE[-2::-1]:
        total = total * z + coefficient
    return x * total
