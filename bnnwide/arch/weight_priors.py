"""Priors of a layer's weights: what arrays of standard normals they are made of, and what infinite width keeps of them.

A prior is a static part of its layer, not a leaf: whether a limit exists depends on its numbers (mean 0, a finite
variance), which a tracer would hide, and `scale_priors` shall not take its parameters for scales. Static parts are
compared under `jit`, and NumPyro compares distributions by identity; so equal priors of its families are made one
object here, and a network that is built again compiles only once. What is to be learned belongs in a scale.
"""

import dataclasses
import sys
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bnnwide.checks import check_positive, is_concrete

_KNOWN: weakref.WeakValueDictionary[Any, Any] = weakref.WeakValueDictionary()


@dataclasses.dataclass(frozen=True)
class Horseshoe:
    """The horseshoe prior of a weight array: w_ij = tau lambda_ij z_ij, most weights near 0 and a few far from it.

    lambda_ij ~ HalfCauchy(1) for each weight, tau ~ HalfCauchy(global_scale) for the array, z_ij ~ N(0, 1). All three
    are held as standard normals ("w", "w_local", "w_global"), so that samplers see a standard normal prior.

    Source: Carvalho, Polson & Scott 2010; for networks Ghosh & Doshi-Velez 2017 (arXiv 1705.10388), who have
    lambda per unit.

    Args:
      global_scale: median of tau, positive.

    Raises:
      TypeError: if `global_scale` is not a number.
      ValueError: if it is not positive and finite.
    """

    global_scale: int | float = 1.0

    def __post_init__(self) -> None:
        if not is_concrete(self.global_scale) or np.ndim(self.global_scale) or isinstance(self.global_scale, str):
            raise TypeError(f"`Horseshoe`: global_scale must be a number; got {self.global_scale!r}")
        check_positive("Horseshoe", "global_scale", self.global_scale)
        object.__setattr__(self, "global_scale", float(self.global_scale))

    def weights(
        self, z: Float[Array, "*shape"], local: Float[Array, "*shape"], overall: Float[Array, ""]
    ) -> Float[Array, "*shape"]:
        """Return the weights that three arrays of standard normals stand for."""
        from numpyro.distributions import HalfCauchy

        from bnnwide.arch.priors import from_normal

        return from_normal(HalfCauchy(self.global_scale), overall) * from_normal(HalfCauchy(1.0), local) * z


def is_distribution(value: Any) -> bool:
    """Say whether `value` is a NumPyro distribution."""
    # Without NumPyro nothing can be one. To import it here would bring its inference into `import bnnwide.arch`.
    loaded = sys.modules.get("numpyro.distributions")
    return loaded is not None and isinstance(value, loaded.Distribution)


def describe(value: Any) -> str:
    """Return what a reader calls a distribution, such as "Laplace(loc=0.0, scale=1.0)"; of anything else its repr."""
    if not is_distribution(value):
        return repr(value)
    return f"{type(value).__name__}({', '.join(f'{name}={getattr(value, name)}' for name in value.arg_constraints)})"


