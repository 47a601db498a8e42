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
    """Return the force by which a correction undoes the second-order term of a step's noise, to be halved.

    With G = F + damping I and noise s of covariance 2 T eps G^-1, that is s = sqrt(2 T eps) v with E[v v^T] = G^-1,

      "posterior": dG[s] s,                        and div G^-1 = -G^-1 E[dG[v] v],
      "jeffreys":  dG[s] s - grad(s^T G s) / 2,    and grad log det G = E[grad (v^T G v)]

    (s constant in the gradient of s^T G s). So the drift -G^-1 (grad C + T E[force(v)]) with noise 2 T G^-1 leaves
    exp(-C/T), or exp(-C/T) sqrt(det G), unchanged. The second force is Gamma_(a,jk) s^j s^k with Christoffel's symbols
    of G: s - G^-1 force / 2 is a geodesic to second order, the same step in all coordinates. Since s is the step's own
    and not an independent draw, outputs change linearly in s to second order, which a stiff posterior needs.
    Derivatives of F are Jacobian-vector products: no matrix is formed.

    Args:
      task: the network and its data.
      params: weights.
      v: the noise s.
      correction: "jeffreys" or "posterior".
    """
    turn = jax.jvp(lambda params: product(task, params, v), (params,), (v,))[1]
    if correction == "posterior":
        return turn
    pull = jax.grad(lambda params: quadratic(task, params, v))(params)
    return jax.tree.map(lambda a, b: a - 0.5 * b, turn, pull)
