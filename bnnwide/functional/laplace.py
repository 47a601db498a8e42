"""Laplace in function space: a mode under a Gaussian process prior, and a linearised network around it."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, Real, Shaped

from bnnwide.arch import Network
from bnnwide.checks import Data, check_count, check_positive
from bnnwide.comparators.fit import Fit
from bnnwide.functional.descent import Descent, descend, descent
from bnnwide.functional.fit import FunctionApproximation, Program, check_problem
from bnnwide.functional.measurement import Measurement
from bnnwide.functional.priors import GPPrior
from bnnwide.likelihoods import Gaussian, Likelihood
from bnnwide.linalg import cholesky
from bnnwide.prediction import Prediction

NUM_CONTEXT = 100
MAX_JACOBIAN = 30_000_000


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class FunctionalLaplace(FunctionApproximation):
    """A Gaussian law over functions, f(x) = f(x; w*) + J(x) S noise; made by `laplace`.

    Args:
      net: the architecture.
      weights: w*, the mode, as one vector.
      root: (p, r) S, a root of the covariance of the weights, of the rank that context points give.
      likelihood: of the targets.
      input_shape: the shape of one input.
      losses: (num_steps,) what was minimised, along the way.
    """

    net: Network
    weights: Float[Array, "p"]
    root: Float[Array, "p r"]
    likelihood: Likelihood
    input_shape: tuple[int, ...]
    losses: Float[Array, "steps"]

    def linear(self, x: Float[Array, "t d"]) -> tuple[Float[Array, "t k"], Float[Array, "r t k"]]:
        """Return the mode's function (t, k), and J S (r, t, k), one column of the root at a time."""
        mean, push = jax.linearize(lambda w: _apply(self.net, self.input_shape, w, x), self.weights)
        return mean, jax.lax.map(push, self.root.T)

    def function_draws(  # noqa: D102  # as in the base class
        self, key: Array, x: Float[Array, "t d"], num_samples: int
    ) -> Float[Array, "s t k"]:
        mean, columns = _linear(self, x)
        noise = jax.random.normal(key, (num_samples, len(columns)), x.dtype)
        return mean + jnp.einsum("sr,rtk->stk", noise, columns)

    def _moments(self, key: Array, x: Array, num_samples: int, noise: dict[str, Array]) -> Prediction:
        if not isinstance(self.likelihood, Gaussian):
            return super()._moments(key, x, num_samples, noise)
        mean, columns = _linear(self, x)
        aleatoric = jnp.broadcast_to(jnp.asarray(self.likelihood.scale, mean.dtype) ** 2, mean.shape)
        return Prediction(mean, jnp.sum(columns**2, axis=0), aleatoric)

    def __repr__(self) -> str:
        return f"FunctionalLaplace(rank={self.root.shape[1]}, likelihood={self.likelihood}, net={self.net})"


