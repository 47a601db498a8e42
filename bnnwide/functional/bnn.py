"""The NumPyro model of a BNN whose function has, at given points, the prior of a Gaussian process."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from bnnwide.arch import Layer
from bnnwide.checks import Data, check_array, is_concrete
from bnnwide.functional.features import FunctionalFeatures, distinct, functional_features
from bnnwide.functional.limit import conditioned, interpolated
from bnnwide.functional.process import PREFIX, ProcessPrior, at_medians, check_moments, check_prior
from bnnwide.likelihoods import Likelihood
from bnnwide.models.bnn import BNN, check_centred, check_parts, check_rank
from bnnwide.models.features import feature_map, prior_covariance
from bnnwide.reparam import Sites


@dataclasses.dataclass(frozen=True)
class FunctionalBNN(BNN):
    """A NumPyro model of a BNN with a Gaussian process prior at points; build it with `functional_bnn`.

    Call it as model(x, y=None). Sites: those of `BNN`, and "prior_<name>" for a hyper-parameter of the prior with one.
    "readout" holds coordinates theta' ~ N(0, I) of the readout; `readout_draws` maps them to the network's weights.

    Args:
      prior: of the function at the points.
      points: (p, d) distinct points.
    """

    prior: ProcessPrior = dataclasses.field(kw_only=True)
    points: Float[Array, "p d"] = dataclasses.field(kw_only=True)

    @property
    def priors(self) -> dict[str, Any]:
        """The sites besides weights, by name, with their priors: those of `BNN`, and the prior's hyper-parameters."""
        return super().priors | {PREFIX + name: law for name, law in self.prior.hyper.items()}

    def features_at(self, x: Float[Array, "n d"], input_collapse: bool | None) -> FunctionalFeatures:
        """Return how the hidden weights are read at inputs `x`."""
        return functional_features(self.net, x, input_collapse, self.points, self.prior)

    def prior_covariance(self, x: Float[Array, "n d"]) -> Float[Array, "n n"]:
        """Return the prior covariance (n, n) of an output at `x`, in the infinite-width limit where it is known."""
        p = len(self.points)
        kernel = prior_covariance(self.net, jnp.concatenate([self.points, x]))
        covariance = at_medians(self.prior).covariance(self.points)
        return conditioned(kernel[p:, p:], kernel[p:, :p], kernel[p:, :p], kernel[:p, :p], covariance)

    def prior_mean(self, x: Float[Array, "n d"]) -> Float[Array, "n"] | None:
        """Return the prior mean (n,) of an output at `x`, in the infinite-width limit where it is known; None for zero.

        What the network makes between the points of the prior's mean at them.
        """
        mean = jnp.asarray(at_medians(self.prior).mean(self.points), x.dtype)
        if is_concrete(mean) and not np.any(mean):
            return None
        p = len(self.points)
        kernel = prior_covariance(self.net, jnp.concatenate([self.points, x]))
        return interpolated(kernel[p:, :p], kernel[:p, :p], mean)

    def check_inputs(self, door: str, x: Data, name: str = "x", d: int | None = None) -> Array:
        """Check inputs at the public door named `door` and return them as a JAX array."""
        if d is None:
            d = self.points.shape[1]
            check_array(door, name, x, ("n", d), f"d={d} from points")
        return super().check_inputs(door, x, name, d)

    def __repr__(self) -> str:
        return f"Functional{super().__repr__()[:-1]}, prior={self.prior!r}, points={len(self.points)})"


def functional_bnn(
    net: Layer,
    prior: ProcessPrior,
    points: Real[Data, "p d"],
    likelihood: Likelihood,
    form: str = "collapsed",
    *,
    input_collapse: bool | None = None,
    solver: str = "auto",
    sites: Sites | None = None,
    centred: Sequence[str] = (),
    rank: int | None = None,
) -> FunctionalBNN:
    """Build the NumPyro model of a BNN whose function at `points` has exactly the Gaussian process prior asked for.

    Given hidden weights, with features Psi_M = L Q (p, m) at the points, Q Q^T = I, and the prior's covariance
    K_gp = G G^T and mean m there, the readout is theta = T (theta' + Q^T G^-1 m), T = I + Q^T (L^-1 G - I) Q,
    theta' ~ N(0, I): the function at the points is N(m, K_gp) for every draw of the hidden weights, at any width that
    has at least p features, and what the points do not see of the readout keeps its prior. Between the points the
    network interpolates, the mean too; `wide_limit` is the limit. Outputs are independent, with the same prior. With
    all training inputs among the points, the posterior there is the Gaussian process's own.

    To rounding, but for two safeguards. A relative 32 eps (7e-15 in float64, 4e-6 in float32) of its mean diagonal is
    added to K_gp, whose factor smooth kernels would not have otherwise: an independent variance of that size in each
    value. And directions in which the features at the points have a relative variance v of that order or less, because
    points are close or hidden units do not tell them apart, are not resolved: a fraction of the order of (32 eps/v)^2
    of the variance asked for is lost in them, and all of it where v is far smaller. Repeated points are one point.

    Source: docs, "Functional priors by MCMC", with proofs. The question is that of Sun, Zhang, Shi & Grosse 2019
    (arXiv 1903.05779).

    Args:
      net: the architecture; its last layer must be Dense with normal weights, with at least one layer before it.
      prior: a Gaussian process prior, such as functional.GPPrior(kernel): an object with mean(x) (n,),
        covariance(x1, x2=None) (n1, n2), and NumPyro distributions `hyper` of hyper-parameters by name, with at(values)
        to put numbers in their place. They are sampled as the sites "prior_<name>". A mean that counts far from the
        points, such as a trend, needs points there.
      points: (p, d) measurement points; p at most the number of readout features.
      likelihood: as for `bnn`.
      form: "standard", "repriorised" or "collapsed": one posterior, as for `bnn`.
      input_collapse: as for `bnn`, with the points counted among the inputs.
      solver: as for `bnn`.
      sites: as for `bnn`.
      centred: as for `bnn`.
      rank: as for `bnn`.

    Returns:
      A model, called as model(x, y=None), for the samplers, predictions and comparators that a model of `bnn` is for.

    Raises:
      TypeError: if `net` is no architecture, `prior` no Gaussian process or `likelihood` no likelihood.
      ValueError: for wrong shapes or numbers that are not finite, more points than readout features, a readout that is
        not Dense or has other than normal weights, or an unknown choice.
    """
    network = check_parts("functional_bnn", net, likelihood, form, solver)
    if not network.readout.gaussian_weights:
        raise ValueError(
            f"`functional_bnn`: net needs a readout of normal weights; got {network.readout}; give priors to hidden "
            "layers only"
        )
    check_rank("functional_bnn", rank)
    check_prior("functional_bnn", prior)
    check_array("functional_bnn", "points", points, ("p", "d"))
    points = distinct(jnp.asarray(points, jnp.result_type(float)))
    m = feature_map(network, points, False).num_features
    if m < len(points):
        raise ValueError(
            f"`functional_bnn`: width of the last hidden layer must be at least the number of points, p={len(points)}; "
            f"got {m} readout features; widen the layer, or choose fewer points"
        )
    check_moments("functional_bnn", at_medians(prior), points)
    model = FunctionalBNN(
        network, likelihood, form, input_collapse, solver, sites, tuple(centred), rank, prior=prior, points=points
    )
    check_centred("functional_bnn", model)
    return model
