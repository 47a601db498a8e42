"""What is propagated through an architecture at infinite width: second moments over the prior, pair by pair."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Kernels(NamedTuple):
    """The kernels of an infinitely wide network, of one output unit.

    Attributes:
      nngp: (n1, n2) covariance of the outputs under the prior; (n,) for a diagonal.
      ntk: neural tangent kernel, of the same shape; None where it was not asked for.
    """

    nngp: Array
    ntk: Array | None


@dataclasses.dataclass(frozen=True)
class Cross:
    """Pairs (x1[i], x2[j]) as an (n1, n2) array."""

    def spread(self, left: Array, right: Array) -> tuple[Array, Array]:
        """Lay a number per x1 and a number per x2 out over the pairs."""
        return left[:, None], right[None, :]


@dataclasses.dataclass(frozen=True)
class Diagonal:
    """Pairs (x[i], x[i]) as an (n,) array."""

    def spread(self, left: Array, right: Array) -> tuple[Array, Array]:
        """Lay a number per x1 and a number per x2 out over the pairs."""
        return left, right


@dataclasses.dataclass(frozen=True)
class Folded:
    """The n (n + 1) / 2 pairs of a symmetric (n, n) array, folded into (h, 2h + 1) with h = n/2 rounded up.

    With the array in blocks [[A, B], [B^T, D]] the first h columns are B, and the others hold the lower triangle of A
    and, one column to the right, the upper triangle of D. (An odd n is filled up with a point at zero.)

    Args:
      n: number of inputs.
    """

    n: int

    @property
    def half(self) -> int:
        """Rows of the folded array."""
        return -(-self.n // 2)

    def spread(self, left: Array, right: Array) -> tuple[Array, Array]:
        """Lay a number per x1 and a number per x2 out over the pairs."""
        h = self.half
        top, bottom = left[:h, None], _filled(left, h)[:, None]
        upper = _trailing(self._is_upper(), left.ndim - 1)
        first, second = right[:h], _filled(right, h)
        none = jnp.zeros_like(first[:1])
        lower_columns = jnp.concatenate([second, first, none])[None, :]
        upper_columns = jnp.concatenate([second, none, second])[None, :]
        return jnp.where(upper, bottom, top), jnp.where(upper, upper_columns, lower_columns)

    def fold(self, x: Float[Array, "n ... d"]) -> tuple[Array, Array]:
        """Return the inner products over the last axis, folded, and those of each input with itself."""
        h = self.half
        x1, x2 = x[:h], _filled(x, h)
        a, b, d = _products(x1, x1), _products(x1, x2), _products(x2, x2)
        none = jnp.zeros_like(a[:, :1])
        upper = _trailing(self._is_upper()[:, h:], a.ndim - 2)
        triangles = jnp.where(upper, jnp.concatenate([none, d], axis=1), jnp.concatenate([a, none], axis=1))
        # To the last bit those of the pairs, so that an input is found to be its own double.
        own = jnp.concatenate([jnp.moveaxis(jnp.diagonal(part), -1, 0) for part in (a, d)])[: self.n]
        return jnp.concatenate([b, triangles], axis=1), own

    def unfold(self, folded: Float[Array, "h columns"]) -> Float[Array, "n n"]:
        """Return the symmetric array."""
        h = self.half
        b, a, d = folded[:, :h], folded[:, h : 2 * h], folded[:, h + 1 :]
        lower = jnp.arange(h)[:, None] >= jnp.arange(h)[None, :]
        a, d = jnp.where(lower, a, a.T), jnp.where(lower.T, d, d.T)
        rest = self.n - h
        top, bottom = jnp.concatenate([a, b[:, :rest]], axis=1), jnp.concatenate([b.T, d], axis=1)
        return jnp.concatenate([top, bottom[:rest, : self.n]])

    def _is_upper(self) -> Array:
        h = self.half
        return jnp.arange(2 * h + 1)[None, :] >= h + 1 + jnp.arange(h)[:, None]


def _filled(values: Array, half: int) -> Array:
    """Return the second half, filled up with a zero where the number of inputs is odd."""
    second = values[half:]
    return jnp.concatenate([second, jnp.zeros_like(values[:1])]) if len(second) < half else second


def _trailing(mask: Array, axes: int) -> Array:
    return mask.reshape(*mask.shape, *[1] * axes)


def _products(x1: Float[Array, "n1 *S d"], x2: Float[Array, "n2 *S d"]) -> Float[Array, "n1 n2 *S"]:
    return jnp.einsum("i...d,j...d->ij...", x1, x2)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KernelState:
    """Second moments, over the prior and the units, of one layer's outputs at pairs of inputs.

    Position axes S (of images, say) trail; only pairs of equal positions are held, which is all that layers acting
    position by position need.

    Args:
      cov: (*pairs, *S) mean over units of the product of the outputs.
      ntk: the same of the products of their parameter gradients; a scalar 0 before the first weights; None where it is
        not asked for.
      var1: (n1, *S) mean square of the outputs at each x1.
      var2: (n2, *S) the same at each x2; the very array `var1` where x2 is x1.
      mean1: (n1, *S) mean of the outputs over units; None for 0.
      mean2: (n2, *S) the same at each x2.
      pairs: how pairs are laid out.
      shape: of one output of the finite network, without the batch axis.
      gaussian: whether units are i.i.d. Gaussian under the prior, as activations need.
      fresh: whether the outputs are independent of what entered the branch that they are of.
      wide: whether the units are infinitely many, so that their sum with any weights of finite variance is Gaussian.
    """

    cov: Array
    ntk: Array | None
    var1: Array
    var2: Array
    mean1: Array | None
    mean2: Array | None
    pairs: Cross | Diagonal | Folded = dataclasses.field(metadata={"static": True})
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    gaussian: bool = dataclasses.field(default=False, metadata={"static": True})
    fresh: bool = dataclasses.field(default=False, metadata={"static": True})
    wide: bool = dataclasses.field(default=False, metadata={"static": True})

    def spread(self, left: Array, right: Array) -> tuple[Array, Array]:
        """Lay (n1, *S) and (n2, *S) numbers out over the pairs, to broadcast against `cov`."""
        return self.pairs.spread(left, right)

    def means(self) -> tuple[Array, Array] | None:
        """Return the two means laid out over the pairs, or None for 0."""
        if self.mean1 is None or self.mean2 is None:
            return None
        return self.spread(self.mean1, self.mean2)

    def affine(self, factor: Array | float, constant: Array | float = 0.0) -> "KernelState":
        """Return the state with every second moment times `factor` plus `constant`, and no mean; the NTK times both."""
        both = lambda second: factor * second + constant  # noqa: E731
        var1 = both(self.var1)
        var2 = var1 if self.var2 is self.var1 else both(self.var2)
        ntk = None if self.ntk is None else factor * self.ntk
        return dataclasses.replace(self, cov=both(self.cov), ntk=ntk, var1=var1, var2=var2, mean1=None, mean2=None)

    def each(self, fn, *others: "KernelState") -> "KernelState":
        """Apply `fn` to every second moment: to `cov`, `var1` and `var2` alike; NTK and means are dropped."""
        states = (self, *others)
        var1 = fn(*(s.var1 for s in states))
        var2 = var1 if all(s.var2 is s.var1 for s in states) else fn(*(s.var2 for s in states))
        cov = fn(*(s.cov for s in states))
        return dataclasses.replace(self, cov=cov, ntk=None, var1=var1, var2=var2, mean1=None, mean2=None)


def input_state(x1: Array, x2: Array | None, pairs: Cross | Diagonal | Folded, *, ntk: bool) -> KernelState:
    """Return the state of the inputs themselves: cov = x1 . x2 / d, no parameter gradients.

    Args:
      x1: (n1, *S, d) inputs.
      x2: (n2, *S, d) inputs; None for x1.
      pairs: how pairs are laid out.
      ntk: whether the NTK is asked for.
    """
    d = x1.shape[-1]
    # Divided first, so that squares of float32 images do not overflow and one pass serves both factors.
    x1 = x1 / d**0.5
    var1, mean1 = jnp.sum(x1 * x1, axis=-1), jnp.sum(x1, axis=-1) / d**0.5
    var2, mean2 = var1, mean1
    if isinstance(pairs, Diagonal):
        cov = var1
    elif isinstance(pairs, Folded):
        cov, var1 = pairs.fold(x1)
        var2 = var1
    else:
        right = jnp.asarray(x2) / d**0.5
        var2, mean2 = jnp.sum(right * right, axis=-1), jnp.sum(right, axis=-1) / d**0.5
        cov = _products(x1, right)
    zero = jnp.zeros((), cov.dtype) if ntk else None
    return KernelState(cov, zero, var1, var2, mean1, mean2, pairs, x1.shape[1:])
