"""What a functional BNN asks of a Gaussian process prior."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from bnnwide.checks import check_array, is_concrete
from bnnwide.likelihoods.core import median
from bnnwide.linalg import cholesky

PREFIX = "prior_"


@runtime_checkable
class ProcessPrior(Protocol):
    """A Gaussian process: mean and covariance at any inputs, and hyper-parameters that may have priors.

    Attributes:
      hyper: NumPyro distributions of hyper-parameters, by name; empty where all are numbers.
    """

    @property
    def hyper(self) -> Mapping[str, Any]: ...  # noqa: D102  # described by the class

    def at(self, values: Mapping[str, Any]) -> "ProcessPrior":
        """Return the prior with numbers in place of the priors of its hyper-parameters."""
        ...

    def mean(self, x: Array) -> Array:
        """Return the mean (n,) at inputs (n, d)."""
        ...

    def covariance(self, x1: Array, x2: Array | None = None) -> Array:
        """Return the covariance (n1, n2) between inputs, of `x1` with itself without `x2`."""
        ...


def check_prior(door: str, prior: Any) -> None:
    """Check a prior at the public door named `door`.

    Raises:
      TypeError: if it is no Gaussian process, or a prior of a hyper-parameter no distribution.
    """
    if not isinstance(prior, ProcessPrior):
        raise TypeError(
            f"`{door}`: prior must be a Gaussian process such as functional.GPPrior(kernel), with mean, covariance, "
            f"hyper and at; got {prior!r}"
        )
    for name, law in prior.hyper.items():
        if not isinstance(law, dist.Distribution):
            raise TypeError(f"`{door}`: the prior of {name!r} must be a NumPyro distribution; got {law!r}")


def at_medians(prior: ProcessPrior) -> ProcessPrior:
    """Return the prior with the median of each hyper-parameter's prior in its place."""
    return prior.at({name: median(law) for name, law in prior.hyper.items()}) if prior.hyper else prior


def at_draw(prior: ProcessPrior, draw: Mapping[str, Any]) -> ProcessPrior:
    """Return the prior with the hyper-parameters of a draw, its sites "prior_<name>"."""
    return prior.at({name: draw[PREFIX + name] for name in prior.hyper}) if prior.hyper else prior


def check_moments(door: str, prior: ProcessPrior, points: Float[Array, "p d"]) -> None:
    """Check that a prior without open hyper-parameters has a finite mean and covariance at the points.

    Raises:
      ValueError: if it has not.
    """
    p = len(points)
    check_array(door, "prior.covariance(points)", prior.covariance(points), (p, p), f"p={p} from points")
    check_array(door, "prior.mean(points)", prior.mean(points), (p,), f"p={p} from points")


def law_at(prior: ProcessPrior, points: Float[Array, "p d"]) -> tuple[Float[Array, "p p"], Float[Array, "p 1"] | None]:
    """Return the factor G (p, p) of a prior's covariance at the points and its mean there in units of G, G^-1 m (p, 1).

    None stands for a mean that is known to be zero.
    """
    root, mean = root_of(prior.covariance(points)), prior.mean(points)
    if is_concrete(mean) and not np.any(mean):
        return root, None
    return root, solve_triangular(root, jnp.asarray(mean, root.dtype)[:, None], lower=True)


def root_of(covariance: Float[Array, "p p"]) -> Float[Array, "p p"]:
    """Return the lower Cholesky factor of a covariance with `floor` of its diagonal added."""
    return cholesky(covariance + floor(covariance) * jnp.eye(len(covariance), dtype=covariance.dtype))


def floor(covariance: Float[Array, "p p"]) -> Float[Array, ""]:
    """Return 32 eps times the mean of the diagonal: the least variance that a Cholesky factor is sure to resolve.

    A relative 7e-15 in float64 and 4e-6 in float32.
    """
    return 32 * float(jnp.finfo(covariance.dtype).eps) * jnp.mean(jnp.diagonal(covariance))
