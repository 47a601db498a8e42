"""Laplace approximations with any of the curvatures, and their marginal likelihoods."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real, Shaped

from bnnwide.arch import Network
from bnnwide.checks import Data, check_choice, check_inputs, check_positive
from bnnwide.likelihoods import Likelihood
from bnnwide.natgrad.curvature import Weights
from bnnwide.natgrad.fisher import FORMS, fisher
from bnnwide.natgrad.gaussian import GaussianPosterior
from bnnwide.natgrad.minimise import minimise
from bnnwide.natgrad.problem import check_task
from bnnwide.natgrad.sample import first_params


@dataclasses.dataclass(frozen=True, repr=False)
class LaplacePosterior(GaussianPosterior):
    """A Gaussian at a mode of the posterior.

    Args:
      log_joint: log p(y, w) at the mode without the terms that do not depend on w: log p(y | w) - tau |w|^2 / 2.
      prior_precision: tau.
    """

    log_joint: Float[Array, ""]
    prior_precision: float | int

    def log_marginal_likelihood(self) -> Float[Array, ""]:
        """Return log p(y) = log p(y | w) - tau |w|^2 / 2 + p/2 log tau - 1/2 log det G, about, in nats.

        Exact for networks linear in their weights under Gaussian noise. Of the last layer, given the others' weights.

        Source: MacKay 1992, "A practical Bayesian framework for backpropagation networks", on the evidence.
        """
        size = self.precision.layout.size
        return self.log_joint + 0.5 * size * jnp.log(self.prior_precision) - 0.5 * self.precision.logdet()


def laplace(
    net: Any,
    likelihood: Likelihood,
    x: Real[Data, "n ..."],
    y: Shaped[Data, "n *k"],
    *,
    form: str = "auto",
    params: Weights | None = None,
    key: Array | None = None,
    prior_precision: float | int = 1.0,
    num_steps: int = 100,
) -> LaplacePosterior:
    """Return the Gaussian N(w_MAP, (F + prior_precision I)^-1), F the Fisher (Gauss-Newton) matrix at the mode.

    Sources: MacKay 1992, "A practical Bayesian framework for backpropagation networks"; Ritter, Botev & Barber 2018,
    "A scalable Laplace approximation for neural networks", for K-FAC; Daxberger et al. 2021 (arXiv 2106.14806).

    Args:
      net: an architecture, or any function f(params, x) -> (n, k).
      likelihood: the law of targets given outputs, with numbers for its parameters.
      x: (n, ...) inputs.
      y: (n, k) targets, or (n,) labels.
      form: of the Fisher matrix, as for `fisher`; or "last_layer", exact for the readout of an architecture with all
        other weights at the mode.
      params: the mode, as `minimise` finds it; None looks for one from a draw of the prior.
      key: PRNG key of that draw.
      prior_precision: of the weights, positive: 1 for N(0, I).
      num_steps: of that search at most.

    Returns:
      The approximation: `sample`, `predict`, `log_score`, `log_marginal_likelihood`.

    Raises:
      TypeError: if the network cannot be called, or an array is not real.
      ValueError: for wrong shapes, NaN or infinite numbers, or neither mode nor key.
    """
    check_choice("laplace", "form", form, (*FORMS, "last_layer"))
    check_positive("laplace", "prior_precision", prior_precision)
    x = check_inputs("laplace", "x", x)
    if params is None:
        if key is None:
            raise ValueError("`laplace`: params, the mode, or a key to look for one must be given; got neither")
        start = first_params("laplace", net, x, key)
        check_task("laplace", net, start, likelihood, x, y)
        params = minimise(net, likelihood, x, y, start, prior_precision=prior_precision, num_steps=num_steps).params
    task, params = check_task("laplace", net, params, likelihood, x, y)
    f: Any = task.f
    part: Any = params
    if form == "last_layer":
        if not isinstance(net, Network) or not net.readout.gaussian_weights:
            raise ValueError(
                f"`laplace`: form 'last_layer' must be given an architecture that ends in Dense; got {net!r}"
            )
        *hidden, part = part
        f = jax.tree_util.Partial(_with_readout, net, tuple(hidden))
        form = "auto"
    precision = fisher(f, part, x, likelihood, form=form, damping=prior_precision)
    log_joint = -task._replace(f=f).cost(part, prior_precision)
    return LaplacePosterior("laplace", f, likelihood, x.shape[1:], part, precision, log_joint, prior_precision)


def _with_readout(net: Network, hidden: tuple[Any, ...], readout: Weights, x: Array) -> Array:
    return net.apply((*hidden, readout), x)
