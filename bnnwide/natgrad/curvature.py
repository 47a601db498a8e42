"""What every Fisher operator is: a positive definite matrix of the weights, known by what it does to vectors."""

import abc
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bnnwide.checks import is_concrete

Weights = Any  # a pytree shaped as the network's weights


class Layout(NamedTuple):
    """How a pytree of weights lies in one vector: static, so that operators are pytrees of arrays alone."""

    tree: Any
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, params: Weights) -> "Layout":
        """Return the layout of a pytree."""
        leaves, tree = jax.tree.flatten(params)
        return cls(tree, tuple(jnp.shape(leaf) for leaf in leaves))

    @property
    def size(self) -> int:
        """Number of weights."""
        return sum(int(np.prod(shape)) for shape in self.shapes)

    def ravel(self, params: Weights) -> Float[Array, " p"]:
        """Join the leaves, in the order of `jax.tree.leaves`."""
        return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(params)])

    def unravel(self, flat: Float[Array, " p"]) -> Weights:
        """Undo `ravel`."""
        ends = np.cumsum([int(np.prod(shape)) for shape in self.shapes])[:-1]
        parts = jnp.split(flat, ends)
        return self.tree.unflatten([part.reshape(shape) for part, shape in zip(parts, self.shapes, strict=True)])


@dataclasses.dataclass(frozen=True, eq=False)
class Fisher(abc.ABC):
    """The damped Fisher matrix G = F + damping I at given weights, summed over the data.

    Vectors are pytrees shaped as the weights. A subclass states the five operations on flat vectors.

    Args:
      layout: how the weights lie in one vector.
      damping: what is added to the diagonal. The prior N(0, I) has precision 1, so that damping 1 makes G the
        generalised Gauss-Newton matrix of the negative log posterior.
    """

    layout: Layout
    damping: Array

    @abc.abstractmethod
    def _matvec(self, v: Array) -> Array: ...

    @abc.abstractmethod
    def _solve(self, v: Array) -> Array: ...

    @abc.abstractmethod
    def _sqrt_solve(self, z: Array) -> Array: ...

    @abc.abstractmethod
    def _diag(self) -> Array: ...

    @abc.abstractmethod
    def logdet(self) -> Float[Array, ""]:
        """Return log det G."""

    @abc.abstractmethod
    def effective_dimension(self) -> Float[Array, ""]:
        """Return tr G^-1 F, the number of directions that the data determine: of the others the damping is the answer.

        Between 0 and the smaller of weights and outputs on the data: with more weights F has no full rank, and solves
        are as biased by the damping as this is below the number of weights.

        Source: MacKay 1992, "Bayesian interpolation", the number of well-determined parameters.
        """

    @property
    @abc.abstractmethod
    def margin(self) -> Float[Array, ""]:
        """The smallest eigenvalue of G in units of its rounding error, about; below 1 or NaN if G is singular."""

    def matvec(self, v: Weights) -> Weights:
        """Return G v."""
        return self._on_trees("matvec", self._matvec, v)

    def solve(self, v: Weights) -> Weights:
        """Return G^-1 v."""
        return self._on_trees("solve", self._solve, v)

    def sqrt_solve(self, z: Weights) -> Weights:
        """Return S z with S S^T = G^-1: noise of covariance G^-1 from standard normals z."""
        return self._on_trees("sqrt_solve", self._sqrt_solve, z)

    def diag(self) -> Weights:
        """Return the diagonal of G."""
        return self.layout.unravel(self._diag())

    def dense(self) -> Float[Array, "p p"]:
        """Return G as a matrix, with weights in the order of `jax.tree.leaves`: p^2 numbers, for small networks."""
        return jax.vmap(self._matvec)(jnp.eye(self.layout.size, dtype=self.damping.dtype))

    def _on_trees(self, name: str, act: Any, v: Weights) -> Weights:
        leaves, tree = jax.tree.flatten(v)
        shapes = tuple(jnp.shape(leaf) for leaf in leaves)
        if (tree, shapes) != (self.layout.tree, self.layout.shapes):
            raise ValueError(
                f"`{name}`: the vector must be a pytree shaped as the weights, {self.layout.shapes}; got {shapes}"
            )
        return self.layout.unravel(act(self.layout.ravel(v)))

    def __repr__(self) -> str:
        known = is_concrete(self.damping) and np.ndim(self.damping) == 0  # and not of many chains
        determined = f"{self.effective_dimension():.4g}" if known else "unknown"
        return (
            f"{type(self).__name__}(weights={self.layout.size}, damping={self.damping}, "
            f"effective dimension={determined})"
        )


def operator(cls: Any) -> Any:
    """Register a Fisher operator as a pytree whose layout is static."""
    meta = [field.name for field in dataclasses.fields(cls) if field.metadata.get("static") or field.name == "layout"]
    data = [field.name for field in dataclasses.fields(cls) if field.name not in meta]
    return jax.tree_util.register_dataclass(cls, data_fields=data, meta_fields=meta)


def check_regular(door: str, fisher: Fisher) -> None:
    """Check that a concrete operator can be solved with, as it stands in its floating-point type.

    Raises:
      ValueError: if it is singular; the message names a damping.
    """
    margin = fisher.margin
    if is_concrete(margin) and not margin > 1:
        least = max(float(jnp.max(fisher._diag())), 1e-30) * fisher.layout.size * float(rounding(fisher.damping))
        raise ValueError(
            f"`{door}`: the Fisher matrix of {fisher.layout.size} weights must be regular; with "
            f"damping={float(fisher.damping):.3g} its smallest eigenvalue is lost in rounding; use damping=1.0, the "
            f"precision of the prior, or at the least {10 * least:.0e}, which biases every solve a little"
        )


def rounding(array: Array) -> Any:
    """Return the relative rounding error of an array's numbers."""
    return jnp.finfo(array.dtype).eps
