"""Gaussian process posteriors of more data than a Cholesky factor has room for."""

import dataclasses
import math
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from bnnwide.arch import Layer
from bnnwide.checks import Data, check_count, check_inputs, check_positive
from bnnwide.gp.blocks import kernel_matrix
from bnnwide.gp.iterative import Solution, conjugate_gradients
from bnnwide.gp.kernel_operator import KernelOperator
from bnnwide.gp.lanczos import log_determinant, square_root
from bnnwide.gp.linear import Deflated, Joint, Preconditioned, Shifted
from bnnwide.gp.posterior import Posterior, check_problem
from bnnwide.gp.preconditioner import Preconditioner, pivoted_cholesky, precondition
from bnnwide.gp.ridge import Ridge
from bnnwide.likelihoods import Gaussian

# Steps of the square root that prior draws take; a pass over the kernel each.
ROOT_STEPS = 32
# Relative error of a prior draw above which `sample` warns.
LARGEST_ROOT_ERROR = 1e-2


def large(
    net: Layer,
    x: Real[Data, "n ..."],
    y: Real[Data, "n k"],
    likelihood: Gaussian | None,
    *,
    ridge: Ridge | None = None,
    kernel: str = "nngp",
    rank: int = 256,
    tolerance: int | float | None = None,
    max_iterations: int = 1000,
    memory: int | float = 2**31,
    batch_size: int = 256,
    block_size: int | None = None,
    devices: Sequence[Any] | None = None,
    progress: bool = False,
) -> "LargeGaussianProcess":
    """Return the posterior of `nngp` by preconditioned conjugate gradients, for n past what a Cholesky factor allows.

    The kernel is never held whole: its blocks are computed as products need them, on all devices, but for those that
    fit into `memory`. What is solved is solved to a relative residual of `tolerance`, which is reported.

    Source: Gardner et al. 2018 (arXiv 1809.11165); Wang et al. 2019 (arXiv 1903.08114).

    Args:
      net: the architecture; the width of its readout does not matter.
      x: (n, *input_shape) training inputs.
      y: (n, k) training targets; the outputs are independent and share the kernel.
      likelihood: `Gaussian(scale)`: scale^2, in squared units of y, is added to the diagonal; None for targets without
        noise, which then need a ridge.
      ridge: regularisation added to the diagonal besides the noise.
      kernel: which kernel is the prior covariance, "nngp" or "ntk".
      rank: of the pivoted Cholesky preconditioner, and of the prior draws'.
      tolerance: largest relative residual of a solution; None for 1e-6 in float64 and 1e-3 in float32.
      max_iterations: of one run of conjugate gradients.
      memory: bytes that blocks of the kernel may take while they are kept from product to product.
      batch_size: test inputs, or draws, that are solved for at once: about six (n, batch_size) arrays are held.
      block_size: rows and columns of a block; None for 512 on a CPU and 4096 elsewhere.
      devices: JAX devices that compute; None for all of this process.
      progress: whether to show progress bars.

    Returns:
      The posterior, with `predict`, `mean`, pathwise `sample`, `log_marginal_likelihood`, and `residual`.

    Raises:
      TypeError: if `net` is no architecture or `likelihood` no likelihood.
      ValueError: for wrong shapes, NaN or infinite numbers, a learned noise scale, or neither noise nor ridge.

    Warns:
      RuntimeWarning: if a solution did not reach the tolerance.
    """
    x, y, variance = check_problem("large", net, x, y, likelihood, ridge)
    check_count("large", "batch_size", batch_size)
    operator = KernelOperator(net, x, kernel=kernel, block_size=block_size, devices=devices)
    diagonal = variance
    if ridge is not None:
        diagonal = variance + jnp.asarray(ridge.value) * (jnp.mean(operator.diagonal()) if ridge.relative else 1.0)
    check_positive("large", "scale^2 + ridge", float(diagonal))
    preconditioner = precondition(pivoted_cholesky(operator, rank), diagonal)
    system = System(operator.keep(memory), diagonal, preconditioner, tolerance, max_iterations, progress)
    return LargeGaussianProcess(net, x, variance, y, system, system.solve(y), rank=rank, batch_size=batch_size)


