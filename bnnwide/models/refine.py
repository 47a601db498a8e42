"""Sites refined by the chain itself: from the infinite-width limit to the network at hand."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Real, Shaped
from numpyro.infer import MCMC

from bnnwide.checks import Data, check_count
from bnnwide.models.bnn import BNN, FUNCTION, READOUT
from bnnwide.models.features import offset_of
from bnnwide.models.kernel import SplitHMC
from bnnwide.reparam import match_draws


def refine_sites(
    model: BNN,
    x: Real[Data, "n d"],
    y: Shaped[Data, "n *k"],
    *,
    key: Array,
    num_rounds: int = 2,
    num_steps: int = 100,
    num_chains: int = 4,
) -> BNN:
    """Match a model's sites to short chains of its own posterior, as part of warm-up.

    Each round runs `num_steps` warm-up steps and as many draws of `SplitHMC`, and sets every site to the average
    gradient and curvature of its factor of the likelihood over these draws: the fixed point of variational sites, with
    the posterior of the network at hand in place of a Gaussian one in the infinite-width limit. It pays for narrow
    networks, and where the limit is a poor guide; chains are exact with any sites.

    Args:
      model: a model made by `bnn`, repriorised or collapsed.
      x: (n, d) training inputs.
      y: (n, k) training targets, or (n,) labels.
      key: PRNG key.
      num_rounds: chains of this many rounds, each with the sites of the one before.
      num_steps: warm-up steps, and draws, per round and chain.
      num_chains: chains that are run at once.

    Returns:
      The model with its sites fixed; the model itself under Gaussian noise, which needs none.

    Raises:
      ValueError: for the standard form, which has no sites, or for wrong shapes or options.
    """
    for name, value in (("num_rounds", num_rounds), ("num_steps", num_steps), ("num_chains", num_chains)):
        check_count("refine_sites", name, value)
    if model.form == "standard":
        raise ValueError("`refine_sites`: form must be 'repriorised' or 'collapsed': the standard form has no sites")
    x = model.check_inputs("refine_sites", x)
    y = model.check_targets("refine_sites", x, y)
    if model.exact:
        return model
    features, likelihood = model.feature_map(x), model.likelihood.at_medians()

    def of_draw(draw: dict[str, Array]) -> tuple[Array, Array]:
        psi, mean = features.features_and_mean(draw)
        f = draw[FUNCTION] if FUNCTION in draw else psi @ draw[READOUT] + offset_of(psi, mean)
        return f, jnp.sum(psi**2, axis=1)

    for round_key in jax.random.split(key, num_rounds):
        mcmc = MCMC(
            SplitHMC(model), num_warmup=num_steps, num_samples=num_steps, num_chains=num_chains,
            chain_method="vectorized", progress_bar=False,
        )  # fmt: skip
        mcmc.run(round_key, x, y)
        f, variance = jax.jit(partial(jax.lax.map, of_draw))(mcmc.get_samples())
        sites = match_draws(likelihood, y, model.find_sites(x, y), f, jnp.sqrt(variance.mean(axis=0)))
        model = dataclasses.replace(model, sites=sites)
    return model
