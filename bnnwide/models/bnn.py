"""The NumPyro model of a Bayesian neural network: one posterior in three coordinates."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float, Real

from bnnwide.arch import Dense, Layer, Network
from bnnwide.checks import Data, check_array, check_choice
from bnnwide.likelihoods import Gaussian
from bnnwide.models.features import FeatureMap, feature_map
from bnnwide.reparam import ReadoutMarginal, Repriorisation
from bnnwide.reparam.readout import SOLVERS

FORMS = ("standard", "repriorised", "collapsed")
NOISE, READOUT, READOUT_BASE = "noise_scale", "readout", "readout_base"


@dataclasses.dataclass(frozen=True)
class BNN:
    """A NumPyro model of a BNN with a linear readout; build it with `bnn`. Call it as model(x, y=None).

    Sites: "hidden.<layer>.w" and "hidden.<layer>.b", all standard normal ("hidden.0.span" in place of the first
    layer's with the input collapse); "noise_scale" if the noise is learned; "readout" (m, k), weights with the bias row
    last ("standard", or without y: a latent site; "repriorised": a function of the latent "readout_base"; "collapsed":
    absent); "y".
    """

    net: Network
    likelihood: Gaussian
    form: str = "collapsed"
    input_collapse: bool | None = None
    solver: str = "auto"

    def __call__(self, x: Real[Data, "n d"], y: Real[Data, "n k"] | None = None) -> None:
        """State the model, with NumPyro primitives.

        Args:
          x: (n, d) inputs.
          y: (n, k) targets; without them the model is the prior predictive (in any form, and then without the
            input collapse).

        Raises:
          ValueError: for wrong shapes, or NaN or infinite data.
        """
        x = self.check_inputs("bnn", x)
        scale: Any = self.likelihood.scale
        if isinstance(scale, dist.Distribution):
            scale = numpyro.sample(NOISE, scale)
        if y is not None:
            y = self.check_targets("bnn", x, y)
        features = self.feature_map(x) if y is not None else feature_map(self.net, x, False)
        draw: dict[str, Any] = {
            name: numpyro.sample(name, dist.Normal(0.0, 1.0).expand(leaf.shape).to_event(len(leaf.shape)))
            for name, leaf in features.shapes.items()
        }
        psi = features.features(draw)
        if self.form == "collapsed" or (self.form == "repriorised" and y is not None):
            # In both forms the potential of the hidden weights is -log p(Y | Psi): in the coordinates phi the joint
            # density is exactly N(phi; 0, I) N(hidden; 0, I) p(Y | Psi), so the readout need not enter it at all.
            # (A direct evaluation, log p(y | f) + log N(theta) - log N(phi) + log det, cancels large terms.)
            numpyro.sample("y", ReadoutMarginal(psi, scale, self.outputs, self.solver), obs=y)
        if self.form == "collapsed":
            return
        # Without data the readout is its own coordinate. By name, so that Predictive(model, samples)(key, x_test) takes
        # the posterior's readout (it does not substitute deterministic sites).
        mapped = self.form == "repriorised" and y is not None
        shape = (psi.shape[1], self.outputs)
        site = READOUT_BASE if mapped else READOUT
        theta: Any = numpyro.sample(site, dist.Normal(0.0, 1.0).expand(shape).to_event(2))
        if mapped and y is not None:
            numpyro.deterministic(READOUT, Repriorisation(psi, y, scale, self.solver).forward_and_log_det(theta)[0])
            return
        numpyro.sample("y", dist.Normal(psi @ theta, scale).to_event(2), obs=y)

    @property
    def outputs(self) -> int:
        """k, the number of outputs."""
        return self.net.readout.width

    def feature_map(self, x: Float[Array, "n d"]) -> FeatureMap:
        """Return how the hidden weights are read at training inputs `x`, with the input collapse where it applies."""
        return feature_map(self.net, x, False if self.form == "standard" else self.input_collapse)

    def constrain(self, z: dict[str, Array]) -> dict[str, Array]:
        """Map unconstrained sites, as MCMC kernels hold them, to the sites themselves; only the noise scale differs."""
        if NOISE not in z:
            return z
        return z | {NOISE: dist.biject_to(self.likelihood.scale.support)(z[NOISE])}

    def check_inputs(self, door: str, x: Data, name: str = "x", d: int | None = None) -> Array:
        """Check inputs at the public door named `door` and return them as a JAX array."""
        check_array(door, name, x, ("n", "d" if d is None else d), "" if d is None else f"d={d} from x")
        return jnp.asarray(x, jnp.result_type(float))

    def check_targets(self, door: str, x: Array, y: Data) -> Array:
        """Check targets at the public door named `door` and return them as a JAX array."""
        n, k = x.shape[0], self.outputs
        shape = np.shape(y)
        if len(shape) == 2 and shape[0] == n and shape[1] != k:
            check_array(door, "y", y, ("n", k), f"k={k} from the readout Dense({k})")
        check_array(door, "y", y, (n, "k"), f"n={n} from x")
        return jnp.asarray(y, jnp.result_type(float))

    def __repr__(self) -> str:
        collapse = {None: "auto (when n < d)", True: "on", False: "off"}[self.input_collapse]
        if self.form == "standard":
            collapse = "off (standard form)"
        elif not isinstance(self.net[0], Dense) and self.input_collapse is None:
            collapse = "off (first layer is not Dense)"
        return (
            f"BNN(form={self.form!r}, input_collapse={collapse}, solver={self.solver!r}, "
            f"likelihood={self.likelihood}, net={self.net})"
        )


def bnn(
    net: Layer,
    likelihood: Gaussian,
    form: str = "collapsed",
    *,
    input_collapse: bool | None = None,
    solver: str = "auto",
) -> BNN:
    """Build the NumPyro model of a Bayesian neural network; the three forms are one posterior.

    Args:
      net: the architecture; its last layer must be Dense, with at least one layer before it.
      likelihood: the noise, `Gaussian(scale)`; a scale with a prior is learned.
      form: "standard": weights as they are. "repriorised": the readout through the bijection of Hron et al. 2022
        (arXiv 2206.07673), under which the posterior of (hidden weights, readout_base) tends to N(0, I) as widths grow.
        "collapsed": the readout integrated out exactly; `predict` and `readout_draws` bring it back.
      input_collapse: None samples a first Dense layer in the span of the training inputs only when n < d (exact, and
        less work); False never does; True insists. Not used by the standard form.
      solver: "primal", "dual" or "auto", the form of the linear algebra; auto goes by the static shapes.

    Returns:
      A model, called as model(x, y=None), for NumPyro's MCMC kernels and for `SplitHMC`, `PCN`, `PCNL`. Posterior
      predictions come from `predict`: NumPyro's `Predictive` with posterior samples would redraw from their prior, and
      without a word, the sites that the samples lack (the readout of the collapsed form, the full first layer under
      the input collapse).

    Raises:
      TypeError: if `net` is no architecture or `likelihood` no likelihood.
      ValueError: if the readout is not Dense, no layer precedes it, or a choice is unknown.
    """
    if not isinstance(net, Layer):
        raise TypeError(f"`bnn`: net must be an architecture such as Dense(512) >> Gelu() >> Dense(1); got {net!r}")
    if not isinstance(likelihood, Gaussian):
        raise TypeError(f"`bnn`: likelihood must be a likelihood such as Gaussian(scale=0.1); got {likelihood!r}")
    if not isinstance(net, Network) or len(net) < 2:
        raise ValueError(f"`bnn`: net must have at least one layer before its Dense readout; got {net}")
    check_choice("bnn", "form", form, FORMS)
    check_choice("bnn", "solver", solver, SOLVERS)
    model = BNN(net, likelihood, form, input_collapse, solver)
    _ = model.outputs  # raises if the readout is not Dense
    return model
