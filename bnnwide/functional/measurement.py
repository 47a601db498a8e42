"""Where functions are compared: random sets of inputs, from the training inputs, from a domain, or both."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from bnnwide.checks import check_array, check_count


@dataclasses.dataclass(frozen=True, eq=False)
class Measurement:
    """A law of measurement sets: `num_train` training inputs without replacement and `num_domain` from a domain.

    Source: Sun, Zhang, Shi & Grosse 2019 (arXiv 1903.05779), section 3.2.

    Args:
      num_train: how many training inputs, at most all of them; 0 for none.
      num_domain: how many inputs from the domain; 0 for none.
      domain: a pair (low, high) of numbers or arrays (d,), for the uniform law on that box; a NumPyro distribution over
        inputs (event shape (d,)); or a function of (key, number) to (number, d). None is the box of the training
        inputs, widened on each side by a quarter of its length.

    Raises:
      TypeError: if a number is no whole number, or the domain is none of these.
      ValueError: if both numbers are 0, or the box is empty.
    """

    num_train: int = 20
    num_domain: int = 20
    domain: Any = None

    def __post_init__(self) -> None:
        check_count("Measurement", "num_train", self.num_train, 0)
        check_count("Measurement", "num_domain", self.num_domain, 0)
        if self.num_train + self.num_domain == 0:
            raise ValueError("`Measurement`: num_train and num_domain must not both be 0")
        domain = self.domain
        if isinstance(domain, (tuple, list)):
            if len(domain) != 2 or not jnp.all(jnp.asarray(domain[0]) < jnp.asarray(domain[1])):
                raise ValueError(f"`Measurement`: domain must be (low, high) with low below high; got {domain}")
        elif domain is not None and not isinstance(domain, dist.Distribution) and not callable(domain):
            raise TypeError(
                "`Measurement`: domain must be (low, high), a NumPyro distribution or a function of (key, number); "
                f"got {domain!r}"
            )

    def __call__(self, key: Array, x: Float[Array, "n d"]) -> Float[Array, "m d"]:
        """Draw one measurement set.

        Args:
          key: PRNG key.
          x: (n, d) training inputs.

        Returns:
          (m, d) inputs, m = min(num_train, n) + num_domain, the training inputs first.

        Raises:
          ValueError: if the domain's inputs do not have d columns.
        """
        train_key, domain_key = jax.random.split(key)
        num_train = min(self.num_train, len(x))
        rows = jax.random.choice(train_key, len(x), (num_train,), replace=False)
        if not self.num_domain:
            return x[rows]
        return jnp.concatenate([x[rows], self._from_domain(domain_key, x)])

    def _from_domain(self, key: Array, x: Array) -> Array:
        domain, (num, d) = self.domain, (self.num_domain, x.shape[1])
        if domain is None:
            low, high = x.min(axis=0), x.max(axis=0)
            domain = (low - 0.25 * (high - low), high + 0.25 * (high - low))
        if isinstance(domain, dist.Distribution):
            points = domain.sample(key, (num,))
        elif isinstance(domain, Callable):
            points = domain(key, num)
        else:
            low, high = (jnp.broadcast_to(jnp.asarray(edge, x.dtype), (d,)) for edge in domain)
            points = low + (high - low) * jax.random.uniform(key, (num, d), x.dtype)
        check_array("Measurement", "inputs from the domain", points, (num, d), f"d={d} from x")
        return jnp.asarray(points, x.dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class FixedPoints:
    """One measurement set, always the same.

    Args:
      points: (m, d) inputs.

    Raises:
      ValueError: for a wrong shape, or NaN or infinite inputs.
    """

    points: Any

    def __post_init__(self) -> None:
        check_array("FixedPoints", "points", self.points, ("m", "d"))

    def __call__(self, key: Array, x: Float[Array, "n d"]) -> Float[Array, "m d"]:
        """Return the points; neither argument matters."""
        check_array("FixedPoints", "points", self.points, ("m", x.shape[1]), f"d={x.shape[1]} from x")
        return jnp.asarray(self.points, x.dtype)
