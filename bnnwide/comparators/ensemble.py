"""Deep ensembles: independent networks, each trained to a mode from its own start."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array
from numpyro.infer.util import initialize_model

from bnnwide.checks import check_count, check_positive
from bnnwide.comparators.extra import require
from bnnwide.comparators.fit import Fit, as_one_chain, run_steps
from bnnwide.comparators.run import Run
from bnnwide.models.kernel import init_to_reference, standard_normal_sites
from bnnwide.samplers.core import Position, dot, standard_normal_like


def deep_ensemble(
    model: Callable,
    *data: Any,
    key: Array,
    num_members: int = 10,
    num_steps: int = 5000,
    learning_rate: float = 0.01,
    anchored: bool = False,
) -> Run:
    """Train an ensemble of networks, each from its own draw of the prior; every member counts as one draw.

    A member minimises the model's potential U on the unconstrained scale, prior included (a MAP estimate), by Adam on
    all data, whose step falls to 0 along a cosine. Members differ only because they end in different modes: where U has
    one mode they are all the same. An anchored member minimises U(z) - <a, z> with its own a ~ N(0, I), so that its
    standard normal sites are drawn to a instead of to 0: on a Gaussian posterior of precision P such members have
    covariance P^-2, still smaller than P^-1. (The data are not perturbed.)

    Source: Lakshminarayanan, Pritzel & Blundell 2017 (arXiv 1612.01474), without adversarial examples; anchored:
    Pearce, Leibfried, Brintrup, Zaki & Neely 2020 (arXiv 1810.05546), equation 9.

    Args:
      model: a NumPyro model.
      data: its arguments, (x, y) for a BNN.
      key: PRNG key.
      num_members: number of networks, trained together.
      num_steps: of the optimiser.
      learning_rate: Adam's at the start.
      anchored: whether members are anchored.

    Returns:
      The members, as the draws of one chain. `stats`: `loss` (num_steps, members), what each minimised; `grad_norm`
      (1, members), the norm of its gradient at the end; `num_grads`, of all members.

    Raises:
      ImportError: if optax is not installed.
      ValueError: if an option is out of range, or there is nothing to train.
    """
    fit, gradients = ensemble_fit(
        model, data, key, num_members=num_members, num_steps=num_steps, learning_rate=learning_rate, anchored=anchored
    )
    state, losses = run_steps(fit)
    norms = jax.vmap(lambda g: jnp.sqrt(dot(g, g)))(gradients(state))
    stats = {"loss": losses, "grad_norm": norms[None], "num_grads": num_steps * fit.grads_per_step}
    return Run("deep_ensemble", model, data, as_one_chain(fit.draws(state, key, num_members)), stats)


def ensemble_fit(
    model: Callable,
    data: tuple[Any, ...],
    key: Array,
    *,
    num_members: int = 10,
    num_steps: int = 5000,
    learning_rate: float = 0.01,
    anchored: bool = False,
) -> tuple[Fit, Callable[[Any], Position]]:
    """Return how to train `deep_ensemble`, and the members' gradients at a state. Its draws are the members, all."""
    check_count("deep_ensemble", "num_members", num_members)
    check_count("deep_ensemble", "num_steps", num_steps)
    check_positive("deep_ensemble", "learning_rate", learning_rate)
    optax = require("deep_ensemble", "optax")
    start_key, anchor_key = jax.random.split(key)
    info = initialize_model(
        jax.random.split(start_key, num_members), model, init_strategy=init_to_reference, model_args=data
    )
    starts = info.param_info.z
    if not starts:
        raise ValueError("`deep_ensemble`: the model must have at least one latent site; it has none")
    apart = standard_normal_sites(model, data, {}) if anchored else set()
    anchors = standard_normal_like(anchor_key, {name: starts[name] for name in sorted(apart)})

    def loss(z: Position, anchor: Position) -> Array:
        return info.potential_fn(z) - dot(anchor, {name: z[name] for name in anchor})

    adam = optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))

    def step(state: Any) -> tuple[Any, Array]:
        z, moments = state
        value, grad = jax.vmap(jax.value_and_grad(loss))(z, anchors)
        change, moments = adam.update(grad, moments)
        return (optax.apply_updates(z, change), moments), value

    def draws(state: Any, key: Array, number: int) -> dict[str, Array]:
        return jax.jit(lambda z: jax.lax.map(info.postprocess_fn, z))(state[0])

    fit = Fit((starts, adam.init(starts)), step, num_steps, num_members, draws)
    return fit, lambda state: jax.jit(jax.vmap(jax.grad(loss)))(state[0], anchors)
