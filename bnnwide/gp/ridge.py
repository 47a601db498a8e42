"""What is added to the diagonal of a training kernel: the noise variance, and a ridge that is no noise."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float

from bnnwide.checks import is_concrete
from bnnwide.likelihoods import Gaussian


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Ridge:
    """Regularisation of the diagonal, K + a I, with a = value tr(K)/n, or a = value when it is absolute.

    A ridge acts on the training kernel as a noise variance does, but is no noise: it is not part of any predicted
    `aleatoric` variance. Relative to the mean trace, one value serves kernels of any scale.

    Source: Lee et al. 2020 (arXiv 2007.15801), "Diagonal regularization of kernels behaves like early stopping".

    Args:
      value: how much, zero or positive: a pure number if relative, in squared units of y if absolute.
      relative: whether it counts in units of the mean of the kernel's diagonal.

    Raises:
      ValueError: if the value is negative or not finite.
    """

    value: Any = 1e-4
    relative: bool = dataclasses.field(default=True, metadata={"static": True})

    def __post_init__(self) -> None:
        value: Any = self.value
        if isinstance(value, (int, float, np.ndarray, np.generic, jax.Array)) and is_concrete(value):
            if np.shape(value) != () or not 0 <= float(value) < np.inf:
                raise ValueError(f"`Ridge`: value must be one finite number, zero or positive; got {value}")

    def amount(self, kernel: Float[Array, "n n"]) -> Array:
        """Return what is added to each diagonal entry of the (n, n) kernel, in squared units of y."""
        value = jnp.asarray(self.value, kernel.dtype)
        return value * jnp.mean(jnp.diagonal(kernel)) if self.relative else value


def noise_variance(door: str, likelihood: Gaussian | None) -> Array:
    """Return scale^2 of a fixed Gaussian likelihood, and 0 for None, checking the type at the door.

    Raises:
      TypeError: if it is no Gaussian likelihood.
      ValueError: if its scale has a prior.
    """
    if likelihood is None:
        return jnp.zeros(())
    if not isinstance(likelihood, Gaussian):
        raise TypeError(
            f"`{door}`: likelihood must be Gaussian(scale), or None for targets without noise; got {likelihood!r}; "
            "pass a Ridge as ridge=..."
        )
    if likelihood.learned:
        raise ValueError(
            f"`{door}`: the noise scale must be a number; got {likelihood}; fit it with gp.fit, or sample it "
            "with gp_model"
        )
    check_one_scale(door, likelihood)
    return jnp.asarray(likelihood.scale, jnp.result_type(float)) ** 2


def check_one_scale(door: str, likelihood: Gaussian) -> None:
    """Check that all outputs share one noise scale, as they share one kernel matrix and its factor.

    Raises:
      ValueError: if there is one per output.
    """
    scale = likelihood.scale
    shape = scale.shape() if isinstance(scale, dist.Distribution) else jnp.shape(scale)
    if shape != ():
        raise ValueError(
            f"`{door}`: the noise scale must be one number, shared by the outputs; got shape {shape}; condition on one "
            "output at a time"
        )


def diagonal(kernel: Float[Array, "n n"], variance: Array, ridge: Ridge | None) -> Array:
    """Return what stands on the diagonal besides the kernel: noise variance plus ridge, in squared units of y."""
    variance = jnp.asarray(variance, kernel.dtype)
    return variance if ridge is None else variance + ridge.amount(kernel)


def add_diagonal(kernel: Float[Array, "n n"], amount: Array) -> Float[Array, "n n"]:
    """Return K + amount I."""
    return kernel.at[jnp.diag_indices(len(kernel))].add(amount)
