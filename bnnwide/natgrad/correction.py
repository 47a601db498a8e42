"""The drift that a metric which depends on the weights asks for, from derivatives of Jacobian-vector products."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bnnwide.natgrad.curvature import Fisher, Layout
from bnnwide.natgrad.problem import Task, flat_rows

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


def geodesic_force(task: Task, params: Any, s: Any) -> Any:
    """Return Gamma_(a,jk) s^j s^k with Christoffel's symbols of G: dG[s] s - grad(s^T G s) / 2, s held constant.

    s - G^-1 Gamma(s, s) / 2 is a geodesic to second order: the same step in all coordinates. For noise s of covariance
    2 T eps G^-1 its mean is the drift of the diffusion that leaves exp(-C/T) sqrt(det G) unchanged. Since s is the
    step's own noise, and not an independent draw, outputs change linearly in s to second order, which a stiff posterior
    needs. Derivatives of F are Jacobian-vector products: no matrix is formed.

    Args:
      task: the network and its data.
      params: weights.
      s: the noise of a step.
    """
    turn = jax.jvp(lambda params: product(task, params, s), (params,), (s,))[1]
    pull = jax.grad(lambda params: quadratic(task, params, s))(params)
    return jax.tree.map(lambda a, b: a - 0.5 * b, turn, pull)


def volume_force(task: Task, params: Any, g: Fisher) -> Any:
    """Return grad log det G / 2, which takes the factor sqrt(det G) away again.

    It is the gradient of tr(P F) / 2 at P = G^-1, so that of sum_ir S_ir . J_i u_ir with u_ir = G^-1 J_i^T S_ir held
    constant: one directional derivative per input and column of S. (One random v ~ N(0, G^-1) gives its mean as that of
    grad (v^T G v) / 2, with a variance that drowns a stiff posterior.)

    Args:
      task: the network and its data.
      params: weights.
      g: the operator at these weights.
    """
    layout = Layout.of(params)
    rows = flat_rows(task.f, params, task.x, task.likelihood.fisher_factor(task.f(params, task.x)))
    solved = jax.lax.stop_gradient(jax.vmap(jax.vmap(g._solve))(rows))

    def trace(params: Any) -> Array:
        def pushed(one: Array, u: Array) -> Array:
            return jax.jvp(lambda params: task.f(params, one[None])[0], (params,), (layout.unravel(u),))[1]

        along = jax.vmap(jax.vmap(pushed, (None, 0)))(task.x, solved)
        s = task.likelihood.fisher_factor(task.f(params, task.x))
        return jnp.einsum("nkr,nrk->", s, along)

    return jax.grad(trace)(params)
