"""Training of linearised networks on squared error, given kernel matrices: values, ensembles, stability."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from bnnwide.checks import Data, check_array, check_count
from bnnwide.gp.conditioning import check_factor, check_spectrum
from bnnwide.gp.ridge import Ridge, add_diagonal, diagonal, noise_variance
from bnnwide.gp.schedules import Flow, Schedule, check_momentum
from bnnwide.likelihoods import Gaussian
from bnnwide.linalg import cho_solve, cholesky

MATRIX = "the tangent kernel + (scale^2 + ridge) I"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Modes:
    """A matrix M by its eigenvectors, for any schedule.

    Args:
      eigenvalues: (n,) in rising order.
      eigenvectors: (n, n), one per column.
    """

    eigenvalues: Float[Array, "n"]
    eigenvectors: Float[Array, "n n"]

    def weights(self, schedule: Schedule, residual: Float[Array, "n k"], num_targets: int) -> Float[Array, "n k"]:
        """Return g(M) (y - f): how much of each tangent feature training adds."""
        return self._apply(schedule.gain(self.eigenvalues, num_targets), residual)

    def learned(self, schedule: Schedule, residual: Float[Array, "n k"], num_targets: int) -> Float[Array, "n k"]:
        """Return M g(M) (y - f): what training adds to the training outputs."""
        return self._apply(self.eigenvalues * schedule.gain(self.eigenvalues, num_targets), residual)

    def _apply(self, values: Array, residual: Array) -> Array:
        return self.eigenvectors @ (values[:, None] * (self.eigenvectors.T @ residual))

    def check(self, door: str, schedule: Schedule, num_targets: int) -> None:
        """Refuse what is not finite, and warn of what cannot be trusted."""
        check_spectrum(door, MATRIX, self.eigenvalues, schedule.gain(self.eigenvalues, num_targets))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Inverse:
    """A matrix M by its Cholesky factor: training to convergence, g(M) = M^-1, for a tenth of the cost of `Modes`.

    Args:
      factor: (n, n) lower Cholesky factor.
    """

    factor: Float[Array, "n n"]

    def weights(self, schedule: Schedule, residual: Float[Array, "n k"], num_targets: int) -> Float[Array, "n k"]:
        """Return M^-1 (y - f)."""
        return cho_solve(self.factor, residual)

    def modes(self) -> Modes:
        """Return the same matrix by its eigenvectors, for other schedules."""
        return Modes(*jnp.linalg.eigh(self.factor @ self.factor.T))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainingDynamics:
    """A linearised network trained on 1/(2N) sum (f - y)^2, through its tangent kernel; built by `training_dynamics`.

    The eigenvectors are found once and serve every schedule (`Flow`, `Descent`), initial value and test input. With
    M = K + (scale^2 + ridge) I the dynamics are those of the loss with the penalty (scale^2 + ridge)/(2N) |w - w_0|^2
    on the way of the weights from where they start.

    Args:
      modes: M by its eigenvectors.
      y: (n, k) targets.
    """

    modes: Modes
    y: Float[Array, "n k"]

    def values(
        self,
        schedule: Schedule,
        *,
        f_train: Real[Data, "n k"] | None = None,
        k_td: Real[Data, "t n"] | None = None,
        f_test: Real[Data, "t k"] | None = None,
    ) -> tuple[Float[Array, "n k"], Float[Array, "t k"] | None]:
        """Return the outputs of one trained network, at the training and at the test inputs.

        train = f_train + M g(M) (y - f_train), test = f_test + K_td g(M) (y - f_train), with g(M) the schedule's gain.
        With noise or a ridge `train` is of the targets, a penalised part of which is noise; the function itself at
        the training inputs is `test` with k_td = K_dd.

        Source: Lee et al. 2019 (arXiv 1902.06720), section 2.2, where learning rates are ours divided by N.

        Args:
          schedule: how it is trained.
          f_train: (n, k) outputs at the start, at the training inputs; None for zero.
          k_td: (t, n) tangent kernel between test and training inputs; None for no test inputs.
          f_test: (t, k) outputs at the start, at the test inputs; None for zero.

        Returns:
          Outputs (n, k) at the training inputs, and (t, k) at the test inputs or None.

        Raises:
          ValueError: for wrong shapes, NaN or infinite numbers, or training that diverges.
        """
        door, (n, k) = "values", self.y.shape
        start = jnp.zeros_like(self.y)
        if f_train is not None:
            check_array(door, "f_train", f_train, (n, k), f"n={n} and k={k} from y")
            start = jnp.asarray(f_train, self.y.dtype)
        self.modes.check(door, schedule, n * k)
        residual = self.y - start
        train = start + self.modes.learned(schedule, residual, n * k)
        if k_td is None:
            return train, None
        check_array(door, "k_td", k_td, ("t", n), f"n={n} from y")
        test = jnp.asarray(k_td, self.y.dtype) @ self.modes.weights(schedule, residual, n * k)
        if f_test is None:
            return train, test
        check_array(door, "f_test", f_test, (len(test), k), f"t={len(test)} from k_td and k={k} from y")
        return train, jnp.asarray(f_test, self.y.dtype) + test

    def ensemble(
        self,
        schedule: Schedule,
        *,
        k_dd: Real[Data, "n n"],
        k_td: Real[Data, "t n"],
        k_tt: Real[Data, "t t"],
        ntk_td: Real[Data, "t n"],
        target_variance: int | float = 0.0,
    ) -> tuple[Float[Array, "t k"], Float[Array, "t t"]]:
        """Return mean and covariance, over initialisations f ~ N(0, K), of the trained outputs at test inputs.

        `ensemble_moments`, with NNGP and tangent kernels given.

        Args:
          schedule: how each network is trained.
          k_dd: (n, n) NNGP kernel of the training inputs, without noise.
          k_td: (t, n) NNGP kernel between test and training inputs.
          k_tt: (t, t) NNGP kernel of the test inputs.
          ntk_td: (t, n) tangent kernel between test and training inputs.
          target_variance: variance of noise that each network's targets get for its own, in squared units of y. With
            ntk = nngp (only readouts are trained), no time limit, and this equal to the noise variance, the ensemble is
            the posterior of the NNGP.

        Returns:
          The mean (t, k), and the covariance (t, t) of each output; of the function, without noise.

        Raises:
          ValueError: for wrong shapes, NaN or infinite numbers, or training that diverges.
        """
        door, (n, k), t = "ensemble", self.y.shape, len(k_tt)
        check_array(door, "k_tt", k_tt, (t, t))
        for name, value, shape in (("k_dd", k_dd, (n, n)), ("k_td", k_td, (t, n)), ("ntk_td", ntk_td, (t, n))):
            check_array(door, name, value, shape, f"n={n} from y and t={t} from k_tt")
        self.modes.check(door, schedule, n * k)
        initial, cross, prior, tangent = (jnp.asarray(value, self.y.dtype) for value in (k_dd, k_td, k_tt, ntk_td))
        initial = add_diagonal(initial, jnp.asarray(target_variance, self.y.dtype))
        gain = self.modes.weights(schedule, tangent.T, n * k).T
        return gain @ self.y, ensemble_covariance(gain, initial, cross, prior)


def ensemble_covariance(
    gain: Float[Array, "t n"], k_dd: Float[Array, "n n"], k_td: Float[Array, "t n"], k_tt: Float[Array, "t t"]
) -> Float[Array, "t t"]:
    """Return the covariance over initialisations of f_test + G (y - f_train), with G (t, n) = ntk_td g(M).

    cov = K_tt + G K_dd G^T - G K_dt - K_td G^T.

    Source: Lee et al. 2019 (arXiv 1902.06720), eqs. 14 and 16.
    """
    both = gain @ k_td.T
    return k_tt + gain @ k_dd @ gain.T - both - both.T


def training_dynamics(
    ntk_dd: Real[Data, "n n"], y: Real[Data, "n k"], likelihood: Gaussian | None = None, *, ridge: Ridge | None = None
) -> TrainingDynamics:
    """Prepare the training dynamics of a linearised network, given its tangent kernel.

    Args:
      ntk_dd: (n, n) tangent kernel of the training inputs, of an infinitely wide network or (averaged over outputs) of
        a finite one.
      y: (n, k) targets.
      likelihood: `Gaussian(scale)`: scale^2 is added to the diagonal; None adds nothing.
      ridge: regularisation added to the diagonal besides the noise.

    Returns:
      The dynamics, for any schedule; its cost is one eigendecomposition.

    Raises:
      ValueError: for wrong shapes, or NaN or infinite numbers.
    """
    variance = noise_variance("training_dynamics", likelihood)
    check_array("training_dynamics", "y", y, ("n", "k"))
    check_array("training_dynamics", "ntk_dd", ntk_dd, (len(y), len(y)), f"n={len(y)} from y")
    number = jnp.result_type(float)
    return TrainingDynamics(_modes(jnp.asarray(ntk_dd, number), variance, ridge), jnp.asarray(y, number))


@jax.jit
def _modes(ntk_dd: Array, variance: Array, ridge: Ridge | None) -> Modes:
    return Modes(*jnp.linalg.eigh(add_diagonal(ntk_dd, diagonal(ntk_dd, variance, ridge))))


@jax.jit
def _inverse(ntk_dd: Array, variance: Array, ridge: Ridge | None) -> tuple[Array, Inverse]:
    matrix = add_diagonal(ntk_dd, diagonal(ntk_dd, variance, ridge))
    return matrix, Inverse(cholesky(matrix))


def solver(
    door: str, schedule: Schedule, ntk_dd: Float[Array, "n n"], variance: Array, ridge: Ridge | None, num_targets: int
) -> Modes | Inverse:
    """Return the cheaper of the two decompositions that serves a schedule, checked in the voice of the door."""
    if isinstance(schedule, Flow) and schedule.time is None:
        matrix, inverse = _inverse(ntk_dd, variance, ridge)
        check_factor(door, MATRIX, matrix, inverse.factor)
        return inverse
    modes = _modes(ntk_dd, variance, ridge)
    modes.check(door, schedule, num_targets)
    return modes


def max_learning_rate(ntk_dd: Real[Data, "n n"], num_targets: int, *, momentum: float = 0.0) -> Float[Array, ""]:
    """Return the learning rate below which full-batch gradient descent on 1/(2N) sum (f - y)^2 converges.

    2 (1 + momentum) N / lambda_max.

    Args:
      ntk_dd: (n, n) tangent kernel of the training inputs, noise and ridge included where they are used.
      num_targets: N, the number of target entries n k.
      momentum: of the heavy ball, from 0 to below 1.

    Raises:
      ValueError: for a wrong shape, NaN or infinite numbers, or a momentum out of range.
    """
    check_array("max_learning_rate", "ntk_dd", ntk_dd, (len(ntk_dd), len(ntk_dd)))
    check_count("max_learning_rate", "num_targets", num_targets)
    check_momentum("max_learning_rate", momentum)
    largest = jnp.linalg.eigvalsh(jnp.asarray(ntk_dd, jnp.result_type(float)))[-1]
    return 2 * (1 + momentum) * num_targets / largest
