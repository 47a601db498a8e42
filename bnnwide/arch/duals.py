"""Duals of activations without closed forms: E[phi(u) phi(v)] and its derivatives, by quadrature."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bnnwide.arch.angles import inverse, root, root_and_arc
from bnnwide.arch.dual_tables import interpolated
from bnnwide.arch.quadrature import Function, Moment, expectations, line_expectation

# From so many pairs on a table costs less than a quadrature for each.
_MANY = 4096
_TINY = 1e-30


def dual(fn: Function, q11: Array, q12: Array, q22: Array) -> Array:
    """Return E[fn(u) fn(v)] for (u, v) ~ N(0, [[q11, q12], [q12, q22]]), to about 1e-10 of sqrt(E[fn(u)^2] E[fn(v)^2]).

    Args:
      fn: a continuous function of one entry, analytic but for a kink at 0; growing no faster than exp(|u|) on the scale
        of the standard deviations.
      q11: variances; the arguments broadcast.
      q12: covariances.
      q22: variances.
    """
    pure, constants, arrays = _prepared(fn, q11, q12, q22)
    return _dual(pure, constants, *arrays)


def dual_and_derivative(fn: Function, q11: Array, q12: Array, q22: Array) -> tuple[Array, Array]:
    """Return E[fn(u) fn(v)] and E[fn'(u) fn'(v)], the derivative of the former in q12 (Price's theorem)."""
    pure, constants, arrays = _prepared(fn, q11, q12, q22)
    return _dual_and_slope(pure, constants, *arrays)


def dual_diag(fn: Function, q: Array) -> Array:
    """Return E[fn(u)^2] for u ~ N(0, q)."""
    return line_expectation(lambda u: fn(u) ** 2, root(q))


def dual_mean(fn: Function, q: Array) -> Array:
    """Return E[fn(u)] for u ~ N(0, q)."""
    return line_expectation(fn, root(q))


def _prepared(fn: Function, *q: Array) -> tuple[Callable[..., Array], tuple[Any, ...], list[Array]]:
    # What `fn` closes over and may be differentiated in (a slope, say) becomes an argument, as a custom rule needs.
    arrays = list(jnp.broadcast_arrays(*q))
    scalar, constants = jax.closure_convert(fn, jnp.zeros((), arrays[0].dtype))

    def pure(constants: tuple[Any, ...], u: Array) -> Array:
        return jax.vmap(lambda entry: scalar(entry, *constants))(u.reshape(-1)).reshape(u.shape)

    return pure, tuple(constants), arrays


def _derivative(fn: Function) -> Function:
    return lambda u: jax.jvp(fn, (u,), (jnp.ones_like(u),))[1]


def _pull(slope: Function) -> Function:
    return lambda u: u * slope(u)


def _evaluate(moments: list[Moment], q11: Array, q12: Array, q22: Array) -> tuple[Array, ...]:
    theta = 0.5 * jnp.pi - root_and_arc(q11, q12, q22)[1]
    evaluate = expectations if q12.size < _MANY else interpolated
    # A variance of 0 is the limit of small ones, where a slope that jumps has both its values.
    s1, s2 = (jnp.maximum(root(q), _TINY) for q in (q11, q22))
    return evaluate(moments, s1, s2, theta)


def _moments(pure: Callable, constants: Any, *, derivative: bool) -> list[Moment]:
    f = partial(pure, constants)
    slope = _derivative(f)
    return [Moment(f, f, True), Moment(slope, slope, False)][: 2 if derivative else 1]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _dual(pure: Callable, constants: Any, *q: Array) -> Array:
    return _evaluate(_moments(pure, constants, derivative=False), *q)[0]


@_dual.defjvp
def _dual_jvp(pure: Callable, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    values, changes = _with_tangents(pure, primals, tangents, derivative=False)
    return values[0], changes[0]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _dual_and_slope(pure: Callable, constants: Any, *q: Array) -> tuple[Array, Array]:
    value, derivative = _evaluate(_moments(pure, constants, derivative=True), *q)
    return value, derivative


@_dual_and_slope.defjvp
def _dual_and_slope_jvp(pure: Callable, primals: tuple[Any, ...], tangents: tuple[Any, ...]):
    values, changes = _with_tangents(pure, primals, tangents, derivative=True)
    return tuple(values), tuple(changes)


def _with_tangents(
    pure: Callable, primals: tuple[Any, ...], tangents: tuple[Any, ...], *, derivative: bool
) -> tuple[list[Array], list[Array]]:
    """Return E[f f], with `derivative` E[f' f'] too, and their tangents.

    d E[f f] = D dq12 + (E[u f'(u) f(v)] - q12 D) dq11 / (2 q11) + the same of the other variance, with D = E[f' f'] the
    derivative in q12. (In brackets, the derivative in q11 at a fixed angle less what of it is due to q12.) No
    difference of nearby angles is taken, where digits would be lost at equal inputs.
    """
    (constants, *q), (constants_change, *dq) = primals, tangents
    f = partial(pure, constants)
    slope = _derivative(f)
    bend = _derivative(slope)
    moments = [Moment(f, f, True), Moment(slope, slope, False), Moment(_pull(slope), f, True)]
    moments.append(Moment(f, _pull(slope), True))
    if derivative:
        moments += [Moment(bend, bend, False), Moment(_pull(bend), slope, False), Moment(slope, _pull(bend), False)]
    value, both, left, right, *rest = _evaluate(moments, *q)
    values, changes = [value], [_change(q, dq, both, left, right)]
    if derivative:
        values.append(both)
        changes.append(_change(q, dq, rest[0] + _from_jump(slope, bend, *q), *rest[1:]))
    if jax.tree.leaves(constants):
        in_constants = lambda c: _evaluate(_moments(pure, c, derivative=derivative), *q)  # noqa: E731
        more = jax.jvp(in_constants, (constants,), (constants_change,))[1]
        changes = [change + extra for change, extra in zip(changes, more, strict=True)]
    return values, changes


def _change(q: list[Array], dq: list[Array], by12: Array, left: Array, right: Array) -> Array:
    (q11, q12, q22), (d11, d12, d22) = q, dq
    relative = 0.5 * (left - q12 * by12) * inverse(q11) * d11 + 0.5 * (right - q12 * by12) * inverse(q22) * d22
    return by12 * d12 + relative


def _from_jump(slope: Function, bend: Function, q11: Array, q12: Array, q22: Array) -> Array:
    """Return what a jump of f' at 0 adds to dE[f' f']/dq12 beside E[f'' f'']: terms with its delta function.

    The one with two of them is infinite at equal inputs, and taken as 0 there: the angle is held fixed, as it is along
    any path of inputs that stay equal.
    """
    tiny = jnp.full((1,), _TINY, q12.dtype)
    jump = (slope(tiny) - slope(-tiny))[0]

    def compute() -> Array:
        r = root_and_arc(q11, q12, q22)[0]
        total = jump / (2 * jnp.pi) * inverse(r)
        for q in (q11, q22):
            over = inverse(root(q))
            # Given that the one variable is 0, the other has the variance det / q.
            total += line_expectation(bend, jnp.maximum(r * over, _TINY)) * over / (2 * jnp.pi) ** 0.5
        return jump * total

    return jax.lax.cond(jump == 0, lambda: jnp.zeros_like(q12), compute)
