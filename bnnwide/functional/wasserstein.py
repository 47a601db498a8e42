"""The distance between two laws of functions, from their draws at some inputs."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from bnnwide.checks import Data, check_array, check_count


def sliced_wasserstein(
    key: Array, a: Real[Data, "s p"], b: Real[Data, "s p"], *, num_directions: int = 100
) -> Float[Array, ""]:
    """Return the sliced 2-Wasserstein distance between two samples of vectors.

    SW = (average over unit directions u of W_2(a u, b u)^2)^(1/2). On a line the best coupling is that of ranks, so
    that W_2 is the root mean square of the differences between sorted projections.

    Two samples of one law have a distance of the order of s^(-1/2) that falls to zero with s.

    Source: Rabin, Peyre, Delon & Bernot 2012, "Wasserstein barycenter and its application to texture mixing", section
    2.2; Bonneel, Rabin, Peyre & Pfister 2015, section 3.

    Args:
      key: PRNG key of the directions.
      a: (s, p) draws of one law, such as a function's values at p inputs.
      b: (s, p) draws of the other.
      num_directions: how many random directions.

    Returns:
      The distance, in the units of the vectors' entries.

    Raises:
      ValueError: for wrong shapes, or numbers that are not finite.
    """
    check_array("sliced_wasserstein", "a", a, ("s", "p"))
    check_array("sliced_wasserstein", "b", b, tuple(a.shape), "that of a")
    check_count("sliced_wasserstein", "num_directions", num_directions)
    number = jnp.result_type(float)
    return jnp.sqrt(squared_distance(key, jnp.asarray(a, number), jnp.asarray(b, number), num_directions))


def squared_distance(key: Array, a: Float[Array, "s p"], b: Float[Array, "s p"], count: int) -> Float[Array, ""]:
    """Return the square of `sliced_wasserstein`, by `count` directions."""
    directions = jax.random.normal(key, (a.shape[1], count), a.dtype)
    directions = directions / jnp.linalg.norm(directions, axis=0)
    return jnp.mean((jnp.sort(a @ directions, axis=0) - jnp.sort(b @ directions, axis=0)) ** 2)
