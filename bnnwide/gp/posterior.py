"""Posteriors over functions: what every infinite-width posterior answers, and the Gaussian process itself."""

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from bnnwide.arch import Layer
from bnnwide.checks import Data, check_array, check_count, check_inputs, is_concrete
from bnnwide.gp.conditioning import REMEDY
from bnnwide.gp.memory import check_memory
from bnnwide.gp.regression import Regression, condition
from bnnwide.gp.ridge import Ridge, noise_variance
from bnnwide.likelihoods import Gaussian
from bnnwide.prediction import Prediction


class Posterior(abc.ABC):
    """A Gaussian law over functions given training data; outputs are independent and share one covariance.

    A subclass states moments at test inputs, in full and on the diagonal; this class checks, batches and samples. All
    moments are of the function: only `Prediction.aleatoric` (and so `.variance`) holds the noise.
    """

    net: Layer
    x: Any
    variance: Any

    @property
    @abc.abstractmethod
    def outputs(self) -> int:
        """k, the number of outputs."""

    @abc.abstractmethod
    def moments(self, x_test: Float[Array, "t ..."]) -> tuple[Float[Array, "t k"], Float[Array, "t t"]]:
        """Return mean (t, k) and covariance (t, t) of the function at test inputs."""

    @abc.abstractmethod
    def marginals(self, x_test: Float[Array, "t ..."]) -> tuple[Float[Array, "t k"], Float[Array, "t"]]:
        """Return mean (t, k) and variance (t,) of the function at test inputs."""

    def predict(self, x_test: Real[Data, "t ..."], full_cov: bool = False, *, batch_size: int = 4096) -> Prediction:
        """Return the posterior moments at test inputs.

        Args:
          x_test: (t, *input_shape) test inputs.
          full_cov: whether to return the covariance (t, t) of the function as well, in one piece.
          batch_size: how many test inputs are held at once without it; memory grows with n times this.

        Returns:
          Moments (t, k), in the units of y: `epistemic` of the function, `aleatoric` of the noise (scale^2, without any
          ridge), `variance` of a new observation, their sum; `covariance` of the function, shared by the outputs.

        Raises:
          ValueError: for a wrong shape, or NaN or infinite numbers.
        """
        door = "predict"
        x_test = check_inputs(door, "x_test", x_test, self.x.shape[1:])
        check_count(door, "batch_size", batch_size)
        covariance = None
        if full_cov:
            mean, covariance = self.moments(x_test)
            spread = jnp.maximum(jnp.diagonal(covariance), 0.0)
        else:
            parts = [self.marginals(x_test[i : i + batch_size]) for i in range(0, len(x_test), batch_size)]
            mean, spread = (jnp.concatenate(rows) for rows in zip(*parts, strict=True)) if parts[1:] else parts[0]
        if is_concrete(mean) and not (jnp.isfinite(mean).all() and jnp.isfinite(spread).all()):
            raise ValueError(f"`{door}`: the moments are not finite; {REMEDY}")
        noise = jnp.broadcast_to(jnp.asarray(self.variance, mean.dtype), mean.shape)
        return Prediction(mean, jnp.broadcast_to(spread[:, None], mean.shape), noise, covariance)

    def sample(self, key: Array, x_test: Real[Data, "t ..."], num_samples: int) -> Float[Array, "s t k"]:
        """Draw functions from the posterior, jointly over test inputs; without noise.

        Args:
          key: PRNG key.
          x_test: (t, *input_shape) test inputs; the cost grows with t^3.
          num_samples: s, how many functions.

        Returns:
          (s, t, k) values of the function. A draw of observations adds scale times standard normal numbers.

        Raises:
          ValueError: for a wrong shape, or NaN or infinite numbers.
        """
        x_test = check_inputs("sample", "x_test", x_test, self.x.shape[1:])
        check_count("sample", "num_samples", num_samples)
        mean, covariance = self.moments(x_test)
        draws = jax.random.normal(key, (num_samples, len(x_test), self.outputs), mean.dtype)
        # By eigenvectors: where test inputs meet training inputs the covariance is singular, and rounding may leave its
        # smallest eigenvalues below zero by more than its own diagonal, which no jitter relative to it would mend.
        values, vectors = jnp.linalg.eigh(covariance)
        return mean + (vectors * jnp.sqrt(jnp.maximum(values, 0.0))) @ draws


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class GaussianProcess(Posterior):
    """The posterior of a Gaussian process whose prior covariance is a kernel of an infinitely wide network.

    Built by `nngp`, or by `ntk` with kind="covariance".

    Args:
      net: the architecture.
      x: (n, *input_shape) training inputs.
      variance: the noise variance scale^2, in squared units of y.
      regression: the process conditioned on the training targets.
      kernel: which kernel of the network is the prior covariance, "nngp" or "ntk".
    """

    net: Layer
    x: Float[Array, "n ..."]
    variance: Float[Array, ""]
    regression: Regression
    kernel: str = dataclasses.field(default="nngp", metadata={"static": True})

    @property
    def outputs(self) -> int:
        """k, the number of outputs."""
        return self.regression.y.shape[1]

    def moments(self, x_test: Float[Array, "t ..."]) -> tuple[Float[Array, "t k"], Float[Array, "t t"]]:  # noqa: D102
        cross, prior = (covariance(self.net, self.kernel, *pair) for pair in ((x_test, self.x), (x_test, None)))
        return _moments(self.regression, cross, prior)

    def marginals(self, x_test: Float[Array, "t ..."]) -> tuple[Float[Array, "t k"], Float[Array, "t"]]:  # noqa: D102
        cross = covariance(self.net, self.kernel, x_test, self.x)
        diagonal = getattr(self.net.kernel_diag(x_test, ntk=self.kernel == "ntk"), self.kernel)
        return _marginals(self.regression, cross, diagonal)

    def log_marginal_likelihood(self) -> Float[Array, ""]:
        """Return log p(y) of the training targets, all outputs together; a ridge counts as part of the prior."""
        return self.regression.log_marginal_likelihood()

    def leave_one_out(self) -> Prediction:
        """Return, for every training input, the prediction from all the others, in closed form.

        Source: Rasmussen & Williams 2006, eq. 5.12.

        Returns:
          Moments (n, k), as `predict` without row i would give at row i (with the ridge, if there is one, of all n).
        """
        mean, variance = self.regression.leave_one_out()
        spread = jnp.maximum(variance - self.regression.diagonal, 0.0)
        noise = jnp.broadcast_to(jnp.asarray(self.variance, mean.dtype), mean.shape)
        return Prediction(mean, jnp.broadcast_to(spread[:, None], mean.shape), noise)

    def leave_one_out_log_prob(self) -> Float[Array, "n k"]:
        """Return log p(y_ij | y without row i) (n, k); its sum is eq. 5.11 of Rasmussen & Williams 2006."""
        return self.regression.leave_one_out_log_prob()

    def __repr__(self) -> str:
        shown = f"scale={float(self.variance) ** 0.5:.3g}" if is_concrete(self.variance) else "scale=traced"
        return f"GaussianProcess(n={len(self.x)}, k={self.outputs}, kernel={self.kernel!r}, {shown}, net={self.net})"


