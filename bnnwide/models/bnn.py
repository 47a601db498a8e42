"""The NumPyro model of a Bayesian neural network: one posterior in three coordinates."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float, Real, Shaped

from bnnwide.arch import Dense, Layer, Network
from bnnwide.arch.scales import scale_priors
from bnnwide.checks import Data, as_array, check_array, check_choice, check_count, is_concrete
from bnnwide.likelihoods import Gaussian, Likelihood
from bnnwide.models.features import FeatureMap, feature_map, offset_of, prior_covariance, scale_sites
from bnnwide.models.parts import sample_params, sample_standard_normal
from bnnwide.reparam import (
    FactoredValues,
    FunctionValues,
    ProjectedValues,
    ReadoutMarginal,
    SitedRepriorisation,
    Sites,
    find_projection,
    find_sites,
    repriorisation,
)
from bnnwide.reparam.readout import SOLVERS

FORMS = ("standard", "repriorised", "collapsed")
CENTRED = "_centred"
# Features per input beyond which a kernel matrix costs little beside the network, and all function values mix best.
MUCH_WIDER = 8
READOUT, READOUT_BASE, FUNCTION, FUNCTION_BASE = "readout", "readout_base", "function", "function_base"


@dataclasses.dataclass(frozen=True)
class BNN:
    """A NumPyro model of a BNN with a linear readout; build it with `bnn`. Call it as model(x, y=None).

    Sites: "hidden.<layer>.w" and "hidden.<layer>.b", all standard normal ("hidden.0.span" in place of the first
    layer's with the input collapse); "hidden.<layer>.w_scale" and the like for a scale with a prior;
    "noise_<field>" for a parameter of the likelihood with one; "y". And for the readout (m, k), weights with the bias
    row last: "readout", latent in the standard form and without y; in the repriorised form a function of the latent
    "readout_base"; in the collapsed form absent under Gaussian noise. Under any other likelihood that form has the
    latent "function_base", and records the function at the training inputs as "function" (n, k), or as "readout" where
    there are fewer features than inputs. Where a few projections of the function values say nearly all of it (`rank`),
    "function_base" holds those, and the latent "readout_base" what they leave.
    """

    net: Network
    likelihood: Likelihood
    form: str = "collapsed"
    input_collapse: bool | None = None
    solver: str = "auto"
    sites: Sites | None = None
    centred: tuple[str, ...] = ()
    rank: int | None = None
    _found: dict[str, Any] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    def __call__(self, x: Real[Data, "n d"], y: Shaped[Data, "n *k"] | None = None) -> None:
        """State the model, with NumPyro primitives.

        Args:
          x: (n, d) inputs.
          y: (n, k) targets, or (n,) labels; without them the model is the prior predictive (in any form, and then
            without the input collapse).

        Raises:
          ValueError: for wrong shapes, or NaN or infinite data, or targets outside of the likelihood's support.
        """
        x = self.check_inputs("bnn", x)
        draw: dict[str, Any] = {name: jnp.asarray(numpyro.sample(name, prior)) for name, prior in self.priors.items()}
        likelihood = self.likelihood.at(draw)
        if y is not None:
            y = self.check_targets("bnn", x, y)
        features = self.feature_map(x) if y is not None else self.features_at(x, False)
        for name, leaf in features.shapes.items():
            draw[name] = self._sample_weights(name, leaf.shape, draw)
        psi, mean = features.features_and_mean(draw)
        offset = offset_of(psi, mean)
        if y is not None and self.form != "standard":
            state = self._state_gaussian if self.exact else self._state_sited
            state(psi, offset, likelihood, x, y)
        elif self.exact and self.form == "collapsed":
            numpyro.sample("y", ReadoutMarginal(psi, likelihood.scale, self.outputs, self.solver, loc=offset))
        else:
            # Without data the readout is its own coordinate. By name, so that Predictive(model, samples)(key, x_test)
            # takes the posterior's readout (it does not substitute deterministic sites).
            self._observe(likelihood, psi @ self._sample_readout(psi.shape[1]) + offset, y)

    def _sample_weights(self, name: str, shape: tuple[int, ...], draw: dict[str, Any]) -> Any:
        if name not in self.centred:
            return sample_standard_normal(name, shape)
        scale = draw[f"{name}_scale"]
        weights: Any = numpyro.sample(name + CENTRED, dist.Normal(0.0, scale).expand(shape).to_event(len(shape)))
        return numpyro.deterministic(name, weights / scale)

    def _sample_readout(self, m: int) -> Any:
        readout = self.net.readout
        if readout.gaussian_weights:
            return sample_standard_normal(READOUT, (m, self.outputs))
        width = m - (readout.b_scale is not None)
        return numpyro.deterministic(READOUT, readout.stacked(sample_params(READOUT, readout, (width,))))

    def _state_gaussian(self, psi: Array, offset: Any, likelihood: Any, x: Array, y: Array) -> None:
        # In both forms the potential of the hidden weights is -log p(Y | Psi): in the coordinates phi the joint
        # density is exactly N(phi; 0, I) N(hidden; 0, I) p(Y | Psi), so the readout need not enter it at all.
        # (A direct evaluation, log p(y | f) + log N(theta) - log N(phi) + log det, cancels large terms.)
        numpyro.sample("y", ReadoutMarginal(psi, likelihood.scale, self.outputs, self.solver, loc=offset), obs=y)
        if self.form == "repriorised":
            phi = sample_standard_normal(READOUT_BASE, (psi.shape[1], self.outputs))
            bijection = repriorisation(psi, y - offset, likelihood.scale, self.solver)
            numpyro.deterministic(READOUT, bijection.forward_and_log_det(phi)[0])

    def _state_sited(self, psi: Array, offset: Any, likelihood: Likelihood, x: Array, y: Array) -> None:
        # N(coordinates; 0, I) = N(theta; 0, I) t(f) / Z |det|, with t the product of the sites: what the coordinates
        # lack of the posterior is p(y | f) Z / t(f).
        sites = self.find_sites(x, y)
        centred = sites.shifted(-offset)  # of Psi theta, the function less its prior mean
        if self.form == "repriorised":
            bijection = SitedRepriorisation(psi, centred, self.solver)
            phi = sample_standard_normal(READOUT_BASE, (psi.shape[1], self.outputs))
            theta = numpyro.deterministic(READOUT, bijection.forward_and_log_det(phi)[0])
            f, log_marginal = psi @ theta + offset, bijection.log_marginal()
        else:
            f, log_marginal = self._sample_function(psi, centred, self.find_projection(x, y))
            f = f + offset
            if psi.shape[1] > len(psi):
                numpyro.deterministic(FUNCTION, f)
        numpyro.factor("sites", log_marginal - sites.log_density(f))
        self._observe(likelihood, f, y)

    def _sample_function(self, psi: Array, sites: Sites, projection: Array | None) -> tuple[Array, Array]:
        if projection is not None:
            theta = sample_standard_normal(READOUT_BASE, (psi.shape[1], self.outputs))
            base = sample_standard_normal(FUNCTION_BASE, (len(projection), self.outputs))
            factored, outside = ProjectedValues(psi, sites, projection).factor(theta)
            return factored.forward(base) + outside, factored.log_marginal()
        values = FunctionValues(psi, sites)
        base = sample_standard_normal(FUNCTION_BASE, (values.rank, self.outputs))
        if psi.shape[1] <= len(psi):
            numpyro.deterministic(READOUT, values.factor().prior_coordinates(base))
        return values.forward_and_log_marginal(base)

    def _observe(self, likelihood: Likelihood, f: Any, y: Array | None) -> None:
        law = likelihood.law(f)
        numpyro.sample("y", law.to_event(len(law.batch_shape)), obs=y)

    @property
    def outputs(self) -> int:
        """k, the number of outputs of the network."""
        return self.net.readout.width

    @property
    def exact(self) -> bool:
        """Whether noise and readout are Gaussian, so that the readout is integrated out exactly and without sites."""
        return isinstance(self.likelihood, Gaussian) and self.net.readout.gaussian_weights

    @property
    def priors(self) -> dict[str, Any]:
        """The sites besides weights, by name, with their priors: parameters of the likelihood, scales of layers."""
        priors, sites = scale_priors(self.net), scale_sites(self.net)
        return self.likelihood.priors | {sites[name]: prior for name, prior in priors.items()}

    def feature_map(self, x: Float[Array, "n d"]) -> FeatureMap:
        """Return how the hidden weights are read at training inputs `x`, with the input collapse where it applies."""
        return self.features_at(x, False if self.form == "standard" else self.input_collapse)

    def features_at(self, x: Float[Array, "n d"], input_collapse: bool | None) -> FeatureMap:
        """Return how the hidden weights are read at inputs `x`; what another prior of the readout overrides."""
        return feature_map(self.net, x, input_collapse)

    def prior_covariance(self, x: Float[Array, "n d"]) -> Float[Array, "n n"]:
        """Return the prior covariance (n, n) of an output at `x`, in the infinite-width limit where it is known."""
        return prior_covariance(self.net, x)

    def prior_mean(self, x: Float[Array, "n d"]) -> Float[Array, "n"] | None:
        """Return the prior mean (n,) of an output at `x`, in the same limit; None for zero."""
        return None

    def constrain(self, z: dict[str, Array]) -> dict[str, Array]:
        """Map unconstrained sites, as MCMC kernels hold them, to the sites themselves; weights are their own."""
        draw = z | {name: dist.biject_to(prior.support)(z[name]) for name, prior in self.priors.items() if name in z}
        return draw | {name: draw[name + CENTRED] / draw[f"{name}_scale"] for name in self.centred}

    def find_sites(self, x: Float[Array, "n d"], y: Shaped[Array, "n *k"]) -> Sites:
        """Return the model's sites: those it was given, or else variational ones from the infinite-width limit.

        Found once for each data set, while data are concrete; inside a traced function they are part of the program.
        """
        if self.sites is not None:
            return self.sites
        return self._once("sites", self._sites_of, x, y)

    def find_projection(self, x: Float[Array, "n d"], y: Shaped[Array, "n *k"]) -> Float[Array, "r n"] | None:
        """Return the projections of the function values that the collapsed form samples; None where it samples all."""
        n, m = len(x), feature_map(self.net, x, False).num_features
        if m <= n or (m > MUCH_WIDER * n if self.rank is None else self.rank >= n):
            return None
        return self._once("projection", self._projection_of, x, y)

    def _sites_of(self, x: Array, y: Array) -> Sites:
        likelihood = self.likelihood.at_medians()
        return find_sites(likelihood, y, self.prior_covariance(x), self.outputs, mean=self.prior_mean(x))

    def _projection_of(self, x: Array, y: Array) -> Array | None:
        rank = self.rank
        if rank is None and not (is_concrete(x) and is_concrete(y)):
            # A chain that was started with concrete data (NumPyro's jit_model_args) has their number of projections.
            known = self._found.get("projection", (None, None))[1]
            if known is None or known.shape[1] != len(x):
                return None
            rank = len(known)
        return find_projection(self.find_sites(x, y), self.prior_covariance(x), rank)

    def _once(self, name: str, compute: Callable[[Array, Array], Any], x: Array, y: Array) -> Any:
        if not (is_concrete(x) and is_concrete(y)):
            return compute(x, y)
        data = hashlib.sha256(np.asarray(x).tobytes() + np.asarray(y).tobytes()).hexdigest()
        if self._found.get(name, ("",))[0] != data:
            with jax.ensure_compile_time_eval():
                self._found[name] = data, compute(x, y)
        return self._found[name][1]

    def function_rest(
        self, x: Real[Data, "n d"], y: Shaped[Data, "n *k"]
    ) -> tuple[Callable[[dict[str, Array]], Any], Callable[[Any, Array], Array]] | None:
        """Return the part of the rest that moves with "function_base", given all other sites.

        Two functions: one from the other (unconstrained) sites to what is needed of them, and one from that and
        "function_base" to the rest, but for a constant. The second needs neither the network nor a factorisation: it
        costs O(n r k) for r coordinates of the function values. None for forms without that site.
        """
        if self.exact or self.form != "collapsed":
            return None
        x = self.check_inputs("bnn", x)
        y = self.check_targets("bnn", x, y)
        features, sites, projection = self.feature_map(x), self.find_sites(x, y), self.find_projection(x, y)

        def keep(others: dict[str, Array]) -> dict[str, Array]:
            draw = self.constrain(others)
            psi, mean = features.features_and_mean(draw)
            offset = jnp.broadcast_to(offset_of(psi, mean), (len(psi), self.outputs))
            centred = sites.shifted(-offset)
            if projection is None:
                factored = FunctionValues(psi, centred).factor()
            else:
                factored, outside = ProjectedValues(psi, centred, projection).factor(others[READOUT_BASE])
                offset = offset + outside
            factors = {"root": factored.root, "lower": factored.lower, "fit": factored.fit, "offset": offset}
            return factors | {name: draw[name] for name in self.likelihood.priors}

        def given(kept: dict[str, Array], base: Array) -> Array:
            f = FactoredValues(kept["root"], kept["lower"], kept["fit"], sites).forward(base) + kept["offset"]
            return sites.log_density(f) - self.likelihood.at(kept).log_prob(f, y).sum()

        return keep, given

    def check_inputs(self, door: str, x: Data, name: str = "x", d: int | None = None) -> Array:
        """Check inputs at the public door named `door` and return them as a JAX array."""
        check_array(door, name, x, ("n", "d" if d is None else d), "" if d is None else f"d={d} from x")
        return as_array(x, jnp.result_type(float))

    def check_targets(self, door: str, x: Array, y: Data) -> Array:
        """Check targets at the public door named `door` and return them as a JAX array."""
        return self.likelihood.check_targets(door, y, len(x), self.outputs)

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
    likelihood: Likelihood,
    form: str = "collapsed",
    *,
    input_collapse: bool | None = None,
    solver: str = "auto",
    sites: Sites | None = None,
    centred: Sequence[str] = (),
    rank: int | None = None,
) -> BNN:
    """Build the NumPyro model of a Bayesian neural network; the three forms are one posterior.

    Args:
      net: the architecture; its last layer must be Dense, with at least one layer before it.
      likelihood: the law of the targets: `Gaussian(scale)`, `Categorical()`, or any other `Likelihood`; a parameter
        with a prior is learned.
      form: "standard": weights as they are. "repriorised": the readout through the bijection of Hron et al. 2022
        (arXiv 2206.07673), under which the posterior of (hidden weights, readout_base) tends to N(0, I) as widths grow.
        "collapsed": the readout integrated out; exactly under Gaussian noise, and but for its values at the training
        inputs otherwise. `predict` and `readout_draws` bring it back.
      input_collapse: None samples a first Dense layer in the span of the training inputs only when n < d (exact, and
        less work); False never does; True insists. Not used by the standard form.
      solver: "primal", "dual" or "auto", the form of the linear algebra; auto goes by the static shapes.
      sites: Gaussian sites that stand in for a likelihood that is not Gaussian; None finds them in the infinite-width
        limit. They decide how fast chains mix, not what they converge to; see `refine_sites`.
      centred: names of hidden weights, such as "hidden.0.b", that are sampled times their layer's learned scale, as
        N(0, scale^2), under "<name>_centred". Non-centred, the default, suits many weights; centred suits few weights
        of which the data say much.
      rank: of the collapsed form under a likelihood that is not Gaussian, with more readout features than inputs: how
        many projections of the function values are sampled in the readout's place, with the rest of the readout beside
        them; n or more for all values. None takes those of which the sites know at least a tenth of what the prior
        does, or all where that is more than half of them or there are more than 8 n features. One posterior for any
        rank; a gradient costs O(n r m + r^3).

    Returns:
      A model, called as model(x, y=None), for NumPyro's MCMC kernels and for `SplitHMC`, `PCN`, `PCNL`. Posterior
      predictions come from `predict`: NumPyro's `Predictive` with posterior samples would redraw from their prior, and
      without a word, the sites that the samples lack (the readout of the collapsed form, the full first layer under
      the input collapse).

    Raises:
      TypeError: if `net` is no architecture or `likelihood` no likelihood.
      ValueError: if the readout is not Dense, no layer precedes it, its width does not suit the likelihood, or a choice
        is unknown.
    """
    network = check_parts("bnn", net, likelihood, form, solver)
    check_rank("bnn", rank)
    model = BNN(network, likelihood, form, input_collapse, solver, sites, tuple(centred), rank)
    if form != "standard" and not network.readout.gaussian_weights:
        raise ValueError(
            f"`bnn`: form {form!r} needs a readout of normal weights; got {network.readout}; give priors to hidden "
            "layers only, or take form='standard'"
        )
    check_centred("bnn", model)
    return model


def check_parts(door: str, net: Any, likelihood: Any, form: str, solver: str) -> Network:
    """Check what a model is made of at the public door named `door`, and return the architecture.

    Raises:
      TypeError: if `net` is no architecture or `likelihood` no likelihood.
      ValueError: if the readout is not Dense, no layer precedes it, its width does not suit the likelihood, or a choice
        is unknown.
    """
    if not isinstance(net, Layer):
        raise TypeError(f"`{door}`: net must be an architecture such as Dense(512) >> Gelu() >> Dense(1); got {net!r}")
    if not isinstance(likelihood, Likelihood):
        raise TypeError(f"`{door}`: likelihood must be a likelihood such as Gaussian(scale=0.1); got {likelihood!r}")
    if not isinstance(net, Network) or len(net) < 2:
        raise ValueError(f"`{door}`: net must have at least one layer before its Dense readout; got {net}")
    check_choice(door, "form", form, FORMS)
    check_choice(door, "solver", solver, SOLVERS)
    likelihood.check_outputs(door, net.readout.width)  # and raises if the readout is not Dense
    return net


def check_rank(door: str, rank: int | None) -> None:
    """Check a number of projections at the public door named `door`; None is the library's choice.

    Raises:
      TypeError: if it is no whole number.
      ValueError: if it is below 1.
    """
    if rank is not None:
        check_count(door, "rank", rank)


def check_centred(door: str, model: BNN) -> None:
    """Check the names of the weights that are sampled times their layer's learned scale.

    Raises:
      ValueError: if one of them has no such scale.
    """
    learned = [site for site in model.priors if site.startswith("hidden.")]
    for name in model.centred:
        if f"{name}_scale" not in learned:
            raise ValueError(
                f"`{door}`: centred must name hidden weights whose layer's scale has a prior; got {name!r}, with "
                f"priors for {learned}"
            )
