"""Checks at the public doors, in one voice: what was expected, what came, what to do."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

# What a public door takes where the inside holds a `jax.Array`.
Data = jax.Array | np.ndarray


def is_concrete(value: Any) -> bool:
    """Say whether `value` holds numbers now, and is not a tracer of a JAX transformation."""
    return not isinstance(value, Tracer)


def as_array(value: Any, dtype: Any = None) -> jax.Array:
    """Return `value` as a JAX array that still holds numbers if `value` does.

    While a function is traced, `jnp.asarray` turns a NumPy array into a tracer: what is worked out once from concrete
    data (sites, the span of the inputs) would then be worked out again at every call of the compiled function.
    """
    if not is_concrete(value):
        return jnp.asarray(value, dtype)
    with jax.ensure_compile_time_eval():
        return jnp.asarray(value, dtype)


def check_array(door: str, name: str, value: Any, shape: Sequence[int | str], hint: str = "") -> None:
    """Check an array's rank, its fixed axes and that its numbers are finite.

    Args:
      door: the public function that was called, for the message.
      name: the argument's name.
      value: the array; a tracer is checked for its shape only.
      shape: one entry per axis; an int must match, a str names an axis of any positive length.
      hint: where the fixed numbers come from, e.g. "n=32 from x".

    Raises:
      TypeError: if `value` is no array of real numbers.
      ValueError: if the shape is wrong, an axis is empty, or a number is NaN or infinite.
    """
    array = value if isinstance(value, jax.Array) else np.asarray(value)
    if not (np.issubdtype(array.dtype, np.number) or array.dtype == bool) or np.iscomplexobj(array):
        raise TypeError(f"`{door}`: {name} must be an array of real numbers; got dtype {array.dtype}")
    fits = array.ndim == len(shape) and all(
        isinstance(want, str) or want == got for want, got in zip(shape, array.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(str(axis) for axis in shape) + ("," if len(shape) == 1 else "")
        raise ValueError(
            f"`{door}`: {name} must have shape ({wanted}){' with ' + hint if hint else ''}; got {array.shape}"
        )
    if 0 in array.shape:
        raise ValueError(f"`{door}`: {name} must hold at least one entry on every axis; got shape {array.shape}")
    if is_concrete(array):
        bad = int(np.size(array) - np.isfinite(np.asarray(array)).sum())
        if bad:
            raise ValueError(
                f"`{door}`: {name} must be finite; got {bad} NaN or infinite of {array.size} entries; "
                "drop or impute those rows first"
            )


def check_inputs(
    door: str, name: str, x: Any, input_shape: Sequence[int] | None = None, source: str = "x"
) -> jax.Array:
    """Check inputs (n, *input_shape) and return them as a JAX array of the default floating-point type.

    Args:
      door: the public function that was called, for the message.
      name: the argument's name.
      x: the inputs.
      input_shape: the shape of one input; None for any.
      source: the argument that sets it.

    Raises:
      TypeError: if `x` is no array of real numbers.
      ValueError: if the shape is wrong, an axis is empty, or a number is NaN or infinite.
    """
    rank = max(np.ndim(x), 2)
    axes = tuple(f"d{i}" if rank > 2 else "d" for i in range(1, rank)) if input_shape is None else input_shape
    check_array(door, name, x, ("n", *axes), "" if input_shape is None else f"the rest from {source}")
    return as_array(x, jnp.result_type(float))


def check_positive(door: str, name: str, value: Any) -> None:
    """Check that a concrete number, or every entry of a concrete array, is positive and finite.

    Raises:
      ValueError: if it is not.
    """
    if is_concrete(value) and not (np.all(np.isfinite(value)) and np.all(np.asarray(value) > 0)):
        raise ValueError(f"`{door}`: {name} must be positive and finite; got {value}")


def check_choice(door: str, name: str, value: Any, choices: Sequence[str]) -> None:
    """Check that `value` is one of `choices`.

    Raises:
      ValueError: if it is not.
    """
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"`{door}`: {name} must be one of {listed}; got {value!r}")


def check_count(door: str, name: str, value: Any, minimum: int = 1) -> None:
    """Check that `value` is a whole number of at least `minimum`.

    Raises:
      TypeError: if it is no whole number.
      ValueError: if it is too small.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"`{door}`: {name} must be a whole number; got {value!r}")
    if value < minimum:
        raise ValueError(f"`{door}`: {name} must be at least {minimum}; got {value}")
