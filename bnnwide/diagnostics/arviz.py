"""From a run, of MCMC or of a comparator, to an ArviZ DataTree."""

import inspect
import sys
from typing import Any

import arviz as az
import jax
import numpy as np
import numpyro
import xarray as xr
from jaxtyping import Array, Real

from bnnwide import __version__
from bnnwide.checks import Data, check_count
from bnnwide.comparators import Run
from bnnwide.models.bnn import BNN
from bnnwide.models.predict import predict_draws
from bnnwide.natgrad import Draws

# ArviZ loads NumPyro lazily. Where `import arviz` comes first, `from numpyro.infer import ...` then leaves the package
# without its submodules as attributes, and `arviz.from_numpyro` looks for one of them.
for _name in ("initialization", "svi"):
    setattr(numpyro.infer, _name, sys.modules[f"numpyro.infer.{_name}"])


def to_arviz(
    mcmc: numpyro.infer.MCMC | Run | Draws,
    *,
    x_test: Real[Data, "t d"] | None = None,
    key: Array | None = None,
    max_size: int | None = None,
) -> xr.DataTree:
    """Convert a finished run to an ArviZ DataTree.

    Args:
      mcmc: an MCMC run of any kernel on any NumPyro model; or what a function of `bw.comparators` or `bw.natgrad`
        returned.
      x_test: (t, d) test inputs; for a model made by `bnn`, adds the group "predictions" with, per draw, the mean and
        the standard deviation of the function given the hidden weights ("mean", "sd": chain, draw, input, output).
      key: PRNG key for what the input collapse left out of the predictions.
      max_size: leave sites with more entries per draw out of the posterior (wide hidden layers are large).

    Returns:
      A DataTree with the posterior, sample statistics and observed data, as `arviz.from_numpyro` makes it; of a
      comparator without observed data, and with its name as the attribute "method".

    Raises:
      ValueError: if the run has no draws, or `x_test` has the wrong shape.
      TypeError: if `x_test` is given for a model not made by `bnn`.
    """
    if isinstance(mcmc, Draws):
        tree, model, args, kwargs = _tree_of_weights(mcmc), None, (), {}
    elif isinstance(mcmc, Run):
        tree, model, args, kwargs = _tree_of(mcmc), mcmc.model, mcmc.data, {}
    else:
        if mcmc.last_state is None:
            raise ValueError("`to_arviz`: mcmc must hold draws; call mcmc.run(key, x, y) first")
        tree, model = az.from_numpyro(mcmc, log_likelihood=False), mcmc.sampler.model
        args, kwargs = mcmc._args, mcmc._kwargs
    tree.attrs |= {"inference_library": "bnnwide", "bnnwide_version": __version__}
    if x_test is not None:
        if not isinstance(model, BNN):
            raise TypeError("`to_arviz`: x_test needs a model made by bnn(...)")
        assert not isinstance(mcmc, Draws)
        data = inspect.signature(model).bind(*args, **kwargs).arguments
        mean, sd = predict_draws(model, mcmc.get_samples(), data["x"], data["y"], x_test, key=key)
        shape = (tree["posterior"].sizes["chain"], -1, *mean.shape[1:])
        dims = ("chain", "draw", "input", "output")
        tree["predictions"] = xr.DataTree(
            xr.Dataset({"mean": (dims, mean.reshape(shape)), "sd": (dims, sd.reshape(shape))})
        )
    if max_size is not None:
        check_count("to_arviz", "max_size", max_size)
        posterior = tree["posterior"].to_dataset()
        size = {name: site.size // (site.sizes["chain"] * site.sizes["draw"]) for name, site in posterior.items()}
        tree["posterior"] = xr.DataTree(posterior.drop_vars([name for name in size if size[name] > max_size]))
    return tree


def _tree_of(run: Run) -> Any:
    samples = run.get_samples(group_by_chain=True)
    draws = next(iter(samples.values())).shape[:2]
    stats = {name: np.asarray(value) for name, value in run.stats.items() if np.shape(value)[:2] == draws}
    groups = {"posterior": {name: np.asarray(site) for name, site in samples.items()}} | (
        {"sample_stats": stats} if stats else {}
    )
    tree: Any = az.from_dict(groups)
    tree.attrs["method"] = run.method
    return tree


def _tree_of_weights(draws: Draws) -> Any:
    sites = {
        jax.tree_util.keystr(path, simple=True, separator=".") or "params": np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(draws.params)[0]
    }
    stats = {name: np.asarray(value) for name, value in draws.stats.items()}
    tree: Any = az.from_dict({"posterior": sites} | ({"sample_stats": stats} if stats else {}))
    tree.attrs["method"] = draws.method
    return tree