@dataclasses.dataclass(frozen=True, eq=False)
class System:
    """A = K + diagonal I, and how equations with A are solved.

    Args:
      operator: the kernel K of the training inputs.
      diagonal: scale^2 + ridge, in squared units of y.
      preconditioner: of A.
      tolerance: largest relative residual.
      max_iterations: of one run of conjugate gradients.
      progress: whether to show progress bars.
    """

    operator: KernelOperator
    diagonal: Float[Array, ""]
    preconditioner: Preconditioner
    tolerance: int | float | None
    max_iterations: int
    progress: bool

    @property
    def matrix(self) -> Shifted:
        """A, by its products."""
        return Shifted(self.operator, self.diagonal)

    def solve(self, b: Float[Array, "n c"]) -> Solution:
        """Return A^-1 b."""
        options = {"tolerance": self.tolerance, "max_iterations": self.max_iterations, "progress": self.progress}
        return conjugate_gradients(self.matrix, b, preconditioner=self.preconditioner, **options)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LargeGaussianProcess(Posterior):
    """The posterior of a Gaussian process whose equations are solved by conjugate gradients; built by `large`.

    Args:
      net: the architecture.
      x: (n, *input_shape) training inputs.
      variance: the noise variance scale^2, in squared units of y.
      y: (n, k) training targets.
      system: A = K + (scale^2 + ridge) I, and how it is solved.
      solution: A^-1 y, with its residuals.
      rank: of the low-rank part of prior draws.
      batch_size: columns that are solved for at once.
    """

    net: Layer
    x: Float[Array, "n ..."]
    variance: Float[Array, ""]
    y: Float[Array, "n k"]
    system: System
    solution: Solution
    _: dataclasses.KW_ONLY
    rank: int
    batch_size: int

    @property
    def operator(self) -> KernelOperator:
        """The kernel K of the training inputs."""
        return self.system.operator

    @property
    def outputs(self) -> int:
        """k, the number of outputs."""
        return self.y.shape[1]

    @property
    def residual(self) -> float:
        """|y - A alpha| / |y| of the weights alpha behind every mean: the largest over outputs."""
        return float(self.solution.residual.max())

    @property
    def num_iterations(self) -> int:
        """Iterations that these weights took."""
        return self.solution.num_iterations

    def mean(self, x_test: Real[Data, "t ..."]) -> Float[Array, "t k"]:
        """Return the posterior mean K_*n alpha alone, without the equations that variances need for each test input.

        Off by what the residual of alpha allows, in first order; the mean of `predict` in second order.

        Args:
          x_test: (t, *input_shape) test inputs.
        """
        x_test = check_inputs("mean", "x_test", x_test, self.x.shape[1:])
        return self.operator.cross(x_test) @ self.solution.value

    def marginals(self, x_test: Float[Array, "t ..."]) -> tuple[Float[Array, "t k"], Float[Array, "t"]]:
        """Return mean (t, k) and variance (t,) of the function at test inputs.

        Solutions X ~ A^-1 K_n* with residuals R = K_n* - A X give K_*n A^-1 K_n* as X^T K_n* + R^T X, off by
        (A^-1 K_n* - X)^T A (A^-1 K_n* - X): of second order in the residual, and positive, so that no variance is
        understated. The mean is K_*n alpha + X^T (y - A alpha), of second order as well.
        """
        means, explained = [], []
        for cross, solved in self._solved(x_test):
            means.append(_mean(cross, solved.value, self.solution))
            explained.append(_explained(cross, solved.value, solved.left))
        prior = getattr(self.net.kernel_diag(x_test, ntk=self.operator.kernel == "ntk"), self.operator.kernel)
        return jnp.concatenate(means), jnp.maximum(prior - jnp.concatenate(explained), 0.0)

    def moments(self, x_test: Float[Array, "t ..."]) -> tuple[Float[Array, "t k"], Float[Array, "t t"]]:
        """Return mean (t, k) and covariance (t, t) of the function at test inputs, as `marginals` does."""
        parts = [(cross, solved.value, solved.left) for cross, solved in self._solved(x_test)]
        cross, value, left = (jnp.concatenate(columns, axis=1) for columns in zip(*parts, strict=True))
        prior = jnp.asarray(dataclasses.replace(self.operator.cross(x_test), x2=None).to_dense())
        return _mean(cross, value, self.solution), _covariance(prior, cross, value, left)

    def sample(self, key: Array, x_test: Real[Data, "t ..."], num_samples: int) -> Float[Array, "s t k"]:
        """Draw functions from the posterior pathwise, jointly over test inputs; without noise.

        f + K_*n A^-1 (y - f_n - e), with a prior draw (f_n, f) over training and test inputs and e ~ N(0, diagonal I)
        (Wilson et al. 2020, arXiv 2002.09309, Matheron's rule). Prior draws are L z_1 + R^(1/2) z_2, with the joint
        kernel K = L L^T + R split by pivoted Cholesky and the root of the small remainder R from Krylov spaces. One
        equation is solved for each function and output, however many the test inputs.

        Args:
          key: PRNG key.
          x_test: (t, *input_shape) test inputs.
          num_samples: s, how many functions.

        Returns:
          (s, t, k) values of the function.

        Raises:
          ValueError: for a wrong shape, or NaN or infinite numbers.

        Warns:
          RuntimeWarning: if a prior draw is off by more than a hundredth, or a solution did not reach the tolerance.
        """
        x_test = check_inputs("sample", "x_test", x_test, self.x.shape[1:])
        check_count("sample", "num_samples", num_samples)
        n, k = self.y.shape
        cross = self.operator.cross(x_test)
        both = dataclasses.replace(self.operator, x1=jnp.concatenate([self.x, x_test]), kept=None)
        factor = pivoted_cholesky(both, self.rank).factor
        joint = Joint(self.operator, cross, cross.T, dataclasses.replace(cross, x2=None))
        # Keys of columns, not of batches: the draws do not depend on how they are batched.
        keys = jax.random.split(key, num_samples * k)
        # A square root holds ROOT_STEPS arrays where conjugate gradients hold six.
        size = max(1, 6 * self.batch_size // ROOT_STEPS)
        draws, errors = [], []
        for start in range(0, len(keys), size):
            some = keys[start : start + size]
            first, second, noise = _normal(some, factor.shape[1], len(factor), n)
            rest, error = square_root(Deflated(joint, factor), second, num_steps=ROOT_STEPS)
            output = (start + jnp.arange(len(some))) % k
            prior, misfit, relative = _misfit(factor, first, rest, error, self.y, output, noise, self.system.diagonal)
            draws.append(prior + cross @ self.system.solve(misfit).value)
            errors.append(float(relative))
        _check_root(max(errors), self.rank)
        return jnp.concatenate(draws, axis=1).T.reshape(num_samples, k, len(x_test)).swapaxes(1, 2)

    def log_marginal_likelihood(self, *, key: Array | None = None, num_probes: int = 16) -> Float[Array, ""]:
        """Estimate log p(y) = -1/2 tr(y^T A^-1 y) - k/2 log det A - nk/2 log 2 pi, of all outputs together.

        The ridge, if there is one, counts as part of the prior. k/2 times the standard error of `log_det` is its own.

        Args:
          key: PRNG key of the probes of `log_det`; None for a fixed one.
          num_probes: number of probes.
        """
        fit = jnp.sum(self.y * self.solution.value)
        log_det, _ = self.log_det(key=key, num_probes=num_probes)
        return -0.5 * (fit + self.outputs * log_det + self.y.size * math.log(2 * math.pi))

    def log_det(self, *, key: Array | None = None, num_probes: int = 16) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Estimate log det A = log det P + log det(P^-1 A), the latter by stochastic Lanczos quadrature.

        Source: Gardner et al. 2018 (arXiv 1809.11165), section on the log determinant.

        Args:
          key: PRNG key of the probes; None for a fixed one.
          num_probes: number of probes.

        Returns:
          The estimate and its standard error over the probes.
        """
        whitened = Preconditioned(self.system.matrix, self.system.preconditioner)
        key = jax.random.key(0) if key is None else key
        rest, error = log_determinant(whitened, key, num_probes=num_probes)
        return self.system.preconditioner.log_det() + rest, error

    def _solved(self, x_test: Array) -> Iterator[tuple[Array, Solution]]:
        """Yield K_n* and A^-1 K_n*, some columns at a time."""
        options = {"block_size": self.operator.block_size, "devices": self.operator.devices}
        for start in range(0, len(x_test), self.batch_size):
            some = x_test[start : start + self.batch_size]
            kernels = kernel_matrix(self.net, self.x, some, ntk=self.operator.kernel == "ntk", **options)
            cross = jnp.asarray(getattr(kernels, self.operator.kernel))
            yield cross, self.system.solve(cross)

    def __repr__(self) -> str:
        about = f"n={len(self.x)}, k={self.outputs}, kernel={self.operator.kernel!r}"
        solved = f"residual={self.residual:.1e} after {self.num_iterations} iterations"
        return f"LargeGaussianProcess({about}, scale={float(self.variance) ** 0.5:.3g}, {solved}, net={self.net})"


@jax.jit
def _mean(cross: Array, value: Array, solution: Solution) -> Array:
    return cross.T @ solution.value + value.T @ solution.left


@jax.jit
def _explained(cross: Array, value: Array, left: Array) -> Array:
    return jnp.sum((cross + left) * value, axis=0)


@jax.jit
def _covariance(prior: Array, cross: Array, value: Array, left: Array) -> Array:
    covariance = prior - value.T @ cross - left.T @ value
    return (covariance + covariance.T) / 2


@partial(jax.jit, static_argnums=(1, 2, 3))
def _normal(keys: Array, *sizes: int) -> list[Array]:
    """Return standard normal arrays (size, number of keys), a column for each key."""
    draws = jax.vmap(lambda key: jax.random.normal(key, (sum(sizes),)))(keys).T
    edges = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
    return jnp.split(draws, edges)


@jax.jit
def _misfit(
    factor: Array, first: Array, rest: Array, error: Array, y: Array, output: Array, noise: Array, diagonal: Array
) -> tuple[Array, Array, Array]:
    """Return prior draws at test inputs, what the data miss them by, and the relative error of the worst draw."""
    prior = factor @ first + rest
    misfit = y[:, output] - prior[: len(y)] - jnp.sqrt(diagonal) * noise
    return prior[len(y) :], misfit, jnp.max(error / jnp.linalg.norm(prior, axis=0))


def _check_root(error: float, rank: int) -> None:
    if not error <= LARGEST_ROOT_ERROR:
        warnings.warn(
            f"`sample`: prior draws are off by {error:.1e} of their size, with what rank={rank} leaves to the square "
            "root; raise rank",
            RuntimeWarning,
            stacklevel=3,
        )
