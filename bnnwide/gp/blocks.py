"""Kernels of many inputs, evaluated block by block, so that intermediate results stay small."""

import math
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real
from tqdm.auto import tqdm

from bnnwide.arch import Kernels, Layer
from bnnwide.checks import Data, check_count, check_inputs

# Measured on two cores with depth-3 ReLU kernels of 784 inputs: blocks of 200 to 500 take as long, those of 1000 a
# third longer, of 2000 twice as long, because they leave the cache. Accelerators want more work per launch.
BLOCK_SIZES = {"cpu": 512}
BLOCK_SIZE_ELSEWHERE = 4096


def kernel_matrix(
    net: Layer,
    x1: Real[Data, "n1 ..."],
    x2: Real[Data, "n2 ..."] | None = None,
    *,
    ntk: bool = True,
    block_size: int | None = None,
    devices: Sequence[Any] | None = None,
    progress: bool = False,
) -> Kernels:
    """Return `net.kernel(x1, x2)` as arrays on the host, computed block by block.

    Memory of a device holds the inputs and a few blocks at a time. With x2=None only blocks on and above the diagonal
    are computed. Blocks go to the devices in turn, without waiting for each other.

    Args:
      net: the architecture.
      x1: (n1, *input_shape) inputs.
      x2: (n2, *input_shape) inputs; None for x1.
      ntk: whether to compute the NTK as well.
      block_size: rows and columns of a block; None for 512 on a CPU and 4096 elsewhere.
      devices: JAX devices that compute; None for all of this process.
      progress: whether to show a progress bar, in blocks.

    Returns:
      NumPy arrays `nngp` (n1, n2), in squared units of the outputs, and `ntk`, of the same shape, or None.

    Raises:
      ValueError: for wrong shapes, NaN or infinite inputs, or an architecture without such a limit.
    """
    x1 = check_inputs("kernel_matrix", "x1", x1)
    symmetric = x2 is None
    x2 = x1 if x2 is None else check_inputs("kernel_matrix", "x2", x2, x1.shape[1:], "x1")
    devices = choose_devices("kernel_matrix", devices)
    size = choose_block_size("kernel_matrix", block_size, devices)
    rows, columns = cut(x1, size), cut(x2, size)
    shares = [jax.device_put((net, rows, columns), device) for device in devices]
    shape = (len(x1), len(x2))
    matrices: list[Any] = [np.empty(shape, x1.dtype) if wanted else None for wanted in (True, ntk)]

    def store(i: int, j: int, block: Kernels) -> None:
        top, left = i * rows.shape[1], j * columns.shape[1]
        for matrix, values in zip(matrices, block, strict=True):
            if matrix is not None:
                place = matrix[top : top + rows.shape[1], left : left + columns.shape[1]]
                place[...] = np.asarray(values)[: place.shape[0], : place.shape[1]]
                if symmetric and i == j:
                    # Where a compiler evaluates an entry twice, its two values may differ in the last bit.
                    place[...] = np.tril(place) + np.tril(place, -1).T
                elif symmetric:
                    matrix[left : left + place.shape[1], top : top + place.shape[0]] = place.T

    jobs = [(i, j) for i in range(len(rows)) for j in range(i if symmetric else 0, len(columns))]
    pending: deque[tuple[int, int, Kernels]] = deque()
    with tqdm(total=len(jobs), unit="block", disable=not progress) as bar:
        for number, (i, j) in enumerate(jobs):
            # Two blocks in flight keep a device busy while the host copies; more would only hold memory.
            if len(pending) == 2 * len(devices):
                store(*pending.popleft())
                bar.update()
            one, rest, others = shares[number % len(devices)]
            if symmetric and i == j:
                pending.append((i, j, _diagonal_block(one, rest, i, ntk=ntk)))
            else:
                pending.append((i, j, _block(one, rest, others, i, j, ntk=ntk)))
        for done in pending:
            store(*done)
            bar.update()
    return Kernels(*matrices)


@partial(jax.jit, static_argnames="ntk")
def _block(net: Layer, rows: Array, columns: Array, i: Array | int, j: Array | int, *, ntk: bool) -> Kernels:
    return net.kernel(rows[i], columns[j], ntk=ntk)


@partial(jax.jit, static_argnames="ntk")
def _diagonal_block(net: Layer, rows: Array, i: Array | int, *, ntk: bool) -> Kernels:
    return net.kernel(rows[i], ntk=ntk)


def cut(x: Float[Array, "n ..."], size: int) -> Float[Array, "blocks rows ..."]:
    """Cut inputs into the fewest blocks of at most `size` rows, all of one length, filled up with the last input."""
    count = -(-len(x) // size)
    length = -(-len(x) // count)
    # A kernel is finite at an input of the data, whatever the architecture; at zeros it need not be.
    filled = jnp.concatenate([x, jnp.repeat(x[-1:], count * length - len(x), axis=0)])
    return filled.reshape(count, length, *x.shape[1:])


def choose_devices(door: str, devices: Sequence[Any] | None) -> tuple[Any, ...]:
    """Return the devices that were named, or all of this process.

    Raises:
      ValueError: if none was named.
    """
    chosen = tuple(jax.local_devices() if devices is None else devices)
    if not chosen:
        raise ValueError(f"`{door}`: devices must hold at least one device; got none; leave it out to take all")
    return chosen


def choose_block_size(door: str, block_size: int | None, devices: Sequence[Any]) -> int:
    """Return the block size that was asked for, or one that suits the devices.

    Raises:
      ValueError: if it is below 1.
    """
    if block_size is None:
        return BLOCK_SIZES.get(devices[0].platform, BLOCK_SIZE_ELSEWHERE)
    check_count(door, "block_size", block_size)
    return block_size


def num_bytes(shape: Sequence[int], dtype: np.dtype) -> int:
    """Return the memory that an array takes, in bytes."""
    return math.prod(shape) * dtype.itemsize
