"""Starting points of chains: scales from the marginal likelihood of the infinitely wide network."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from jaxtyping import Real
from numpyro.infer.initialization import init_to_value

from bnnwide.arch.scales import named_leaves
from bnnwide.checks import Data
from bnnwide.gp import fit
from bnnwide.models.bnn import BNN
from bnnwide.models.features import at_medians, scale_sites
from bnnwide.models.kernel import init_to_reference


def init_to_fit(model: BNN, x: Real[Data, "n d"], y: Real[Data, "n k"], **options: Any) -> Callable:
    """Start learned scales where the marginal likelihood of the infinitely wide network is largest.

    An initialisation strategy for `SplitHMC`, `PCN`, `PCNL` and NumPyro's kernels: noise and layer scales with a prior
    start at the values that `bnnwide.gp.fit` finds from their medians; weights start as by `init_to_reference`.

    Args:
      model: a model made by `bnn`, with Gaussian noise.
      x: (n, d) training inputs.
      y: (n, k) training targets.
      **options: of `bnnwide.gp.fit`.

    Returns:
      The strategy, as init_strategy=...

    Raises:
      ValueError: if nothing is learned, the likelihood is not Gaussian with one scale, or the limit does not exist.
    """
    if not model.exact or not model.priors:
        raise ValueError(
            f"`init_to_fit`: model must have Gaussian noise, and a scale with a prior; got {model.likelihood} and "
            f"priors for {sorted(model.priors)}"
        )
    net, likelihood = at_medians(model.net), model.likelihood.at_medians()
    fitted = fit(net, x, y, likelihood, **options)
    leaves = dict(named_leaves(fitted.net))
    values = {site: jnp.asarray(leaves[name]) for name, site in scale_sites(model.net).items()}
    values |= {name: jnp.asarray(fitted.likelihood.scale) for name in model.likelihood.priors}
    return partial(_init, values=values)


def _init(site: Any = None, *, values: dict[str, Any]) -> Any:
    if site is None:
        return partial(_init, values=values)  # the form in which NumPyro takes a strategy
    if site["name"] in values and site["type"] == "sample" and not site["is_observed"]:
        return init_to_value(site, values=values)
    return init_to_reference(site)
