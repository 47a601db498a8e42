"""Noisy natural gradient: natural gradient descent with weight noise is variational inference."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Real, Shaped

from bnnwide.checks import Data, check_choice, check_count, check_inputs, check_positive
from bnnwide.empirical.structured import dense_places
from bnnwide.likelihoods import Likelihood
from bnnwide.natgrad.curvature import Fisher, Layout, Weights
from bnnwide.natgrad.diagonal import DiagonalFisher, diagonal_fisher
from bnnwide.natgrad.fisher import choose_form, information
from bnnwide.natgrad.gaussian import GaussianPosterior
from bnnwide.natgrad.kronecker import Block, KroneckerFisher, corrected_spectrum, eigenbases, layer_factors, moments
from bnnwide.natgrad.problem import Task, add, check_task
from bnnwide.natgrad.sample import first_params
from bnnwide.samplers.core import dot, standard_normal_like

FAMILIES = ("diag", "kfac", "ekfac")


class _Layer(NamedTuple):
    """Running averages of one layer: both factors, and the eigenvalues of n A x B, corrected or not."""

    a: Array
    b: Array
    spectrum: Array


def noisy_vi(
    net: Any,
    likelihood: Likelihood,
    x: Real[Data, "n ..."],
    y: Shaped[Data, "n *k"],
    *,
    key: Array,
    family: str = "kfac",
    batch_size: int | None = None,
    learning_rate: float | int = 0.1,
    decay: float | int = 0.1,
    prior_precision: float | int = 1.0,
    num_steps: int = 1000,
    max_kl: float | int | None = None,
    params: Weights | None = None,
) -> GaussianPosterior:
    """Fit q(w) = N(m, Lambda^-1) by natural gradient ascent of the evidence lower bound (ELBO).

    At weights w = m +- e, e ~ N(0, Lambda^-1), with g the gradient of -log likelihood and F the Fisher matrix there,

      Lambda <- Lambda + decay (F + prior_precision I - Lambda),
      m <- m - learning_rate Lambda^-1 (g + prior_precision m),

    both averaged over the pair, both rates falling to 0 along a cosine. With `max_kl` a step of the mean is shortened
    where it would move q further than that, KL = |step|^2_Lambda / 2: far from the optimum, and on noisy gradients of
    minibatches, the precision seen so far can be much too small for the step it makes. F stands for the Hessian of
    -log likelihood, so that at the fixed point Lambda = E_q[F] + prior_precision I within the family: the optimum of
    the ELBO itself where the network is linear under Gaussian noise.

    Families: "diag" (noisy Adam, without the square root of Adam's denominator), "kfac" (noisy K-FAC: a matrix-variate
    Gaussian per layer, with the prior factored into (sqrt(n) A + pi sqrt(tau) I) x (sqrt(n) B + sqrt(tau) / pi I),
    pi^2 = (tr A / m) / (tr B / w)), "ekfac" (eigenvalues corrected, and the prior added to them exactly).

    Sources: Zhang, Sun, Duvenaud & Grosse 2018 (arXiv 1712.02390), noisy Adam and noisy K-FAC; Bae, Zhang & Grosse
    2018 (arXiv 1811.12565); Khan et al. 2018 (arXiv 1806.04854); Ba, Grosse & Martens 2017, "Distributed second-order
    optimization using Kronecker-factored approximations" (ICLR), the bound on steps. Their F is from single draws of
    labels; ours is its expectation.

    Args:
      net: an architecture; with "diag" any function f(params, x) -> (n, k).
      likelihood: the law of targets given outputs, with numbers for its parameters.
      x: (n, ...) inputs.
      y: (n, k) targets, or (n,) labels.
      key: PRNG key.
      family: "diag", "kfac" or "ekfac".
      batch_size: inputs per minibatch, drawn with replacement; None for all.
      learning_rate: of the mean at the start; above 0, at most 1.
      decay: of the running average of F at the start; above 0, at most 1.
      prior_precision: tau, positive: 1 for N(0, I).
      num_steps: number of steps.
      max_kl: the most nats that a step may move the mean by, positive; None for no bound.
      params: the mean to start from; None for a draw of the prior.

    Returns:
      The approximation: `sample`, `predict`, `log_score`.

    Raises:
      TypeError: if the network cannot be called, or an array is not real.
      ValueError: for wrong shapes, NaN or infinite numbers, options out of range, a family that does not fit the
        network, or a fit that leaves the finite numbers.
    """
    check_choice("noisy_vi", "family", family, FAMILIES)
    check_positive("noisy_vi", "prior_precision", prior_precision)
    check_count("noisy_vi", "num_steps", num_steps)
    if max_kl is not None:
        check_positive("noisy_vi", "max_kl", max_kl)
    if batch_size is not None:
        check_count("noisy_vi", "batch_size", batch_size)
    for name, value in (("learning_rate", learning_rate), ("decay", decay)):
        if not 0 < value <= 1:
            raise ValueError(f"`noisy_vi`: {name} must be above 0 and at most 1; got {value}")
    x = check_inputs("noisy_vi", "x", x)
    start_key, path_key = jax.random.split(key)
    given = first_params("noisy_vi", net, x, start_key) if params is None else params
    task, mean = check_task("noisy_vi", net, given, likelihood, x, y)
    choose_form("noisy_vi", family, task, mean)

    def step(
        task: Task, curvature: _Curvature, carry: tuple[Weights, Any], item: tuple[Array, Array]
    ) -> tuple[tuple[Weights, Any], None]:
        (mean, averages), (key, fade) = carry, item
        noise_key, rows_key = jax.random.split(key)
        n = len(task.x)
        rows = jnp.arange(n) if batch_size is None else jax.random.randint(rows_key, (batch_size,), 0, n)
        precision = curvature.operator(averages)
        noise = precision.sqrt_solve(standard_normal_like(noise_key, mean))

        def at(sign: Array) -> tuple[Weights, Any]:
            w = add(mean, noise, sign)
            return task.minibatch_gradient(w, rows), curvature.measure(w, averages, rows)

        both = jax.vmap(at)(jnp.asarray([1.0, -1.0]))
        grads, seen = jax.tree.map(lambda leaf: leaf.mean(axis=0), both)
        new = jax.tree.map(lambda old, one: old + decay * fade * (one - old), averages, seen)
        force = add(grads, mean, prior_precision)
        direction = curvature.operator(new).solve(force)
        size = learning_rate * fade
        if max_kl is not None:
            size = jnp.minimum(size, jnp.sqrt(2 * max_kl / dot(force, direction)))
        return (add(mean, direction, -size), new), None

    fade = 0.5 * (1 + jnp.cos(jnp.pi * jnp.arange(num_steps) / num_steps))

    @jax.jit
    def fit(mean: Weights, key: Array, x: Array, y: Array, numbers: dict[str, Array]) -> tuple[Weights, Fisher]:
        # Data come in as arguments: as constants of the program they would keep it out of JAX's compilation cache.
        given = task._replace(x=x, y=y, likelihood=dataclasses.replace(task.likelihood, **numbers))
        curvature = _Curvature(given._replace(y=None), mean, family, prior_precision)
        keys = jax.random.split(key, num_steps)
        (mean, averages), _ = jax.lax.scan(partial(step, given, curvature), (mean, curvature.start(mean)), (keys, fade))
        return mean, curvature.operator(averages)

    numbers = jax.tree.map(lambda value: jnp.asarray(value, task.x.dtype), likelihood.numbers)
    mean, precision = fit(mean, path_key, task.x, task.y, numbers)
    if not all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((mean, precision.diag()))):
        raise ValueError(
            f"`noisy_vi`: the fit must stay finite; it left with learning_rate={learning_rate}; "
            "lower it, or set max_kl=1"
        )
    return GaussianPosterior(f"noisy {family}", task.f, likelihood, x.shape[1:], mean, precision)


class _Curvature(NamedTuple):
    """What a family keeps of the Fisher matrix, how it is measured, and which precision it stands for."""

    task: Task
    like: Weights
    family: str
    prior_precision: float | int

    def start(self, params: Weights) -> Any:
        """Return the averages at the first weights."""
        if self.family == "diag":
            return self.measure(params, None, jnp.arange(len(self.task.x)))
        s = information(self.task, params)
        return [
            _Layer(*ab, self._spectrum(one, *ab))
            for one in layer_factors(self.task.f, params, self.task.x, s)
            for ab in [moments(one)]
        ]

    def measure(self, params: Weights, averages: Any, rows: Array) -> Any:
        """Return what a minibatch at given weights says of the averages."""
        task = self.task._replace(x=self.task.x[rows])
        scale = len(self.task.x) / len(rows)
        s = information(task, params)
        if self.family == "diag":
            return scale * diagonal_fisher(task.f, params, task.x, s, jnp.zeros((), s.dtype)).values
        new = []
        for one, old in zip(layer_factors(task.f, params, task.x, s), averages, strict=True):
            # In the eigenbasis of the averages so far, in which the corrected eigenvalues are averaged too.
            spectrum = self._spectrum(one, old.a, old.b) * scale
            new.append(_Layer(*moments(one), spectrum))
        return new

    def _spectrum(self, one: Any, a: Array, b: Array) -> Array:
        if self.family == "kfac":
            return jnp.zeros((len(a), len(b)), a.dtype)
        _, inner, _, outer = eigenbases(a, b)
        return corrected_spectrum(one, inner, outer)

    def operator(self, averages: Any) -> Fisher:
        """Return the precision, with the prior's."""
        layout, tau = Layout.of(self.like), jnp.asarray(self.prior_precision, jnp.result_type(float))
        if self.family == "diag":
            return DiagonalFisher(layout, tau, averages + tau)
        n, blocks = len(self.task.x), []
        for layer, places in zip(averages, dense_places(self.task.f, self.like, self.task.x), strict=True):
            in_values, inner, out_values, outer = eigenbases(layer.a, layer.b)
            spectrum = layer.spectrum + tau
            if self.family == "kfac":
                pi = jnp.sqrt(jnp.mean(in_values) / jnp.maximum(jnp.mean(out_values), 1e-30))
                spectrum = jnp.outer((n**0.5) * in_values + pi * tau**0.5, (n**0.5) * out_values + tau**0.5 / pi)
            blocks.append(Block(inner, outer, spectrum, places))
        return KroneckerFisher(layout, tau, tuple(blocks))
