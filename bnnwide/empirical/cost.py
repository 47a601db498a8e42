"""What each way to an empirical NTK costs, from static shapes alone: operations, and numbers held at once."""

import math
from typing import Any, NamedTuple

import jax

from bnnwide.empirical.structured import DenseSize

# What a block may hold where no batch size is given: 1 GiB in float64.
MOST_NUMBERS = 2**27
# A number written to memory and read back takes about as long as this many multiply-adds within matrix products.
TRAFFIC = 64


class Sizes(NamedTuple):
    """The static sizes of a kernel.

    Attributes:
      n1: rows of x1.
      n2: rows of x2.
      outputs: number of combinations of outputs that are differentiated, c.
      entries: numbers per pair of inputs whose sum or list is asked for: c^2, or c for a trace.
      weights: number of weights.
      forward: multiply-adds of one row through the network.
      activations: intermediate numbers of one row.
      layers: sizes of the Dense layers; None if the network is not made of them.
    """

    n1: int
    n2: int
    outputs: int
    entries: int
    weights: int
    forward: int
    activations: int
    layers: tuple[DenseSize, ...] | None


def numbers(method: str, sizes: Sizes, batch: int) -> int:
    """Return how many numbers a block of `batch` by `batch` inputs holds at once, about."""
    c, pairs = sizes.outputs, batch**2 * sizes.entries
    if method == "jacobian":
        return 2 * batch * c * sizes.weights + pairs
    if method == "vector_products":
        return (c + 1) * (sizes.weights + batch * sizes.activations) + pairs
    assert sizes.layers is not None
    held = sum(size.positions * (size.features + c * size.width) for size in sizes.layers)
    return 2 * batch * held + pairs * max(size.positions**2 for size in sizes.layers)


def operations(method: str, sizes: Sizes, batch: int) -> float:
    """Return the multiply-adds of the whole kernel, about, with the traffic to memory in the same unit.

    Rows are differentiated again for every block that they meet, so that larger blocks cost less.
    """
    c, pairs = sizes.outputs, sizes.n1 * sizes.n2
    each = pairs * (1 / min(batch, sizes.n1) + 1 / min(batch, sizes.n2))
    if method == "jacobian":
        jacobians = (1 + 2 * c) * sizes.forward + TRAFFIC * c * sizes.weights
        return each * jacobians + pairs * sizes.entries * sizes.weights
    if method == "vector_products":
        columns = (1 + 2 * c) * sizes.forward + TRAFFIC * c * sizes.weights
        return pairs * (columns / min(batch, sizes.n1) + (1 / min(batch, sizes.n2) + 2 * c) * sizes.forward)
    assert sizes.layers is not None
    held = sum(size.positions * (size.features + c * size.width) for size in sizes.layers)
    grams = sum(size.positions**2 * (size.features + sizes.entries * size.width) for size in sizes.layers)
    return each * ((1 + c) * sizes.forward + TRAFFIC * held) + pairs * grams


def choose_batch(method: str, sizes: Sizes, batch: int | None) -> int:
    """Return the batch size asked for, or the largest of n, n/2, n/4, ... whose block stays in memory."""
    most = max(sizes.n1, sizes.n2)
    if batch is not None:
        return min(batch, most)
    while most > 1 and numbers(method, sizes, most) > MOST_NUMBERS:
        most = -(-most // 2)
    return most


def choose_method(sizes: Sizes, batch: int | None) -> str:
    """Return the method with the fewest operations."""
    methods = ["jacobian", "vector_products"] + ([] if sizes.layers is None else ["structured"])
    return min(methods, key=lambda method: operations(method, sizes, choose_batch(method, sizes, batch)))


def count(f: Any, *args: Any) -> tuple[int, int]:
    """Return the multiply-adds of a function and the numbers that it computes, from its jaxpr.

    Args:
      f: a function of arrays.
      *args: its arguments, or their shapes.
    """
    return _count(jax.make_jaxpr(f)(*args).jaxpr)


def _count(jaxpr: Any) -> tuple[int, int]:
    operations, numbers = 0, 0
    for equation in jaxpr.eqns:
        size = sum(math.prod(out.aval.shape) for out in equation.outvars)
        inner = [_count(inside) for inside in _inside(equation.params)]
        if inner:
            repeats = equation.params.get("length", 1)
            operations += repeats * sum(one[0] for one in inner)
            numbers += repeats * sum(one[1] for one in inner)
            continue
        numbers += size
        operations += size * _per_number(equation)
    return operations, numbers


def _inside(params: dict[str, Any]) -> list[Any]:
    """Return the jaxprs of loops, branches and calls, which are open, closed or in a tuple."""
    values = [value for param in params.values() for value in (param if isinstance(param, (tuple, list)) else (param,))]
    opened = [getattr(value, "jaxpr", value) for value in values]
    return [value for value in opened if hasattr(value, "eqns")]


def _per_number(equation: Any) -> int:
    """Return the multiply-adds behind one number of an equation's result."""
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    if equation.primitive.name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        return math.prod(kernel) // kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return 1
