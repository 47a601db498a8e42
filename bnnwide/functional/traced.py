"""Draws of a function from a user's own NumPyro model and guide."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from numpyro import handlers

from bnnwide.models.bnn import BNN, READOUT


@dataclasses.dataclass(frozen=True, eq=False)
class TracedDraws:
    """What the functional ELBO needs of one draw of a guide: function, log likelihood, ordinary KL of other sites.

    Args:
      model: a NumPyro model.
      guide: a guide for it.
      params: parameters of both, by site.
      args: positional arguments, the inputs first.
      kwargs: named arguments.
      function: a function of (draw, x) to (n, k), or the name of a deterministic site of model(x).
      parametric: names of latent sites that keep their own priors.
    """

    model: Callable
    guide: Callable
    params: dict[str, Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    function: Any
    parametric: tuple[str, ...]

    def draw(
        self, key: Array, points: Float[Array, "m d"]
    ) -> tuple[Float[Array, "m k"], Float[Array, ""], Float[Array, ""]]:
        """Return the function at the points (m, k), the log likelihood, and log q - log p of parametric sites."""
        guide_key, model_key, function_key = jax.random.split(key, 3)
        guide_trace = self._trace(self.guide, guide_key, self.params)
        latent = {name: site["value"] for name, site in guide_trace.items() if site["type"] == "sample"}
        trace = self._trace(self.model, model_key, self.params | latent)
        log_likelihood = sum(_log_prob(site) for site in trace.values() if _observed(site))
        ordinary: Any = jnp.zeros(())
        names = tuple(self.model.priors) if isinstance(self.model, BNN) else self.parametric
        for name in names:
            for where, sites in (("the model", trace), ("the guide", guide_trace)):
                if name not in sites or sites[name]["type"] != "sample":
                    raise ValueError(f"`FunctionalELBO`: the parametric site {name!r} must be sampled by {where}")
            ordinary = ordinary + _log_prob(guide_trace[name]) - _log_prob(trace[name])
        values = {name: site["value"] for name, site in trace.items() if _known(site)}
        return self._function(values, latent, points, function_key), jnp.asarray(log_likelihood), ordinary

    def _trace(self, fn: Callable, key: Array, data: dict[str, Any]) -> dict[str, Any]:
        seeded: Any = handlers.substitute(handlers.seed(fn, key), data=data)
        return handlers.trace(seeded).get_trace(*self.args, **self.kwargs)

    def _function(self, draw: dict[str, Any], latent: dict[str, Any], points: Array, key: Array) -> Array:
        model = self.model
        if isinstance(model, BNN):
            if READOUT not in draw:
                raise ValueError(
                    "`FunctionalELBO`: the model's form must hold a readout; got 'collapsed'; use form='standard' or "
                    "'repriorised'"
                )
            features = model.feature_map(jnp.asarray(self.args[0], points.dtype))
            return features.function(draw, draw[READOUT], features.test_basis(points), key)
        if callable(self.function):
            f: Any = self.function(draw, points)
        else:
            # Of latent sites only: a deterministic site would be put in as well, as it was at the training inputs.
            data = self.params | {name: value for name, value in draw.items() if name in latent}
            seeded: Any = handlers.substitute(handlers.seed(model, key), data=data)
            trace: Any = handlers.trace(seeded).get_trace(points)
            if self.function not in trace:
                raise ValueError(
                    f"`FunctionalELBO`: model(x) must record the function as a deterministic site {self.function!r}; "
                    f"got {sorted(trace)}; or pass function=..."
                )
            f = trace[self.function]["value"]
        return f[:, None] if jnp.ndim(f) == 1 else f


def _observed(site: dict[str, Any]) -> bool:
    return site["type"] == "sample" and site["is_observed"]


def _known(site: dict[str, Any]) -> bool:
    return site["type"] in ("sample", "deterministic") and not site.get("is_observed", False)


def _log_prob(site: dict[str, Any]) -> Array:
    values = site["fn"].log_prob(site["value"])
    if site.get("scale") is not None:
        values = site["scale"] * values
    return jnp.sum(values)
