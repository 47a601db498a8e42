"""Run natural gradient descent as a sampler."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Real, Shaped

from bnnwide.arch.layer import Layer
from bnnwide.checks import Data, check_count, check_inputs
from bnnwide.likelihoods import Likelihood
from bnnwide.natgrad.curvature import Fisher, Weights
from bnnwide.natgrad.draws import Draws
from bnnwide.natgrad.dynamics import NGDState, natural_gradient
from bnnwide.natgrad.fisher import choose_form
from bnnwide.natgrad.minimise import descend
from bnnwide.natgrad.problem import Task, check_task


def sample(
    net: Any,
    likelihood: Likelihood,
    x: Real[Data, "n ..."],
    y: Shaped[Data, "n *k"],
    *,
    key: Array,
    learning_rate: float | int,
    batch_size: int | None,
    temperature: float | int | None = 1.0,
    correction: str = "posterior",
    fisher: str | Fisher = "auto",
    damping: float | int = 1.0,
    prior_precision: float | int = 1.0,
    params: Weights | None = None,
    num_warmup: int = 500,
    num_samples: int = 500,
    thinning: int = 1,
    num_chains: int = 4,
) -> Draws:
    """Draw weights by minibatch natural gradient descent, whose noise is that of a posterior, *without* acceptance.

    w' = w - eps G^-1 grad C + s - G^-1 force, with C = -log likelihood + prior_precision |w|^2 / 2 summed over the
    data, G = F + damping I the Fisher matrix of all data, and noise s of covariance 2 T eps G^-1: what minibatches of B
    inputs, drawn with replacement, make, eps^2 (N/B) G^-1 F G^-1; the share of the damping; and the rest, which is
    2 (T - eps N / 2B) eps G^-1. As eps goes to 0 the draws follow

      "jeffreys": exp(-C/T) sqrt(det G), the same law in all coordinates if damping and prior are 0: force is
        Gamma(s, s) / 2, with Christoffel's symbols of G, which makes the noise follow geodesics;
      "posterior": exp(-C/T), of which T = 1 is the posterior: force has T eps grad log det G / 2 as well;
      "none": no known law; with one weight exp(-C/T) G. No force, and only the minibatch's gradient is taken.

    Three approximations: that minibatch noise has covariance (N/B) F, which holds where predictions match the law of
    the labels; steps of finite size, which widen a quadratic posterior by 1 / (1 - eps/2); and, with "diag", "kfac" or
    a fixed operator, that F is like G - damping I. The first and the last are absent with batch_size=None. The stat
    "temperature" measures their sum: its mean over draws from exp(-C/T) is T.

    Source: Smith, Duckworth, Rezchikov, Le & Sohl-Dickstein 2018 (arXiv 1806.09597); the drifts are derived in
    docs/natural_gradient.md, after Girolami & Calderhead 2011 and Ma, Chen & Fox 2015 (arXiv 1506.04696).

    Args:
      net: an architecture, or any function f(params, x) -> (n, k).
      likelihood: the law of targets given outputs, with numbers for its parameters.
      x: (n, ...) inputs.
      y: (n, k) targets, or (n,) labels.
      key: PRNG key.
      learning_rate: eps. A chain forgets in about 1/eps steps.
      batch_size: B, or None for exact gradients, with all of the noise added.
      temperature: T; None adds no noise at all: plain minibatch descent at eps N / (2B).
      correction: "none", "jeffreys" or "posterior".
      fisher: the form of the Fisher matrix, formed anew at every step, as for `fisher`; or one of its values, which is
        then used throughout.
      damping: added to the diagonal; 1 is the precision of the prior N(0, I). A fixed operator has its own.
      prior_precision: of the weights: 1 for N(0, I), 0 for none.
      params: weights to start all chains from; None starts each from a minimum of C near its own draw of the prior.
      num_warmup: steps before the first draw, per chain.
      num_samples: draws per chain.
      thinning: steps per draw.
      num_chains: number of chains, stepped together.

    Returns:
      The draws. `stats`: `temperature`, <w - w_start, grad C> / p; `num_grads`, gradients of one input per draw;
      `step_length`, mean squared length of a step in the metric, per weight.

    Raises:
      TypeError: if the network cannot be called, or an array is not real.
      ValueError: for wrong shapes, NaN or infinite numbers, options out of range (a temperature below that of the
        minibatches among them), or if the chains leave the finite numbers.
    """
    for name, value in (("num_samples", num_samples), ("thinning", thinning), ("num_chains", num_chains)):
        check_count("sample", name, value)
    check_count("sample", "num_warmup", num_warmup, 0)
    start_key, path_key = jax.random.split(key)
    x = check_inputs("sample", "x", x)
    given = first_params("sample", net, x, start_key) if params is None else params
    chain_with = partial(
        natural_gradient, net, likelihood, x, y, given, learning_rate=learning_rate, batch_size=batch_size,
        temperature=temperature, correction=correction, damping=damping, prior_precision=prior_precision,
    )  # fmt: skip
    chain_with(fisher=fisher)  # refuses options before anything is compiled
    task, given = check_task("sample", net, given, likelihood, x, y)
    if params is None:
        starts = minima(task, net, start_key, num_chains, prior_precision)
    else:
        starts = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (num_chains, *leaf.shape)), given)

    # A fixed operator is an argument of the program: the compiler would multiply its constants out.
    fixed = fisher if isinstance(fisher, Fisher) else None

    def run(fixed: Fisher | None, key: Array, start: Weights) -> tuple[Weights, dict[str, Array]]:
        chain = chain_with(fisher=fisher if fixed is None else fixed)

        def step(state: NGDState, key: Array) -> tuple[NGDState, Any]:
            return chain.step(key, state)

        def draw(state: NGDState, key: Array) -> tuple[NGDState, Any]:
            state, info = jax.lax.scan(step, state, jax.random.split(key, thinning))
            stats = {
                "temperature": chain.temperature(state.params, start),
                "num_grads": jnp.sum(info.num_grads),
                "step_length": jnp.mean(info.step_length),
            }
            return state, (state.params, stats)

        warmup_key, draw_key = jax.random.split(key)
        body = lambda i, state: chain.step(jax.random.fold_in(warmup_key, i), state)[0]  # noqa: E731
        state = jax.lax.fori_loop(0, num_warmup, body, chain.init(start))
        return jax.lax.scan(draw, state, jax.random.split(draw_key, num_samples))[1]

    draws, stats = jax.jit(jax.vmap(run, (None, 0, 0)))(fixed, jax.random.split(path_key, num_chains), starts)
    if not all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(draws)):
        raise ValueError(
            f"`sample`: the chains must stay finite; they left with learning_rate={learning_rate} and damping="
            f"{damping}; lower the one or raise the other"
        )
    return Draws("natural gradient", net, likelihood, x.shape[1:], draws, stats)


def first_params(door: str, net: Any, x: Array, key: Array) -> Weights:
    """Return a draw of the prior of an architecture's weights.

    Raises:
      TypeError: if the network is a function, whose weights are not known.
    """
    if not isinstance(net, Layer):
        raise TypeError(f"`{door}`: params must be given for a function f(params, x); got None")
    return net.init(key, x.shape[1:])


def minima(task: Task, net: Layer, key: Array, number: int, prior_precision: float) -> Weights:
    """Return minima of the cost, each near a draw of the prior of its own."""
    keys = jax.random.split(key, number)
    starts = jax.vmap(lambda key: net.init(key, task.x.shape[1:]))(keys)
    form = choose_form("sample", "auto", task, jax.tree.map(lambda leaf: leaf[0], starts))
    one = lambda params: descend(task, params, prior_precision=prior_precision, form=form, tolerance=1e-4).params  # noqa: E731
    return jax.jit(lambda starts: jax.lax.map(one, starts))(starts)
