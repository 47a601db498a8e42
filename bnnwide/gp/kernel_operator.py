"""The kernel of many inputs as a linear operator, whose blocks are computed as a product needs them."""

import dataclasses
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Real

from bnnwide.arch import Layer
from bnnwide.checks import Data, check_choice, check_inputs
from bnnwide.gp.blocks import choose_block_size, choose_devices, cut, kernel_matrix, num_bytes
from bnnwide.gp.posterior import covariance


class _Share(NamedTuple):
    """What one device works on: its copy of the inputs, in blocks, and its pairs of blocks."""

    net: Layer
    rows: Array
    columns: Array
    pairs: Array
    kept: Array


@dataclasses.dataclass(frozen=True, eq=False)
class KernelOperator:
    """The matrix K[i, j] = k(x1[i], x2[j]) as a linear operator: `K @ v` without ever holding K.

    A product evaluates the kernel block by block. With x2=None the matrix is symmetric, each pair of blocks is
    evaluated once and serves K_ij v_j and K_ij^T v_i. Pairs of blocks are shared out among the devices, and each device
    sums its own; the result lies on the first one. Memory: the inputs on every device, a few blocks, and what
    `keep` is allowed.

    Source: Wang et al. 2019 (arXiv 1903.08114), section 3, partitioned kernel products.

    Args:
      net: the architecture.
      x1: (n1, *input_shape) inputs.
      x2: (n2, *input_shape) inputs; None for x1.
      kernel: "nngp" or "ntk".
      block_size: rows and columns of a block; None for 512 on a CPU and 4096 elsewhere.
      devices: JAX devices that compute; None for all of this process.
      kept: (pairs, rows, columns) blocks that are held, for each device; `keep` computes them.

    Raises:
      ValueError: for wrong shapes, NaN or infinite inputs, or an unknown kernel.
    """

    net: Layer
    x1: Real[Data, "n1 ..."]
    x2: Real[Data, "n2 ..."] | None = None
    _: dataclasses.KW_ONLY
    kernel: str = "nngp"
    block_size: int | None = None
    devices: Sequence[Any] | None = None
    kept: tuple[Array, ...] | None = None

    def __post_init__(self) -> None:
        check_choice("KernelOperator", "kernel", self.kernel, ("nngp", "ntk"))
        devices = choose_devices("KernelOperator", self.devices)
        x1 = check_inputs("KernelOperator", "x1", self.x1)
        x2 = self.x2 if self.x2 is None else check_inputs("KernelOperator", "x2", self.x2, x1.shape[1:], "x1")
        values = {
            "x1": x1,
            "x2": x2,
            "devices": devices,
            "block_size": choose_block_size("KernelOperator", self.block_size, devices),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def symmetric(self) -> bool:
        """Whether both sides have the same inputs."""
        return self.x2 is None

    @property
    def shape(self) -> tuple[int, int]:
        """(n1, n2)."""
        return len(self.x1), len(self.x1 if self.x2 is None else self.x2)

    @property
    def dtype(self) -> np.dtype:
        """The floating-point type of the kernel."""
        return np.dtype(self.x1.dtype)

    @property
    def T(self) -> "KernelOperator":  # noqa: N802
        """The transpose (n2, n1); the operator itself where it is symmetric."""
        if self.x2 is None:
            return self
        return dataclasses.replace(self, x1=self.x2, x2=self.x1, kept=None)

    def __matmul__(self, v: Real[Data, "n2 *k"]) -> Float[Array, "n1 *k"]:
        """Return K v for a vector (n2,) or for columns (n2, k)."""
        v = jnp.asarray(v, self.dtype)
        n1, n2 = self.shape
        if v.ndim not in (1, 2) or len(v) != n2:
            raise ValueError(f"`KernelOperator`: v must have shape ({n2},) or ({n2}, k); got {v.shape}")
        filled = _fill(v, *self._shares[0].columns.shape[:2])
        devices: Any = self.devices
        parts = [
            _product(*share, jax.device_put(filled, device), kernel=self.kernel, symmetric=self.symmetric)
            for share, device in zip(self._shares, devices, strict=True)
        ]
        return _gather([jax.device_put(part, devices[0]) for part in parts], (n1, *v.shape[1:]))

    def keep(self, memory: int | float) -> "KernelOperator":
        """Return the operator with as many blocks computed once and held as fit into `memory` bytes.

        The others are evaluated at every product. All n (n + block_size) / 2 numbers of a symmetric operator fit into 4
        (float32) or 8 (float64) times as many bytes: half of the full matrix.

        Args:
          memory: bytes, over all devices together.
        """
        if not memory:
            return dataclasses.replace(self, kept=None)
        block = num_bytes((self._shares[0].rows.shape[1], self._shares[0].columns.shape[1]), self.dtype)
        room = int(memory / block / len(self._shares))
        bare = dataclasses.replace(self, kept=None)
        kept = tuple(
            _evaluate(share.net, share.rows, share.columns, share.pairs[:room], self.kernel, self.symmetric)
            for share in bare._shares
        )
        return dataclasses.replace(self, kept=kept)

    def diagonal(self) -> Float[Array, "n"]:
        """Return the diagonal of a symmetric operator, in squared units of the outputs.

        Raises:
          ValueError: if the operator is not symmetric.
        """
        if not self.symmetric:
            raise ValueError("`KernelOperator`: only a kernel of x1 with itself has a diagonal; got x2 as well")
        return getattr(self.net.kernel_diag(self.x1, ntk=self.kernel == "ntk"), self.kernel)

    def columns(self, indices: Int[Data, "c"]) -> Float[Array, "n1 c"]:
        """Return some columns of the matrix, K[:, indices]."""
        return _columns(self.net, self.x1, self.x1 if self.x2 is None else self.x2, jnp.asarray(indices), self.kernel)

    def row(self, index: int | Int[Array, ""]) -> Float[Array, "n2"]:
        """Return one row of the matrix, K[index]."""
        return self.T.columns(jnp.asarray(index)[None])[:, 0]

    def cross(self, x: Real[Data, "t ..."]) -> "KernelOperator":
        """Return the kernel (t, n1) between other inputs and x1."""
        return dataclasses.replace(self, x1=x, x2=self.x1, kept=None)

    def to_dense(self) -> Float[np.ndarray, "n1 n2"]:
        """Return the matrix on the host, computed block by block."""
        options = {"block_size": self.block_size, "devices": self.devices}
        return getattr(kernel_matrix(self.net, self.x1, self.x2, ntk=self.kernel == "ntk", **options), self.kernel)

    def __repr__(self) -> str:
        held = sum(map(len, self.kept)) if self.kept else 0
        return f"KernelOperator(shape={self.shape}, kernel={self.kernel!r}, net={self.net}, kept={held} blocks)"

    @cached_property
    def _shares(self) -> tuple[_Share, ...]:
        assert self.devices is not None and self.block_size is not None and isinstance(self.x1, jax.Array)
        rows = cut(self.x1, self.block_size)
        columns = rows if self.x2 is None else cut(jnp.asarray(self.x2), self.block_size)
        # The diagonal last: its blocks cost half, which evens out what the devices have left.
        off = [(i, j) for i in range(len(rows)) for j in range(i + 1 if self.symmetric else 0, len(columns))]
        pairs = np.array(off + [(i, i) for i in range(len(rows)) if self.symmetric], np.int32).reshape(-1, 2)
        none = jnp.zeros((0, rows.shape[1], columns.shape[1]), self.dtype)
        shares = []
        for number, device in enumerate(self.devices):
            net, own = jax.device_put((self.net, rows), device)
            others = own if self.symmetric else jax.device_put(columns, device)
            kept = none if self.kept is None else self.kept[number]
            dealt = jnp.asarray(pairs[number :: len(self.devices)])
            shares.append(_Share(net, own, others, *jax.device_put((dealt, kept), device)))
        return tuple(shares)


def _block(net: Layer, rows: Array, columns: Array, pair: Array, kernel: str, symmetric: bool) -> Array:
    i, j = pair
    apart = lambda: covariance(net, kernel, rows[i], columns[j])  # noqa: E731
    own = lambda: covariance(net, kernel, rows[i])  # noqa: E731
    return jax.lax.cond(i == j, own, apart) if symmetric else apart()


@partial(jax.jit, static_argnames=("kernel", "symmetric"))
def _evaluate(net: Layer, rows: Array, columns: Array, pairs: Array, kernel: str, symmetric: bool) -> Array:
    return jax.lax.map(lambda pair: _block(net, rows, columns, pair, kernel, symmetric), pairs)


@partial(jax.jit, static_argnames=("kernel", "symmetric"))
def _product(
    net: Layer, rows: Array, columns: Array, pairs: Array, kept: Array, v: Array, *, kernel: str, symmetric: bool
) -> Float[Array, "blocks rows k"]:
    """Sum K_ij v_j over one device's pairs (i, j), and K_ij^T v_i where K is symmetric."""

    def add(total: Array, pair: Array, block: Array) -> Array:
        i, j = pair
        total = total.at[i].add(block @ v[j])
        if not symmetric:
            return total
        return total.at[j].add(jnp.where(i == j, 0.0, block.T @ v[i]))

    def add_kept(total: Array, item: tuple[Array, Array]) -> tuple[Array, None]:
        return add(total, *item), None

    def add_new(total: Array, pair: Array) -> tuple[Array, None]:
        return add(total, pair, _block(net, rows, columns, pair, kernel, symmetric)), None

    total = jnp.zeros((*rows.shape[:2], v.shape[-1]), v.dtype)
    total, _ = jax.lax.scan(add_kept, total, (pairs[: len(kept)], kept))
    return jax.lax.scan(add_new, total, pairs[len(kept) :])[0]


@partial(jax.jit, static_argnums=(1, 2))
def _fill(v: Array, count: int, length: int) -> Float[Array, "blocks rows k"]:
    """Lay a vector or columns out in blocks, the last one filled up with zeros."""
    columns = v.reshape(len(v), -1)
    return jnp.pad(columns, ((0, count * length - len(v)), (0, 0))).reshape(count, length, columns.shape[1])


@partial(jax.jit, static_argnums=1)
def _gather(parts: list[Array], shape: tuple[int, ...]) -> Array:
    total = sum(parts[1:], start=parts[0])
    return total.reshape(-1, total.shape[-1])[: shape[0]].reshape(shape)


@partial(jax.jit, static_argnames="kernel")
def _columns(net: Layer, x1: Array, x2: Array, indices: Array, kernel: str) -> Array:
    return covariance(net, kernel, x1, x2[indices])
