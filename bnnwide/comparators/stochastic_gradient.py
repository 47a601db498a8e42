"""Stochastic-gradient MCMC on the repriorised form, through BlackJAX: cheap steps, and a bias that nothing corrects."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Real, Shaped

from bnnwide.checks import Data, check_count, check_positive
from bnnwide.comparators.anchored import AnchoredPosterior, Position, anchored_posterior
from bnnwide.comparators.extra import require
from bnnwide.comparators.run import Run
from bnnwide.models.bnn import BNN
from bnnwide.samplers.core import dot, standard_normal_like

GRADS_PER_BLOCK = 500  # between which an interrupt gets through
Step = Callable[[Array, Position, Array], Position]  # from a key, z and a step size to the next z


def sgld(
    model: BNN,
    x: Real[Data, "n d"],
    y: Shaped[Data, "n *k"],
    *,
    key: Array,
    batch_size: int = 32,
    step_size: float = 0.01,
    decay: float = 0.0,
    num_warmup: int = 1000,
    num_samples: int = 1000,
    num_chains: int = 4,
    thinning: int = 1,
    num_anchors: int = 256,
) -> Run:
    """Sample a BNN's posterior by stochastic-gradient Langevin dynamics, on minibatches and *without* acceptance.

    z' = z - e g(z) + sqrt(2 e) xi, xi ~ N(0, I), with g the gradient of U in repriorised coordinates, its sum over data
    estimated from a fresh minibatch of distinct inputs. U is near |z|^2/2, which needs no preconditioning.

    The draws are biased, by O(e). In a direction where U has curvature c and g has variance V, their variance is
    (1 + e V/2) / (c (1 - e c/2)) in place of 1/c; V grows as (n/B)(1 - B/n), and chains forget in 1/(c e) steps.
    Nothing in the run corrects this; the stat "temperature" shows it, and a run with half the step how much it matters.

    Under Gaussian noise `predict` integrates the readout out given the hidden weights, so that only the bias of these
    remains, at O(n^2 m) work per draw; `predict_plain` reads the readout that was drawn.

    Source: Welling & Teh 2011, "Bayesian learning via stochastic gradient Langevin dynamics", equation 4 with step 2 e;
    Vollmer, Zygalakis & Teh 2016 (arXiv 1501.00438) on the bias.

    Args:
      model: a model made by `bnn` of the repriorised form, with numbers for all scales and parameters.
      x: (n, d) training inputs.
      y: (n, k) training targets, or (n,) labels.
      key: PRNG key.
      batch_size: B, inputs per minibatch; n for exact gradients.
      step_size: e, of the first step.
      decay: the step size after t steps, warm-up included, is step_size (1 + t)^-decay; 0 keeps it. Averages over
        draws then need weights proportional to the stat "step_size"; 1/3 is the best rate (Teh, Thiery & Vollmer 2016,
        arXiv 1409.0578).
      num_warmup: steps before the first draw, per chain.
      num_samples: draws per chain.
      num_chains: number of chains, stepped together.
      thinning: steps per draw.
      num_anchors: the largest number of inputs at which the readout is repriorised; a step costs O(a^2 m + B m).

    Returns:
      The draws, of the hidden weights and the readout. `stats`, all (chains, draws): `step_size`; `num_grads`,
      minibatch gradients per draw; `temperature`, <z, grad U>/P over all P coordinates on a fresh minibatch, whose
      posterior mean is 1 exactly (integration by parts): too large a mean says how much too wide the draws are.

    Raises:
      ImportError: if BlackJAX is not installed.
      TypeError: if the model is not made by `bnn`, or a count is no whole number.
      ValueError: if the model has another form or parameters to learn, an option is out of range, or the chains leave
        the finite numbers.
    """
    _check_options("sgld", step_size, decay)
    blackjax = require("sgld", "blackjax")
    start_key, anchor_key = jax.random.split(key)
    posterior = anchored_posterior("sgld", model, x, y, anchor_key, num_anchors)
    _check_batch("sgld", batch_size, posterior)
    return _run(
        "sgld", posterior, start_key, sgld_step(blackjax, posterior.estimate, len(posterior.y), batch_size), 1,
        batch_size=batch_size, step_size=step_size, decay=decay, num_warmup=num_warmup, num_samples=num_samples,
        num_chains=num_chains, thinning=thinning,
    )  # fmt: skip


def sghmc(
    model: BNN,
    x: Real[Data, "n d"],
    y: Shaped[Data, "n *k"],
    *,
    key: Array,
    batch_size: int = 32,
    step_size: float = 0.05,
    num_integration_steps: int = 20,
    alpha: float = 1.0,
    beta: float = 0.0,
    decay: float = 0.0,
    num_warmup: int = 100,
    num_samples: int = 1000,
    num_chains: int = 4,
    thinning: int = 1,
    num_anchors: int = 256,
) -> Run:
    """Sample a BNN's posterior by stochastic-gradient Hamiltonian Monte Carlo, on minibatches, *without* acceptance.

    A step of the chain draws a momentum p ~ N(0, I / (1 - e alpha / 2)) and repeats

      z' = z + e p,   p' = (1 - e alpha) p - e g(z') + sqrt(e (2 alpha - e beta)) xi,   xi ~ N(0, I),

    `num_integration_steps` times, from half a position step before z to half a step after the last, with g as for
    `sgld` and a fresh minibatch each time. (One minibatch for all, as BlackJAX's own loop has it, would pull the whole
    trajectory towards its own posterior, which no small e mends.)

    The draws are biased. In a direction where U has curvature c and g has variance V, long trajectories give them
    variance (1 + e (V - beta) / (2 alpha)) / c in place of 1/c; beyond quadratic U the bias is O(e^2) with exact
    gradients, and O(e) with minibatches unless beta is V.

    What is said of predictions under Gaussian noise for `sgld` holds here too.

    Source: Chen, Fox & Guestrin 2014 (arXiv 1402.4102), equations 13 and 15, read half way between momenta;
    scaled as Ma, Chen & Fox 2015 (arXiv 1506.04696).

    Args:
      model: a model made by `bnn` of the repriorised form, with numbers for all scales and parameters.
      x: (n, d) training inputs.
      y: (n, k) training targets, or (n,) labels.
      key: PRNG key.
      batch_size: B, inputs per minibatch; n for exact gradients.
      step_size: e, of the first step.
      num_integration_steps: steps between fresh momenta; a trajectory should be as long as 1 or more.
      alpha: friction, less than 2 / e; 2 is critical where U has curvature 1.
      beta: what is known of V and taken from the noise, at most 2 alpha / e.
      decay: as for `sgld`, by the number of trajectories.
      num_warmup: trajectories before the first draw, per chain.
      num_samples: draws per chain.
      num_chains: number of chains, stepped together.
      thinning: trajectories per draw.
      num_anchors: the largest number of inputs at which the readout is repriorised.

    Returns:
      The draws, and the same stats as `sgld`.

    Raises:
      ImportError: if BlackJAX is not installed.
      TypeError: if the model is not made by `bnn`, or a count is no whole number.
      ValueError: if the model has another form or parameters to learn, an option is out of range, or the chains leave
        the finite numbers.
    """
    _check_options("sghmc", step_size, decay)
    check_count("sghmc", "num_integration_steps", num_integration_steps)
    if not 0 < alpha * step_size < 2:
        raise ValueError(f"`sghmc`: alpha must lie between 0 and 2 / step_size={2 / step_size:.3g}; got {alpha}")
    if not 0 <= beta * step_size <= 2 * alpha:
        raise ValueError(
            f"`sghmc`: beta must lie between 0 and 2 alpha / step_size={2 * alpha / step_size:.3g}; got {beta}"
        )
    diffusions = require("sghmc", "blackjax.sgmcmc.diffusions")
    start_key, anchor_key = jax.random.split(key)
    posterior = anchored_posterior("sghmc", model, x, y, anchor_key, num_anchors)
    _check_batch("sghmc", batch_size, posterior)
    step = sghmc_step(diffusions, posterior.estimate, len(posterior.y), batch_size, num_integration_steps, alpha, beta)
    return _run(
        "sghmc", posterior, start_key, step, num_integration_steps,
        batch_size=batch_size, step_size=step_size, decay=decay, num_warmup=num_warmup, num_samples=num_samples,
        num_chains=num_chains, thinning=thinning,
    )  # fmt: skip


def sgld_step(blackjax: Any, estimate: Callable[..., Array], n: int, batch_size: int) -> Step:
    """Return one step of SGLD, as BlackJAX takes it, for the estimate of a potential from rows of n."""
    algorithm = blackjax.sgld(lambda z, rows: jax.tree.map(jnp.negative, jax.grad(estimate)(z, rows)))

    def step(key: Array, z: Position, step_size: Array) -> Position:
        noise_key, rows_key = jax.random.split(key)
        return algorithm.step(noise_key, z, draw_rows(rows_key, n, batch_size), step_size)

    return step


def sghmc_step(
    diffusions: Any, estimate: Callable[..., Array], n: int, batch_size: int, length: int, alpha: float, beta: float
) -> Step:
    """Return one trajectory of SGHMC, through BlackJAX's integrator."""
    integrate = diffusions.sghmc(alpha, beta)

    def drift(z: Position, momentum: Position, time: Array) -> Position:
        return jax.tree.map(lambda a, p: a + time * p, z, momentum)

    def step(key: Array, z: Position, step_size: Array) -> Position:
        def leap(state: tuple[Position, Position], key: Array) -> tuple[tuple[Position, Position], None]:
            z, momentum = state
            noise_key, rows_key = jax.random.split(key)
            # The integrator moves z first. With the gradient from where z comes to, this is the paper's scheme, which
            # keeps volume but for the friction; with the gradient from where it was, Euler's, which gains energy.
            grad = jax.grad(estimate)(drift(z, momentum, step_size), draw_rows(rows_key, n, batch_size))
            return integrate(noise_key, z, momentum, jax.tree.map(jnp.negative, grad), step_size), None

        momentum_key, path_key = jax.random.split(key)
        # The scheme's own law on a quadratic: momenta of this variance, independent of positions half way between them.
        sd = jax.lax.rsqrt(1 - 0.5 * alpha * step_size)
        momentum = jax.tree.map(lambda p: sd * p, standard_normal_like(momentum_key, z))
        first = drift(z, momentum, -0.5 * step_size)
        last, momentum = jax.lax.scan(leap, (first, momentum), jax.random.split(path_key, length))[0]
        return drift(last, momentum, 0.5 * step_size)

    return step


def draw_rows(key: Array, n: int, batch_size: int) -> Int[Array, " b"]:
    """Return the rows of a minibatch: one from each of B equal stretches of the data, from a random place on.

    Every row is as likely as any other, none is there twice, and the work is O(B), where a shuffle's is O(n log n).
    """
    offset_key, key = jax.random.split(key)
    edges = np.arange(batch_size + 1) * n // batch_size
    within = jax.random.randint(key, (batch_size,), edges[:-1], edges[1:])
    return (jax.random.randint(offset_key, (), 0, n) + within) % n


def _run(
    method: str,
    posterior: AnchoredPosterior,
    key: Array,
    step: Step,
    grads_per_step: int,
    *,
    batch_size: int,
    step_size: float,
    decay: float,
    num_warmup: int,
    num_samples: int,
    num_chains: int,
    thinning: int,
) -> Run:
    """Run all chains together, block by block; a chain's noise depends on its key and the step's number alone."""
    check_count(method, "num_warmup", num_warmup, 0)
    check_count(method, "num_samples", num_samples)
    check_count(method, "num_chains", num_chains)
    check_count(method, "thinning", thinning)
    start_key, path_key, figure_key = jax.random.split(key, 3)
    z = jax.vmap(posterior.start)(jax.random.split(start_key, num_chains))
    keys, figure_keys = jax.random.split(path_key, num_chains), jax.random.split(figure_key, num_chains)
    dtype = posterior.features.x.dtype

    def size_at(t: Array) -> Array:
        return step_size * (1 + jnp.asarray(t, dtype)) ** -decay

    @jax.jit
    def advance(z: Position, first: Array, count: Array) -> Position:
        def one(t: Array, z: Position) -> Position:
            return jax.vmap(lambda key, z: step(jax.random.fold_in(key, t), z, size_at(t)))(keys, z)

        return jax.lax.fori_loop(first, first + count, one, z)

    def figures(key: Array, z: Position, t: Array) -> dict[str, Array]:
        grad = jax.grad(posterior.estimate)(z, draw_rows(jax.random.fold_in(key, t), len(posterior.y), batch_size))
        return {"temperature": dot(z, grad) / sum(leaf.size for leaf in jax.tree.leaves(z))}

    @jax.jit
    def record(z: Position, firsts: Array) -> tuple[Position, Any]:
        def one(z: Position, first: Array) -> tuple[Position, Any]:
            z = advance(z, first, thinning)
            t = first + thinning
            stats = jax.vmap(figures, (0, 0, None))(figure_keys, z, t)
            stats["step_size"] = jnp.broadcast_to(size_at(t - 1), (num_chains,))
            return z, (jax.vmap(posterior.sites_of_model)(z), stats)

        return jax.lax.scan(one, z, firsts)

    block = max(1, GRADS_PER_BLOCK // grads_per_step)
    for first in range(0, num_warmup, block):
        z = _finite(method, step_size, advance(z, first, min(block, num_warmup - first)))
    # Blocks of equal size, for which one program is compiled; what the last has too much is dropped.
    num_blocks = -(-num_samples * thinning // block)
    per_block = -(-num_samples // num_blocks)
    firsts = num_warmup + thinning * np.arange(num_blocks * per_block).reshape(num_blocks, per_block)
    blocks = []
    for some in firsts:
        z, draws = record(z, jnp.asarray(some))
        _finite(method, step_size, z)
        blocks.append(jax.device_get(draws))
    join = lambda *parts: jnp.asarray(np.swapaxes(np.concatenate(parts)[:num_samples], 0, 1))  # noqa: E731
    samples, stats = jax.tree.map(join, *blocks)
    stats["num_grads"] = jnp.full((num_chains, num_samples), thinning * grads_per_step)
    return Run(method, posterior.model, (posterior.features.x, posterior.y), samples, stats)


def _finite(method: str, step_size: float, z: Position) -> Position:
    """Return z once it is there, if all of it is finite: a block ends here, and an interrupt gets through."""
    if not all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(z)):
        raise ValueError(f"`{method}`: the chains must stay finite; they left with step_size={step_size}; lower it")
    return z


def _check_options(door: str, step_size: float, decay: float) -> None:
    check_positive(door, "step_size", step_size)
    if not 0 <= decay <= 1:
        raise ValueError(f"`{door}`: decay must lie between 0 and 1; got {decay}")


def _check_batch(door: str, batch_size: int, posterior: AnchoredPosterior) -> None:
    check_count(door, "batch_size", batch_size)
    if batch_size > len(posterior.y):
        raise ValueError(f"`{door}`: batch_size must be at most n={len(posterior.y)}; got {batch_size}")
