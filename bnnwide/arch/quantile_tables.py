"""Quantiles without a closed form, as functions of a standard normal: Chebyshev interpolants of their logarithm.

A network asks for the quantile of every weight at every gradient. Inverting an incomplete beta or gamma function there
would cost many times the network itself; on the logarithmic scale the quantile is smooth in z, and one interpolant,
made on the host, gives it to about 1e-12. That needs the shape parameter as a number, not as a tracer.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special as special
from jax.scipy.special import log_ndtr
from jaxtyping import Array, Float

from bnnwide.checks import is_concrete

# The interpolants reach so far; beyond, the leading order of the tail goes on.
REACH = 9.0
_NODES = 192


def interpolant(door: str, name: str, value: Any, log_quantile, low: float) -> Float[np.ndarray, "terms ..."]:
    """Return Chebyshev coefficients on [low, REACH] of `log_quantile(z, shape)`, cut where they are rounding.

    Args:
      door: the public function that was called, for the message.
      name: the shape parameter's name.
      value: the shape parameter, any shape.
      log_quantile: a function of z (nodes, 1...) and the parameter, on the host.
      low: the lower end.

    Raises:
      TypeError: if `value` is traced.
      ValueError: if the logarithm of a quantile is not finite.
    """
    if not is_concrete(value):
        raise TypeError(
            f"`{door}`: {name} must be a number, not traced: the quantile is tabulated for it; got {value}; learn a "
            "scale instead"
        )
    value = np.asarray(value, np.float64)
    angles = np.pi * (np.arange(_NODES) + 0.5) / _NODES
    z = low + 0.5 * (REACH - low) * (1 + np.cos(angles))
    with np.errstate(all="ignore"):
        values = log_quantile(z.reshape(-1, *[1] * value.ndim), value)
    if not np.isfinite(values).all():
        raise ValueError(f"`{door}`: {name} must be such that quantiles can be represented; got {value}")
    coefficients = 2 / _NODES * np.einsum("jk,k...->j...", np.cos(np.arange(_NODES)[:, None] * angles), values)
    coefficients[0] /= 2
    size = np.abs(coefficients).reshape(_NODES, -1).max(axis=1)
    return coefficients[: np.flatnonzero(size > 1e-13 * max(1.0, size.max()))[-1] + 1]


@partial(jax.jit, static_argnames="low")
def evaluate(coefficients: Float[Array, "terms ..."], z: Float[Array, "..."], low: float) -> Float[Array, "..."]:
    """Return the interpolant at `z`, held constant beyond its ends (Clenshaw's recurrence)."""
    u = (2 * jnp.clip(z, low, REACH) - (low + REACH)) / (REACH - low)
    nothing = jnp.zeros(jnp.broadcast_shapes(u.shape, coefficients.shape[1:]), u.dtype)

    def step(index: Array, pair: tuple[Array, Array]) -> tuple[Array, Array]:
        after, current = pair
        return current, 2 * u * current - after + coefficients[last - index]

    last = len(coefficients) - 1
    # A loop, for an unrolled sum takes a second to compile.
    after, current = jax.lax.fori_loop(0, last, step, (nothing, nothing))
    return u * current - after + coefficients[0]


def student_t_table(df: Any) -> Float[np.ndarray, "terms ..."]:
    """Tabulate log(|t| / |z|) over |z| for Student's t with `df` degrees of freedom."""

    def log_ratio(z: np.ndarray, df: np.ndarray) -> np.ndarray:
        # From the side on which the probability is small: the centre between +-t, or the tail.
        inner = special.betaincinv(0.5, df / 2, special.erf(z / 2**0.5))
        outer = special.betaincinv(df / 2, 0.5, 2 * special.ndtr(-z))
        odds = np.where(z < 1, inner / (1 - inner), (1 - outer) / outer)
        return 0.5 * np.log(df * odds) - np.log(z)

    return interpolant("StudentT", "df", df, log_ratio, 0.0)


def student_t_quantile(
    z: Float[Array, "..."], df: Float[Array, "..."], table: Float[Array, "terms ..."]
) -> Float[Array, "..."]:
    """Return the quantile of Student's t at probability Phi(z)."""
    size = jnp.abs(z)
    tail = (log_ndtr(jnp.full_like(z, -REACH)) - log_ndtr(-jnp.maximum(size, REACH))) / df
    return jnp.clip(z, -REACH, REACH) * jnp.exp(evaluate(table, size, low=0.0) + tail)


def gamma_table(concentration: Any) -> Float[np.ndarray, "terms ..."]:
    """Tabulate the logarithm of the quantile of Gamma(concentration, 1) over z."""

    def log_quantile(z: np.ndarray, a: np.ndarray) -> np.ndarray:
        lower, upper = special.gammaincinv(a, special.ndtr(z)), special.gammainccinv(a, special.ndtr(-z))
        return np.log(np.where(z < 0, lower, upper))

    return interpolant("Gamma", "concentration", concentration, log_quantile, -REACH)


def gamma_quantile(
    z: Float[Array, "..."], concentration: Float[Array, "..."], table: Float[Array, "terms ..."]
) -> Float[Array, "..."]:
    """Return the quantile of Gamma(concentration, 1) at probability Phi(z)."""
    end = log_ndtr(jnp.full_like(z, -REACH))
    below = (log_ndtr(jnp.minimum(z, -REACH)) - end) / concentration
    above = end - log_ndtr(-jnp.maximum(z, REACH))
    return jnp.exp(evaluate(table, z, low=-REACH) + below) + above
