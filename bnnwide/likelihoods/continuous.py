"""Likelihoods of real targets: Gaussian, with heavier tails, and with a noise scale that depends on the input."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from bnnwide.likelihoods.core import Likelihood, check_parameter, diagonal_factor


@dataclasses.dataclass(frozen=True, repr=False)
class Gaussian(Likelihood):
    """Independent Gaussian noise: y_ij ~ N(f_ij, scale_j^2).

    Args:
      scale: the noise scale (a standard deviation, in the units of y): a positive number, or an array (k,) with one per
        output; or a NumPyro distribution over either, which is then its prior and the scale is learned.

    Raises:
      ValueError: if a number is not positive and finite, or the prior's support is not the positive numbers.
      TypeError: if `scale` is neither a number nor a distribution.
    """

    scale: Any

    def __post_init__(self) -> None:
        check_parameter("Gaussian", "scale", self.scale)

    def law(self, f: Float[Array, "n k"]) -> dist.Distribution:  # noqa: D102  # as in the base class
        return dist.Normal(f, self.scale)

    def fisher_factor(self, f):  # noqa: D102  # as in the base class
        return diagonal_factor(jnp.broadcast_to(jnp.asarray(self.scale, f.dtype) ** -2, f.shape))


@dataclasses.dataclass(frozen=True, repr=False)
class StudentT(Likelihood):
    """Independent Student-t noise, for outliers: (y_ij - f_ij) / scale ~ t(df).

    Args:
      df: degrees of freedom; the variance is finite above 2.
      scale: the scale of the noise, in the units of y. Either may be a number, an array (k,) with one per output, or a
        NumPyro distribution over either, which is then its prior.

    Raises:
      ValueError: if a number is not positive and finite, or a prior's support is not the positive numbers.
      TypeError: if an argument is neither a number nor a distribution.
    """

    df: Any
    scale: Any

    def __post_init__(self) -> None:
        check_parameter("StudentT", "df", self.df)
        check_parameter("StudentT", "scale", self.scale)

    def law(self, f: Float[Array, "n k"]) -> dist.Distribution:  # noqa: D102  # as in the base class
        return dist.StudentT(self.df, f, self.scale)

    def fisher_factor(self, f):  # noqa: D102  # as in the base class
        df, scale = jnp.asarray(self.df, f.dtype), jnp.asarray(self.scale, f.dtype)
        return diagonal_factor(jnp.broadcast_to((df + 1) / ((df + 3) * scale**2), f.shape))


@dataclasses.dataclass(frozen=True, repr=False)
class Laplace(Likelihood):
    """Independent Laplace noise: log p(y_ij | f_ij) = -|y_ij - f_ij| / scale - log(2 scale).

    Args:
      scale: the mean absolute error of the noise, in the units of y: a number, an array (k,) with one per output, or a
        NumPyro distribution over either, which is then its prior.

    Raises:
      ValueError: if a number is not positive and finite, or the prior's support is not the positive numbers.
      TypeError: if `scale` is neither a number nor a distribution.
    """

    scale: Any

    def __post_init__(self) -> None:
        check_parameter("Laplace", "scale", self.scale)

    def law(self, f: Float[Array, "n k"]) -> dist.Distribution:  # noqa: D102  # as in the base class
        return dist.Laplace(f, self.scale)

    def fisher_factor(self, f):  # noqa: D102  # as in the base class
        # E[s^2] with s = sign(y - f) / scale; the Hessian itself is 0 almost everywhere.
        return diagonal_factor(jnp.broadcast_to(jnp.asarray(self.scale, f.dtype) ** -2, f.shape))


@dataclasses.dataclass(frozen=True, repr=False)
class HeteroscedasticGaussian(Likelihood):
    """Gaussian noise whose scale is an output of the network: y_ij ~ N(f_ij, (scale exp(f_i,k+j))^2).

    The readout has 2k outputs: k means, then k log-scales.

    Args:
      scale: the noise scale where the second head is 0, in the units of y: a number, an array (k,), or a NumPyro
        distribution over either, which is then its prior.

    Raises:
      ValueError: if a number is not positive and finite, or the prior's support is not the positive numbers.
      TypeError: if `scale` is neither a number nor a distribution.
    """

    scale: Any = 1.0
    heads = 2

    def __post_init__(self) -> None:
        check_parameter("HeteroscedasticGaussian", "scale", self.scale)

    def law(self, f: Float[Array, "n outputs"]) -> dist.Distribution:  # noqa: D102  # as in the base class
        mean, log_scale = jnp.split(f, 2, axis=-1)
        return dist.Normal(mean, self.scale * jnp.exp(log_scale))

    def fisher_factor(self, f):  # noqa: D102  # as in the base class
        _, log_scale = jnp.split(f, 2, axis=-1)
        means = (self.scale * jnp.exp(log_scale)) ** -2.0
        return diagonal_factor(jnp.concatenate([means, jnp.full_like(means, 2.0)], axis=1))
