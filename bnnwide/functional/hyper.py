"""Hyper-parameters of a Gaussian process prior by maximum marginal likelihood."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro.distributions.transforms import ExpTransform

from bnnwide.checks import Data, check_array, check_count, check_inputs, check_positive
from bnnwide.gp.conditioning import REMEDY
from bnnwide.gp.fit import NOISE, quasi_newton
from bnnwide.gp.regression import log_density
from bnnwide.gp.ridge import check_one_scale
from bnnwide.likelihoods import Gaussian
from bnnwide.likelihoods.core import median

LOG = ExpTransform()


def fit_hyper(
    prior: Any, x: Data, y: Data, likelihood: Gaussian, parameters: Sequence[str] | None, num_steps: int,
    tolerance: float,
) -> tuple[Any, Gaussian]:  # fmt: skip
    """Maximise the marginal likelihood of a `GPPrior`; see `GPPrior.fit`, its public door."""
    door = "fit"
    if not isinstance(likelihood, Gaussian):
        raise TypeError(f"`{door}`: likelihood must be Gaussian(scale), where the search starts; got {likelihood!r}")
    check_one_scale(door, likelihood)
    check_count(door, "num_steps", num_steps)
    x = check_inputs(door, "x", x)
    check_array(door, "y", y, (len(x), "k"), f"n={len(x)} from x")
    targets = jnp.asarray(y, x.dtype) - prior.mean(x)[:, None]

    starts, rebuild = _hyper(prior)
    starts = starts | {NOISE: likelihood.scale}
    names = list(starts) if parameters is None else list(parameters)
    unknown = [name for name in names if name not in starts]
    if unknown or not names:
        raise ValueError(f"`{door}`: parameters must be among {list(starts)}; got {names}")
    fixed = [name for name in starts if name not in names and isinstance(starts[name], dist.Distribution)]
    if fixed:
        raise ValueError(f"`{door}`: {fixed[0]!r} has a distribution and no number to stay at; fit it, or use prior.at")
    transforms, densities = {}, {}
    for name in names:
        transforms[name], starts[name], densities[name] = _search(door, name, starts[name])

    def constrained(free: Array) -> dict[str, Array]:
        found = {name: transforms[name](value) for name, value in zip(names, free, strict=True)}
        return {name: jnp.asarray(value, x.dtype) for name, value in starts.items()} | found

    @jax.jit
    def loss_and_slope(free: Array, x: Array, targets: Array) -> tuple[Array, Array]:
        def loss(free: Array) -> Array:
            values = constrained(free)
            matrix = rebuild(values).covariance(x) + values[NOISE] ** 2 * jnp.eye(len(x), dtype=x.dtype)
            extra = sum(densities[name](values[name]) for name in names)
            return -(log_density(matrix, targets) + extra) / targets.size

        return jax.value_and_grad(loss)(free)

    begin = jnp.stack([transforms[name].inv(jnp.asarray(starts[name], x.dtype)) for name in names])
    free, trace, _ = quasi_newton(lambda free: loss_and_slope(free, x, targets), begin, num_steps, tolerance)
    if not np.isfinite(trace).all():
        raise ValueError(f"`{door}`: the objective is not finite after {len(trace) - 1} steps; {REMEDY}")
    found = {name: float(value) for name, value in constrained(free).items()}
    return rebuild(found), Gaussian(found[NOISE])


Density = Callable[[Array], Any]


def _hyper(prior: Any) -> tuple[dict[str, Any], Callable[[dict[str, Any]], Any]]:
    """Return where each hyper-parameter starts, and the prior with values in their place."""
    if prior.hyper or prior.numbers:
        return {**prior.hyper, **prior.numbers}, prior.at
    leaves, tree = jax.tree.flatten(prior.kernel)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, (float, np.ndarray, np.generic, jax.Array))]
    places = [
        i for i in places if np.shape(leaves[i]) == () and jnp.issubdtype(jnp.result_type(leaves[i]), jnp.floating)
    ]

    def rebuild(values: dict[str, Any]) -> Any:
        new = [values.get(f"kernel.{i}", leaf) for i, leaf in enumerate(leaves)]
        return prior.with_kernel(jax.tree.unflatten(tree, new))

    return {f"kernel.{i}": leaves[i] for i in places}, rebuild


def _search(door: str, name: str, start: Any) -> tuple[Any, Any, Density]:
    """Return the map from the real line, the start, and what the prior adds to the objective."""
    if isinstance(start, dist.Distribution):
        if start.shape() != ():
            raise ValueError(f"`{door}`: {name!r} must be one number; got a distribution of shape {start.shape()}")
        return dist.biject_to(start.support), median(start), start.log_prob
    if np.shape(start) != ():
        raise ValueError(f"`{door}`: {name!r} must be one number; got shape {np.shape(start)}")
    check_positive(door, name, start)
    return LOG, start, lambda value: 0.0
