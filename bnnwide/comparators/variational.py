"""Gaussian approximations through NumPyro's autoguides: mean-field variational inference and Laplace."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from numpyro import handlers
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoGuide, AutoLaplaceApproximation, AutoNormal

from bnnwide.checks import check_count, check_positive
from bnnwide.comparators.extra import require
from bnnwide.comparators.fit import Fit, as_one_chain, run_steps
from bnnwide.comparators.run import Run
from bnnwide.models.kernel import init_to_reference

MAX_SIZE = 5_000


def mean_field(
    model: Callable,
    *data: Any,
    key: Array,
    num_steps: int = 5000,
    num_samples: int = 1000,
    learning_rate: float = 0.01,
    num_particles: int = 1,
) -> Run:
    """Approximate a model's posterior by independent normals on the unconstrained scale, by variational inference.

    Maximises the ELBO E_q[log p(y, z) - log q(z)] with reparametrised gradients and Adam, whose step falls to 0 along a
    cosine. On a Gaussian posterior of precision P the optimum has the right mean and variances 1 / P_ii, at most the
    true (P^-1)_ii: it is too sure of itself, the more so the more correlated the posterior is. The draws are
    independent draws of the *approximation*.

    Source: Blei, Kucukelbir & McAuliffe 2017 (arXiv 1601.00670), section 2; `numpyro.infer.autoguide.AutoNormal`.

    Args:
      model: a NumPyro model.
      data: its arguments, (x, y) for a BNN.
      key: PRNG key.
      num_steps: of the optimiser.
      num_samples: independent draws of the fitted approximation.
      learning_rate: Adam's at the start.
      num_particles: draws of q per gradient.

    Returns:
      The draws, as one chain. `stats`: `loss` (num_steps,), estimates of the negative ELBO along the way; `elbo`, from
      100 draws at the end; `num_grads`.

    Raises:
      ImportError: if optax is not installed.
      ValueError: if an option is out of range.
    """
    check_count("mean_field", "num_samples", num_samples)
    fit_key, draw_key, elbo_key = jax.random.split(key, 3)
    fit, elbo = mean_field_fit(
        model, data, fit_key, num_steps=num_steps, learning_rate=learning_rate, num_particles=num_particles
    )
    state, losses = run_steps(fit)
    stats = {"loss": losses, "elbo": elbo(state, elbo_key), "num_grads": num_steps * fit.grads_per_step}
    return Run("mean_field", model, data, as_one_chain(fit.draws(state, draw_key, num_samples)), stats)


def laplace(
    model: Callable,
    *data: Any,
    key: Array,
    num_steps: int = 20_000,
    num_samples: int = 1000,
    learning_rate: float = 0.02,
    max_size: int = MAX_SIZE,
) -> Run:
    """Approximate a model's posterior by the normal of its mode and curvature, N(z*, (d^2 U / dz^2)^-1).

    The mode z* of the unconstrained potential is found by Adam, whose step falls to 0 along a cosine; the Hessian is
    that of all P latent entries, whole: P^2 memory, P^3 work. Exact on a Gaussian posterior. A BNN has many modes, and
    the approximation knows one. The draws are independent draws of the *approximation*.

    Source: MacKay 1992, "A practical Bayesian framework for backpropagation networks"; NumPyro's
    `AutoLaplaceApproximation`.

    Args:
      model: a NumPyro model.
      data: its arguments, (x, y) for a BNN.
      key: PRNG key.
      num_steps: of the optimiser.
      num_samples: independent draws of the approximation.
      learning_rate: Adam's at the start.
      max_size: number of latent entries P above which a model is refused.

    Returns:
      The draws, as one chain. `stats`: `loss` (num_steps,), the potential along the way to the mode; `num_grads`, those
      of the optimiser; `num_hessian_rows`, P.

    Raises:
      ImportError: if optax is not installed.
      ValueError: if an option is out of range, the model has more than `max_size` latent entries, or the Hessian is not
        positive definite where the optimiser stopped.
    """
    check_count("laplace", "num_samples", num_samples)
    check_count("laplace", "max_size", max_size)
    fit_key, draw_key = jax.random.split(key)
    fit, size = laplace_fit(model, data, fit_key, num_steps=num_steps, learning_rate=learning_rate, max_size=max_size)
    state, losses = run_steps(fit)
    stats = {"loss": losses, "num_grads": num_steps, "num_hessian_rows": size}
    return Run("laplace", model, data, as_one_chain(fit.draws(state, draw_key, num_samples)), stats)


def mean_field_fit(
    model: Callable,
    data: tuple[Any, ...],
    key: Array,
    *,
    num_steps: int = 5000,
    learning_rate: float = 0.01,
    num_particles: int = 1,
    objective: Any = None,
) -> tuple[Fit, Callable[[Any, Array], Float[Array, ""]]]:
    """Return how to fit `mean_field`, and the ELBO of a state from 100 draws.

    `objective` is another loss for NumPyro's SVI than the ELBO, of `num_particles` draws per gradient.
    """
    check_count("mean_field", "num_particles", num_particles)
    guide = AutoNormal(model, init_loc_fn=init_to_reference)
    loss = Trace_ELBO(num_particles=num_particles) if objective is None else objective
    svi, start, step = _svi("mean_field", model, guide, data, key, num_steps, learning_rate, loss)

    def draws(state: Any, key: Array, number: int) -> dict[str, Array]:
        samples: Any = guide.sample_posterior(key, svi.get_params(state), sample_shape=(number,))
        return samples

    def elbo(state: Any, key: Array) -> Array:
        many = Trace_ELBO(num_particles=100, vectorize_particles=False)
        return -jax.jit(lambda params: many.loss(key, params, model, guide, *data))(svi.get_params(state))

    return Fit(start, step, num_steps, num_particles, draws), elbo


def laplace_fit(
    model: Callable,
    data: tuple[Any, ...],
    key: Array,
    *,
    num_steps: int = 20_000,
    learning_rate: float = 0.02,
    max_size: int = MAX_SIZE,
) -> tuple[Fit, int]:
    """Return how to fit `laplace`, and P."""
    size = _num_entries(model, data)
    if size > max_size:
        raise ValueError(
            f"`laplace`: the model must have at most max_size={max_size} latent entries, for a dense Hessian of "
            f"P^2 numbers; got P={size}, {8 * size**2 / 1e9:.3g} GB in float64; use mean_field, whose memory is linear "
            "in P, an exact sampler, or a narrower network"
        )
    guide = AutoLaplaceApproximation(model, init_loc_fn=init_to_reference, hessian_fn=_hessian_by_rows)
    svi, start, step = _svi("laplace", model, guide, data, key, num_steps, learning_rate, Trace_ELBO())

    def draws(state: Any, key: Array, number: int) -> dict[str, Array]:
        with warnings.catch_warnings():
            # NumPyro warns, and would draw the mode again and again.
            warnings.filterwarnings("error", message="Hessian of log posterior")
            try:
                return guide.sample_posterior(key, svi.get_params(state), sample_shape=(number,))
            except UserWarning:
                raise ValueError(
                    "`laplace`: the potential's Hessian must be positive definite where the optimiser stopped; it is "
                    "not, so that no mode was reached; raise num_steps, or change learning_rate or key"
                ) from None

    return Fit(start, step, num_steps, 1, draws), size


def _svi(
    door: str,
    model: Callable,
    guide: AutoGuide,
    data: tuple[Any, ...],
    key: Array,
    num_steps: int,
    learning_rate: float,
    loss: Any,
) -> tuple[SVI, Any, Callable[[Any], tuple[Any, Array]]]:
    check_count(door, "num_steps", num_steps)
    check_positive(door, "learning_rate", learning_rate)
    optax = require(door, "optax")
    adam = optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))
    svi = SVI(model, guide, adam, loss)
    return svi, svi.init(key, *data), lambda state: svi.update(state, *data)


def _num_entries(model: Callable, data: tuple[Any, ...]) -> int:
    """Count the latent entries, without computing anything of their size."""
    shapes = jax.eval_shape(lambda: _latent_sites(model, data))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def _latent_sites(model: Callable, data: tuple[Any, ...]) -> dict[str, Array]:
    seeded: Any = handlers.seed(model, 0)
    trace = handlers.trace(seeded).get_trace(*data)
    return {name: site["value"] for name, site in trace.items() if site["type"] == "sample" and not site["is_observed"]}


@partial(jax.jit, static_argnums=0)
def _hessian_by_rows(fn: Callable, z: Float[Array, " p"]) -> Float[Array, "p p"]:
    """Return the Hessian row by row: all at once, P copies of every hidden layer would be held."""
    row = lambda i: jax.jvp(jax.grad(fn), (z,), (jax.nn.one_hot(i, len(z), dtype=z.dtype),))[1]  # noqa: E731
    return jax.lax.map(row, jnp.arange(len(z)))
