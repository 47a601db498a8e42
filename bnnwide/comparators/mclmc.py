"""Microcanonical Langevin Monte Carlo, unadjusted, through BlackJAX."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from numpyro.infer.mcmc import MCMCKernel
from numpyro.infer.util import initialize_model

from bnnwide.checks import check_count, check_positive
from bnnwide.comparators.extra import require
from bnnwide.comparators.run import Run, run_chains
from bnnwide.models.kernel import init_to_reference, is_batch

GRADS_PER_STEP = 2  # of McLachlan's integrator, BlackJAX's choice
MIN_TUNING = 50
TUNING_ENTRIES = 2**26  # of positions that tuning may hold at once


class MCLMCState(NamedTuple):
    """The state of one chain (or of a batch of chains); its scalars are available as `extra_fields`.

    Attributes:
      i: number of steps taken; tuning counts for all steps of warm-up.
      z: unconstrained position, by site.
      potential_energy: U(z).
      grad: gradient of -U.
      momentum: direction of motion, of norm 1.
      energy_change: error of the energy in the last step.
      accept_prob: not a number: nothing is accepted or rejected.
      diverging: whether the last step was undone because it came to no finite number.
      num_grads: gradients evaluated by the last step.
      step_size: of the integrator.
      decoherence_length: L, the distance over which the momentum forgets its direction.
      inverse_mass: (P,) diagonal preconditioner.
      rng_key: the chain's PRNG key.
    """

    i: Array
    z: dict[str, Array]
    potential_energy: Float[Array, "*chains"]
    grad: dict[str, Array]
    momentum: dict[str, Array]
    energy_change: Float[Array, "*chains"]
    accept_prob: Float[Array, "*chains"]
    diverging: Array
    num_grads: Array
    step_size: Float[Array, "*chains"]
    decoherence_length: Float[Array, "*chains"]
    inverse_mass: Float[Array, "*chains p"]
    rng_key: Array


class MCLMC(MCMCKernel):
    """Unadjusted MCLMC as a NumPyro kernel, one integrator step (two gradients) per draw; see `mclmc`.

    The first step of warm-up runs BlackJAX's tuning, `num_tuning` integrator steps in one; the others are burn-in.

    Args:
      model: a NumPyro model with at least two latent entries.
      step_size: of the integrator; None tunes it.
      decoherence_length: L; None tunes it. Both are given or neither.
      num_tuning: integrator steps of tuning; None takes as many as warm-up has.
      desired_energy_var: variance of the energy's error per dimension that tuning aims at; it sets the bias.
      diagonal_preconditioning: whether tuning estimates a variance for every coordinate.

    Raises:
      ImportError: if BlackJAX is not installed.
      ValueError: if a number is out of range, or one of step size and length is given without the other.
    """

    sample_field = "z"  # type: ignore[assignment]
    default_fields = ("z", "diverging")  # type: ignore[assignment]

    def __init__(
        self,
        model: Callable,
        *,
        step_size: float | None = None,
        decoherence_length: float | None = None,
        num_tuning: int | None = None,
        desired_energy_var: float = 5e-4,
        diagonal_preconditioning: bool = True,
    ) -> None:
        require("mclmc", "blackjax")
        if (step_size is None) != (decoherence_length is None):
            raise ValueError("`mclmc`: step_size and decoherence_length must both be given, or neither; got one")
        if step_size is not None:
            check_positive("mclmc", "step_size", step_size)
            check_positive("mclmc", "decoherence_length", decoherence_length)
        if num_tuning is not None:
            check_count("mclmc", "num_tuning", num_tuning, MIN_TUNING)
        check_positive("mclmc", "desired_energy_var", desired_energy_var)
        self._model, self._fixed, self._num_tuning = model, (step_size, decoherence_length), num_tuning
        self._energy_var, self._diagonal = desired_energy_var, diagonal_preconditioning
        # NumPyro initialises a kernel whose `_sample_fn` is None.
        self._sample_fn: Callable | None = None
        self._postprocess_fn: Callable | None = None

    @property
    def model(self) -> Callable:
        """The NumPyro model."""
        return self._model

    def init(self, rng_key, num_warmup, init_params, model_args, model_kwargs):
        """Initialise one chain, or as many as there are keys."""
        algorithm = require("mclmc", "blackjax.mcmc.mclmc")
        vectorized = is_batch(rng_key)
        split = jax.vmap(jax.random.split)(rng_key) if vectorized else jax.random.split(rng_key)
        model_key, chain_key = (split[:, 0], split[:, 1]) if vectorized else (split[0], split[1])
        info = initialize_model(
            model_key,
            self._model,
            init_strategy=init_to_reference,
            dynamic_args=True,
            model_args=model_args,
            model_kwargs=model_kwargs,
        )
        potential_of_data, self._postprocess_fn = info.potential_fn, info.postprocess_fn
        z = info.param_info.z if init_params is None else init_params
        size = sum(leaf.size for leaf in jax.tree.leaves(z)) // (len(rng_key) if vectorized else 1)
        if size < 2:
            raise ValueError(f"`mclmc`: the model must have at least two latent entries; it has {size}")
        tuned = self._fixed == (None, None)
        num_tuning = num_warmup if self._num_tuning is None else self._num_tuning
        if tuned and (num_tuning < MIN_TUNING or num_warmup < 1):
            raise ValueError(
                f"`mclmc`: num_warmup must be at least {MIN_TUNING} for tuning; got {num_warmup}; or give step_size "
                "and decoherence_length"
            )

        def first(z: Any, key: Array) -> MCLMCState:
            key, momentum_key = jax.random.split(key)
            log_density = _log_density(potential_of_data, model_args, model_kwargs)
            chain = algorithm.init(z, log_density, momentum_key)
            dtype = chain.logdensity.dtype
            # What is not given starts as BlackJAX starts it.
            length, step_size = (size**0.5 if self._fixed[1] is None else self._fixed[1]), self._fixed[0]
            step_size = 0.25 * length if step_size is None else step_size
            zero, nan = jnp.zeros((), dtype), jnp.full((), jnp.nan, dtype)
            return MCLMCState(
                jnp.int32(0), z, -chain.logdensity, chain.logdensity_grad, chain.momentum, zero, nan, jnp.bool_(False),
                jnp.int32(0), jnp.asarray(step_size, dtype), jnp.asarray(length, dtype), jnp.ones(size, dtype), key,
            )  # fmt: skip

        draw, tune = _draw(algorithm, potential_of_data), self._tune(algorithm, potential_of_data, num_tuning, size)

        def step(state: MCLMCState, args: tuple, kwargs: dict) -> MCLMCState:
            over_chains = lambda fn: jax.vmap(fn, (0, None, None)) if vectorized else fn  # noqa: E731
            if not tuned:
                return over_chains(draw)(state, args, kwargs)
            # Chains are in step, so that one of them decides; a condition inside `vmap` would run both branches.
            begins = jnp.ravel(state.i)[0] == 0
            tune_then = lambda s: over_chains(tune)(s, args, kwargs)._replace(i=jnp.full_like(s.i, num_warmup))  # noqa: E731
            return jax.lax.cond(begins, tune_then, lambda s: over_chains(draw)(s, args, kwargs), state)

        self._sample_fn = step
        return jax.jit(jax.vmap(first) if vectorized else first)(z, chain_key)

    def _tune(self, algorithm: Any, potential_of_data: Callable, num_tuning: int, size: int) -> Callable:
        adaptation = require("mclmc", "blackjax.adaptation.mclmc_adaptation")
        # A third each for the step size, for the variances (a quarter of it to adjust the step to them) and for L from
        # autocorrelations, whose positions are all held: fewer for large models.
        frac3 = min(1 / 3, TUNING_ENTRIES / size / num_tuning)
        steps1, steps2, steps3 = (round(num_tuning * share) for share in (1 / 3, 1 / 4, frac3))
        steps = steps1 + steps2 + (round(steps2 / 3) if self._diagonal else 0) + (steps3 if steps3 > 1 else 0)

        def tune(state: MCLMCState, args: tuple, kwargs: dict) -> MCLMCState:
            key, tune_key = jax.random.split(state.rng_key)
            chain, params, _ = adaptation.mclmc_find_L_and_step_size(
                algorithm.build_kernel(), num_tuning, _chain(state), tune_key,
                _log_density(potential_of_data, args, kwargs), frac_tune1=1 / 3, frac_tune2=1 / 4, frac_tune3=frac3,
                desired_energy_var=self._energy_var, diagonal_preconditioning=self._diagonal,
            )  # fmt: skip
            new = state._replace(
                z=chain.position, potential_energy=-chain.logdensity, grad=chain.logdensity_grad,
                momentum=chain.momentum, num_grads=jnp.int32(GRADS_PER_STEP * steps), step_size=params.step_size,
                decoherence_length=params.L, inverse_mass=params.inverse_mass_matrix, rng_key=key,
            )  # fmt: skip
            return jax.tree.map(lambda a, b: jnp.asarray(a).astype(b.dtype), new, state)

        return tune

    def sample(self, state, model_args, model_kwargs):
        """Take one step; the first one of a chain without step size tunes it."""
        if self._sample_fn is None:
            raise ValueError("`mclmc`: init must be called before sample")
        return self._sample_fn(state, model_args, {} if model_kwargs is None else model_kwargs)

    def postprocess_fn(self, args, kwargs):
        """Return the map from unconstrained to constrained sites, deterministic ones included."""
        if self._postprocess_fn is None:
            raise ValueError("`mclmc`: init must be called before postprocess_fn")
        return self._postprocess_fn(*args, **({} if kwargs is None else kwargs))

    def get_diagnostics_str(self, state):
        """Describe the chain for the progress bar."""
        return f"step size {state.step_size:.2g}, L {state.decoherence_length:.2g}"

    def __getstate__(self):
        # As for the library's own kernels: compiled closures are not pickled, and `init` rebuilds them.
        return self.__dict__ | {"_sample_fn": None, "_postprocess_fn": None}


def _log_density(potential_of_data: Callable, args: tuple, kwargs: dict | None) -> Callable:
    potential = potential_of_data(*args, **(kwargs or {}))
    return lambda z: -potential(z)


def _chain(state: MCLMCState) -> Any:
    integrators = require("mclmc", "blackjax.mcmc.integrators")
    return integrators.IntegratorState(state.z, state.momentum, -state.potential_energy, state.grad)


def _draw(algorithm: Any, potential_of_data: Callable) -> Callable:
    kernel = algorithm.build_kernel()

    def draw(state: MCLMCState, args: tuple, kwargs: dict) -> MCLMCState:
        key, step_key = jax.random.split(state.rng_key)
        chain, info = kernel(
            step_key, _chain(state), _log_density(potential_of_data, args, kwargs), state.inverse_mass,
            state.decoherence_length, state.step_size,
        )  # fmt: skip
        return state._replace(
            i=state.i + 1, z=chain.position, potential_energy=-chain.logdensity, grad=chain.logdensity_grad,
            momentum=chain.momentum, energy_change=info.energy_change, diverging=~jnp.asarray(info.nonans),
            num_grads=jnp.int32(GRADS_PER_STEP), rng_key=key,
        )  # fmt: skip

    return draw


def mclmc(
    model: Callable,
    *data: Any,
    key: Array,
    num_warmup: int = 2000,
    num_samples: int = 2000,
    num_chains: int = 4,
    step_size: float | None = None,
    decoherence_length: float | None = None,
    desired_energy_var: float = 5e-4,
    diagonal_preconditioning: bool = True,
) -> Run:
    """Sample a model's posterior by microcanonical Langevin Monte Carlo, unadjusted: *biased* by its step size.

    The momentum has norm 1 and turns towards the gradient, du = (I - u u^T) (-grad U) / (P - 1) dt, with noise that
    forgets its direction over a length L; the exact flow has the posterior as its marginal. Steps of finite size do
    not, and no accept step corrects them: tuning picks the step at which the energy's error has variance
    `desired_energy_var` per dimension, and the bias of expectations falls with it. There is no guarantee, as there is
    for the library's own samplers; compare with one where it matters.

    Source: Robnik, De Luca, Silverstein & Seljak 2023 (arXiv 2212.08549); Robnik & Seljak 2023 (arXiv 2303.18221) on
    the Langevin form; tuning by BlackJAX.

    Args:
      model: a NumPyro model with at least two latent entries.
      data: its arguments, (x, y) for a BNN.
      key: PRNG key.
      num_warmup: integrator steps of tuning per chain, and as many of burn-in after it, less one.
      num_samples: draws per chain, one per integrator step.
      num_chains: number of chains, stepped together; each is tuned by itself.
      step_size: of the integrator; None tunes it.
      decoherence_length: L; None tunes it. Both are given or neither.
      desired_energy_var: variance of the energy's error per dimension that tuning aims at.
      diagonal_preconditioning: whether tuning estimates a variance for every coordinate.

    Returns:
      The draws. `stats`, all (chains, draws): `num_grads`, gradients per draw, 2; `energy_change`; `step_size`;
      `decoherence_length`; `potential_energy`; `diverging`, steps undone because they came to no finite number.

    Raises:
      ImportError: if BlackJAX is not installed.
      ValueError: if a number is out of range, or warm-up is too short to tune.
    """
    kernel = MCLMC(
        model, step_size=step_size, decoherence_length=decoherence_length, desired_energy_var=desired_energy_var,
        diagonal_preconditioning=diagonal_preconditioning,
    )  # fmt: skip
    return run_chains(
        "mclmc", model, kernel, data, key, num_warmup=num_warmup, num_samples=num_samples, num_chains=num_chains,
        fields=("num_grads", "energy_change", "step_size", "decoherence_length", "potential_energy", "diverging"),
    )  # fmt: skip
