"""Scales that have priors: where an architecture holds a distribution for a number, and how a number gets there."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bnnwide.arch.weight_priors import describe, is_distribution
from bnnwide.checks import is_concrete


def scale_priors(net: Any) -> dict[str, Any]:
    """Return the priors that an architecture holds in place of numbers, by position.

    Args:
      net: an architecture, e.g. Dense(64, w_scale=LogNormal(0.0, 0.3)) >> Relu() >> Dense(1).

    Returns:
      A dict such as {"0.w_scale": LogNormal(...)}: the layer's index in its network, names of nested fields, and the
      name of the scale, joined by dots.

    Raises:
      TypeError: if `net` is no architecture.
    """
    _check_net("scale_priors", net)
    return {name: leaf for name, leaf in named_leaves(net) if _is_scale_prior(name, leaf)}


def with_scales[N](net: N, values: Mapping[str, Any]) -> N:
    """Return the architecture with numbers in place of its scales' priors.

    Args:
      net: an architecture.
      values: one number (or tracer of one) for each name in `scale_priors(net)`.

    Raises:
      TypeError: if `net` is no architecture or `values` no mapping.
      ValueError: if names are missing or unknown, or a value is not one number that its prior allows.
    """
    _check_net("with_scales", net)
    if not isinstance(values, Mapping):
        raise TypeError(f"`with_scales`: values must be a mapping from names to numbers; got {type(values).__name__}")
    priors = scale_priors(net)
    if set(values) != set(priors):
        raise ValueError(f"`with_scales`: values must have the names {sorted(priors)}; got {sorted(values)}")
    filled = [_number(name, leaf, values[name]) if name in priors else leaf for name, leaf in named_leaves(net)]
    return jax.tree.unflatten(jax.tree.structure(net, is_leaf=is_distribution), filled)


def check_scale_prior(door: str, name: str, prior: Any) -> None:
    """Check a distribution that stands for a positive number.

    Raises:
      ValueError: if it is not over one positive number.
    """
    shape = (*prior.batch_shape, *prior.event_shape)
    if shape:
        raise ValueError(f"`{door}`: the prior on {name} must be of one number; got shape {shape}")
    # Inside a transformation the layer is rebuilt, checked as it was, from tracers.
    numbers = all(isinstance(leaf, (float, int, np.ndarray, np.generic)) for leaf in _untraced(prior))
    if numbers and (prior.is_discrete or np.any([prior.support(value) for value in (-1e6, -1.0, -1e-6)])):
        raise ValueError(f"`{door}`: the prior on {name} must live on the positive numbers; got {describe(prior)}")


def check_numbers(door: str, net: Any) -> None:
    """Check that an architecture holds numbers only.

    Raises:
      ValueError: if one of its scales still has a prior.
    """
    names = [name for name, leaf in named_leaves(net) if _is_scale_prior(name, leaf)]
    if names:
        raise ValueError(
            f"`{door}`: every scale must be a number; got priors for {', '.join(names)}; put numbers in with "
            "with_scales(net, values)"
        )


def _untraced(prior: Any) -> list[Any]:
    return [np.asarray(x) if isinstance(x, jax.Array) and is_concrete(x) else x for x in jax.tree.leaves(prior)]


def _is_scale_prior(name: str, leaf: Any) -> bool:
    # A function of the user's own holds the priors of its weights, which are not scales.
    return is_distribution(leaf) and "params_prior" not in name.split(".")


def named_leaves(net: Any) -> list[tuple[str, Any]]:
    """Return every leaf with its name; a distribution is one leaf."""
    leaves = jax.tree_util.tree_flatten_with_path(net, is_leaf=is_distribution)[0]
    return [(".".join(_keys(path)), leaf) for path, leaf in leaves]


def _keys(path: tuple[Any, ...]) -> list[str]:
    # A network's layers go by their index alone, as in `net[0]`.
    keys = [jax.tree_util.keystr((key,), simple=True) for key in path]
    return [key for key in keys if key != "layers"]


def _number(name: str, prior: Any, value: Any) -> Any:
    if np.shape(value) != ():
        raise ValueError(f"`with_scales`: {name} must be one number; got shape {np.shape(value)}; map over draws")
    if is_concrete(value) and all(map(is_concrete, jax.tree.leaves(prior))):
        with jax.ensure_compile_time_eval():  # concrete numbers may come from outside a traced program
            allowed = np.isfinite(value) and bool(prior.support(value))
        if not allowed:
            raise ValueError(f"`with_scales`: {name} must be a number that {describe(prior)} allows; got {value}")
    return value if isinstance(value, float) else jnp.asarray(value, jnp.result_type(float, value))


def _check_net(door: str, net: Any) -> None:
    from bnnwide.arch.layer import Layer

    if not isinstance(net, Layer):
        raise TypeError(f"`{door}`: net must be an architecture such as Dense(512) >> Gelu() >> Dense(1); got {net!r}")
