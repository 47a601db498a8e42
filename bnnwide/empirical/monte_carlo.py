"""Kernels of finite networks averaged over the prior, with the error of the average."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Real

from bnnwide.arch import Layer
from bnnwide.checks import Data, check_count
from bnnwide.empirical.kernels import blocked_ntk, gram, plan
from bnnwide.empirical.network import check_problem


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class KernelEstimate:
    """Kernels estimated from draws, with standard errors.

    Args:
      nngp: (n1, n2) average of the finite networks' NNGP Gram matrices.
      ntk: (n1, n2) average of their NTKs; None where it was not asked for.
      nngp_error: (n1, n2) standard error of `nngp`: the standard deviation over draws, by the root of their number.
      ntk_error: (n1, n2) standard error of `ntk`, or None.
    """

    nngp: Array
    ntk: Array | None
    nngp_error: Array
    ntk_error: Array | None


def monte_carlo(
    net: Layer,
    key: Array,
    x1: Real[Data, "n1 ..."],
    x2: Real[Data, "n2 ..."] | None = None,
    *,
    num_draws: int,
    ntk: bool = True,
    method: str = "auto",
    batch_size: int | None = None,
) -> KernelEstimate:
    """Return the kernels of a finite network averaged over draws of its weights from the prior.

    mean = sum_s K_s / S and error = sqrt(sum_s (K_s - mean)^2 / (S - 1) / S), with K_s averaged over outputs as in
    `nngp` and `ntk`. As the widths grow the mean tends to `net.kernel(x1, x2)`.

    Source: Novak et al. 2019 (arXiv 1810.05148), section 4, for the NNGP; the same average serves the NTK.

    Args:
      net: an architecture.
      key: a PRNG key.
      x1: (n1, *input_shape) inputs.
      x2: (n2, *input_shape) inputs; None takes x1.
      num_draws: number of networks, at least 2; they are drawn one after the other, so that memory does not grow.
      ntk: whether to compute the NTK as well, which is most of the work.
      method: as in `ntk`.
      batch_size: as in `ntk`.

    Returns:
      The averages and their standard errors.

    Raises:
      TypeError: if `net` is no architecture, or `num_draws` no whole number.
      ValueError: for wrong shapes, unknown names, fewer than two draws, or NaN or infinite inputs.
    """
    if not isinstance(net, Layer):
        raise TypeError(
            f"`monte_carlo`: net must be an architecture, which knows its prior; got {type(net).__name__}; "
            "average `ntk` over your own draws instead"
        )
    check_count("monte_carlo", "num_draws", num_draws, minimum=2)
    weights = net.init(key, jnp.shape(x1)[1:])
    problem = check_problem("monte_carlo", net, weights, x1, x2)
    how = plan("monte_carlo", problem, "mean", method, batch_size) if ntk else None
    return _average(problem.f, key, problem.x1, problem.x2, problem.k, num_draws, how)


@partial(jax.jit, static_argnums=(4, 5, 6))
def _average(
    net: Layer, key: Array, x1: Array, x2: Array | None, k: int, num_draws: int, how: tuple[str, int] | None
) -> KernelEstimate:
    def kernels(key: Array) -> list[Array]:
        params = net.init(key, x1.shape[1:])
        finite = gram(net, params, x1, x2, "mean")
        return [finite] if how is None else [finite, blocked_ntk(net, params, x1, x2, k, "mean", *how)]

    def add(state: tuple[Array, list[Array], list[Array]], key: Array) -> tuple[tuple[Array, list, list], None]:
        # Welford's update: sums of squares would cancel in float32.
        number, means, squares = state
        number = number + 1
        new = kernels(key)
        steps = [draw - mean for draw, mean in zip(new, means, strict=True)]
        means = [mean + step / number for mean, step in zip(means, steps, strict=True)]
        rests = [draw - mean for draw, mean in zip(new, means, strict=True)]
        squares = [square + step * rest for square, step, rest in zip(squares, steps, rests, strict=True)]
        return (number, means, squares), None

    zeros = [jnp.zeros(one.shape, one.dtype) for one in jax.eval_shape(kernels, key)]
    start = (jnp.zeros((), zeros[0].dtype), zeros, zeros)
    (_, means, squares), _ = jax.lax.scan(add, start, jax.random.split(key, num_draws))
    errors = [jnp.sqrt(square / ((num_draws - 1) * num_draws)) for square in squares]
    if how is None:
        return KernelEstimate(means[0], None, errors[0], None)
    return KernelEstimate(means[0], means[1], errors[0], errors[1])
