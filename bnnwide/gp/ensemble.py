"""Ensembles of infinitely wide networks trained by gradient descent, and the NTK as a prior covariance."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from bnnwide.arch import Layer
from bnnwide.checks import Data, check_choice
from bnnwide.gp.dynamics import Inverse, Modes, ensemble_covariance, solver
from bnnwide.gp.memory import check_memory
from bnnwide.gp.posterior import GaussianProcess, Posterior, check_problem, gaussian_process
from bnnwide.gp.ridge import Ridge
from bnnwide.gp.schedules import Descent, Flow, Schedule, check_momentum
from bnnwide.likelihoods import Gaussian

KINDS = ("ensemble", "covariance")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class TrainedEnsemble(Posterior):
    """The law of an infinitely wide network trained on 1/(2N) sum (f - y)^2 from a random start; built by `ntk`.

    Args:
      net: the architecture.
      x: (n, *input_shape) training inputs.
      variance: the noise variance scale^2, in squared units of y.
      y: (n, k) training targets.
      k_dd: (n, n) NNGP kernel of the training inputs: how the networks start.
      solver: M = NTK + (scale^2 + ridge) I, by eigenvectors or by its Cholesky factor: how they learn.
      schedule: how long they learn, `Flow` or `Descent`.
    """

    net: Layer
    x: Float[Array, "n ..."]
    variance: Float[Array, ""]
    y: Float[Array, "n k"]
    k_dd: Float[Array, "n n"]
    solver: Modes | Inverse
    schedule: Schedule

    @property
    def outputs(self) -> int:
        """k, the number of outputs."""
        return self.y.shape[1]

    def at(self, schedule: Schedule) -> "TrainedEnsemble":
        """Return the same networks after another training, without a new decomposition once there is one by modes.

        Args:
          schedule: `Flow(time)`, `Flow()` for convergence, or `Descent(num_steps, learning_rate)`.

        Raises:
          ValueError: if training diverges.
        """
        modes = self.solver.modes() if isinstance(self.solver, Inverse) else self.solver
        modes.check("at", schedule, self.y.size)
        return dataclasses.replace(self, solver=modes, schedule=schedule)

    def max_learning_rate(self, momentum: float = 0.0) -> Float[Array, ""]:
        """Return the learning rate below which gradient descent (`Descent`) converges, 2 (1 + momentum) N / lambda_max.

        Args:
          momentum: of the heavy ball, from 0 to below 1.
        """
        check_momentum("max_learning_rate", momentum)
        if isinstance(self.solver, Inverse):
            eigenvalues = jnp.linalg.eigvalsh(self.solver.factor @ self.solver.factor.T)
        else:
            eigenvalues = self.solver.eigenvalues
        return 2 * (1 + momentum) * self.y.size / eigenvalues[-1]

    def moments(self, x_test: Float[Array, "t ..."]) -> tuple[Float[Array, "t k"], Float[Array, "t t"]]:  # noqa: D102
        cross = self.net.kernel(x_test, self.x)
        return _moments(self, cross.nngp, cross.ntk, self.net.kernel(x_test, ntk=False).nngp)

    def marginals(self, x_test: Float[Array, "t ..."]) -> tuple[Float[Array, "t k"], Float[Array, "t"]]:  # noqa: D102
        cross = self.net.kernel(x_test, self.x)
        return _marginals(self, cross.nngp, cross.ntk, self.net.kernel_diag(x_test, ntk=False).nngp)

    def __repr__(self) -> str:
        return f"TrainedEnsemble(n={len(self.x)}, k={self.outputs}, schedule={self.schedule}, net={self.net})"


def _gain(ensemble: TrainedEnsemble, ntk_td: Array) -> Float[Array, "t n"]:
    return ensemble.solver.weights(ensemble.schedule, ntk_td.T, ensemble.y.size).T


@jax.jit
def _moments(ensemble: TrainedEnsemble, k_td: Array, ntk_td: Array, k_tt: Array) -> tuple[Array, Array]:
    gain = _gain(ensemble, ntk_td)
    return gain @ ensemble.y, ensemble_covariance(gain, ensemble.k_dd, k_td, k_tt)


@jax.jit
def _marginals(ensemble: TrainedEnsemble, k_td: Array, ntk_td: Array, k_tt_diag: Array) -> tuple[Array, Array]:
    gain = _gain(ensemble, ntk_td)
    spread = k_tt_diag + jnp.sum(gain * (gain @ ensemble.k_dd - 2 * k_td), axis=1)
    return gain @ ensemble.y, jnp.maximum(spread, 0.0)


def ntk(
    net: Layer,
    x: Real[Data, "n ..."],
    y: Real[Data, "n k"],
    likelihood: Gaussian | None,
    time: int | float | Array | None = None,
    learning_rate: int | float = 1.0,
    *,
    num_steps: int | None = None,
    momentum: float = 0.0,
    kind: str = "ensemble",
    ridge: Ridge | None = None,
) -> TrainedEnsemble | GaussianProcess:
    """Return the law of infinitely wide networks trained by gradient descent, or a process with the NTK as covariance.

    kind="ensemble": networks start at f ~ N(0, K), K the NNGP kernel, and follow the gradient of 1/(2N) sum (f - y)^2
    with N = n k (weights by their NTK parameterisation). With T the NTK, M = T_dd + (scale^2 + ridge) I and
    G = T_td M^-1 (I - exp(-M learning_rate time / N)),

      mean = G y, cov = K_tt + G K_dd G^T - G K_dt - K_td G^T.

    The noise variance and the ridge are here the penalty (scale^2 + ridge)/(2N) |w - w_0|^2 on the way of the weights;
    targets are the same for every network. It is a law over trained networks, not a Bayesian posterior, and has no
    marginal likelihood.

    kind="covariance": the posterior of a Gaussian process with prior covariance T.

    Source: Lee et al. 2019 (arXiv 1902.06720), eqs. 13-16; Jacot, Gabriel & Hongler 2018 (arXiv 1806.07572), section 5;
    for the kinds, He, Lakshminarayanan & Teh 2020 (arXiv 2007.05864).

    Args:
      net: the architecture.
      x: (n, *input_shape) training inputs.
      y: (n, k) training targets.
      likelihood: `Gaussian(scale)`, or None for targets without noise.
      time: how long gradient flow runs, in steps of gradient descent with that learning rate; None for convergence.
      learning_rate: of the loss above, positive.
      num_steps: run gradient descent for so many steps instead of gradient flow; then `time` must be None.
      momentum: of the heavy ball, from 0 to below 1.
      kind: "ensemble" or "covariance", as above; the latter takes none of the four options before it.
      ridge: regularisation added to the diagonal besides the noise: `Ridge(1e-4)`, relative to the mean trace of T_dd.

    Returns:
      A `TrainedEnsemble`, with `predict`, `sample`, `at` and `max_learning_rate`; or a `GaussianProcess`.

    Raises:
      TypeError: if `net` is no architecture or `likelihood` no likelihood.
      ValueError: for wrong shapes, NaN or infinite numbers, an option out of range, more inputs than memory has
        room for, a matrix with no Cholesky factor, or training that diverges.

    Warns:
      RuntimeWarning: if the matrix is too ill-conditioned for the floating-point type, or took jitter.
    """
    check_choice("ntk", "kind", kind, KINDS)
    if kind == "covariance":
        given = {"time": time, "num_steps": num_steps}
        wrong = [name for name, value in given.items() if value is not None] + ["momentum"] * bool(momentum)
        if wrong:
            raise ValueError(
                f"`ntk`: kind='covariance' is a posterior without training; got {wrong[0]}; leave it out, or take "
                "kind='ensemble'"
            )
        return gaussian_process("ntk", net, x, y, likelihood, ridge, "ntk")
    schedule = _schedule(time, learning_rate, num_steps, momentum)
    x, y, variance = check_problem("ntk", net, x, y, likelihood, ridge)
    check_memory("ntk", x)
    kernels: Any = net.kernel(x)
    return TrainedEnsemble(
        net, x, variance, y, kernels.nngp, solver("ntk", schedule, kernels.ntk, variance, ridge, y.size), schedule
    )


def _schedule(time: Any, learning_rate: Any, num_steps: int | None, momentum: float) -> Schedule:
    if num_steps is None:
        return Flow(time, learning_rate, momentum)
    if time is not None:
        raise ValueError(f"`ntk`: at most one of time and num_steps must be given; got {time} and {num_steps}")
    return Descent(num_steps, learning_rate, momentum)
