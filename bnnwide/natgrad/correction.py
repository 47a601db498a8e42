"""The drift that a position-dependent metric asks for, from products with the Fisher matrix alone."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bnnwide.natgrad.problem import Task

CORRECTIONS = ("none", "jeffreys", "posterior")


def product(task: Task, params: Any, v: Any) -> Any:
    """Return F(params) v."""
    f = lambda params: task.f(params, task.x)  # noqa: E731
    outputs, pull, = jax.vjp(f, params)  # fmt: skip
    tangent = jax.jvp(f, (params,), (v,))[1]
    s = task.likelihood.fisher_factor(outputs)
    return pull(jnp.einsum("nar,nbr,nb->na", s, s, tangent))[0]


def quadratic(task: Task, params: Any, v: Any) -> Float[Array, ""]:
    """Return v^T F(params) v."""
    outputs, tangent = jax.jvp(lambda params: task.f(params, task.x), (params,), (v,))
    return jnp.sum(jnp.einsum("nar,na->nr", task.likelihood.fisher_factor(outputs), tangent) ** 2)


def correction_force(task: Task, params: Any, v: Any, correction: str) -> Any:
    """Return an unbiased estimate of the force that a correction adds to grad C, per unit of temperature.

    With G = F + damping I and v ~ N(0, G^-1), so that E[v v^T] = G^-1,

      "posterior": E[dG[v] v],                        since div G^-1 = -G^-1 E[dG[v] v],
      "jeffreys":  E[dG[v] v - grad(v^T G v) / 2],    since grad log det G = E[grad (v^T G v)].

    The drift -G^-1 (grad C + T force) with noise 2 T G^-1 then leaves exp(-C/T), or exp(-C/T) sqrt(det G), unchanged
    (G constant in the gradient of v^T G v; the second is Gamma_(a,jk) v^j v^k, Christoffel's symbols of G, which make
    the diffusion the same in all coordinates). Derivatives of F are Jacobian-vector products: no matrix is formed.

    Args:
      task: the network and its data.
      params: weights.
      v: a draw from N(0, G^-1) at these weights.
      correction: "jeffreys" or "posterior".
    """
    turn = jax.jvp(lambda params: product(task, params, v), (params,), (v,))[1]
    if correction == "posterior":
        return turn
    pull = jax.grad(lambda params: quadratic(task, params, v))(params)
    return jax.tree.map(lambda a, b: a - 0.5 * b, turn, pull)
