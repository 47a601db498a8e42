"""The functional ELBO: expected log likelihood less a divergence between functions at random points."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bnnwide.checks import check_choice, check_count, check_positive
from bnnwide.functional.divergence import gaussian_divergence, moments, stein_divergence
from bnnwide.functional.measurement import Measurement
from bnnwide.functional.priors import FunctionPrior, GPPrior
from bnnwide.functional.traced import TracedDraws

SCORES = ("stein", "gaussian", "linearised")
Law = tuple[Float[Array, "m k"], Float[Array, "km p"]]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class FunctionObjective(abc.ABC):
    """E_q[log p(y | f)] - weight D(q(f_M), p(f_M)), with M a random measurement set; a subclass says with what noise.

    Args:
      prior: over functions, of each output.
      measurement: a law of measurement sets, such as `Measurement(num_train=20, num_domain=20, domain=(-4, 4))`.
      score: how the divergence is differentiated. "stein": through scores, that of q by `SteinScore` from draws, that
        of a prior with a density exactly, and of any other by `SteinScore`. "gaussian": the KL of Gaussians with the
        moments of the draws. "linearised": the exact KL of the Gaussian law of the network linearised in the family's
        noise; likelihood and predictions are then of the linearised network as well.
      weight: lambda, 1 for a bound on the evidence at the points.
      num_samples: draws of q per step.
      fraction: of the spectrum that the Stein estimator keeps.
      num_prior_samples: draws per step of a prior without a density.
      function: how `loss` finds the function of a user's own model: a function of (draw, x) to (n, k), draw being all
        latent and deterministic sites by name; or the name of a deterministic site that model(x) records. A model made
        by `bnn` needs none.
      parametric: names of latent sites of a user's own model that are no weights, such as a noise scale: they keep
        their own priors and the ordinary KL. A model made by `bnn` needs none.

    Raises:
      TypeError: if the prior is no prior over functions.
      ValueError: if an option is out of range, or the hyper-parameters of the prior still have distributions.
    """

    prior: FunctionPrior = dataclasses.field(kw_only=False)
    measurement: Callable[[Array, Array], Array] = Measurement()
    score: str = "stein"
    weight: float = 1.0
    num_samples: int = 64
    fraction: float = 0.99
    num_prior_samples: int = 256
    function: Any = "f"
    parametric: tuple[str, ...] = ()

    can_infer_discrete = False  # what NumPyro's SVI asks of its losses

    def __post_init__(self) -> None:
        door = type(self).__name__
        if not isinstance(self.prior, FunctionPrior):
            raise TypeError(
                f"`{door}`: prior must be a prior over functions, such as GPPrior(kernel); got {self.prior!r}"
            )
        if isinstance(self.prior, GPPrior):
            self.prior.check_numbers(door)
        check_choice(door, "score", self.score, SCORES)
        check_positive(door, "weight", self.weight)
        check_count(door, "num_samples", self.num_samples, 2)
        check_count(door, "num_prior_samples", self.num_prior_samples, 2)

    @abc.abstractmethod
    def nugget(self, variance: Float[Array, ""], num_points: int) -> Array:
        """Return the variance of the noise on function values.

        Args:
          variance: the prior's mean variance at the points.
          num_points: m, how many there are.
        """

    def divergence(
        self, key: Array, points: Float[Array, "m d"], f: Float[Array, "s m k"], law: Law | None = None
    ) -> Float[Array, ""]:
        """Return the divergence at measurement points; under "stein" only its gradient is that of the KL.

        Args:
          key: PRNG key.
          points: (m, d) measurement points.
          f: (s, m, k) draws of the variational law there, differentiable.
          law: for "linearised", its mean (m, k) there and a root (k m, p) of its covariance.
        """
        prior_key, key = jax.random.split(key)
        prior_mean, prior_covariance = self.prior.moments(prior_key, points, self.num_prior_samples)
        nugget = self.nugget(jnp.mean(jnp.diagonal(prior_covariance)), len(points))
        if self.score == "stein":
            known = (prior_mean, prior_covariance)
            return stein_divergence(
                key, f, self.prior, known, points, nugget, self.fraction, self.num_prior_samples
            )  # fmt: skip
        if self.score == "linearised" and law is None:
            raise ValueError(
                f"`{type(self).__name__}`: score='linearised' needs a family of `fit`; use score='stein' or 'gaussian'"
            )
        mean, covariance = moments(f) if law is None else (law[0], law[1] @ law[1].T)
        return gaussian_divergence(mean, covariance, prior_mean, prior_covariance, nugget)

    def loss(
        self, rng_key: Array, param_map: dict[str, Any], model: Callable, guide: Callable, *args: Any, **kwargs: Any
    ) -> Float[Array, ""]:
        """Return the negative functional ELBO of a user's guide, for `numpyro.infer.SVI(model, guide, optim, loss)`.

        Args:
          rng_key: PRNG key.
          param_map: parameters of model and guide, by site.
          model: a NumPyro model whose first argument is x (n, d), with observed targets; made by `bnn`, or any other
            if `function` says what its function is. The priors of its weights are not looked at.
          guide: a guide for its latent sites; those named in `parametric` must be sites of their own.
          args: of model and guide.
          kwargs: of model and guide.

        Raises:
          ValueError: if the model's function cannot be found, or score is "linearised".
        """
        points_key, draw_key, key = jax.random.split(rng_key, 3)
        x = jnp.asarray(args[0])
        points = self.measurement(points_key, x)
        traced = TracedDraws(model, guide, param_map, args, kwargs, self.function, self.parametric)
        f, log_likelihood, ordinary = jax.vmap(lambda one: traced.draw(one, points))(
            jax.random.split(draw_key, self.num_samples)
        )
        return ordinary.mean() - log_likelihood.mean() + self.weight * self.divergence(key, points, f)

    def loss_with_mutable_state(self, rng_key: Array, param_map: dict[str, Any], *args: Any, **kwargs: Any) -> dict:
        """Return `loss` in the form that NumPyro asks of losses; mutable sites are not supported."""
        return {"loss": self.loss(rng_key, param_map, *args, **kwargs), "mutable_state": None}


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class FunctionalELBO(FunctionObjective):
    """E_q[log p(y | f)] - weight KL(q(f_M) || p(f_M)), with M a random measurement set.

    The KL between two laws of functions is infinite for most pairs: a network of P weights has its functions on a set
    of dimension P, to which most Gaussian processes give no mass. What is used is the KL of values *with noise*,
    f_M + N(0, nugget I), finite for every set M; it keeps growing with the number of points, so that points and noise
    are part of the objective. `RegularisedELBO` has a limit.

    All other options are those of `FunctionObjective`; the prior comes first, and alone need not be named.

    Source: Sun, Zhang, Shi & Grosse 2019 (arXiv 1903.05779), sections 3.1 to 3.4.

    Args:
      noise: scale of the injected noise, in units of the prior's root mean square standard deviation at the points.

    Raises:
      TypeError: if the prior is no prior over functions.
      ValueError: if an option is out of range, or the hyper-parameters of the prior still have distributions.
    """

    noise: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("FunctionalELBO", "noise", self.noise)

    def nugget(self, variance: Float[Array, ""], num_points: int) -> Array:  # noqa: D102  # as in the base class
        return self.noise**2 * variance


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class RegularisedELBO(FunctionObjective):
    """E_q[log p(y | f)] - weight D_gamma(q || p), with the regularised KL between Gaussian measures on functions.

    D_gamma is the KL after gamma I has been added to both covariance operators on L2 of the law of the points. At m
    points the operators are matrices divided by m, so that the nugget is gamma m: it grows with their number, and the
    estimate tends to a finite limit, where the KL with a fixed nugget grows without bound.

    All other options are those of `FunctionObjective`.

    Source: Cinquin & Bamler 2024 (arXiv 2406.04317), section 4.

    Args:
      score: the divergence is one of Gaussian laws: "linearised" (as in the paper) or "gaussian".
      gamma: in units of the prior's mean variance, positive.

    Raises:
      TypeError: if the prior is no prior over functions.
      ValueError: if an option is out of range.
    """

    score: str = "linearised"
    gamma: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("RegularisedELBO", "score", self.score, SCORES[1:])
        check_positive("RegularisedELBO", "gamma", self.gamma)

    def nugget(self, variance: Float[Array, ""], num_points: int) -> Array:  # noqa: D102  # as in the base class
        return self.gamma * num_points * variance
