"""Variational inference over functions: the fit, and what a fitted approximation answers."""

import abc
import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float, Real, Shaped

from bnnwide.arch import Network
from bnnwide.checks import Data, check_array, check_choice, check_count, check_inputs, check_positive
from bnnwide.comparators import Run
from bnnwide.functional.descent import descend
from bnnwide.functional.elbo import FunctionalELBO, FunctionObjective, RegularisedELBO
from bnnwide.functional.families import FAMILIES, Family, make_family
from bnnwide.functional.priors import FunctionPrior, GPPrior
from bnnwide.likelihoods import Likelihood, Outcome
from bnnwide.prediction import Prediction, over_draws

OBJECTIVES = ("functional", "regularised")
MORE_NOISE = ", or more noise (or gamma) in the objective"


class FunctionApproximation(abc.ABC):
    """An approximate posterior over functions: draws of the function, and what follows from them.

    A subclass has `likelihood`, `input_shape` and `losses`, and states how functions and parameters of the likelihood
    are drawn.
    """

    likelihood: Likelihood
    input_shape: tuple[int, ...]
    losses: Float[Array, "steps"]

    @abc.abstractmethod
    def function_draws(self, key: Array, x: Float[Array, "t d"], num_samples: int) -> Float[Array, "s t k"]:
        """Return draws of the function at inputs, without checks; one key is one set of functions."""

    def noise_draws(self, key: Array, num_samples: int) -> Mapping[str, Array]:
        """Return draws of the likelihood's learned parameters, by site."""
        return {}

    def draws(self, key: Array, x_test: Real[Data, "t d"], num_samples: int) -> Float[Array, "s t k"]:
        """Draw functions from the approximation, jointly over test inputs; without noise.

        Args:
          key: PRNG key.
          x_test: (t, d) test inputs.
          num_samples: s, how many functions.

        Returns:
          (s, t, k) values of the function, in the units of y for noise around it.

        Raises:
          ValueError: for a wrong shape, or NaN or infinite inputs.
        """
        x_test = check_inputs("draws", "x_test", x_test, self.input_shape)
        check_count("draws", "num_samples", num_samples)
        return self.function_draws(key, x_test, num_samples)

    def predict(
        self, x_test: Real[Data, "t d"], *, key: Array | None = None, num_samples: int = 500, batch_size: int = 1024
    ) -> Prediction:
        """Return the predictive moments of draws of the approximation.

        mean = avg E[y | f_s], epistemic = its variance over draws s, aleatoric = avg Var[y | f_s].

        Args:
          x_test: (t, d) test inputs.
          key: PRNG key of the draws.
          num_samples: how many draws of the function.
          batch_size: how many test inputs are held at once.

        Returns:
          Moments (t, k), in the units of y.

        Raises:
          ValueError: for a wrong shape, or NaN or infinite inputs.
        """
        x_test = check_inputs("predict", "x_test", x_test, self.input_shape)
        check_count("predict", "num_samples", num_samples, 2)
        check_count("predict", "batch_size", batch_size)
        key = jax.random.key(0) if key is None else key
        function_key, noise_key = jax.random.split(key)
        noise = dict(self.noise_draws(noise_key, num_samples))
        starts = range(0, len(x_test), batch_size)
        parts = [self._moments(function_key, x_test[i : i + batch_size], num_samples, noise) for i in starts]
        return jax.tree.map(lambda *rows: jnp.concatenate(rows), *parts) if parts[1:] else parts[0]

    def _moments(self, key: Array, x: Array, num_samples: int, noise: dict[str, Array]) -> Prediction:
        def outcome(item: tuple[Array, dict[str, Array]]) -> Outcome:
            f, draw = item
            return self.likelihood.at(draw).outcome(f)

        each = jax.lax.map(outcome, (self.function_draws(key, x, num_samples), noise))
        return over_draws(each)

    def run(self, key: Array, x_test: Real[Data, "t d"], *, num_samples: int = 500) -> Run:
        """Return draws as a `Run`, one chain, for `bw.to_arviz`: the site "f", and the likelihood's parameters.

        Args:
          key: PRNG key.
          x_test: (t, d) inputs at which the function is recorded.
          num_samples: how many draws.

        Raises:
          ValueError: for a wrong shape, or NaN or infinite inputs.
        """
        function_key, noise_key = jax.random.split(key)
        sites = {"f": self.draws(function_key, x_test, num_samples)} | dict(self.noise_draws(noise_key, num_samples))
        name = type(self).__name__
        return Run(name, self, (), {site: values[None] for site, values in sites.items()}, {"loss": self.losses})


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class FunctionalFit(FunctionApproximation):
    """What `fit` found: a variational law of functions.

    Args:
      family: of network weights.
      params: of the family and, under "noise", of the likelihood's learned parameters.
      likelihood: of the targets.
      objective: what was maximised.
      input_shape: the shape of one input.
      losses: (num_steps,) estimates of the negative objective along the way.
    """

    family: Family
    params: dict[str, Any]
    likelihood: Likelihood
    objective: FunctionObjective
    input_shape: tuple[int, ...]
    losses: Float[Array, "steps"]

    def function_draws(  # noqa: D102  # as in the base class
        self, key: Array, x: Float[Array, "t d"], num_samples: int
    ) -> Float[Array, "s t k"]:
        return _evaluate(self.family, self.objective.score == "linearised", self.params["family"], key, x, num_samples)

    def noise_draws(self, key: Array, num_samples: int) -> Mapping[str, Array]:  # noqa: D102  # as in the base class
        keys = jax.random.split(key, num_samples)
        return jax.vmap(lambda one: _draw_noise(self.likelihood, self.params["noise"], one)[0])(keys)

    def __repr__(self) -> str:
        return (
            f"FunctionalFit(objective={type(self.objective).__name__}, score={self.objective.score!r}, "
            f"family={type(self.family).__name__}, likelihood={self.likelihood}, steps={len(self.losses)})"
        )


