"""A Gaussian approximation to a posterior of weights: a mean, and a Fisher operator as its precision."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real, Shaped

from bnnwide.checks import Data, check_count, check_inputs
from bnnwide.likelihoods import Gaussian, Likelihood
from bnnwide.natgrad.curvature import Fisher, Weights
from bnnwide.natgrad.draws import Draws
from bnnwide.natgrad.problem import Task, add, check_task, flat_rows
from bnnwide.prediction import Prediction, over_draws
from bnnwide.samplers.core import dot, standard_normal_like

NUM_PAIRS = 100  # draws of the function either side of its mean, for outcomes that are not linear in it


@dataclasses.dataclass(frozen=True)
class GaussianPosterior:
    """Weights ~ N(mean, precision^-1).

    Args:
      method: how it was found.
      net: the network, f(params, x) -> (n, k), of the weights that are uncertain.
      likelihood: the law of targets given outputs.
      input_shape: the shape of one input.
      mean: the weights' mean, a pytree.
      precision: their precision, damping (the prior's precision) included.
    """

    method: str
    net: Any
    likelihood: Likelihood
    input_shape: tuple[int, ...]
    mean: Weights
    precision: Fisher

    def sample(self, key: Array, num_samples: int = 100) -> Draws:
        """Draw weights, as one chain; `predict` and `log_score` of the draws use the network itself.

        Args:
          key: PRNG key.
          num_samples: number of draws.

        Raises:
          ValueError: if `num_samples` is below 1.
        """
        check_count("sample", "num_samples", num_samples)
        params = _weights(self.mean, self.precision, jax.random.split(key, num_samples))
        params = jax.tree.map(lambda leaf: leaf[None], params)
        return Draws(self.method, self.net, self.likelihood, self.input_shape, params, {})

    def function(self, x_test: Real[Data, "t ..."]) -> tuple[Float[Array, "t k"], Float[Array, "t k k"]]:
        """Return mean and covariance of the network linearised at the mean, f + J (w - mean), at each test input.

        Args:
          x_test: (t, ...) test inputs.

        Raises:
          ValueError: for wrong shapes, or NaN or infinite inputs.
        """
        x_test = check_inputs("function", "x_test", x_test, self.input_shape, "x")
        return _linearised(self.net, self.mean, self.precision, x_test)

    def predict(self, x_test: Real[Data, "t ..."], *, key: Array | None = None) -> Prediction:
        """Return the predictive moments of the linearised network.

        Sources: MacKay 1992, "The evidence framework applied to classification networks"; Immer, Korzepa & Bauer 2021
        (arXiv 2008.08400), the "GLM predictive", which underfits less than draws of the weights do.

        Args:
          x_test: (t, ...) test inputs.
          key: PRNG key of 200 draws of the function, which likelihoods other than Gaussian are averaged over.

        Raises:
          ValueError: for wrong shapes, or NaN or infinite inputs.
        """
        mean, covariance = self.function(x_test)
        if isinstance(self.likelihood, Gaussian):
            noise = jnp.broadcast_to(jnp.asarray(self.likelihood.scale, mean.dtype) ** 2, mean.shape)
            return Prediction(mean, jnp.diagonal(covariance, axis1=1, axis2=2), noise)
        each = jax.vmap(self.likelihood.outcome)(_functions(mean, covariance, key))
        return over_draws(each)

    def log_score(
        self, x_test: Real[Data, "t ..."], y_test: Shaped[Data, "t *k"], *, key: Array | None = None
    ) -> Float[Array, " t"]:
        """Return the log predictive density of the linearised network at each test input's targets, in nats.

        Args:
          x_test: (t, ...) test inputs.
          y_test: (t, k) targets, or (t,) labels.
          key: PRNG key of 200 draws of the function.

        Raises:
          ValueError: for wrong shapes, or NaN or infinite numbers.
        """
        mean, covariance = self.function(x_test)
        y_test = self.likelihood.check_targets("log_score", y_test, len(mean), mean.shape[1], "y_test")
        each = jax.vmap(lambda f: self.likelihood.log_prob(f, y_test))(_functions(mean, covariance, key))
        return jax.nn.logsumexp(each, axis=0) - jnp.log(len(each))

    def elbo(
        self, x: Real[Data, "n ..."], y: Shaped[Data, "n *k"], *, key: Array, num_samples: int = 500
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Estimate the evidence lower bound E_q[log p(y | w) + log p(w) - log q(w)], with the network itself.

        At most log p(y), and higher for the better of two approximations under one prior: N(0, I / tau), with tau the
        damping of `precision`. Every draw has the same value where q is the posterior.

        Args:
          x: (n, ...) training inputs.
          y: (n, k) training targets, or (n,) labels.
          key: PRNG key of the draws.
          num_samples: number of draws of the weights.

        Returns:
          The estimate and its standard error, in nats.

        Raises:
          ValueError: for wrong shapes, NaN or infinite numbers, or fewer than two draws.
        """
        check_count("elbo", "num_samples", num_samples, 2)
        task, mean = check_task("elbo", self.net, self.mean, self.likelihood, x, y)
        values = _log_ratios(task, mean, self.precision, jax.random.split(key, num_samples))
        return values.mean(), values.std(ddof=1) / num_samples**0.5

    def __repr__(self) -> str:
        return f"GaussianPosterior(method={self.method!r}, weights={self.precision.layout.size})"


@jax.jit
def _weights(mean: Weights, precision: Fisher, keys: Array) -> Weights:
    return jax.vmap(lambda key: add(mean, precision.sqrt_solve(standard_normal_like(key, mean))))(keys)


def _log_ratios(task: Task, mean: Weights, precision: Fisher, keys: Array) -> Float[Array, " s"]:
    """Return log p(y, w) - log q(w) of draws w; what 2 pi adds to both prior and q cancels."""
    tau, size = precision.damping, precision.layout.size
    constant = 0.5 * (size * jnp.log(tau) - precision.logdet())

    def ratio(key: Array) -> Array:
        z = standard_normal_like(key, mean)
        return constant - task.cost(add(mean, precision.sqrt_solve(z)), tau) + 0.5 * dot(z, z)

    return jax.lax.map(ratio, keys)


@jax.jit
def _linearised(net: Any, mean: Weights, precision: Fisher, x_test: Array) -> tuple[Array, Array]:
    f = net(mean, x_test)

    def covariance(row: Array) -> Array:
        rows = flat_rows(net, mean, row[None], jnp.eye(f.shape[1], dtype=f.dtype)[None])[0]
        return rows @ jax.vmap(precision._solve)(rows).T

    return f, jax.lax.map(covariance, x_test)


@partial(jax.jit, static_argnums=3)
def _pairs(mean: Array, covariance: Array, key: Array, number: int) -> Array:
    values, vectors = jnp.linalg.eigh(covariance)
    root = vectors * jnp.sqrt(jnp.maximum(values, 0.0))[:, None, :]
    half = jnp.einsum("tab,stb->sta", root, jax.random.normal(key, (number, *mean.shape), mean.dtype))
    return mean + jnp.concatenate([half, -half])


def _functions(mean: Array, covariance: Array, key: Array | None) -> Float[Array, "s t k"]:
    """Return draws of the function at each test input, in pairs either side of its mean."""
    return _pairs(mean, covariance, jax.random.key(0) if key is None else key, NUM_PAIRS)
