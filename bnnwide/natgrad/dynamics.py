"""Natural gradient descent as a Markov chain: a pure (init, step)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Real, Shaped

from bnnwide.checks import Data, check_choice, check_count, check_positive
from bnnwide.likelihoods import Likelihood
from bnnwide.natgrad.correction import CORRECTIONS, geodesic_force, volume_force
from bnnwide.natgrad.curvature import Fisher, Layout, Weights
from bnnwide.natgrad.fisher import FORMS, check_damping, check_dual, choose_form, curvature
from bnnwide.natgrad.minimise import check_prior
from bnnwide.natgrad.problem import add, check_task
from bnnwide.samplers.core import dot, standard_normal_like


class NGDState(NamedTuple):
    """A chain's state: its weights."""

    params: Weights


class NGDInfo(NamedTuple):
    """What one step did.

    Attributes:
      num_grads: inputs of the minibatch; a correction also takes the gradient of all.
      step_length: |G^1/2 (w' - w)|^2 / p, the squared length of the step in units of the metric, per weight.
    """

    num_grads: Array
    step_length: Array


class NaturalGradient(NamedTuple):
    """A chain as a pure pair: `init(params) -> NGDState` and `step(key, state) -> (NGDState, NGDInfo)`.

    `minibatch_temperature` is eps N / (2 B), what minibatch noise alone would hold. `temperature(params, origin)` is
    <w - origin, grad C(w)> / p, whose mean over draws from exp(-C/T) is T for any fixed origin.
    """

    init: Callable[[Weights], NGDState]
    step: Callable[[Array, NGDState], tuple[NGDState, NGDInfo]]
    minibatch_temperature: float
    temperature: Callable[[Weights, Weights], Array]


def natural_gradient(
    net: Any,
    likelihood: Likelihood,
    x: Real[Data, "n ..."],
    y: Shaped[Data, "n *k"],
    params: Weights,
    *,
    learning_rate: float | int,
    batch_size: int | None,
    temperature: float | int | None = 1.0,
    correction: str = "posterior",
    fisher: str | Fisher = "auto",
    damping: float | int = 1.0,
    prior_precision: float | int = 1.0,
) -> NaturalGradient:
    """Return minibatch natural gradient descent as a Markov chain; `sample` runs it and says what it draws from.

    Args:
      net: an architecture, or any function f(params, x) -> (n, k).
      likelihood: the law of targets given outputs, with numbers for its parameters.
      x: (n, ...) inputs.
      y: (n, k) targets, or (n,) labels.
      params: weights, for their shapes.
      learning_rate: as for `sample`, and so are all other options.
      batch_size: inputs per minibatch, or None for exact gradients.
      temperature: that of the target, or None to add no noise.
      correction: "none", "jeffreys" or "posterior".
      fisher: a form, or a fixed operator.
      damping: added to the diagonal of the Fisher matrix.
      prior_precision: of the weights.

    Returns:
      The pair (init, step), which runs under `jax.lax.scan` and `jax.vmap`.

    Raises:
      TypeError: if the network cannot be called, or an array is not real.
      ValueError: for wrong shapes, NaN or infinite numbers, or options out of range.
    """
    task, params = check_task("sample", net, params, likelihood, x, y)
    n = len(task.x)
    check_choice("sample", "correction", correction, CORRECTIONS)
    check_prior("sample", prior_precision)
    if not 0 < learning_rate < 2:
        raise ValueError(f"`sample`: learning_rate must lie between 0 and 2, where steps diverge; got {learning_rate}")
    if batch_size is not None:
        check_count("sample", "batch_size", batch_size)
    own = 0.0 if batch_size is None else learning_rate * n / (2 * batch_size)
    if temperature is not None:
        check_positive("sample", "temperature", temperature)
        if own > temperature * (1 + 1e-9):
            raise ValueError(
                f"`sample`: temperature must be at least {own:.4g}, which minibatch noise alone holds at learning_rate="
                f"{learning_rate} and batch_size={batch_size}; got {temperature}; use batch_size="
                f"{int(np.ceil(learning_rate * n / (2 * temperature)))} or learning_rate="
                f"{2 * temperature * (batch_size or 1) / n:.4g}, as `temperature` gives them"
            )
    blind = task._replace(y=None)
    if isinstance(fisher, Fisher):
        # A metric that does not depend on the weights asks for no correction: all three are the same.
        fixed, correction, strength = fisher, "none", fisher.damping
        if fisher.layout != Layout.of(params):
            raise ValueError(f"`sample`: fisher must be that of this network's weights; got {fisher}")
        metric = lambda _: fixed  # noqa: E731
    else:
        check_choice("sample", "fisher", fisher, FORMS)
        strength = check_damping("sample", damping)
        form = choose_form("sample", fisher, task, params)
        if form == "dual":
            check_dual("sample", strength)
        if form not in ("dense", "dual") and correction != "none":
            raise ValueError(
                f"`sample`: correction={correction!r} needs the exact Fisher matrix, 'dense' or 'dual'; got {form!r}; "
                "use correction='none', or give a fixed operator as fisher, which needs no correction"
            )
        metric = lambda params: curvature(blind, params, strength, form)  # noqa: E731
    target = own if temperature is None else temperature
    missing = 0.0 if temperature is None else max(temperature - own, 0.0)
    # Damping counts as data whose minibatch noise is missing: 2 T eps G^-1 = 2 T eps G^-1 (F + damping I) G^-1.
    restored = 0.0 if temperature is None else own
    size = Layout.of(params).size

    def step(key: Array, state: NGDState) -> tuple[NGDState, NGDInfo]:
        params = state.params
        rows_key, noise_key, damping_key = jax.random.split(key, 3)
        g, prior = metric(params), jax.tree.map(lambda leaf: prior_precision * leaf, params)
        every = None
        if batch_size is None or correction != "none":
            every = task.minibatch_gradient(params, jnp.arange(n))
        # What is random in the step, in units of force, so that one solve serves all of it.
        kick = jax.tree.map(jnp.zeros_like, params)
        if batch_size is None:
            mean = every
        else:
            rows = jax.random.randint(rows_key, (batch_size,), 0, n)
            some = task.minibatch_gradient(params, rows)
            mean = some if every is None else every
            if every is not None:
                kick = jax.tree.map(lambda a, b: learning_rate * (a - b), every, some)
        if restored:
            kick = add(
                kick, standard_normal_like(damping_key, params), jnp.sqrt(2 * learning_rate * restored * strength)
            )
        noise = kick if batch_size is None else g.solve(kick)
        if missing:
            noise = add(
                noise, g.sqrt_solve(standard_normal_like(noise_key, params)), (2 * learning_rate * missing) ** 0.5
            )
        force = jax.tree.map(lambda a, b: learning_rate * (a + b), mean, prior)
        if correction != "none":
            # The second-order term of this step's own noise: it is undone path by path, and not in the mean alone.
            force = add(force, geodesic_force(blind, params, noise), 0.5)
        if correction == "posterior":
            force = add(force, volume_force(blind, params, g), learning_rate * target)
        move = add(noise, g.solve(force), -1.0)
        info = NGDInfo(jnp.asarray(n if batch_size is None else batch_size), dot(move, g.matvec(move)) / size)
        return NGDState(add(params, move)), info

    def measured(params: Weights, origin: Weights) -> Array:
        grad = jax.grad(lambda params: task.cost(params, prior_precision))(params)
        return dot(add(params, origin, -1.0), grad) / size

    return NaturalGradient(NGDState, step, own, measured)
