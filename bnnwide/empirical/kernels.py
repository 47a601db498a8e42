"""Kernels of a finite network at given weights: the NTK in three ways, its products with vectors, and the NNGP."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from bnnwide.checks import Data, check_array, check_choice, check_count
from bnnwide.empirical.cost import Sizes, choose_batch, choose_method, count
from bnnwide.empirical.methods import assemble, blocks_of
from bnnwide.empirical.network import Finite, Problem, Weights, check_problem, shapes
from bnnwide.empirical.structured import dense_sizes

OUTPUTS = ("mean", "full", "pseudo")
METHODS = ("auto", "jacobian", "vector_products", "structured")


def ntk(
    f: Finite,
    params: Weights,
    x1: Real[Data, "n1 ..."],
    x2: Real[Data, "n2 ..."] | None = None,
    *,
    outputs: str = "mean",
    method: str = "auto",
    batch_size: int | None = None,
) -> Float[Array, "n1 n2 ..."]:
    """Return the neural tangent kernel of a finite network.

    Theta_ab(x, x') = sum_w (d f_a(x) / d w) (d f_b(x') / d w), over all weights w.

    The three methods give the same numbers up to rounding. "jacobian" contracts the Jacobians of both sides,
    "vector_products" pulls one output of one input back to the weights and pushes it forward to all others, never
    holding a Jacobian, and "structured" multiplies, for each Dense layer, the Gram matrix of its inputs and that of the
    derivatives with respect to its outputs, so that no derivative by a weight matrix is formed.

    Sources: Novak, Sohl-Dickstein & Schoenholz 2022 (arXiv 2206.08720), "Jacobian contraction", "NTK-vector products"
    and "Structured derivatives"; for "pseudo", Mohamadi, Bae & Sutherland 2023 (arXiv 2206.12543), eq. 2.

    Args:
      f: an architecture, or any function f(params, x) -> (n, k) that maps each row of x on its own; a function is
        traced once and must not change afterwards.
      params: its weights, a pytree of real arrays.
      x1: (n1, ...) inputs.
      x2: (n2, ...) inputs; None takes x1 and computes each pair of blocks once.
      outputs: "mean" averages over equal outputs, sum_a Theta_aa / k, which is what `net.kernel` is the limit of;
        "full" keeps (n1, n2, k, k); "pseudo" is the kernel of sum_a f_a / sqrt(k), k times cheaper than "mean", which
        it approximates in wide networks.
      method: "jacobian", "vector_products", "structured" (architectures whose weights all sit in Dense layers), or
        "auto": the one with the fewest operations, counted from the shapes.
      batch_size: how many rows of x1 and of x2 are differentiated at once, which bounds memory; None takes as many as
        stay below about 1 GiB in float64.

    Returns:
      (n1, n2) for "mean" and "pseudo", (n1, n2, k, k) for "full".

    Raises:
      TypeError: if `f` cannot be called, or weights, inputs or outputs are not real.
      ValueError: for wrong shapes, unknown names, NaN or infinite inputs, or a method that does not fit `f`.
    """
    check_choice("ntk", "outputs", outputs, OUTPUTS)
    problem = check_problem("ntk", f, params, x1, x2)
    method, batch = plan("ntk", problem, outputs, method, batch_size)
    return blocked_ntk(problem.f, problem.params, problem.x1, problem.x2, problem.k, outputs, method, batch)


def plan(door: str, problem: Problem, outputs: str, method: str, batch_size: int | None) -> tuple[str, int]:
    """Return the method and the batch size to use: those asked for, or the cheapest.

    Raises:
      TypeError: if the batch size is no whole number.
      ValueError: for an unknown method, one that does not fit the network, or a batch size below 1.
    """
    check_choice(door, "method", method, METHODS)
    if batch_size is not None:
        check_count(door, "batch_size", batch_size)
    f, params, x1, x2, k = problem
    row = jax.ShapeDtypeStruct((1, *x1.shape[1:]), x1.dtype)
    forward, activations = count(f, shapes(params), row)
    combinations = 1 if outputs == "pseudo" else k
    sizes = Sizes(
        n1=len(x1),
        n2=len(x1 if x2 is None else x2),
        outputs=combinations,
        entries=combinations**2 if outputs == "full" else combinations,
        weights=sum(leaf.size for leaf in jax.tree.leaves(params)),
        forward=forward,
        activations=activations,
        layers=dense_sizes(f, params, row),
    )
    if method == "structured" and sizes.layers is None:
        raise ValueError(
            f"`{door}`: method 'structured' must be given an architecture whose weights all sit in Dense layers; got "
            f"{f.func if isinstance(f, jax.tree_util.Partial) else f!r}; use 'jacobian' or 'vector_products'"
        )
    method = choose_method(sizes, batch_size) if method == "auto" else method
    return method, choose_batch(method, sizes, batch_size)


@partial(jax.jit, static_argnums=(4, 5, 6, 7))
def blocked_ntk(
    f: Any, params: Any, x1: Array, x2: Array | None, k: int, outputs: str, method: str, batch: int
) -> Array:
    """Return the NTK of a checked problem, block by block."""
    dtype = jnp.result_type(*jax.tree.leaves(jax.eval_shape(f, params, x1)))
    cotangents = jnp.full((1, k), k**-0.5, dtype) if outputs == "pseudo" else jnp.eye(k, dtype=dtype)
    rows, contract = blocks_of(method, f, params, cotangents, mean=outputs != "full")
    return assemble(rows, contract, x1, x2, batch)


def nngp(
    f: Finite,
    params: Weights,
    x1: Real[Data, "n1 ..."],
    x2: Real[Data, "n2 ..."] | None = None,
    *,
    outputs: str = "mean",
) -> Float[Array, "n1 n2 ..."]:
    """Return the Gram matrix of a finite network's outputs, whose mean over the prior is the NNGP kernel.

    K_ab(x, x') = f_a(x) f_b(x'), or its average over equal outputs sum_a f_a(x) f_a(x') / k.

    Source: Lee et al. 2018 (arXiv 1711.00165), eq. 4: the kernel is the mean of such products over the weights.

    Args:
      f: an architecture, or any function f(params, x) -> (n, k).
      params: its weights, a pytree of real arrays.
      x1: (n1, ...) inputs.
      x2: (n2, ...) inputs; None takes x1.
      outputs: "mean" for (n1, n2), "full" for (n1, n2, k, k).

    Returns:
      The Gram matrix, in the squared units of the outputs.

    Raises:
      TypeError: if `f` cannot be called, or weights, inputs or outputs are not real.
      ValueError: for wrong shapes, an unknown name, or NaN or infinite inputs.
    """
    check_choice("nngp", "outputs", outputs, OUTPUTS[:2])
    problem = check_problem("nngp", f, params, x1, x2)
    return gram(problem.f, problem.params, problem.x1, problem.x2, outputs)


@partial(jax.jit, static_argnums=4)
def gram(f: Any, params: Any, x1: Array, x2: Array | None, outputs: str) -> Array:
    """Return the Gram matrix of a checked problem's outputs."""
    left = f(params, x1)
    right = left if x2 is None else f(params, x2)
    if outputs == "full":
        return jnp.einsum("ic,jd->ijcd", left, right)
    return left @ right.T / left.shape[1]


def ntk_vector_product(
    f: Finite,
    params: Weights,
    x1: Real[Data, "n1 ..."],
    x2: Real[Data, "n2 ..."] | None,
    v: Real[Data, "n2 k"],
) -> Float[Array, "n1 k"]:
    """Return Theta(x1, x2) v without the kernel: one pull-back to the weights and one push-forward.

    (Theta v)_a(x1) = sum_w (d f_a(x1) / d w) sum_jb (d f_b(x2_j) / d w) v_jb.

    Source: Novak, Sohl-Dickstein & Schoenholz 2022 (arXiv 2206.08720), "NTK-vector products".

    Args:
      f: an architecture, or any function f(params, x) -> (n, k).
      params: its weights, a pytree of real arrays.
      x1: (n1, ...) inputs.
      x2: (n2, ...) inputs; None for x1.
      v: (n2, k) numbers, one per output at each row of x2.

    Returns:
      (n1, k) product.

    Raises:
      TypeError: if `f` cannot be called, or an array is not real.
      ValueError: for wrong shapes, or NaN or infinite numbers.
    """
    problem = check_problem("ntk_vector_product", f, params, x1, x2)
    right = problem.x1 if problem.x2 is None else problem.x2
    n2 = len(right)
    check_array("ntk_vector_product", "v", v, (n2, problem.k), f"n2={n2} and k={problem.k} from x2 and f")
    return _product(problem.f, problem.params, problem.x1, right, jnp.asarray(v))


@jax.jit
def _product(f: Any, params: Any, x1: Array, x2: Array, v: Array) -> Array:
    out, pull = jax.vjp(lambda params: f(params, x2), params)
    return jax.jvp(lambda params: f(params, x1), (params,), pull(v.astype(out.dtype)))[1]
