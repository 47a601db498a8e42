"""Scales of a network tuned so that its prior over functions comes close to one that is asked for."""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Real

from bnnwide.arch import Network
from bnnwide.arch.scales import check_numbers
from bnnwide.checks import Data, check_array, check_count, check_positive
from bnnwide.functional.descent import descend
from bnnwide.functional.wasserstein import squared_distance

SCALES = ("w_scale", "b_scale")


@runtime_checkable
class SampledPrior(Protocol):
    """A law over functions that can be drawn from."""

    def sample(self, key: Array, x: Array, num_samples: int) -> Array:
        """Return draws (s, n) of a function's values at inputs (n, d)."""
        ...


def match_prior(
    net: Network,
    prior: SampledPrior,
    points: Real[Data, "p d"],
    *,
    key: Array,
    num_steps: int = 500,
    learning_rate: float = 0.05,
    batch_size: int = 256,
    num_draws: int = 8192,
    num_directions: int = 100,
) -> Network:
    """Return the network with `w_scale` and `b_scale` of every layer tuned to a prior over functions.

    Minimises the squared sliced 2-Wasserstein distance between f(points) under the network's own prior, at its own
    width, and draws of the prior, over the logarithms of the scales, by Adam with a cosine schedule. The tuned network
    goes into `bnn` as any other. It is close to the prior as far as its scales allow, and no further: where the prior
    is a Gaussian process, `functional_bnn` has it exactly at the points.

    Source: prior matching, and its first distance (the 1-Wasserstein distance by its Kantorovich dual, with a neural
    critic held to be Lipschitz), are those of Tran, Rossi, Milios & Filippone 2022 (arXiv 2011.12829, section 4). The
    distance here is `sliced_wasserstein`, which needs no critic and no inner loop.

    Args:
      net: the architecture, scales as numbers, where the search starts; a scale of None (no biases) stays None. One of
        its outputs is matched: all have the same prior.
      prior: anything with sample(key, x, num_samples) -> (s, n), such as functional.ImplicitPrior(sample_fn). Called
        once, so it need not be traceable.
      points: (p, d) inputs at which the functions are compared.
      key: PRNG key.
      num_steps: steps of Adam.
      learning_rate: of the logarithms of the scales, at the start.
      batch_size: draws of the network, and of the prior, per step.
      num_draws: draws of the prior, from which steps take theirs.
      num_directions: of the distance, per step.

    Returns:
      The network, with numbers as scales.

    Raises:
      ImportError: if optax is not installed.
      TypeError: if `net` is no network or `prior` cannot be drawn from.
      ValueError: for wrong shapes, numbers that are not finite, scales that have priors or are not positive, options
        out of range, or a search that diverged.
    """
    door = "match_prior"
    if not isinstance(net, Network):
        raise TypeError(f"`{door}`: net must be a network such as Dense(512) >> Gelu() >> Dense(1); got {net!r}")
    if not isinstance(prior, SampledPrior):
        raise TypeError(f"`{door}`: prior must have sample(key, x, num_samples); got {prior!r}")
    check_numbers(door, net)
    check_array(door, "points", points, ("p", "d"))
    sizes = {"num_steps": num_steps, "batch_size": batch_size, "num_draws": num_draws, "num_directions": num_directions}
    for name, value in sizes.items():
        check_count(door, name, value)
    if num_draws < batch_size:
        raise ValueError(f"`{door}`: num_draws must be at least batch_size={batch_size}; got {num_draws}")
    check_positive(door, "learning_rate", learning_rate)
    places, start = _scales(door, net)
    points = jnp.asarray(points, jnp.result_type(float))
    draw_key, step_key = jax.random.split(key)
    wanted = prior.sample(draw_key, points, num_draws)
    check_array(door, "prior.sample(key, points, num_draws)", wanted, (num_draws, len(points)), "one row per draw")
    wanted = jnp.asarray(wanted, points.dtype)

    def loss(logs: Array, key: Array) -> Array:
        net_key, row_key, slice_key = jax.random.split(key, 3)
        network = _with_scales(net, places, jnp.exp(logs))
        one = lambda key: network(network.init(key, points.shape[1:]), points)[:, 0]  # noqa: E731
        f = jax.vmap(one)(jax.random.split(net_key, batch_size))
        rows = jax.random.choice(row_key, num_draws, (batch_size,), replace=False)
        return squared_distance(slice_key, f, wanted[rows], num_directions)

    logs, _ = descend(door, loss, start, step_key, (), num_steps, learning_rate)
    return _with_scales(net, places, [float(scale) for scale in jnp.exp(logs)])


def _scales(door: str, net: Network) -> tuple[list[int], Array]:
    """Return which leaves of a network are scales, and the logarithms of their values."""
    leaves = jax.tree_util.tree_flatten_with_path(net)[0]
    places = [index for index, (path, _) in enumerate(leaves) if getattr(path[-1], "name", None) in SCALES]
    if not places:
        raise ValueError(f"`{door}`: net must have a layer with a w_scale or b_scale; got {net}")
    for path, leaf in (leaves[index] for index in places):
        check_positive(door, jax.tree_util.keystr(path, simple=True, separator="."), leaf)
    return places, jnp.log(jnp.stack([jnp.asarray(leaves[index][1], jnp.result_type(float)) for index in places]))


def _with_scales(net: Network, places: list[int], scales: Any) -> Network:
    leaves, tree = jax.tree.flatten(net)
    for place, scale in zip(places, scales, strict=True):
        leaves[place] = scale
    return jax.tree.unflatten(tree, leaves)