@partial(jax.jit, static_argnums=(0, 1, 5))
def _evaluate(family: Family, linearised: bool, params: Any, key: Array, x: Array, num_samples: int) -> Array:
    return (family.sample_linearised if linearised else family.sample)(params, key, num_samples)(x)


def fit(
    net: Network,
    prior: FunctionPrior,
    likelihood: Likelihood,
    x: Real[Data, "n d"],
    y: Shaped[Data, "n *k"],
    *,
    key: Array,
    num_steps: int = 3000,
    family: Family | str = "factorised",
    objective: FunctionObjective | str = "functional",
    learning_rate: float = 0.02,
    batch_size: int | None = None,
) -> FunctionalFit:
    """Fit a network to a prior over functions and to data, by function-space variational inference.

    Maximises E_q[log p(y | f)] - weight D(q(f_M) || p(f_M)) over the parameters of q, with Adam, whose step falls to 0
    along a cosine. The prior of the weights plays no part. A learned parameter of the likelihood has a normal
    approximation on the unconstrained scale, with the ordinary KL to its prior.

    Source: Sun, Zhang, Shi & Grosse 2019 (arXiv 1903.05779), algorithm 1.

    Args:
      net: the architecture.
      prior: over functions, of each output; hyper-parameters as numbers (`GPPrior.fit`, `GPPrior.at`).
      likelihood: of the targets.
      x: (n, d) training inputs.
      y: (n, k) training targets, or (n,) labels.
      key: PRNG key.
      num_steps: of the optimiser.
      family: "factorised", "matrix", "repriorised" or "mixture", or a `Family` of this net.
      objective: "functional" or "regularised", with their defaults, or a `FunctionalELBO` or `RegularisedELBO`, whose
        prior must be `prior`.
      learning_rate: Adam's at the start.
      batch_size: rows per step; None for all. Measurement sets then hold training inputs of the whole set.

    Returns:
      The approximation, with `predict`, `draws`, `run` and `losses`.

    Raises:
      ImportError: if optax is not installed.
      TypeError: if an argument is of the wrong kind.
      ValueError: for wrong shapes, NaN or infinite data, an unknown choice, an option out of range, or losses that are
        not finite.
    """
    x, y, chosen = check_problem("fit", net, prior, likelihood, x, y, objective)
    check_count("fit", "num_steps", num_steps)
    check_positive("fit", "learning_rate", learning_rate)
    if batch_size is not None:
        check_count("fit", "batch_size", batch_size)
    if isinstance(family, str):
        check_choice("fit", "family", family, FAMILIES)
        family = make_family(family, net, x, y, likelihood)
    elif not isinstance(family, Family):
        raise TypeError(f"`fit`: family must be a Family, or one of {FAMILIES}; got {family!r}")
    linearised = chosen.score == "linearised"
    if linearised and not family.smooth:
        raise ValueError(f"`fit`: score='linearised' needs a Gaussian family; got {family!r}; use score='stein'")
    law, size = family, len(x) if batch_size is None else min(batch_size, len(x))
    sample = law.sample_linearised if linearised else law.sample
    program = Program(chosen, likelihood)

    def loss(params: Any, key: Array, data: Any) -> Array:
        x, y, chosen, likelihood = program.at(data)
        batch_key, points_key, draw_key, noise_key, key = jax.random.split(key, 5)
        rows = jax.random.choice(batch_key, len(x), (size,), replace=False) if size < len(x) else jnp.arange(len(x))
        points = chosen.measurement(points_key, x)
        f = sample(params["family"], draw_key, chosen.num_samples)(jnp.concatenate([x[rows], points]))
        noise, noise_kl = jax.vmap(lambda one: _draw_noise(likelihood, params["noise"], one))(
            jax.random.split(noise_key, chosen.num_samples)
        )
        log_prob = jax.vmap(lambda f, draw: likelihood.at(draw).log_prob(f, y[rows]).sum())(f[:, :size], noise)
        exact = law.linearised(params["family"], points) if linearised else None
        divergence = chosen.divergence(key, points, f[:, size:], exact)
        return noise_kl.mean() - log_prob.mean() * (len(x) / size) + chosen.weight * divergence

    init_key, step_key = jax.random.split(key)
    start = {"family": family.init(init_key), "noise": _init_noise(likelihood)}
    data = (program.data(x, y),)
    params, losses = descend("fit", loss, start, step_key, data, num_steps, learning_rate, remedy=MORE_NOISE)
    return FunctionalFit(family, params, likelihood, chosen, x.shape[1:], losses)


