"""Piecewise constant and piecewise linear random functions of one input, known by their draws."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array

from bnnwide.checks import check_positive
from bnnwide.functional.priors import ImplicitPrior


def piecewise_constant(low: float, high: float, *, rate: float = 3.0, value: Any = None) -> ImplicitPrior:
    """Return the law of functions that are constant between change points.

    The number of change points is Poisson(rate), their places uniform on [low, high], and the values of the pieces
    independent draws of `value`.

    Source: Sun, Zhang, Shi & Grosse 2019 (arXiv 1903.05779), section 5.1.2, where such a prior is used.

    Args:
      low: the left end, in the units of x; the first piece goes on to the left of it.
      high: the right end; the last piece goes on to the right of it.
      rate: the mean number of change points.
      value: a NumPyro distribution over numbers; None for N(0, 1).

    Raises:
      TypeError: if `value` is no distribution.
      ValueError: if the ends are not in order, or the rate is not positive.
    """
    value, most = _check("piecewise_constant", low, high, rate, value)

    def sample(key: Array, x: Array) -> Array:
        places, value_key = _change_points(key, low, high, rate, most, jnp.inf)
        values = value.sample(value_key, (most + 1,))
        return values[jnp.searchsorted(places, _one_input("piecewise_constant", x))]

    return ImplicitPrior(sample)


def piecewise_linear(low: float, high: float, *, rate: float = 3.0, value: Any = None) -> ImplicitPrior:
    """Return the law of continuous functions that are linear between knots.

    The two ends and Poisson(rate) places uniform on [low, high] are knots, the values there independent draws of
    `value`; beyond the ends the first and last piece go on as straight lines.

    Source: Sun, Zhang, Shi & Grosse 2019 (arXiv 1903.05779), section 5.1.2, where such a prior is used.

    Args:
      low: the left end, in the units of x.
      high: the right end.
      rate: the mean number of knots between the ends.
      value: a NumPyro distribution over numbers; None for N(0, 1).

    Raises:
      TypeError: if `value` is no distribution.
      ValueError: if the ends are not in order, or the rate is not positive.
    """
    value, most = _check("piecewise_linear", low, high, rate, value)

    def sample(key: Array, x: Array) -> Array:
        places, value_key = _change_points(key, low, high, rate, most, high)
        ends = jnp.asarray([low, high], places.dtype)
        # Places that were not drawn lie at the right end, and take its value.
        knots = jnp.sort(jnp.concatenate([ends, places]))
        drawn = value.sample(value_key, (most + 2,))
        values = jnp.where(knots < high, drawn, drawn[-1])
        at = _one_input("piecewise_linear", x)
        left = jnp.clip(jnp.searchsorted(knots, at, side="right") - 1, 0, jnp.sum(knots < high) - 1)
        slope = (values[left + 1] - values[left]) / (knots[left + 1] - knots[left])
        return values[left] + slope * (at - knots[left])

    return ImplicitPrior(sample)


def _change_points(key: Array, low: float, high: float, rate: float, most: int, rest: float) -> tuple[Array, Array]:
    """Return sorted places, `rest` for those beyond the number drawn, and a key for the values."""
    count_key, place_key, value_key = jax.random.split(key, 3)
    count = jax.random.poisson(count_key, rate)
    places = jax.random.uniform(place_key, (most,), minval=low, maxval=high)
    return jnp.sort(jnp.where(jnp.arange(most) < count, places, rest)), value_key


def _one_input(door: str, x: Array) -> Array:
    if x.shape[1] != 1:
        raise ValueError(f"`{door}`: x must have one column, shape (n, 1); got {x.shape}")
    return x[:, 0]


def _check(door: str, low: float, high: float, rate: float, value: Any) -> tuple[Any, int]:
    if not low < high:
        raise ValueError(f"`{door}`: low must be below high; got low={low} and high={high}")
    check_positive(door, "rate", rate)
    value = dist.Normal(0.0, 1.0) if value is None else value
    if not isinstance(value, dist.Distribution) or value.shape() != ():
        raise TypeError(f"`{door}`: value must be a NumPyro distribution over numbers; got {value!r}")
    # So many places that a Poisson number of them lies above with a probability below 1e-6.
    return value, int(rate + 6 * np.sqrt(rate) + 6)
