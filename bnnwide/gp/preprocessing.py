"""Regularised ZCA whitening of inputs."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from bnnwide.checks import Data, check_array, is_concrete


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Zca:
    """A whitening of inputs, fitted on training inputs by `zca`: call it on training and test inputs alike.

    Args:
      mean: (d,) mean of the training inputs.
      directions: (d, r) principal directions of the training inputs, r at most n and d.
      gains: (r,) what each is multiplied by.
      rest: what everything orthogonal to them is multiplied by.
    """

    mean: Float[Array, "d"]
    directions: Float[Array, "d r"]
    gains: Float[Array, "r"]
    rest: Float[Array, ""]

    def __call__(self, x: Real[Data, "n ..."]) -> Float[Array, "n ..."]:
        """Whiten inputs.

        Args:
          x: (n, *input_shape) inputs, of the shape that the whitening was fitted on.

        Returns:
          (n, *input_shape) whitened inputs, in no units.

        Raises:
          ValueError: for a wrong shape, or NaN or infinite numbers.
        """
        d = len(self.mean)
        if np.ndim(x) < 2 or math.prod(np.shape(x)[1:]) != d:
            raise ValueError(f"`Zca`: x must hold {d} numbers per input, as in training; got shape {np.shape(x)}")
        check_array("Zca", "x", x, np.shape(x))
        x = jnp.asarray(x, self.mean.dtype)
        flat = x.reshape(len(x), d) - self.mean
        inside = flat @ self.directions
        return (self.rest * flat + (inside * (self.gains - self.rest)) @ self.directions.T).reshape(x.shape)


def zca(x: Real[Data, "n ..."], regularisation: float = 1e-1, *, relative: bool = True) -> Zca:
    """Fit a ZCA whitening to training inputs: x -> (x - mean) (C + a I)^(-1/2), with C their covariance.

    C = 1/n sum (x - mean)(x - mean)^T and a = regularisation tr(C)/d, or a = regularisation if it is absolute. Without
    regularisation the whitened inputs have covariance I; with it, directions of small variance stay small.

    Source: Lee et al. 2020 (arXiv 2007.15801), "Regularized ZCA whitening improves accuracy". They scale each image to
    unit norm first; do so beforehand if it is wanted.

    Args:
      x: (n, *input_shape) training inputs; more than one.
      regularisation: positive, or zero when C has full rank; a pure number if relative, else in squared units of x.
      relative: whether it counts in units of the mean eigenvalue of C.

    Returns:
      The whitening, to be called on training and test inputs.

    Raises:
      ValueError: for wrong shapes, NaN or infinite numbers, or a covariance that is singular without regularisation.
    """
    if np.ndim(x) < 2:
        raise ValueError(f"`zca`: x must have shape (n, d) or (n, *input_shape); got {np.shape(x)}")
    check_array("zca", "x", x, np.shape(x))
    if not (np.isfinite(regularisation) and regularisation >= 0):
        raise ValueError(f"`zca`: regularisation must be finite, zero or positive; got {regularisation}")
    x = jnp.asarray(x, jnp.result_type(float))
    flat = x.reshape(len(x), -1)
    mean = jnp.mean(flat, axis=0)
    n, d = flat.shape
    if n < d:
        _, singular, directions = jnp.linalg.svd(flat - mean, full_matrices=False)
        eigenvalues, directions = singular**2 / n, directions.T
    else:
        eigenvalues, directions = jnp.linalg.eigh((flat - mean).T @ (flat - mean) / n)
        eigenvalues = jnp.maximum(eigenvalues, 0.0)
    amount = regularisation * (jnp.sum(eigenvalues) / d if relative else 1.0)
    # With n inputs in more dimensions, what is orthogonal to them has eigenvalue 0, and only the amount remains.
    result = Zca(mean, directions, 1 / jnp.sqrt(eigenvalues + amount), 1 / jnp.sqrt(jnp.where(n < d, amount, 1.0)))
    floor = 16 * d * float(jnp.finfo(flat.dtype).eps) * jnp.max(eigenvalues)
    if is_concrete(flat) and (jnp.min(eigenvalues) if n >= d else 0.0) + amount <= floor:
        raise ValueError(
            f"`zca`: the covariance of x (n={n}, d={d}) is singular; got regularisation={regularisation}; take a "
            "larger one"
        )
    return result
