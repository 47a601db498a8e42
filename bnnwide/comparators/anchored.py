"""The repriorised posterior with sites at anchors only, so that its potential can be estimated from a minibatch."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from bnnwide.checks import Data, check_count
from bnnwide.models.bnn import BNN, READOUT, READOUT_BASE
from bnnwide.models.features import FeatureMap, offset_of
from bnnwide.reparam import SitedRepriorisation, Sites, find_sites
from bnnwide.samplers.core import dot, standard_normal_like

Position = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class AnchoredPosterior:
    """A BNN's posterior in coordinates z = (hidden weights, phi), its readout repriorised at anchors.

    theta = T(phi) is the repriorisation under Gaussian sites t_A at the anchors A, a subset of the training inputs.
    N(phi; 0, I) = N(theta; 0, I) t_A(f_A) / Z_A |dtheta/dphi|, so that the posterior in z is exp(-U) with

      U(z) = |z|^2/2 - sum_i log p(y_i | f_i) + log t_A(f_A) - log Z_A(Psi_A),   f = Psi theta,

    whatever the anchors and sites are: they decide how close to |z|^2/2 the potential is. Only the sum needs all data.

    Args:
      model: a model of fixed parameters.
      features: at all n training inputs.
      y: (n, k) targets, or (n,) labels.
      anchors: (a,) rows of the anchors.
      sites: one for each anchor.
    """

    model: BNN
    features: FeatureMap
    y: Shaped[Array, "n *k"]
    anchors: Int[Array, " a"]
    sites: Sites

    def start(self, key: Array) -> Position:
        """Return a draw of z from N(0, I), which the posterior tends to as widths grow."""
        base = jax.ShapeDtypeStruct((self.features.num_features, self.model.outputs), self.features.x.dtype)
        return standard_normal_like(key, self.features.shapes | {READOUT_BASE: base})

    def potential(self, z: Position) -> Float[Array, ""]:
        """Return U(z), from all data."""
        return self.estimate(z, jnp.arange(len(self.y)))

    def estimate(self, z: Position, rows: Int[Array, " b"]) -> Float[Array, ""]:
        """Return U(z) with its sum over data estimated by n/b times the sum over a minibatch: unbiased.

        Args:
          z: the coordinates.
          rows: (b,) rows of the minibatch, drawn uniformly.
        """
        num_anchors = len(self.anchors)
        psi, mean = self.features.at(jnp.concatenate([self.anchors, rows])).features_and_mean(z)
        bijection = self._bijection(psi[:num_anchors], mean)
        f = psi @ bijection.forward_and_log_det(z[READOUT_BASE])[0] + offset_of(psi, mean)
        data = len(self.y) / len(rows) * self.model.likelihood.log_prob(f[num_anchors:], self.y[rows]).sum()
        return 0.5 * dot(z, z) - data + self.sites.log_density(f[:num_anchors]) - bijection.log_marginal()

    def sites_of_model(self, z: Position) -> Position:
        """Return the sites that predictions read: hidden weights and the readout theta (m, k)."""
        bijection = self._bijection(*self.features.at(self.anchors).features_and_mean(z))
        theta, _ = bijection.forward_and_log_det(z[READOUT_BASE])
        return {name: z[name] for name in self.features.shapes} | {READOUT: theta}

    def _bijection(self, psi: Float[Array, "a m"], mean: Float[Array, "m 1"] | None) -> SitedRepriorisation:
        return SitedRepriorisation(psi, self.sites.shifted(-offset_of(psi, mean)), self.model.solver)


def anchored_posterior(door: str, model: BNN, x: Data, y: Data, key: Array, num_anchors: int) -> AnchoredPosterior:
    """Choose anchors at random, all inputs if there are no more than `num_anchors`, and find their sites.

    The sites are those of the anchors' own targets: exact under Gaussian noise, the model's where it was given some,
    else `find_sites` under the prior covariance at the anchors. Their precisions are multiplied by n/a, so that they
    weigh as much as all the data do.

    Args:
      door: the public function that was called, for messages.
      model: of the repriorised form, with fixed parameters.
      x: (n, d) training inputs.
      y: (n, k) targets, or (n,) labels.
      key: PRNG key of the choice.
      num_anchors: the largest number of anchors.

    Raises:
      TypeError: if the model is not made by `bnn`.
      ValueError: if the model has another form or parameters to learn, or data do not fit it.
    """
    if not isinstance(model, BNN):
        raise TypeError(f"`{door}`: model must be made by bnn(...); got {type(model).__name__}")
    if model.form != "repriorised":
        raise ValueError(f"`{door}`: model must have form='repriorised'; got {model.form!r}")
    if model.priors:
        raise ValueError(
            f"`{door}`: scales and parameters of the likelihood must be numbers; got priors for "
            f"{', '.join(model.priors)}; put numbers in, or sample with SplitHMC"
        )
    check_count(door, "num_anchors", num_anchors)
    x = model.check_inputs(door, x)
    y = model.check_targets(door, x, y)
    n = len(x)
    rows = jnp.arange(n)
    if n > num_anchors:
        rows = jnp.sort(jax.random.choice(key, n, (num_anchors,), replace=False))
    sites = _sites_at(model, x, y, rows)
    sites = dataclasses.replace(sites, precision=sites.precision * (n / len(rows)))
    return AnchoredPosterior(model, model.feature_map(x), y, rows, sites)


def _sites_at(model: BNN, x: Array, y: Array, rows: Array) -> Sites:
    if model.exact:
        likelihood: Any = model.likelihood
        scale = jnp.asarray(likelihood.scale, x.dtype)
        width = 1 if scale.ndim == 0 else y.shape[1]
        return Sites(y[rows], jnp.broadcast_to(1 / scale**2, (len(rows), width)))
    if model.sites is not None:
        return dataclasses.replace(
            model.sites, targets=model.sites.targets[rows], precision=model.sites.precision[rows]
        )
    if len(rows) == len(x):
        return model.find_sites(x, y)
    x = x[rows]
    return find_sites(model.likelihood, y[rows], model.prior_covariance(x), model.outputs, mean=model.prior_mean(x))
