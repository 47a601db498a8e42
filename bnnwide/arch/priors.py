"""Any scalar prior as a function of a standard normal: the monotone transform w = icdf(Phi(z)).

Only this file and those that import it need NumPyro's distributions; others import it when a prior is there.
"""

import operator
from collections.abc import Callable
from functools import partial, reduce, singledispatch
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import erf, log_ndtr, ndtr, ndtri
from jax.scipy.stats import norm
from jaxtyping import Array, Float
from scipy.special import betaln, gammaln

from bnnwide.arch import quantile_tables as tables


def from_normal(prior: dist.Distribution, z: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return w = icdf(Phi(z)), a draw of the prior if z is one of N(0, 1), entry by entry.

    The derivative is dw/dz = phi(z) / p(w), taken on the log scale, so that it is finite as far out as w is. Normal,
    Laplace, Student's t, Cauchy, Logistic, Gumbel, half-normal, half-Cauchy, Exponential, Gamma, Uniform and their
    monotone transforms (LogNormal, InverseGamma, Pareto, ...) are accurate in both tails; another prior goes through
    its own `icdf`, which knows the upper tail no better than a probability near 1 can be told from 1.

    Args:
      prior: a prior over numbers; its batch shape must broadcast to that of `z`, event axes of `to_event` included.
      z: standard normals, any shape.

    Returns:
      An array shaped as `z`.

    Raises:
      TypeError: if `prior` is no distribution over numbers, or has no quantile function.
      ValueError: if the shapes do not fit.
    """
    if not isinstance(prior, dist.Distribution):
        raise TypeError(f"`from_normal`: prior must be a NumPyro distribution; got {prior!r}")
    z = jnp.asarray(z, jnp.result_type(float, z))
    scalar = unwrapped(prior)
    if scalar.event_shape:
        raise TypeError(
            f"`from_normal`: prior must be a distribution over numbers; got {type(scalar).__name__} over arrays of "
            f"shape {scalar.event_shape}"
        )
    shape = (*prior.batch_shape, *prior.event_shape)
    if len(shape) > z.ndim or any(a not in (1, b) for a, b in zip(shape[::-1], z.shape[::-1], strict=False)):
        raise ValueError(f"`from_normal`: the prior's shape must broadcast to that of z, {z.shape}; got {shape}")
    return jnp.broadcast_to(_draw(scalar, z), z.shape).astype(z.dtype)


def unwrapped(prior: Any) -> dist.Distribution:
    """Return the distribution of one entry, without `expand` and `to_event`."""
    while isinstance(prior, (dist.ExpandedDistribution, dist.Independent)):
        prior = prior.base_dist
    return prior


class Family(NamedTuple):
    """A family of priors in its standard form.

    Attributes:
      quantile: (z, *shape parameters) -> w, accurate in both tails.
      log_prob: (w, *shape parameters) -> the log density.
    """

    quantile: Callable[..., Array]
    log_prob: Callable[..., Array]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def transport(family: Family, z: Array, shape: tuple[Any, ...]) -> Array:
    """Return the quantile at Phi(z), differentiable in z as often as one likes; `shape` must be constants."""
    return family.quantile(z, *shape)


@transport.defjvp
def _transport_jvp(family: Family, primals: Any, tangents: Any) -> tuple[Array, Array]:
    z, shape = primals
    w = transport(family, z, shape)
    return w, jnp.exp(norm.logpdf(z) - family.log_prob(w, *shape)) * tangents[0]


def _odd(centre: Callable[[Array], Array], tail: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Return the quantile of a symmetric law from its values, below 0, in terms of erf(z / sqrt 2) and of z."""

    def quantile(z: Array) -> Array:
        below = -jnp.abs(z)
        # Near 0 a probability near 1/2 would have lost its digits.
        near = jnp.maximum(below, -1.0)
        return -jnp.sign(z) * jnp.where(below > -1, centre(erf(near / 2**0.5)), tail(jnp.minimum(below, -1.0)))

    return quantile


def _log_ndtr(z: Array) -> Array:
    """Return log Phi(z), with all its digits where it is close to 0."""
    return jnp.where(z > 0, jnp.log1p(-ndtr(-jnp.maximum(z, 0.0))), log_ndtr(jnp.minimum(z, 0.0)))


def _half_normal(z: Array) -> Array:
    upper = -ndtri(0.5 * ndtr(-jnp.maximum(z, 0.0)))
    return jnp.where(z > 0, upper, 2**0.5 * jax.lax.erf_inv(ndtr(jnp.minimum(z, 0.0))))


def _half_cauchy(z: Array) -> Array:
    small = jnp.tan(0.5 * jnp.pi * ndtr(-jnp.abs(z)))
    return jnp.where(z > 0, 1 / small, small)


def _log1p_square(w: Array) -> Array:
    """Return log(1 + w^2); the squares of what heavy tails bring forth would overflow."""
    size = jnp.abs(w)
    return jnp.where(size < 1e6, jnp.log1p(jnp.minimum(size, 1e6) ** 2), 2 * jnp.log(jnp.maximum(size, 1e6)))


def _log_cauchy(w: Array) -> Array:
    return -jnp.log(jnp.pi) - _log1p_square(w)


def _log_student_t(w: Array, df: Array, _: Array, log_norm: Array) -> Array:
    return log_norm - 0.5 * (df + 1) * _log1p_square(w / jnp.sqrt(df))


LAPLACE = Family(_odd(jnp.log1p, lambda z: log_ndtr(z) + np.log(2)), lambda w: -jnp.abs(w) - np.log(2))
CAUCHY = Family(_odd(lambda e: jnp.tan(0.5 * jnp.pi * e), lambda z: -1 / jnp.tan(jnp.pi * ndtr(z))), _log_cauchy)
LOGISTIC = Family(
    _odd(lambda e: 2 * jnp.arctanh(e), lambda z: log_ndtr(z) - _log_ndtr(-z)),
    lambda w: -jnp.abs(w) - 2 * jnp.log1p(jnp.exp(-jnp.abs(w))),
)
GUMBEL = Family(lambda z: -jnp.log(-_log_ndtr(z)), lambda w: -w - jnp.exp(-w))
HALF_NORMAL = Family(_half_normal, lambda w: norm.logpdf(w) + np.log(2))
HALF_CAUCHY = Family(_half_cauchy, lambda w: _log_cauchy(w) + np.log(2))
EXPONENTIAL = Family(lambda z: -_log_ndtr(-z), lambda w: -w)
STUDENT_T = Family(lambda z, df, table, _: tables.student_t_quantile(z, df, table), _log_student_t)
GAMMA = Family(
    lambda z, a, table, _: tables.gamma_quantile(z, a, table),
    lambda w, a, _, log_norm: log_norm + (a - 1) * jnp.log(w) - w,
)


@singledispatch
def _draw(prior: Any, z: Array) -> Array:
    kind = jnp.finfo(z.dtype)
    try:
        return prior.icdf(jnp.clip(ndtr(z), kind.tiny, 1 - kind.epsneg))
    except (NotImplementedError, ImportError) as error:
        raise TypeError(
            f"`from_normal`: prior must have a quantile function (icdf); {type(prior).__name__} has none here; use "
            "another family, or a transform of one"
        ) from error


@_draw.register(dist.Normal)
def _(prior: Any, z: Array) -> Array:
    return prior.loc + prior.scale * z


@_draw.register(dist.Uniform)
def _(prior: Any, z: Array) -> Array:
    return prior.low * ndtr(-z) + prior.high * ndtr(z)


def _with_loc(family: Family, prior: Any, z: Array) -> Array:
    return prior.loc + prior.scale * transport(family, z, ())


def _with_scale(family: Family, prior: Any, z: Array) -> Array:
    return prior.scale * transport(family, z, ())


for _kind, _family in (
    (dist.Laplace, LAPLACE),
    (dist.Cauchy, CAUCHY),
    (dist.Logistic, LOGISTIC),
    (dist.Gumbel, GUMBEL),
):
    _draw.register(_kind, partial(_with_loc, _family))
for _kind, _family in ((dist.HalfNormal, HALF_NORMAL), (dist.HalfCauchy, HALF_CAUCHY)):
    _draw.register(_kind, partial(_with_scale, _family))


@_draw.register(dist.Exponential)
def _(prior: Any, z: Array) -> Array:
    return transport(EXPONENTIAL, z, ()) / prior.rate


@_draw.register(dist.StudentT)
def _(prior: Any, z: Array) -> Array:
    table = tables.student_t_table(prior.df)
    df = np.asarray(prior.df, np.float64)
    return prior.loc + prior.scale * _tabulated(STUDENT_T, z, df, table, -betaln(df / 2, 0.5) - 0.5 * np.log(df))


@_draw.register(dist.Gamma)
def _(prior: Any, z: Array) -> Array:
    table = tables.gamma_table(prior.concentration)
    concentration = np.asarray(prior.concentration, np.float64)
    return _tabulated(GAMMA, z, concentration, table, -gammaln(concentration)) / prior.rate


def _tabulated(family: Family, z: Array, *shape: Any) -> Array:
    return transport(family, z, tuple(jnp.asarray(value, z.dtype) for value in shape))


@_draw.register(dist.TransformedDistribution)
def _(prior: Any, z: Array) -> Array:
    try:
        signs: list[Any] = [transform.sign for transform in prior.transforms]
    except NotImplementedError as error:
        raise TypeError(
            f"`from_normal`: transforms of a prior must be monotone; got {type(prior).__name__} with {prior.transforms}"
        ) from error
    w = _draw(unwrapped(prior.base_dist), reduce(operator.mul, signs, z))
    for transform in prior.transforms:
        w = transform(w)
    return jnp.asarray(w)
