"""The Taylor expansion of a network about its weights, as a network."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from bnnwide.checks import Data, check_count
from bnnwide.empirical.network import Finite, Weights, as_pytree, check_params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Taylor:
    """The Taylor polynomial of a network in its weights, called as the network is: taylor(params, x).

    f_r(params, x) = sum_{j <= r} D^j f(params_0, x)[delta, ..., delta] / j!, delta = params - params_0.

    Of degree 1 it is linear in `params`, and its NTK at any of them is that of `f` at params_0.

    Source: Lee et al. 2019 (arXiv 1902.06720), section 2.2, for degree 1.

    Args:
      f: the network.
      params: the weights params_0 about which it is expanded.
      degree: the degree r of the polynomial.
    """

    f: Any
    params: Any
    degree: int = dataclasses.field(metadata={"static": True})

    def __call__(self, params: Weights, x: Real[Data, "n ..."]) -> Float[Array, "n ..."]:
        """Evaluate the polynomial.

        Args:
          params: weights, of the shapes of those it is expanded about.
          x: (n, ...) inputs.

        Returns:
          Outputs, of the shape of those of the network.

        Raises:
          ValueError: if the shapes of `params` are not those of the network's.
        """
        got, wanted = jax.tree.map(jnp.shape, params), jax.tree.map(jnp.shape, self.params)
        if got != wanted:
            raise ValueError(
                f"`Taylor`: params must have the shapes {wanted} of those expanded about; got {got}; "
                "pass weights of the same network"
            )
        delta = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype) - old, params, self.params)

        def value(t: Array) -> tuple[Array, ...]:
            weights = jax.tree.map(lambda old, step: old + t.astype(old.dtype) * step, self.params, delta)
            return (self.f(weights, jnp.asarray(x)),)

        along: Callable[[Array], tuple[Array, ...]] = value
        for _ in range(self.degree):
            along = _with_next_derivative(along)
        zero = jnp.zeros((), jnp.result_type(*jax.tree.leaves(self.params)))
        terms = [value / math.factorial(j) for j, value in enumerate(along(zero))]
        return sum(terms[1:], start=terms[0])

    def __repr__(self) -> str:
        f = self.f.func if isinstance(self.f, jax.tree_util.Partial) else self.f
        return f"Taylor({f!r}, degree={self.degree})"


def _with_next_derivative(along: Callable[[Array], tuple[Array, ...]]) -> Callable[[Array], tuple[Array, ...]]:
    """Turn t -> (g, g', ..., g^(j)) into t -> (g, g', ..., g^(j + 1))."""

    def more(t: Array) -> tuple[Array, ...]:
        values, slopes = jax.jvp(along, (t,), (jnp.ones_like(t),))
        return (*values, slopes[-1])

    return more


def taylor_expand(f: Finite, params: Weights, degree: int) -> Taylor:
    """Return the Taylor polynomial of a network about its weights, as a network.

    Args:
      f: an architecture, or any function f(params, x).
      params: the weights params_0 to expand about.
      degree: degree of the polynomial, 0 or more; the cost grows like 2^degree.

    Returns:
      A value called as `f` is.

    Raises:
      TypeError: if `f` cannot be called, the weights are not real, or `degree` is no whole number.
      ValueError: if `degree` is negative.
    """
    check_count("taylor_expand", "degree", degree, minimum=0)
    return Taylor(as_pytree("taylor_expand", f), check_params("taylor_expand", params), degree)


def linearize(f: Finite, params: Weights) -> Taylor:
    """Return the network linear in its weights that agrees with `f` to first order, f_0 + J (params - params_0).

    Source: Lee et al. 2019 (arXiv 1902.06720), section 2.2, the linearised network.

    Args:
      f: an architecture, or any function f(params, x).
      params: the weights params_0 to linearise about.

    Returns:
      A value called as `f` is.

    Raises:
      TypeError: if `f` cannot be called or the weights are not real.
    """
    return Taylor(as_pytree("linearize", f), check_params("linearize", params), 1)