def laplace(
    net: Network,
    prior: GPPrior,
    likelihood: Likelihood,
    x: Real[Data, "n d"],
    y: Shaped[Data, "n *k"],
    *,
    key: Array,
    num_steps: int = 5000,
    learning_rate: float = 0.02,
    measurement: Any = None,
    num_context: int = NUM_CONTEXT,
    noise: float = 0.01,
    weight_scale: float = 30.0,
) -> FunctionalLaplace:
    """Approximate the posterior under a Gaussian process prior by a linearised network around a mode.

    The mode minimises -log p(y | f(w)) + 1/2 sum_j (f_j(C) - m)^T K(C, C)^-1 (f_j(C) - m), with fresh context points C
    at every step. Around it, with J the Jacobian of the outputs, the weights have the precision
    J_C^T K(C, C)^-1 J_C + J_x^T H J_x + I / weight_scale^2 on the row space of J_C, and no spread outside of it: H is
    the Hessian of -log p(y | f), its eigenvalues not below 0. Under Gaussian noise and with a network that is linear in
    its weights and can take any values at C, which holds x, it is the Gaussian process posterior there.

    Source: Cinquin, Pfoertner, Fortuin, Hennig & Bamler 2024 (arXiv 2407.13711), sections 3.1 and 3.2.

    Args:
      net: the architecture.
      prior: a Gaussian process, its hyper-parameters as numbers.
      likelihood: of the targets, with numbers for parameters.
      x: (n, d) training inputs.
      y: (n, k) training targets, or (n,) labels.
      key: PRNG key.
      num_steps: of the optimiser.
      learning_rate: Adam's at the start.
      measurement: a law of context points for the mode, as in `FunctionalELBO`; None is `Measurement()`.
      num_context: how many inputs of the same domain stand beside all training inputs in C for the curvature.
      noise: jitter of K(C, C), as a standard deviation in units of the prior's.
      weight_scale: a weak normal prior of weights, in place of the paper's truncation of the spectrum: without one,
        directions of weights that the context points hardly see have a spread that bursts out between them.

    Returns:
      The approximation, with `predict` (exact moments under Gaussian noise), `draws`, `run` and `losses`.

    Raises:
      ImportError: if optax is not installed.
      TypeError: if the prior is no `GPPrior`, or another argument is of the wrong kind.
      ValueError: for wrong shapes, NaN or infinite data, a learned parameter, or losses that are not finite.
    """
    problem, around = _laplace(
        net, prior, likelihood, x, y, key, measurement=measurement, num_context=num_context, noise=noise,
        weight_scale=weight_scale,
    )  # fmt: skip
    check_count("laplace", "num_steps", num_steps)
    check_positive("laplace", "learning_rate", learning_rate)
    return around(*descend(*problem, num_steps, learning_rate, remedy=", or more noise"))


def laplace_fit(
    net: Network, prior: GPPrior, likelihood: Likelihood, x: Data, y: Data, key: Array, *, num_steps: int,
    learning_rate: float = 0.02,
) -> Fit:  # fmt: skip
    """Return how to fit `laplace` step by step, for a sweep; a draw is what is added to the mode's weights.

    Raises:
      ValueError: as `laplace`; and where the Jacobian that it factors has more than 3e7 entries.
    """
    problem, around = _laplace(net, prior, likelihood, x, y, key)
    start, step = descent(*problem, num_steps, learning_rate)
    size = (len(x) + NUM_CONTEXT) * net.readout.width * len(start.params)
    if size > MAX_JACOBIAN:
        raise ValueError(
            f"`laplace`: a Jacobian of {size:.2g} entries would be factored, more than {MAX_JACOBIAN:.2g}; take a "
            "narrower network, or fewer inputs"
        )

    def draws(state: Descent, key: Array, number: int) -> dict[str, Array]:
        root = around(state.params, jnp.zeros(0)).root
        return {"shift": jax.random.normal(key, (number, root.shape[1]), root.dtype) @ root.T}

    def read(state: Descent, draw: dict[str, Array], x: Array) -> Array:
        f, moved = jax.jvp(lambda w: _apply(net, x.shape[1:], w, x), (state.params,), (draw["shift"],))
        return f + moved

    return Fit(start, step, num_steps, 1, draws, read)


