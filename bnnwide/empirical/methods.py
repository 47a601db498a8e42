"""Three ways to a block of the empirical NTK, and the blocks put together."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from bnnwide.empirical import structured

# `rows` prepares a block of inputs, `contract` joins two prepared blocks.
Rows = Callable[[Array], Any]
Contract = Callable[[Any, Any], Array]


def blocks_of(
    method: str, f: Any, params: Any, cotangents: Float[Array, "c k"], *, mean: bool
) -> tuple[Rows, Contract]:
    """Return a method as a pair (rows, contract): contract(rows(x1), rows(x2)) is the NTK block.

    Args:
      method: "jacobian", "vector_products" or "structured".
      f: the network.
      params: its weights.
      cotangents: (c, k) combinations of outputs to differentiate.
      mean: whether a block is (n1, n2), averaged over equal combinations, or (n1, n2, c, c).
    """
    if method == "jacobian":
        return partial(_jacobian, f, params, cotangents), partial(_contract_jacobians, mean=mean)
    if method == "structured":
        rows = lambda x: structured.factors(f, params, x, cotangents)  # noqa: E731
        return rows, partial(structured.contract, mean=mean)
    return lambda x: x, partial(_columns, f, params, cotangents, mean=mean)


def _pulled(f: Any, params: Any, cotangents: Array, row: Array) -> Any:
    """Return the gradients of combinations of outputs at one input: leaves (c, *leaf)."""
    _, pull = jax.vjp(lambda params: f(params, row[None])[0], params)
    return jax.vmap(lambda cotangent: pull(cotangent)[0])(cotangents)


def _jacobian(f: Any, params: Any, cotangents: Array, x: Real[Array, "n ..."]) -> list[Float[Array, "n c p"]]:
    leaves = jax.tree.leaves(jax.vmap(lambda row: _pulled(f, params, cotangents, row))(x))
    return [leaf.reshape(len(x), len(cotangents), -1) for leaf in leaves]


def _contract_jacobians(left: list[Array], right: list[Array], *, mean: bool) -> Array:
    if mean:
        c = left[0].shape[1]
        return _total([a.reshape(len(a), -1) @ b.reshape(len(b), -1).T for a, b in zip(left, right, strict=True)]) / c
    return _total([jnp.einsum("icp,jdp->ijcd", a, b) for a, b in zip(left, right, strict=True)])


def _total(parts: list[Array]) -> Array:
    return sum(parts[1:], start=parts[0])


def _columns(f: Any, params: Any, cotangents: Array, x1: Array, x2: Array, *, mean: bool) -> Array:
    """Pull each input of x2 back to the weights, and push the result forward to all of x1."""
    _, push = jax.linearize(lambda params: f(params, x1), params)

    def column(row: Array) -> Array:
        pushed = jax.vmap(push)(_pulled(f, params, cotangents, row))
        if mean:
            return jnp.einsum("dik,dk->i", pushed, cotangents) / len(cotangents)
        return jnp.einsum("dik,ck->icd", pushed, cotangents)

    # One input at a time: what is held does not grow with x2.
    return jnp.moveaxis(jax.lax.map(column, x2), 0, 1)


def assemble(rows: Rows, contract: Contract, x1: Array, x2: Array | None, batch: int) -> Array:
    """Return the whole kernel, holding at most `batch` prepared rows of each side at once.

    Args:
      rows: prepares a block of inputs.
      contract: joins two prepared blocks to (b1, b2, ...).
      x1: (n1, ...) inputs.
      x2: (n2, ...) inputs; None for x1, where blocks below the diagonal are those above it, transposed.
      batch: rows of a block.
    """
    n1, n2 = len(x1), len(x1 if x2 is None else x2)
    if max(n1, n2) <= batch:
        left = rows(x1)
        return contract(left, left if x2 is None else rows(x2))
    parts1 = _split(x1, batch)
    parts2 = parts1 if x2 is None else _split(x2, batch)
    shape = (len(parts1), len(parts2))
    first, second = np.triu_indices(shape[0]) if x2 is None else map(np.ravel, np.indices(shape))
    blocks = jax.lax.map(
        lambda pair: contract(rows(parts1[pair[0]]), rows(parts2[pair[1]])), (jnp.asarray(first), jnp.asarray(second))
    )
    grid = jnp.zeros((*shape, *blocks.shape[1:]), blocks.dtype)
    if x2 is None:
        grid = grid.at[second, first].set(jnp.swapaxes(jnp.swapaxes(blocks, 1, 2), -1, -2 if blocks.ndim > 3 else -1))
    grid = grid.at[first, second].set(blocks)
    whole = jnp.swapaxes(grid, 1, 2)
    return whole.reshape(shape[0] * parts1.shape[1], shape[1] * parts2.shape[1], *blocks.shape[3:])[:n1, :n2]


def _split(x: Real[Array, "n ..."], batch: int) -> Real[Array, "blocks size ..."]:
    """Split rows into blocks of nearly one size; the last is filled up with copies of a row, so that all is finite."""
    count = -(-len(x) // batch)
    size = -(-len(x) // count)
    rest = jnp.broadcast_to(x[:1], (count * size - len(x), *x.shape[1:]))
    return jnp.concatenate([x, rest]).reshape(count, size, *x.shape[1:])
