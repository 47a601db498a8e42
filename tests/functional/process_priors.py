"""A Gaussian process prior for tests, written from textbook formulas."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Process:
    """exp(-(r/l)^a / (1 or 2)): Matern 1/2 with rough=True, RBF without; a dict of priors stands in for `hyper`."""

    amplitude: Any = 1.0
    length: Any = 1.0
    rough: bool = True
    level: float = 0.0
    hyper: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def at(self, values):
        return dataclasses.replace(self, **values, hyper={})

    def mean(self, x):
        return jnp.full(len(x), self.level)

    def covariance(self, x1, x2=None):
        x2 = x1 if x2 is None else x2
        squares = jnp.sum((x1[:, None] - x2[None]) ** 2, axis=-1) / self.length**2
        if self.rough:
            return self.amplitude**2 * jnp.exp(-jnp.sqrt(jnp.where(squares > 0, squares, 0.0)))
        return self.amplitude**2 * jnp.exp(-0.5 * squares)