_moments, _marginals = jax.jit(Regression.moments), jax.jit(Regression.marginals)


def nngp(
    net: Layer,
    x: Real[Data, "n ..."],
    y: Real[Data, "n k"],
    likelihood: Gaussian | None,
    *,
    ridge: Ridge | None = None,
) -> GaussianProcess:
    """Return the exact posterior of an infinitely wide Bayesian network: a Gaussian process with the NNGP kernel.

    mean = K_td A^-1 y, cov = K_tt - K_td A^-1 K_dt, with A = K_dd + (scale^2 + ridge) I.

    Source: Lee et al. 2018 (arXiv 1711.00165), eqs. 8-9.

    Args:
      net: the architecture; the width of its readout does not matter.
      x: (n, *input_shape) training inputs.
      y: (n, k) training targets; the outputs are independent and share the kernel.
      likelihood: `Gaussian(scale)`: scale^2, in squared units of y, is added to the diagonal as it is; None for targets
        without noise.
      ridge: regularisation added to the diagonal besides the noise: `Ridge(1e-4)`, relative to the mean trace of K_dd.

    Returns:
      The posterior, with `predict`, `sample`, `log_marginal_likelihood` and `leave_one_out`.

    Raises:
      TypeError: if `net` is no architecture or `likelihood` no likelihood.
      ValueError: for wrong shapes, NaN or infinite numbers, a learned noise scale, more inputs than memory has room
        for, or a matrix with no Cholesky factor.

    Warns:
      RuntimeWarning: if the matrix is too ill-conditioned for the floating-point type, or took jitter.
    """
    return gaussian_process("nngp", net, x, y, likelihood, ridge, "nngp")


def gaussian_process(
    door: str, net: Layer, x: Data, y: Data, likelihood: Gaussian | None, ridge: Ridge | None, kernel: str
) -> GaussianProcess:
    """Condition a process with either kernel, in the voice of the public door that was called."""
    x, y, variance = check_problem(door, net, x, y, likelihood, ridge)
    check_memory(door, x)
    result = condition(door, covariance(net, kernel, x), y, variance, ridge)
    return GaussianProcess(net, x, variance, result, kernel)


def covariance(net: Layer, kernel: str, x1: Array, x2: Array | None = None) -> Array:
    """Return one of the two kernels, without paying for the NTK where the NNGP is asked for."""
    return getattr(net.kernel(x1, x2, ntk=kernel == "ntk"), kernel)


def check_problem(
    door: str, net: Any, x: Data, y: Data, likelihood: Gaussian | None, ridge: Ridge | None
) -> tuple[Array, Array, Array]:
    """Check what a posterior is built from; return inputs, targets and noise variance as JAX arrays."""
    if not isinstance(net, Layer):
        raise TypeError(f"`{door}`: net must be an architecture such as Dense(512) >> Gelu() >> Dense(1); got {net!r}")
    if ridge is not None and not isinstance(ridge, Ridge):
        raise TypeError(f"`{door}`: ridge must be Ridge(value) or None; got {ridge!r}")
    variance = noise_variance(door, likelihood)
    x = check_inputs(door, "x", x)
    check_array(door, "y", y, (len(x), "k"), f"n={len(x)} from x")
    return x, jnp.asarray(y, jnp.result_type(float)), variance