def _laplace(
    net: Network, prior: GPPrior, likelihood: Likelihood, x: Data, y: Data, key: Array, *, measurement: Any = None,
    num_context: int = NUM_CONTEXT, noise: float = 0.01, weight_scale: float = 30.0,
) -> tuple[tuple[str, Any, Array, Array, tuple[Any, ...]], Callable[[Array, Array], FunctionalLaplace]]:  # fmt: skip
    """Check; return what a `descent` to the mode takes, and (mode, losses) -> the approximation around it."""
    door = "laplace"
    if not isinstance(prior, GPPrior):
        raise TypeError(f"`{door}`: prior must be a GPPrior, whose covariance is known; got {prior!r}")
    x, y, objective = check_problem(door, net, prior, likelihood, x, y, "functional")
    if likelihood.learned:
        raise ValueError(f"`{door}`: parameters of the likelihood must be numbers; got {likelihood}; see GPPrior.fit")
    check_count(door, "num_context", num_context, 0)
    check_positive(door, "noise", noise)
    check_positive(door, "weight_scale", weight_scale)
    law = Measurement() if measurement is None else measurement
    init_key, step_key, context_key = jax.random.split(key, 3)
    start, shape = ravel_pytree(net.init(init_key, x.shape[1:]))[0], x.shape[1:]

    program = Program(objective, likelihood)

    def factor(prior: GPPrior, points: Array) -> Array:
        covariance = prior.covariance(points)
        jitter = noise**2 * jnp.mean(jnp.diagonal(covariance))
        return cholesky(covariance + jitter * jnp.eye(len(points), dtype=points.dtype))

    def loss(w: Array, key: Array, data: Any) -> Array:
        x, y, objective, likelihood = program.at(data)
        prior: Any = objective.prior
        points = law(key, x)
        f = _apply(net, shape, w, jnp.concatenate([x, points]))
        off = solve_triangular(factor(prior, points), f[len(x) :] - prior.mean(points)[:, None], lower=True)
        return 0.5 * jnp.sum(off**2) - likelihood.log_prob(f[: len(x)], y).sum()

    def around(weights: Array, losses: Array) -> FunctionalLaplace:
        context = x
        if num_context:
            domain = Measurement(0, num_context, getattr(law, "domain", None))
            context = jnp.concatenate([x, domain(context_key, x)])
        covariance_factor = jax.jit(partial(factor, prior))(context)
        root = _root(net, likelihood, weights, shape, x, y, context, covariance_factor, weight_scale)
        if not jnp.isfinite(root).all():
            raise ValueError(f"`{door}`: the covariance of the weights is not finite; use float64 or more noise")
        return FunctionalLaplace(net, weights, root, likelihood, shape, losses)

    return (door, loss, start, step_key, (program.data(x, y),)), around


def _root(
    net: Network, likelihood: Likelihood, weights: Array, shape: tuple[int, ...], x: Array, y: Array, context: Array,
    factor: Array, weight_scale: float,
) -> Float[Array, "p r"]:  # fmt: skip
    """Return S with S S^T = U (D^2 + I / weight_scale^2 + U^T J_x^T H J_x U)^-1 U^T, for L_C^-1 J_C = V D U^T."""

    @jax.jit
    def masked(weights: Array, x: Array, y: Array, context: Array, factor: Array) -> tuple[Array, Array]:
        jacobian = lambda at: jax.jacrev(lambda w: _apply(net, shape, w, at))(weights)  # noqa: E731
        white = jax.vmap(lambda j: solve_triangular(factor, j, lower=True), 1, 1)(jacobian(context))
        size, basis = jnp.linalg.svd(white.reshape(-1, len(weights)), full_matrices=False)[1:]
        # Directions that context points do not see have no prior here; they get no spread.
        kept = size > size[0] * max(white.size // len(weights), len(weights)) * jnp.finfo(size.dtype).eps
        basis = basis * kept[:, None]
        f = _apply(net, shape, weights, x)
        slopes = jacobian(x) @ basis.T
        hessian = jax.vmap(jax.hessian(lambda row, target: -likelihood.log_prob(row[None], target[None]).sum()))(f, y)
        values, vectors = jnp.linalg.eigh(hessian)
        half = jnp.einsum("nk,nok,nor->nkr", jnp.sqrt(jnp.maximum(values, 0.0)), vectors, slopes)
        half = half.reshape(-1, len(basis))
        precision = jnp.diag(size**2 + weight_scale**-2) + half.T @ half
        eye = jnp.eye(len(basis), dtype=x.dtype)
        return basis.T @ solve_triangular(cholesky(precision), eye, lower=True).T, kept

    # A direction that is not kept is coupled with no other: its column is 0.
    root, kept = masked(weights, x, y, context, factor)
    return root[:, kept]


def _apply(net: Network, shape: tuple[int, ...], weights: Array, x: Array) -> Array:
    like = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), net.weight_shapes(shape))
    return net.apply(ravel_pytree(like)[1](weights), x)


_linear = jax.jit(FunctionalLaplace.linear, static_argnums=0)
