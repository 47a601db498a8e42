"""Likelihoods as values: the law of the targets given the network's outputs."""

import dataclasses
from typing import Any

import jax
import numpy as np
import numpyro.distributions as dist

from bnnwide.checks import check_positive


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """Independent Gaussian noise: y_ij ~ N(f_ij, scale^2).

    Args:
      scale: the noise scale (a standard deviation, in the units of y), a positive number; or a NumPyro distribution
        over positive numbers, which is then its prior and the scale is learned.

    Raises:
      ValueError: if the number is not positive and finite, or the prior's support is not the positive numbers.
      TypeError: if `scale` is neither a number nor a distribution.
    """

    scale: Any

    def __post_init__(self) -> None:
        if isinstance(self.scale, dist.Distribution):
            if self.scale.batch_shape or self.scale.event_shape:
                shape = (*self.scale.batch_shape, *self.scale.event_shape)
                raise ValueError(f"`Gaussian`: the prior on scale must be of one number; got shape {shape}")
            support: Any = self.scale.support
            edges = np.asarray([support(value) for value in (-1.0, 0.5)])
            if edges[0] or not edges[1]:
                raise ValueError(f"`Gaussian`: the prior on scale must live on the positive numbers; got {self.scale}")
        elif isinstance(self.scale, (int, float, np.ndarray, np.generic, jax.Array)):
            if np.shape(self.scale) != ():
                raise ValueError(f"`Gaussian`: scale must be one number; got shape {np.shape(self.scale)}")
            check_positive("Gaussian", "scale", self.scale)
        else:
            came = type(self.scale).__name__
            raise TypeError(f"`Gaussian`: scale must be a positive number or a NumPyro distribution; got {came}")

    @property
    def learned(self) -> bool:
        """Whether the scale has a prior."""
        return isinstance(self.scale, dist.Distribution)

    def __repr__(self) -> str:
        prior = self.scale
        shown = type(prior).__name__ + "(...)" if isinstance(prior, dist.Distribution) else repr(prior)
        return f"Gaussian(scale={shown})"
