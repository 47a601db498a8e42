"""What the doors of this folder take: a network, its weights, data and a likelihood, checked once."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bnnwide.arch.scales import check_numbers
from bnnwide.checks import check_inputs, is_concrete
from bnnwide.empirical.network import as_pytree, check_params, check_problem
from bnnwide.likelihoods import Likelihood
from bnnwide.samplers.core import dot


class Task(NamedTuple):
    """A network with its data.

    Attributes:
      f: a pytree that can be called as f(params, x) -> (n, k).
      likelihood: the law of targets, with numbers for its parameters.
      x: (n, ...) inputs.
      y: (n, k) targets or (n,) labels; None where no targets are needed.
      outputs: number of outputs, k.
    """

    f: Any
    likelihood: Likelihood
    x: Array
    y: Array | None
    outputs: int

    def negative_log_likelihood(self, params: Any) -> Float[Array, ""]:
        """Return -sum_i log p(y_i | f(x_i))."""
        assert self.y is not None
        return -jnp.sum(self.likelihood.log_prob(self.f(params, self.x), self.y))

    def cost(self, params: Any, prior_precision: Array | float) -> Float[Array, ""]:
        """Return C = -sum_i log p(y_i | f(x_i)) + prior_precision |w|^2 / 2."""
        return self.negative_log_likelihood(params) + 0.5 * prior_precision * dot(params, params)

    def minibatch_gradient(self, params: Any, rows: Array) -> Any:
        """Return the gradient of the negative log likelihood, estimated from the rows of a minibatch."""
        assert self.y is not None
        scale = len(self.x) / len(rows)
        some = self._replace(x=self.x[rows], y=self.y[rows])
        return jax.tree.map(lambda leaf: scale * leaf, jax.grad(some.negative_log_likelihood)(params))


def check_task(door: str, net: Any, params: Any, likelihood: Any, x: Any, y: Any = None) -> tuple[Task, Any]:
    """Check a network, its weights and data, and return them with the weights as arrays.

    Raises:
      TypeError: if the network cannot be called, the likelihood is none, or an array is not real.
      ValueError: for wrong shapes, NaN or infinite numbers, or a likelihood with parameters to learn.
    """
    if not isinstance(likelihood, Likelihood):
        raise TypeError(f"`{door}`: likelihood must be a Likelihood, such as Gaussian(0.1); got {likelihood!r}")
    if likelihood.learned:
        raise ValueError(f"`{door}`: likelihood must have numbers for its parameters; got priors in {likelihood!r}")
    check_numbers(door, net)
    x = check_inputs(door, "x", x)
    problem = check_problem(door, as_pytree(door, net), check_params(door, params), x, None)
    for path, leaf in jax.tree_util.tree_flatten_with_path(problem.params)[0]:
        if is_concrete(leaf) and not np.isfinite(leaf).all():
            raise ValueError(
                f"`{door}`: params must be finite; got NaN or infinite numbers at {jax.tree_util.keystr(path)}"
            )
    likelihood.check_outputs(door, problem.k)
    if y is not None:
        y = likelihood.check_targets(door, y, len(x), problem.k)
    return Task(problem.f, likelihood, x, y, problem.k), problem.params


def add(a: Any, b: Any, scale: Array | float = 1.0) -> Any:
    """Return a + scale b."""
    return jax.tree.map(lambda u, v: u + scale * v, a, b)


def flat_rows(f: Callable, params: Any, x: Array, factor: Float[Array, "n k r"]) -> Float[Array, "n r p"]:
    """Return S_i^T J_i for every input: the rows J~ whose Gram matrix J~^T J~ is the Fisher matrix."""

    def row(one: Array, columns: Array) -> Array:
        _, pull = jax.vjp(lambda params: f(params, one[None])[0], params)
        pulled = jax.vmap(lambda column: pull(column)[0])(columns.T)
        return jnp.concatenate([leaf.reshape(columns.shape[1], -1) for leaf in jax.tree.leaves(pulled)], axis=1)

    return jax.vmap(row)(x, factor)
