"""How long and how a linearised network is trained: spectral functions of its tangent kernel."""

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.linalg import expm
from jaxtyping import Array, Float

from bnnwide.checks import check_count, check_positive, is_concrete


class Schedule(abc.ABC):
    """Training on the mean square error 1/(2N) sum (f - y)^2 over N target entries, mode by mode.

    Along an eigenvector of the tangent kernel with eigenvalue w, a residual y - f that starts at 1 ends at 1 - w g(w).
    A subclass states the gain g, from which all else follows: weights move by J^T g (y - f), test outputs by
    K_td g (y - f).
    """

    @abc.abstractmethod
    def gain(self, eigenvalues: Float[Array, "n"], num_targets: int) -> Float[Array, "n"]:
        """Return g at each eigenvalue (the inverse 1 / w of a mode that is learned in full).

        Args:
          eigenvalues: (n,) of the tangent kernel, in squared units of y; negative ones, which are rounding, count as 0.
          num_targets: N, the number of target entries n k.
        """


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Flow(Schedule):
    """Gradient flow for a time: w g = 1 - exp(-w learning_rate time / N).

    Time counts steps of gradient descent with that learning rate, in the limit of small steps. With momentum it is
    f'' + (1 - momentum) f' = -learning_rate K (f - y) / N, the same limit of the heavy ball of `Descent`.

    Source: Lee et al. 2019 (arXiv 1902.06720), eqs. 10-11.

    Args:
      time: how long, zero or positive; None trains to convergence.
      learning_rate: positive; only its product with time matters, unless there is momentum.
      momentum: from 0 to below 1.

    Raises:
      ValueError: if a number is out of its range.
    """

    time: Any = None
    learning_rate: Any = 1.0
    momentum: float = dataclasses.field(default=0.0, metadata={"static": True})

    def __post_init__(self) -> None:
        _check_rates("Flow", self.learning_rate, self.momentum)
        if isinstance(self.time, (int, float)) and not self.time >= 0:
            raise ValueError(f"`Flow`: time must be zero, positive or None; got {self.time}")

    def gain(self, eigenvalues: Float[Array, "n"], num_targets: int) -> Float[Array, "n"]:  # noqa: D102
        w = jnp.maximum(eigenvalues, 0.0)
        if self.time is None:
            return 1.0 / w
        rate = jnp.asarray(self.learning_rate, w.dtype) / num_targets
        time = jnp.asarray(self.time, w.dtype)
        if self.momentum:
            # (g, g', 1)' = A (g, g', 1): the exponential needs no case for modes at 0 or at critical damping.
            zero = jnp.zeros_like(w)
            rows = [[zero, zero + 1, zero], [-rate * w, zero - (1 - self.momentum), zero + rate], [zero, zero, zero]]
            return expm(_matrices(rows) * time, max_squarings=60)[:, 0, 2]
        positive = jnp.where(w > 0, w, 1.0)
        return jnp.where(w > 0, -jnp.expm1(-w * rate * time) / positive, rate * time)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Descent(Schedule):
    """Full-batch gradient descent for a number of steps: w g = 1 - (1 - learning_rate w / N)^steps.

    With momentum the steps are those of the heavy ball, v <- momentum v - learning_rate gradient and
    weights <- weights + v.

    Args:
      num_steps: how many steps, zero or more.
      learning_rate: positive; above `max_learning_rate` it diverges.
      momentum: from 0 to below 1.

    Raises:
      TypeError: if `num_steps` is no whole number.
      ValueError: if a number is out of its range.
    """

    num_steps: int = dataclasses.field(metadata={"static": True})
    learning_rate: Any = 1.0
    momentum: float = dataclasses.field(default=0.0, metadata={"static": True})

    def __post_init__(self) -> None:
        check_count("Descent", "num_steps", self.num_steps, 0)
        _check_rates("Descent", self.learning_rate, self.momentum)

    def gain(self, eigenvalues: Float[Array, "n"], num_targets: int) -> Float[Array, "n"]:  # noqa: D102
        w = jnp.maximum(eigenvalues, 0.0)
        rate = jnp.asarray(self.learning_rate, w.dtype) / num_targets
        # (g, v, 1) <- A (g, v, 1), one step; its powers need no case for modes at 0.
        zero = jnp.zeros_like(w)
        moved = [-rate * w, zero + self.momentum, zero + rate]
        rows = [[moved[0] + 1, moved[1], moved[2]], moved, [zero, zero, zero + 1]]
        return jnp.linalg.matrix_power(_matrices(rows), self.num_steps)[:, 0, 2]


def _matrices(rows: list[list[Array]]) -> Float[Array, "n 3 3"]:
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def _check_rates(door: str, learning_rate: Any, momentum: float) -> None:
    if isinstance(learning_rate, (int, float)):
        check_positive(door, "learning_rate", learning_rate)
    check_momentum(door, momentum)


def check_momentum(door: str, momentum: Any) -> None:
    """Check that the momentum lies in [0, 1).

    Raises:
      ValueError: if it does not.
    """
    if not is_concrete(momentum) or not 0 <= momentum < 1:
        raise ValueError(f"`{door}`: momentum must be a number from 0 to below 1; got {momentum}")
