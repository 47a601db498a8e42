"""The NumPyro model of a fully Bayesian Gaussian process: priors on the scales of an infinitely wide network."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float, Real

from bnnwide.arch import Layer
from bnnwide.checks import Data, check_array, check_choice, check_inputs
from bnnwide.gp import GaussianProcess, Ridge
from bnnwide.gp.fit import KERNELS
from bnnwide.gp.posterior import covariance
from bnnwide.gp.regression import condition, log_density
from bnnwide.gp.ridge import add_diagonal, check_one_scale, diagonal
from bnnwide.likelihoods import Gaussian
from bnnwide.linalg import cholesky
from bnnwide.prediction import Prediction

Scales = dict[str, Array]


class GaussianProcessMarginal(dist.Distribution):
    """The law of Y = f + noise at n inputs with the function integrated out: columns are independent N(0, A).

    Args:
      matrix: (n, n) A, the kernel with noise variance and ridge on its diagonal.
      outputs: k, the number of columns of Y.
    """

    support = dist.constraints.real_matrix  # pyright: ignore[reportAssignmentType]  # as in NumPyro's own
    pytree_data_fields = ("matrix",)

    def __init__(self, matrix: Array, outputs: int) -> None:
        self.matrix = matrix
        super().__init__(batch_shape=(), event_shape=(len(matrix), outputs), validate_args=False)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draw (*sample_shape, n, k) targets from the prior predictive."""
        return cholesky(self.matrix) @ jax.random.normal(key, (*sample_shape, *self.event_shape), self.matrix.dtype)

    def log_prob(self, value: Array) -> Array:
        """Return the log density of (n, k) targets."""
        return log_density(self.matrix, value)


@dataclasses.dataclass(frozen=True)
class GPModel:
    """A NumPyro model of a Gaussian process and its hyper-parameters; build it with `gp_model`.

    Call it as model(x, y=None). Sites: one per prior, under its name; "noise_scale" if the noise is learned; "y", with
    the function integrated out.
    """

    net_of_scales: Callable[..., Layer]
    priors: Mapping[str, Any]
    likelihood: Gaussian
    outputs: int = 1
    kernel: str = "nngp"
    ridge: Ridge | None = None

    def __call__(self, x: Real[Data, "n ..."], y: Real[Data, "n k"] | None = None) -> None:
        """State the model, with NumPyro primitives.

        Args:
          x: (n, *input_shape) inputs.
          y: (n, k) targets; without them the model is the prior predictive.

        Raises:
          ValueError: for wrong shapes, or NaN or infinite data.
        """
        x = check_inputs("gp_model", "x", x)
        if y is not None:
            y = self._check_targets("gp_model", x, y)
        scales: Scales = {name: numpyro.sample(name, prior) for name, prior in self.priors.items()}  # pyright: ignore[reportAssignmentType]
        scale = self.likelihood.at({name: numpyro.sample(name, prior) for name, prior in self.noise.items()}).scale
        kernel = covariance(self.net_of_scales(**scales), self.kernel, x)
        matrix = add_diagonal(kernel, diagonal(kernel, jnp.asarray(scale, kernel.dtype) ** 2, self.ridge))
        numpyro.sample("y", GaussianProcessMarginal(matrix, self.outputs), obs=y)

    @property
    def noise(self) -> dict[str, dist.Distribution]:
        """The site "noise_scale" with its prior, if the noise is learned."""
        return self.likelihood.priors

    def posterior(self, draw: Mapping[str, Any], x: Real[Data, "n ..."], y: Real[Data, "n k"]) -> GaussianProcess:
        """Return the process conditioned on data, for one draw of the hyper-parameters.

        Args:
          draw: one number per site.
          x: (n, *input_shape) training inputs.
          y: (n, k) training targets.

        Raises:
          ValueError: for wrong shapes, NaN or infinite data, or a matrix with no Cholesky factor.
        """
        x = check_inputs("posterior", "x", x)
        y = self._check_targets("posterior", x, y)
        scale = self.likelihood.at(draw).scale
        net = self.net_of_scales(**{name: draw[name] for name in self.priors})
        kernel = covariance(net, self.kernel, x)
        variance = jnp.asarray(scale, kernel.dtype) ** 2
        conditioned = condition("posterior", kernel, y, variance, self.ridge)
        return GaussianProcess(net, x, variance, conditioned, self.kernel)

    def predict(
        self,
        samples: Mapping[str, Data],
        x: Real[Data, "n ..."],
        y: Real[Data, "n k"],
        x_test: Real[Data, "t ..."],
        full_cov: bool = False,
    ) -> Prediction:
        """Return the posterior moments at test inputs, the function integrated out exactly for every draw.

        Args:
          samples: what `mcmc.get_samples()` returns: sites with one leading axis of draws.
          x: (n, *input_shape) training inputs, those the samples were drawn with.
          y: (n, k) training targets.
          x_test: (t, *input_shape) test inputs.
          full_cov: whether to return the covariance (k, t, t) of the function as well.

        Returns:
          Moments (t, k) of the mixture over draws: the mean is the average of means; `epistemic` the average of
          variances plus the variance of means; `aleatoric` the average of scale^2.

        Raises:
          ValueError: for wrong shapes, missing sites, NaN or infinite data, or a matrix with no Cholesky factor.
        """
        x = check_inputs("predict", "x", x)
        y = self._check_targets("predict", x, y)
        x_test = check_inputs("predict", "x_test", x_test, x.shape[1:])
        names = [*self.priors, *self.noise]
        missing = [name for name in names if name not in samples]
        if missing:
            raise ValueError(
                f"`predict`: samples must hold the site {missing[0]!r}; got {sorted(samples)}; pass the samples of "
                "this model"
            )
        draws = {name: jnp.asarray(samples[name]) for name in names}
        prediction = jax.jit(partial(_moments, self, full_cov=full_cov))(draws, x, y, x_test)
        if not jnp.isfinite(prediction.mean).all():
            raise ValueError(
                "`predict`: K + scale^2 I has no finite Cholesky factor, even with jitter, or a sample is not finite; "
                "use float64 (jax.config.update('jax_enable_x64', True)) or a larger noise scale"
            )
        return prediction

    def _check_targets(self, door: str, x: Array, y: Data) -> Array:
        check_array(door, "y", y, (len(x), self.outputs), f"n={len(x)} from x and k={self.outputs} from outputs")
        return jnp.asarray(y, x.dtype)

    def __repr__(self) -> str:
        sites = ", ".join(self.priors)
        return f"GPModel(sites=({sites}), likelihood={self.likelihood}, outputs={self.outputs}, kernel={self.kernel!r})"


