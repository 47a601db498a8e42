"""What the doors of this folder take: a network f(params, x), its weights and its inputs, checked once."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from bnnwide.checks import Data, check_array

# An architecture is one; so is any function of (params, x).
Finite = Callable[[Any, Any], Any]
Weights = PyTree[Float[Data, "..."]]


class Problem(NamedTuple):
    """A network at its weights and inputs.

    Attributes:
      f: a pytree that can be called as f(params, x) -> (n, k).
      params: the weights.
      x1: (n1, ...) inputs.
      x2: (n2, ...) inputs, or None for x1.
      k: number of outputs.
    """

    f: Any
    params: Any
    x1: Array
    x2: Array | None
    k: int


def as_pytree(door: str, f: Any) -> Any:
    """Return `f` as a pytree that can be called, so that an architecture's scales can be traced through `jit`.

    Raises:
      TypeError: if `f` cannot be called.
    """
    if not callable(f):
        raise TypeError(f"`{door}`: f must be an architecture or a function f(params, x); got {f!r}")
    # A function is a leaf of itself; what was registered as a pytree is not.
    return jax.tree_util.Partial(f) if jax.tree_util.all_leaves([f]) else f


def check_params(door: str, params: Any) -> Any:
    """Return `params` with its leaves as arrays.

    Raises:
      TypeError: if a leaf is no array of floating-point numbers.
      ValueError: if there is no leaf.
    """
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        dtype = getattr(leaf, "dtype", None) if not isinstance(leaf, (float, complex)) else np.dtype(type(leaf))
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            name = "params" + jax.tree_util.keystr(path)
            got = type(leaf).__name__ if dtype is None else f"dtype {dtype}"
            raise TypeError(f"`{door}`: params must hold real floating-point arrays; got {got} at {name}")
    if not jax.tree.leaves(params):
        raise ValueError(f"`{door}`: params must hold at least one array of weights; got {params!r}")
    return jax.tree.map(jnp.asarray, params)


def check_problem(door: str, f: Any, params: Any, x1: Any, x2: Any | None) -> Problem:
    """Check what every kernel takes, and count the outputs.

    Raises:
      TypeError: if `f` cannot be called, or `params` or inputs are not real numbers.
      ValueError: if inputs do not fit each other or are not finite, or `f` does not give (n, k) outputs.
    """
    f, params = as_pytree(door, f), check_params(door, params)
    axes = tuple(f"d{i}" for i in range(1, np.ndim(x1))) if np.ndim(x1) > 2 else ("d",) * (np.ndim(x1) - 1)
    check_array(door, "x1", x1, ("n1", *axes))
    if x2 is not None:
        check_array(door, "x2", x2, ("n2", *np.shape(x1)[1:]), "the rest from x1")
        x2 = jnp.asarray(x2)
    x1 = jnp.asarray(x1)
    out = jax.eval_shape(f, shapes(params), shapes(x1))
    if not isinstance(out, jax.ShapeDtypeStruct) or out.ndim != 2 or out.shape[0] != len(x1):
        got = getattr(out, "shape", type(out).__name__)
        raise ValueError(
            f"`{door}`: f must return outputs of shape (n, k) with n={len(x1)} from x1; got {got}; "
            "flatten the outputs of each input to one axis"
        )
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise TypeError(f"`{door}`: f must return real floating-point outputs; got dtype {out.dtype}")
    return Problem(f, params, x1, x2, out.shape[1])


def shapes(tree: Any) -> Any:
    """Return the tree with a `jax.ShapeDtypeStruct` for every array."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), tree)