def check_weight_prior(door: str, name: str, prior: Any) -> Any:
    """Check the prior of a weight array; return one object for equal priors.

    Args:
      door: the public function that was called, for the message.
      name: the argument's name.
      prior: None for N(0, 1), a NumPyro distribution over real numbers, or `Horseshoe`.

    Raises:
      TypeError: if it is none of these, has no quantile function, or has traced parameters.
      ValueError: if it is not the prior of one continuous number, or its parameters are not allowed.
    """
    if prior is None or isinstance(prior, Horseshoe):
        return prior
    if not is_distribution(prior):
        raise TypeError(
            f"`{door}`: {name} must be None for N(0, 1), a NumPyro distribution over real numbers, or Horseshoe(); got "
            f"{prior!r}"
        )
    from bnnwide.arch.priors import from_normal, unwrapped

    if prior.batch_shape or prior.event_shape:
        shape = (*prior.batch_shape, *prior.event_shape)
        raise ValueError(f"`{door}`: {name} must be the prior of one weight; got one of shape {shape}")
    prior = unwrapped(prior)
    if not all(map(is_concrete, jax.tree.leaves(prior))):
        raise TypeError(
            f"`{door}`: {name} must have numbers for parameters; got traced ones in {type(prior).__name__}; what is to "
            f"be learned belongs in {name[0]}_scale"
        )
    key = _value(prior)
    if key in _KNOWN:
        return _KNOWN[key]
    if prior.is_discrete:
        raise ValueError(f"`{door}`: {name} must be continuous; got {describe(prior)}")
    with jax.ensure_compile_time_eval():
        try:
            probe = np.asarray(from_normal(prior, jnp.asarray([-1.0, 0.0, 1.0])))
        except TypeError as error:
            raise TypeError(str(error).replace("`from_normal`: prior", f"`{door}`: {name}")) from error
    if not (np.isfinite(probe).all() and (np.diff(probe) > 0).all()):
        raise ValueError(f"`{door}`: {name} must have parameters that its family allows; got {describe(prior)}")
    return _KNOWN.setdefault(key, prior)


def _value(prior: Any) -> Any:
    """Return what equal priors have in common, to be hashed."""
    if not type(prior).__module__.startswith("numpyro.") or type(prior).__name__ == "TransformedDistribution":
        return id(prior)  # it may hold what its leaves do not tell
    leaves, structure = jax.tree.flatten(prior)
    return type(prior), structure, tuple(float(leaf) for leaf in leaves)


def prior_shapes(prior: Any, name: str, array: jax.ShapeDtypeStruct) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the arrays of standard normals, by name, that a weight array under a prior is made of."""
    if not isinstance(prior, Horseshoe):
        return {name: array}
    return {name: array, f"{name}_local": array, f"{name}_global": jax.ShapeDtypeStruct((), array.dtype)}


def prior_weights(prior: Any, name: str, params: Any) -> Array:
    """Return the weight array under a prior, from its standard normals."""
    if prior is None:
        return params[name]
    if isinstance(prior, Horseshoe):
        return prior.weights(params[name], params[f"{name}_local"], params[f"{name}_global"])
    from bnnwide.arch.priors import from_normal

    return from_normal(prior, params[name])


def normal_scale(prior: Any) -> float | None:
    """Return s if the prior is N(0, s^2), None for any other."""
    if prior is None:
        return 1.0
    if isinstance(prior, Horseshoe):
        return None
    from numpyro.distributions import Normal

    # Not of a subclass, which may be another law.
    kind: Any = type(prior)
    return float(prior.scale) if kind is Normal and float(prior.loc) == 0 else None


def limit_variance(name: str, prior: Any) -> float:
    """Return the variance of a weight, which is all that infinite width keeps of its prior.

    Raises:
      ValueError: if the variance is infinite or not known, or the mean is not 0.
    """
    scale = normal_scale(prior)
    if scale is not None:
        return scale**2
    mean, variance = (np.nan, np.inf) if isinstance(prior, Horseshoe) else _moments(name, prior)
    if not np.isfinite(variance):
        raise ValueError(
            f"`kernel`: {name} must have a finite variance; got {describe(prior)}: heavy tails have no Gaussian limit "
            "(Neal 1996; the limit is a stable process: Favaro, Fortini & Peluchetti 2020); use the finite network"
        )
    if abs(mean) > 1e-6 * variance**0.5:
        raise ValueError(
            f"`kernel`: {name} must have mean 0, or the mean of a unit grows with the width; got {describe(prior)} of "
            f"mean {mean:.4g}"
        )
    return variance


def _moments(name: str, prior: Any) -> tuple[float, float]:
    with jax.ensure_compile_time_eval():
        try:
            return float(prior.mean), float(prior.variance)
        except NotImplementedError as error:
            raise ValueError(
                f"`kernel`: {name} must have a known variance; NumPyro has none for {describe(prior)}"
            ) from error