def _moments(model: GPModel, draws: Scales, x: Array, y: Array, x_test: Array, *, full_cov: bool) -> Prediction:
    """Average over draws with Welford's recursion: one draw in memory at a time."""

    def product(a: Float[Array, "t k"], b: Float[Array, "t k"]) -> Array:
        return jnp.einsum("ik,jk->kij", a, b) if full_cov else a * b

    def add(carry: tuple[Array, ...], draw: Scales) -> tuple[tuple[Array, ...], None]:
        count, mean, between, within, noise = carry
        process = model.posterior(draw, x, y)
        part, spread = process.moments(x_test) if full_cov else process.marginals(x_test)
        count, step = count + 1, part - mean
        mean = mean + step / count
        between = between + product(step, part - mean)
        return (count, mean, between, within + spread, noise + process.variance), None

    t, k = len(x_test), y.shape[1]
    zero, zeros = jnp.zeros((), x.dtype), jnp.zeros((t, k), x.dtype)
    start = (zero, zeros, product(zeros, zeros), jnp.zeros((t, t) if full_cov else t, x.dtype), zero)
    (count, mean, between, within, noise), _ = jax.lax.scan(add, start, draws)
    noise = jnp.broadcast_to(noise / count, mean.shape)
    if not full_cov:
        return Prediction(mean, (between + within[:, None]) / count, noise)
    covariance = (between + within) / count
    return Prediction(mean, jnp.diagonal(covariance, axis1=1, axis2=2).T, noise, covariance)


def gp_model(
    net_of_scales: Callable[..., Layer],
    priors: Mapping[str, Any],
    likelihood: Gaussian,
    *,
    outputs: int = 1,
    kernel: str = "nngp",
    ridge: Ridge | None = None,
) -> GPModel:
    """Build the NumPyro model of a fully Bayesian Gaussian process, the kernel of an infinitely wide network.

    scales ~ priors, y | scales ~ N(0, K(scales) + (scale^2 + ridge) I): the function is integrated out, so that MCMC
    runs over the hyper-parameters alone. `GPModel.predict` brings the function back, exactly, for every draw.

    Args:
      net_of_scales: from hyper-parameters, by name, to an architecture, e.g.
        lambda w, b: Dense(1, w_scale=w, b_scale=b) >> Erf() >> Dense(1).
      priors: NumPyro distributions over the arguments of `net_of_scales`, by name; over positive numbers for scales.
      likelihood: `Gaussian(scale)`; a scale with a prior is learned, as the site "noise_scale".
      outputs: k, the number of outputs.
      kernel: the prior covariance, "nngp" or "ntk".
      ridge: regularisation added to the diagonal besides the noise.

    Returns:
      A model, called as model(x, y=None), for NumPyro's MCMC kernels.

    Raises:
      TypeError: if `net_of_scales` is no function, a prior no distribution, or `likelihood` no likelihood.
      ValueError: if a prior's name is taken, or a choice is unknown.
    """
    if not callable(net_of_scales) or isinstance(net_of_scales, Layer):
        raise TypeError(
            "`gp_model`: net_of_scales must be a function from scales to an architecture, such as "
            f"lambda w: Dense(1, w_scale=w); got {net_of_scales!r}"
        )
    if not isinstance(likelihood, Gaussian):
        raise TypeError(f"`gp_model`: likelihood must be a likelihood such as Gaussian(scale=0.1); got {likelihood!r}")
    check_one_scale("gp_model", likelihood)
    for name, prior in priors.items():
        if not isinstance(prior, dist.Distribution):
            raise TypeError(f"`gp_model`: priors[{name!r}] must be a NumPyro distribution; got {prior!r}")
        if name in ("noise_scale", "y"):
            raise ValueError(f"`gp_model`: the name {name!r} belongs to the likelihood; give that prior another name")
    check_choice("gp_model", "kernel", kernel, KERNELS)
    return GPModel(net_of_scales, dict(priors), likelihood, outputs, kernel, ridge)
