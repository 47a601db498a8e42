"""The noisy quadratic model: what learning rate, batch size and preconditioner do, from moments alone."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from bnnwide.checks import Data, check_array, check_count, check_positive


@dataclasses.dataclass(frozen=True)
class NoisyQuadratic:
    """The loss L(w) = sum_i h_i w_i^2 / 2 with gradients h_i w_i + sqrt(c_i / B) xi, seen by a linear optimiser.

    An update preconditions the gradient by (h + damping)^-power, adds momentum, and averages the iterates:

      v' = momentum v - eps (h + damping)^-power g,   w' = w + v',   a' = averaging a + (1 - averaging) w'.

    All second moments of (w, v, a) follow a linear recursion, coordinate by coordinate: nothing is simulated.

    Source: Zhang, Li, Nado, Martens, Sachdeva, Dahl, Shallue & Grosse 2019 (arXiv 1907.04164), its model of
    curvature, noise and preconditioners.

    Args:
      curvature: (p,) h, positive, per datum: the eigenvalues of the Fisher matrix averaged over data.
      noise: (p,) c, the variance of one datum's gradient; h itself where predictions match the law of the labels.
      learning_rate: eps.
      momentum: in [0, 1).
      power: 0 for gradient descent, 1 for natural gradient (K-FAC in the paper: 1/2 to 1).
      damping: of the preconditioner.
      averaging: in [0, 1); 0 for the iterates themselves.

    Raises:
      ValueError: for wrong shapes or options out of range.
    """

    curvature: Real[Data, " p"]
    noise: Real[Data, " p"]
    learning_rate: float | int
    momentum: float | int = 0.0
    power: float | int = 0.0
    damping: float | int = 0.0
    averaging: float | int = 0.0

    def __post_init__(self) -> None:
        check_array("NoisyQuadratic", "curvature", self.curvature, ("p",))
        check_array("NoisyQuadratic", "noise", self.noise, (len(self.curvature),), "p from curvature")
        for name in ("curvature", "noise", "learning_rate"):
            check_positive("NoisyQuadratic", name, getattr(self, name))
        for name in ("momentum", "averaging"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`NoisyQuadratic`: {name} must lie in [0, 1); got {getattr(self, name)}")

    def _recursion(self) -> tuple[Array, Array]:
        """Return M (p, 3, 3) and the covariance of the noise at batch size 1 (p, 3, 3), of (w, v, a)."""
        h, c = jnp.asarray(self.curvature, jnp.result_type(float)), jnp.asarray(self.noise, jnp.result_type(float))
        rate = self.learning_rate * (h + self.damping) ** -self.power
        keep = 1 - self.averaging

        def one(h: Array, rate: Array, c: Array) -> tuple[Array, Array]:
            pull = rate * h
            m = jnp.asarray([[1 - pull, self.momentum, 0.0], [-pull, self.momentum, 0.0],
                             [keep * (1 - pull), keep * self.momentum, self.averaging]])  # fmt: skip
            enters = -rate * jnp.sqrt(c) * jnp.asarray([1.0, 1.0, keep])
            return m, jnp.outer(enters, enters)

        return jax.vmap(one)(h, rate, c)

    def stationary(self, batch_size: float | int) -> Float[Array, " p"]:
        """Return the stationary second moments of the (averaged) iterates, infinite where steps diverge.

        Args:
          batch_size: B.
        """
        check_positive("stationary", "batch_size", batch_size)
        m, noise = self._recursion()
        return _stationary(m, noise / batch_size)

    def temperature(self, batch_size: float | int, num_data: float | int = 1) -> Float[Array, " p"]:
        """Return N h_i E[w_i^2], the temperature at which each direction of the summed cost is held.

        For natural gradient descent with c = h it is eps N / (B (2 - eps)) in every direction.

        Args:
          batch_size: B.
          num_data: N.
        """
        return num_data * jnp.asarray(self.curvature) * self.stationary(batch_size)

    def loss(self, start: Real[Data, " p"], batch_size: float | int, num_steps: int) -> Float[Array, " steps"]:
        """Return the expected loss after 0, 1, ..., num_steps steps.

        Args:
          start: (p,) second moments of the weights at the start; v = 0 and a = w there.
          batch_size: B; infinity for exact gradients.
          num_steps: number of steps.

        Raises:
          ValueError: for wrong shapes or counts.
        """
        check_array("loss", "start", start, (len(self.curvature),), "p from curvature")
        check_count("loss", "num_steps", num_steps)
        m, noise = self._recursion()
        corners = jnp.zeros((3, 3)).at[jnp.asarray([0, 0, 2, 2]), jnp.asarray([0, 2, 0, 2])].set(1.0)
        seconds = _second_moments(m, noise / batch_size, jnp.asarray(start)[:, None, None] * corners, num_steps + 1)
        return 0.5 * seconds @ jnp.asarray(self.curvature)

    def critical_batch_size(self, start: Real[Data, " p"], target: float | int, max_steps: int = 10_000) -> float:
        """Return the batch size at which `target` takes twice as many steps as with exact gradients.

        Below it steps are saved by larger batches almost in proportion, above it hardly any.

        Args:
          start: (p,) second moments of the weights at the start.
          target: an expected loss below that at the start.
          max_steps: the most steps to look at.

        Raises:
          ValueError: if exact gradients do not reach the target within half of `max_steps`.
        """
        exact = self._steps(start, target, float("inf"), max_steps)
        if exact is None or 2 * exact > max_steps:
            raise ValueError(f"`critical_batch_size`: target={target} must be reached within {max_steps // 2} steps")
        low, high = 1e-6, 1e12
        for _ in range(50):  # to 15 digits of the logarithm
            middle = (low * high) ** 0.5
            steps = self._steps(start, target, middle, 2 * exact)
            low, high = (middle, high) if steps is None else (low, middle)
        return high

    def _steps(self, start: Real[Data, " p"], target: float | int, batch_size: float | int, most: int) -> int | None:
        reached = jnp.nonzero(self.loss(start, batch_size, most) <= target)[0]
        return int(reached[0]) if len(reached) else None


@jax.jit
@jax.vmap
def _stationary(m: Float[Array, "3 3"], noise: Float[Array, "3 3"]) -> Float[Array, ""]:
    # S = M S M^T + Q, as one linear system of nine unknowns.
    solved = jnp.linalg.solve(jnp.eye(9) - jnp.kron(m, m), noise.ravel()).reshape(3, 3)
    stable = jnp.max(jnp.abs(jnp.linalg.eigvals(m))) < 1
    return jnp.where(stable, solved[2, 2], jnp.inf)


@partial(jax.jit, static_argnums=3)
def _second_moments(m: Array, noise: Array, moments: Array, length: int) -> Float[Array, "steps p"]:
    def step(moments: Array, _: None) -> tuple[Array, Array]:
        return m @ moments @ jnp.swapaxes(m, 1, 2) + noise, moments[:, 2, 2]

    return jax.lax.scan(step, moments, None, length=length)[1]
