"""Priors other than N(0, 1) over weights, written as functions of standard normal ones."""

from typing import Any

import jax.numpy as jnp
from jax.scipy.special import ndtr
from jaxtyping import Array, Float


def from_normal(prior: Any, z: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return w = F^-1(Phi(z)), distributed as `prior` where z ~ N(0, 1); exactly loc + scale z for a normal prior.

    Args:
      prior: a NumPyro distribution of independent entries with a quantile function F^-1.
      z: standard normal entries, of the prior's (batch + event) shape.

    Returns:
      Weights of the shape of `z`.

    Raises:
      ValueError: if the prior has no quantile function.
    """
    import numpyro.distributions as dist

    while isinstance(prior, (dist.Independent, dist.ExpandedDistribution)):
        prior = prior.base_dist
    if isinstance(prior, dist.Normal):
        loc, scale = jnp.asarray(prior.loc), jnp.asarray(prior.scale)
        return loc + scale * z
    try:
        return prior.icdf(ndtr(z))
    except NotImplementedError:
        raise ValueError(
            f"`from_normal`: the prior must be of independent entries with a quantile function (icdf); got "
            f"{type(prior).__name__}"
        ) from None