class Program(NamedTuple):
    """An objective and a likelihood, apart from their numbers: these come in as arrays, and the program stays the same.

    Attributes:
      objective: what is maximised.
      likelihood: of the targets.
    """

    objective: FunctionObjective
    likelihood: Likelihood

    def data(self, x: Array, y: Array) -> Any:
        """Return inputs, targets, and the numbers of prior and likelihood, as arrays."""
        prior = self.objective.prior
        numbers = prior.numbers if isinstance(prior, GPPrior) else {}
        return x, y, *jax.tree.map(lambda value: jnp.asarray(value, x.dtype), (numbers, self.likelihood.numbers))

    def at(self, data: Any) -> tuple[Array, Array, FunctionObjective, Likelihood]:
        """Return inputs, targets, objective and likelihood for what `data` returned."""
        x, y, numbers, parameters = data
        objective, likelihood = self
        prior: Any = objective.prior
        if numbers:
            objective = dataclasses.replace(objective, prior=prior.at(numbers))
        return x, y, objective, dataclasses.replace(likelihood, **parameters)


def check_problem(
    door: str, net: Any, prior: Any, likelihood: Any, x: Data, y: Data, objective: Any
) -> tuple[Array, Array, Any]:
    """Check what a fit starts from; return inputs and targets as JAX arrays, and the objective as a value."""
    if not isinstance(net, Network):
        raise TypeError(f"`{door}`: net must be an architecture such as Dense(512) >> Gelu() >> Dense(1); got {net!r}")
    if not isinstance(likelihood, Likelihood):
        raise TypeError(f"`{door}`: likelihood must be a likelihood such as Gaussian(scale=0.1); got {likelihood!r}")
    if not isinstance(prior, FunctionPrior):
        raise TypeError(f"`{door}`: prior must be a prior over functions, such as GPPrior(kernel); got {prior!r}")
    likelihood.check_outputs(door, net.readout.width)
    check_array(door, "x", x, ("n", "d"))
    x = jnp.asarray(x, jnp.result_type(float))
    y = likelihood.check_targets(door, y, len(x), net.readout.width)
    if isinstance(objective, str):
        check_choice(door, "objective", objective, OBJECTIVES)
        objective = FunctionalELBO(prior) if objective == "functional" else RegularisedELBO(prior)
    elif not isinstance(objective, FunctionObjective):
        raise TypeError(f"`{door}`: objective must be a FunctionalELBO, or one of {OBJECTIVES}; got {objective!r}")
    elif objective.prior is not prior:
        raise ValueError(f"`{door}`: the objective must be made with the same prior; got {objective.prior} and {prior}")
    return x, y, objective


def _init_noise(likelihood: Likelihood) -> dict[str, Any]:
    """Start at the medians of the priors, with a tenth of a unit of spread on the unconstrained scale."""
    medians: Any = likelihood.at_medians()
    start = {}
    for name, prior in likelihood.priors.items():
        at = jnp.asarray(getattr(medians, name.removeprefix("noise_")), jnp.result_type(float))
        loc = dist.biject_to(prior.support).inv(at)
        start[name] = {"loc": loc, "log_scale": jnp.full_like(loc, jnp.log(0.1))}
    return start


def _draw_noise(likelihood: Likelihood, params: dict[str, Any], key: Array) -> tuple[dict[str, Array], Array]:
    """Return one draw of the likelihood's learned parameters, and log q - log p of it."""
    draw, divergence = {}, jnp.zeros(())
    for index, (name, prior) in enumerate(likelihood.priors.items()):
        loc, log_scale = params[name]["loc"], params[name]["log_scale"]
        transform = dist.biject_to(prior.support)
        law = dist.TransformedDistribution(dist.Normal(loc, jnp.exp(log_scale)), transform)
        draw[name] = law.rsample(jax.random.fold_in(key, index))
        divergence = divergence + jnp.sum(law.log_prob(draw[name])) - jnp.sum(prior.log_prob(draw[name]))
    return draw, divergence
