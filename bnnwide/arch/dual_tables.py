"""Expectations at many pairs: a Chebyshev interpolant in two standard deviations and an angle, checked as it is made.

For functions that are analytic but for a kink at 0, E[f(u) g(v)] is analytic in the angle theta on [0, pi], and smooth
in the standard deviations down to 0. A table of quadratures whose sums are matrix products therefore serves any number
of pairs. Its last coefficients tell its error; where they have not died out, every pair gets its own quadrature.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bnnwide.arch.quadrature import Function, Moment, by_spread, expectations, line_expectation, plane

_DEVIATIONS, _ANGLES = 32, 128
# Leading blocks of coefficients that are tried in turn: (for each standard deviation, for the angle).
_BLOCKS = ((16, 64), (_DEVIATIONS, _ANGLES))
# The interpolant is in log(1 + s / _KNEE): in the ratios of large standard deviations, and smooth at 0.
_KNEE = 0.3
_PAIRS = 1024


def interpolated(
    moments: Sequence[Moment], s1: Float[Array, "*p"], s2: Float[Array, "*p"], theta: Float[Array, "*p"]
) -> tuple[Array, ...]:
    """Return what `quadrature.expectations` does, faster for many pairs.

    Args:
      moments: what to compute.
      s1: standard deviations.
      s2: standard deviations.
      theta: angles in [0, pi].

    Returns:
      One array for each moment, of the arguments' shape.
    """
    span = _Span(jax.lax.stop_gradient(jnp.stack([s1, s2])))
    tables = _tables(moments, span)
    limit = max(1e-11, 32 * float(jnp.finfo(s1.dtype).eps))
    fits = [_fits(tables, block, limit) for block in _BLOCKS]
    level = jnp.argmax(jnp.stack([*fits, jnp.asarray(True)]))
    choices = [lambda *pairs, block=block: _contracted(moments, tables, block, span, pairs) for block in _BLOCKS]
    return jax.lax.switch(level, [*choices, lambda *pairs: expectations(moments, *pairs)], s1, s2, theta)


class _Span:
    """The range of the standard deviations, mapped to [-1, 1]."""

    def __init__(self, s: Array):
        low, high = jnp.log1p(jnp.min(s) / _KNEE), jnp.log1p(jnp.max(s) / _KNEE)
        self.low, self.half = low, 0.5 * jnp.maximum(high - low, 0.02)
        self.nodes = _KNEE * jnp.expm1(low + self.half * (1 + jnp.asarray(_points(_DEVIATIONS), s.dtype)))

    def unit(self, s: Array) -> Array:
        return (jnp.log1p(s / _KNEE) - self.low) / self.half - 1


def _at_zero(fn: Function, s: Array) -> Array:
    return fn(jnp.zeros((1,), s.dtype))[0]


def _size(s: Array) -> Array:
    """What changes of a function are measured by: they are of the order s at small s, and between 1 and s at large."""
    return s / jnp.sqrt(1 + s)


def _change(fn: Function, continuous: bool, s: Array, x: Array) -> Array:
    """Return fn(s x), or where it is continuous (fn(s x) - fn(0)) / size, which keeps its digits at small s."""
    s = s[:, None]
    return (fn(s * x) - _at_zero(fn, s)) / _size(s) if continuous else fn(s * x)


def _tables(moments: Sequence[Moment], span: _Span) -> list[Array]:
    """Return, for each moment, Chebyshev coefficients over (angle, s1, s2) of the expectation of its changes."""
    s, dtype = span.nodes, span.nodes.dtype
    largest = jnp.max(s)

    def at_angle(theta: Array) -> list[Array]:
        def evaluate(radial: int, angular: int) -> Any:
            nodes, w = jax.tree.map(jnp.ravel, plane(theta, largest, radial, angular))
            xs, ys = (jnp.concatenate(side) for side in zip(*nodes, strict=True))
            w = jnp.tile(w, len(nodes))
            return [
                (_change(f, continuous, s, xs) * w) @ _change(g, continuous, s, ys).T for f, g, continuous in moments
            ]

        return by_spread(evaluate, largest)

    values = jax.lax.map(jax.checkpoint(at_angle), jnp.asarray(0.5 * math.pi * (1 + _points(_ANGLES)), dtype))
    angles, deviations = (jnp.asarray(_transform(count), dtype) for count in (_ANGLES, _DEVIATIONS))
    return [jnp.einsum("ka,aij,li,mj->klm", angles, value, deviations, deviations) for value in values]


def _fits(tables: list[Array], block: tuple[int, int], limit: float) -> Array:
    """Say whether the coefficients outside a leading block are nothing beside the largest."""
    deviations, angles = block
    if block == _BLOCKS[-1]:
        # Of the whole table the last ones stand for those that it does not have.
        deviations, angles = deviations - 2, angles - 8
    good = jnp.asarray(True)
    for table in map(jnp.abs, tables):
        rest = jnp.max(table.at[:angles, :deviations, :deviations].set(0))
        good &= rest <= limit * jnp.max(table)
    return good


def _contracted(
    moments: Sequence[Moment],
    tables: list[Array],
    block: tuple[int, int],
    span: _Span,
    pairs: tuple[Array, Array, Array],
) -> tuple[Array, ...]:
    """Evaluate the leading block of the tables at every pair, a bounded number at once."""
    deviations, angles = block
    shape, count = pairs[0].shape, pairs[0].size
    rows = -(-count // _PAIRS)
    leading = [table[:angles, :deviations, :deviations].reshape(angles, -1) for table in tables]
    transform = jnp.asarray(_transform(_DEVIATIONS)[:deviations], span.nodes.dtype)

    def line(fn: Function) -> tuple[Array, Array]:
        at_zero = _at_zero(fn, span.nodes)
        return at_zero, transform @ (line_expectation(lambda u: fn(u) - at_zero, span.nodes) / _size(span.nodes))

    lines = [(line(f), line(g)) if continuous else None for f, g, continuous in moments]

    @jax.checkpoint
    def one_block(pair: tuple[Array, Array, Array]) -> tuple[Array, ...]:
        s1, s2, theta = pair
        first, second = _basis(span.unit(s1), deviations), _basis(span.unit(s2), deviations)
        angle = _basis(2 / math.pi * theta - 1, angles)
        results = []
        for table, ends in zip(leading, lines, strict=True):
            value = jnp.einsum("plm,lp,mp->p", (angle.T @ table).reshape(-1, deviations, deviations), first, second)
            if ends is not None:
                # E[f g] = f(0) g(0) + f(0) E[g - g(0)] + g(0) E[f - f(0)] + E[(f - f(0)) (g - g(0))]
                (f0, f_line), (g0, g_line) = ends
                left, right = _size(s1), _size(s2)
                value = f0 * g0 + left * g0 * (f_line @ first) + right * f0 * (g_line @ second) + left * right * value
            results.append(value)
        return tuple(results)

    filled = tuple(jnp.pad(a.reshape(-1), (0, rows * _PAIRS - count)).reshape(rows, _PAIRS) for a in pairs)
    return tuple(result.reshape(-1)[:count].reshape(shape) for result in jax.lax.map(one_block, filled))


def _points(count: int) -> np.ndarray:
    """Chebyshev points of the first kind on [-1, 1]."""
    return np.cos(math.pi * (np.arange(count) + 0.5) / count)


def _transform(count: int) -> np.ndarray:
    """The matrix from values at `_points` to Chebyshev coefficients."""
    order = np.arange(count)
    matrix = 2 / count * np.cos(math.pi * order[:, None] * (order + 0.5) / count)
    matrix[0] /= 2
    return matrix


def _basis(x: Float[Array, "p"], count: int) -> Float[Array, "count p"]:
    """Chebyshev polynomials T_0 ... T_(count-1)."""
    rows = jnp.stack([jnp.ones_like(x), x])
    while len(rows) < count:
        # T_(m+j) = 2 T_m T_j - T_(m-j)
        rows = jnp.concatenate([rows, 2 * rows[-1] * rows[1:] - rows[-2::-1]])
    return rows[:count]
