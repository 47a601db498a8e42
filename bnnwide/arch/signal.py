"""How signals travel through a deep network of one activation: fixed points, the three phases, and depth scales."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from bnnwide.arch.activation import Activation
from bnnwide.checks import Data, check_array, check_positive

MAX_STEPS = 500
INFINITE = 1e12


class SignalPropagation(NamedTuple):
    """The deep limit of a network of layers Dense(w_scale, b_scale) >> activation; every field has the scales' shape.

    Attributes:
      variance: q*, what the pre-activation variance tends to with depth, from 1; infinite if it grows without bound.
      correlation: c*, what the correlation of two different inputs tends to.
      chi: slope of the correlation map at 1, w_scale^2 E[phi'(u)^2] with u ~ N(0, q*): below 1 the network is ordered
        (inputs become alike, gradients vanish), above 1 chaotic (alike inputs come apart, gradients explode), at 1
        critical. It is also the growth of squared gradients per layer.
      correlation_length: number of layers over which the distance to c* falls by e; infinite at criticality.
      variance_length: the same for the distance to q*.
    """

    variance: Array
    correlation: Array
    chi: Array
    correlation_length: Array
    variance_length: Array

    @property
    def phase(self) -> np.ndarray:
        """The phase as an array of strings: "ordered", "critical" (chi within 1e-6 of 1) or "chaotic"."""
        chi = np.asarray(self.chi)
        return np.where(np.abs(chi - 1) < 1e-6, "critical", np.where(chi < 1, "ordered", "chaotic"))


def signal_propagation(
    activation: Activation, w_scale: Real[Data, "*shape"] | int | float, b_scale: Real[Data, "*shape"] | int | float
) -> SignalPropagation:
    """Follow variances and correlations through infinitely many layers.

    q' = w_scale^2 E[phi(u)^2] + b_scale^2 with u ~ N(0, q), and at q*
    c' = (w_scale^2 E[phi(u) phi(v)] + b_scale^2) / q* with correlation c of (u, v); the depth scales are -1 / log of
    these maps' slopes at their fixed points.

    Source: Poole et al. 2016 (arXiv 1606.05340), eqs. 3-6; Schoenholz et al. 2017 (arXiv 1611.01232), eqs. 5-12.

    Args:
      activation: the activation.
      w_scale: scales of the weights, positive; any shape.
      b_scale: scales of the biases, at least 0; broadcast against `w_scale`.

    Returns:
      Fixed points, chi and depth scales, of the broadcast shape.

    Raises:
      TypeError: if `activation` is no activation.
      ValueError: for scales that are not finite, negative, or do not broadcast.
    """
    if not isinstance(activation, Activation):
        raise TypeError(f"`signal_propagation`: activation must be an activation such as Erf(); got {activation!r}")
    for name, value in (("w_scale", w_scale), ("b_scale", b_scale)):
        check_array("signal_propagation", name, value, tuple(f"axis{i}" for i in range(np.ndim(value))))
    check_positive("signal_propagation", "w_scale", w_scale)
    if np.any(np.asarray(b_scale) < 0):
        raise ValueError(f"`signal_propagation`: b_scale must be at least 0; got {b_scale}")
    w, b = np.broadcast_arrays(np.asarray(w_scale, float), np.asarray(b_scale, float))
    solved = _solve(activation, jnp.asarray(w).ravel(), jnp.asarray(b).ravel())
    return SignalPropagation(*(field.reshape(w.shape) for field in solved))


def critical_w_scale(activation: Activation, b_scale: int | float = 0.0) -> float:
    """Return the scale of the weights at which chi = 1: where deep networks keep inputs apart and gradients alive.

    Args:
      activation: the activation.
      b_scale: scale of the biases.

    Returns:
      w_scale, to about 1e-9, the smallest with chi at least 1 in [0.05, 20].

    Raises:
      ValueError: if there is none.
    """
    grid = np.geomspace(0.05, 20.0, 200)
    at_least = np.flatnonzero(np.asarray(signal_propagation(activation, grid, b_scale).chi) >= 1)
    if len(at_least) == 0 or at_least[0] == 0:
        raise ValueError(f"`critical_w_scale`: no w_scale in [0.05, 20] has chi = 1 for {activation}, {b_scale=}")
    low, high = grid[at_least[0] - 1], grid[at_least[0]]
    for _ in range(6):  # each pass narrows the bracket 32 times
        inner = np.linspace(low, high, 33)
        first = int(np.argmax(np.asarray(signal_propagation(activation, inner, b_scale).chi) >= 1))
        low, high = inner[first - 1], inner[first]
    return float(high)


@jax.jit
def _solve(activation: Activation, w: Float[Array, "s"], b: Float[Array, "s"]) -> SignalPropagation:
    variance_map = lambda q: w**2 * activation.dual_diag(q) + b**2  # noqa: E731
    q = _fixed_point(variance_map, jnp.ones_like(w))
    # Where variances grow without bound (or vanish) correlations still have their limit, at any large (small) variance.
    at = jnp.clip(q, 1e-12, INFINITE)
    total = variance_map(at)

    def correlation_map(c: Array) -> tuple[Array, Array]:
        value, slope = activation.dual_and_derivative(at, c * at, at)
        return (w**2 * value + b**2) / total, w**2 * slope

    chi = correlation_map(jnp.ones_like(w))[1]
    # The map is convex with map(1) = 1 (its Taylor coefficients are squares): with chi <= 1 no other fixed point
    # attracts, with chi > 1 exactly one lies below 1.
    low, high = jax.lax.fori_loop(
        0,
        60,
        lambda _, ends: _halve(ends, lambda c: correlation_map(c)[0] >= c),
        (jnp.zeros_like(w), jnp.ones_like(w)),
    )
    c = jnp.where(chi > 1, 0.5 * (low + high), 1.0)
    slope_c = jnp.where(chi > 1, correlation_map(c)[1], chi) * at / total  # the last factor is 1 at a fixed point
    slope_q = jax.jvp(variance_map, (at,), (jnp.ones_like(w),))[1]
    return SignalPropagation(q, c, chi, _length(slope_c), jnp.where(jnp.isfinite(q), _length(slope_q), jnp.inf))


def _halve(ends: tuple[Array, Array], is_below: Callable[[Array], Array]) -> tuple[Array, Array]:
    middle = 0.5 * (ends[0] + ends[1])
    below = is_below(middle)
    return jnp.where(below, middle, ends[0]), jnp.where(below, ends[1], middle)


def _length(slope: Array) -> Array:
    """Return -1 / log |slope|, infinite for slopes of (nearly) 1 or more."""
    size = jnp.abs(slope)
    decays = size < 1 - 1e-9
    return jnp.where(decays, -1 / jnp.log(jnp.where(decays, jnp.maximum(size, 1e-300), 0.5)), jnp.inf)


def _fixed_point(fn: Callable[[Array], Array], start: Array) -> Array:
    """Iterate to a stable fixed point, with Aitken's acceleration where the steps shrink."""

    def step(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        i, x, _ = carry
        x1 = jnp.minimum(fn(x), INFINITE)
        x2 = jnp.minimum(fn(x1), INFINITE)
        first, second = x1 - x, x2 - x1
        shrinks = jnp.abs(second) < jnp.abs(first)
        leap = x - first**2 / jnp.where(shrinks, second - first, 1.0)
        new = jnp.where(shrinks & (leap >= 0), leap, x2)
        return i + 1, new, jnp.abs(new - x) > 1e-14 * jnp.abs(new)

    moving = jnp.ones_like(start, bool)
    _, x, _ = jax.lax.while_loop(
        lambda carry: (carry[0] < MAX_STEPS) & carry[2].any(), step, (jnp.int32(0), start, moving)
    )
    # At criticality a map may grow by the same step for ever, with no leap to be taken.
    value, slope = jax.jvp(fn, (x,), (jnp.ones_like(x),))
    grows = (value > x * (1 + 1e-9)) & (slope > 1 - 1e-9)
    return jnp.where((x >= INFINITE) | grows, jnp.inf, x)
