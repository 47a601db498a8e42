"""Elliptical slice sampling: a sampler of Gaussian priors without any tuning, through BlackJAX."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bnnwide.comparators.extra import require
from bnnwide.comparators.run import Run, run_chains
from bnnwide.models.kernel import FunctionSpaceKernel, init_to_reference
from bnnwide.samplers.core import Info, Reference, Rest, Sampler, State


def elliptical_slice_sampler(rest: Rest) -> Sampler:
    """Build elliptical slice sampling for U = |z|^2/2 + V, as BlackJAX steps it.

    A draw xi ~ N(0, I) and z span the ellipse z cos t + xi sin t, on which N(0, I) is constant; t is drawn uniformly
    from a bracket that shrinks towards t = 0 until V(z') < V(z) + e, e ~ Exp(1). Exact for any V; it has no step size,
    so that the angle of `step` is not read.

    Source: Murray, Adams & MacKay 2010 (arXiv 1001.0175), figure 2.

    Args:
      rest: V.

    Returns:
      The (init, step) pair; `num_evals` is the number of points tried on the ellipse.
    """
    slices = require("elliptical_slice", "blackjax.mcmc.elliptical_slice")
    kernel = slices.build_kernel(jnp.ones(1), jnp.zeros(1))

    def init(position):
        return State(position, rest(position))

    def step(key, state, angle, reference=Reference()):
        white = reference.whiten(state.position)

        def log_likelihood(z: Any) -> Array:
            value = -reference.tilt(rest(reference.color(z)), z)
            # A value that is no number must lose every comparison: `nan <= level` is false, which would accept it. And
            # a bracket that rounding has shrunk to nothing ends where it began, even if V is known to a few digits only
            # and none of them lies above the level: infinity marks that point.
            start = jnp.stack([jnp.all(a == b) for a, b in zip(jax.tree.leaves(z), leaves, strict=True)]).all()
            return jnp.where(start, jnp.inf, jnp.where(jnp.isfinite(value), value, -jnp.inf))

        leaves = jax.tree.leaves(white)
        level = -reference.tilt(state.rest, white)
        level = jnp.where(jnp.isfinite(level), level, -jnp.inf)
        new, info = kernel(key, slices.EllipSliceState(white, level), log_likelihood)
        moved = jnp.isfinite(new.logdensity)
        position = reference.color(new.position)
        # V + |zeta|^2/2 over the referenced entries is R again.
        value = jnp.where(moved, -reference.tilt(new.logdensity, new.position), state.rest)
        position = jax.tree.map(lambda a, b: jnp.where(moved, a, b), position, state.position)
        count = jnp.asarray(info.subiter, jnp.int32)
        return State(position, value), Info(
            moved.astype(value.dtype), moved, ~jnp.isfinite(value), jnp.zeros_like(count), count
        )

    return Sampler(init, step, lambda angle: angle, min_angle=math.pi / 2, max_angle=math.pi / 2, target_accept=0.5)


class EllipticalSlice(FunctionSpaceKernel):
    """Elliptical slice sampling as a NumPyro kernel; see `elliptical_slice`.

    Sites that are not standard normal under the prior get a diagonal Gaussian reference, on the unconstrained scale,
    learned in warm-up, and the ratio of their prior to it is part of V: exact all the same.

    Args:
      model: a NumPyro model.
      potential_fn: instead of a model, a potential U(z); `MCMC.run` then needs `init_params`.
      init_strategy: a NumPyro initialisation strategy; see `bnnwide.models.kernel.init_to_reference`, the default.

    Raises:
      ImportError: if BlackJAX is not installed.
      ValueError: if not exactly one of model and potential is given.
    """

    def __init__(
        self,
        model: Callable | None = None,
        potential_fn: Rest | None = None,
        *,
        init_strategy: Callable = init_to_reference,
    ) -> None:
        require("elliptical_slice", "blackjax")
        super().__init__(
            model, potential_fn, elliptical_slice_sampler, angle=math.pi / 2, target_accept=None,
            init_strategy=init_strategy,
        )  # fmt: skip

    def get_diagnostics_str(self, state):
        """Describe the chain for the progress bar."""
        return f"{state.num_evals} evaluations"


def elliptical_slice(
    model: Callable, *data: Any, key: Array, num_warmup: int = 500, num_samples: int = 1000, num_chains: int = 4
) -> Run:
    """Sample a model's posterior by elliptical slice sampling: exact, free of tuning, without gradients.

    Best where the prior is N(0, I) and the likelihood weak, which is what repriorisation makes of a wide BNN: in the
    limit of infinite width every first point is taken and draws are independent. It suffers as random walks do where V
    varies a lot along a random ellipse.

    Source: Murray, Adams & MacKay 2010 (arXiv 1001.0175).

    Args:
      model: a NumPyro model.
      data: its arguments, (x, y) for a BNN.
      key: PRNG key.
      num_warmup: warm-up steps per chain; they learn the reference of sites that are not standard normal.
      num_samples: draws per chain.
      num_chains: number of chains, stepped together.

    Returns:
      The draws. `stats`, all (chains, draws): `num_evals`, evaluations of the potential per draw; `accept_prob`, 1 (0 if
      rounding left the chain where it was); `potential_energy`; `diverging`.

    Raises:
      ImportError: if BlackJAX is not installed.
      ValueError: if a count is out of range, or the model has no latent site.
    """
    return run_chains(
        "elliptical_slice", EllipticalSlice(model), data, key,
        num_warmup=num_warmup, num_samples=num_samples, num_chains=num_chains,
        fields=("num_evals", "accept_prob", "potential_energy", "diverging"),
    )  # fmt: skip
