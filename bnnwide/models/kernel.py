"""One adapter that runs any function-space sampler inside NumPyro's MCMC, on any NumPyro model."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro import handlers
from numpyro.infer.initialization import init_to_median, init_to_sample
from numpyro.infer.mcmc import MCMCKernel
from numpyro.infer.util import initialize_model
from numpyro.primitives import Messenger

from bnnwide import samplers
from bnnwide.checks import check_positive, is_concrete
from bnnwide.models.bnn import BNN, FUNCTION_BASE
from bnnwide.samplers.adaptation import AdaptState
from bnnwide.samplers.core import Position, Rest, Sampler, dot


class FunctionSpaceState(NamedTuple):
    """The state of one chain (or of a batch of chains); its scalars are available as `extra_fields`.

    Attributes:
      i: number of steps taken, warm-up included.
      z: unconstrained position, by site.
      potential_energy: U(z) = |z|^2/2 over the standard normal sites + rest.
      rest: what the model adds to them.
      kept: what else the sampler keeps of its position; see `bnnwide.samplers.core.State`.
      accept_prob: of the last step; of its move of the hidden weights, where blocks alternate.
      mean_accept_prob: over the current phase.
      diverging: whether the last proposal had a non-finite energy.
      num_grads: gradients evaluated by the last step.
      num_evals: evaluations of the potential by the last step, other than gradients.
      adapt_state: step angle and reference.
      rng_key: the chain's PRNG key.
    """

    i: Array
    z: Position
    potential_energy: Float[Array, "*chains"]
    rest: Float[Array, "*chains"]
    kept: Any
    accept_prob: Float[Array, "*chains"]
    mean_accept_prob: Float[Array, "*chains"]
    diverging: Array
    num_grads: Array
    num_evals: Array
    adapt_state: AdaptState
    rng_key: Array


def init_to_reference(site: dict | None = None) -> Any:
    """Start standard normal sites at a draw from their prior, all others at a median of draws from theirs.

    A NumPyro initialisation strategy. A prior draw is where a wide network's weights belong; of a scale with heavy
    tails it may lie so far out that the chain never comes back.
    """
    if site is None:
        return partial(init_to_reference)  # the form in which NumPyro takes a strategy
    if site["type"] != "sample" or site["is_observed"]:
        return None
    # The kernel masks the standard normal sites before NumPyro asks for a start: see `_Without`.
    fn = site["fn"].base_dist if isinstance(site["fn"], dist.MaskedDistribution) else site["fn"]
    return (init_to_sample if _is_standard_normal(fn) else init_to_median)(site)


class FunctionSpaceKernel(MCMCKernel):
    """An MCMC kernel for models whose latent sites are (close to) standard normal; see its three subclasses.

    Sites that are standard normal under the prior have N(0, I) as their reference; all others (a noise scale, say) get
    a diagonal Gaussian reference, on the unconstrained scale, learned in warm-up.
    """

    sample_field = "z"  # type: ignore[assignment]
    default_fields = ("z", "diverging")  # type: ignore[assignment]

    def __init__(
        self,
        model: Callable | None,
        potential_fn: Rest | None,
        build: Callable[[Rest], Sampler],
        *,
        angle: float | None,
        target_accept: float | None,
        init_strategy: Callable,
    ) -> None:
        name = type(self).__name__
        if (model is None) == (potential_fn is None):
            raise ValueError(f"`{name}`: exactly one of model and potential_fn must be given")
        if target_accept is not None and not 0 < target_accept < 1:
            raise ValueError(f"`{name}`: target_accept must lie between 0 and 1; got {target_accept}")
        self._model, self._potential_fn, self._build = model, potential_fn, build
        self._angle, self._target_accept, self._init_strategy = angle, target_accept, init_strategy
        # NumPyro initialises a kernel whose `_sample_fn` is None; ours has nothing to rebuild once `init` has run.
        self._sample_fn: Callable | None = None
        self._postprocess_fn: Callable | None = None

    @property
    def model(self) -> Callable | None:
        """The NumPyro model, or None when the kernel was given a potential."""
        return self._model

    def init(self, rng_key, num_warmup, init_params, model_args, model_kwargs):
        """Initialise one chain, or as many as there are keys."""
        vectorized = is_batch(rng_key)
        split = jax.vmap(jax.random.split)(rng_key) if vectorized else jax.random.split(rng_key)
        model_key, chain_key = (split[:, 0], split[:, 1]) if vectorized else (split[0], split[1])
        model_kwargs = {} if model_kwargs is None else model_kwargs
        referenced: tuple[str, ...] = ()
        if self._model is None:
            if init_params is None:
                raise ValueError(f"`{type(self).__name__}`: init_params must be given with potential_fn")
            rest = samplers.rest_of(self._potential_fn)  # pyright: ignore[reportArgumentType]  # given if model is not
            rest_of_data = lambda *args, **kwargs: rest  # noqa: E731
        else:
            apart = standard_normal_sites(self._model, model_args, model_kwargs)
            info = initialize_model(
                model_key,
                _Without(self._model, apart),
                init_strategy=self._init_strategy,
                dynamic_args=True,
                model_args=model_args,
                model_kwargs=model_kwargs,
                validate_grad=False,  # would compile a gradient that nothing else uses
            )
            rest_of_data, self._postprocess_fn = info.potential_fn, info.postprocess_fn
            init_params = info.param_info.z if init_params is None else init_params
            referenced = tuple(sorted(set(init_params) - apart))
            if not init_params:
                raise ValueError(f"`{type(self).__name__}`: the model must have at least one latent site; it has none")

        standard = lambda z: {k: v for k, v in z.items() if k not in referenced} if referenced else z  # noqa: E731

        def adaptation_of(sampler: Sampler) -> samplers.Adaptation:
            return samplers.adaptation(
                sampler, num_warmup, target_accept=self._target_accept, angle=self._angle, referenced=referenced
            )

        def first(z: Position, key: Array) -> FunctionSpaceState:
            sampler = self._sampler(rest_of_data, model_args, model_kwargs)
            state = sampler.init(z)
            zero, none = jnp.zeros((), state.rest.dtype), jnp.int32(0)
            energy = state.rest + 0.5 * dot(standard(z), standard(z))
            adapt = adaptation_of(sampler).init(z)
            return FunctionSpaceState(
                none, z, energy, state.rest, state.kept, zero, zero, jnp.bool_(False), none, none, adapt, key
            )

        def step(state: FunctionSpaceState, args: tuple, kwargs: dict) -> FunctionSpaceState:
            sampler = self._sampler(rest_of_data, args, kwargs)
            key, step_key = jax.random.split(state.rng_key)
            adapt = state.adapt_state
            chain = samplers.State(state.z, state.rest, state.kept)
            new, info = sampler.step(step_key, chain, adapt.angle, adapt.reference)
            adapt = adaptation_of(sampler).update(state.i, adapt, info.accept_prob, new.position)
            energy = new.rest + 0.5 * dot(standard(new.position), standard(new.position))
            i = state.i + 1
            steps = jnp.where(i > num_warmup, i - num_warmup, i)
            accept_prob = info.accept_prob if sampler.num_angles == 1 else info.accept_prob[0]
            mean = state.mean_accept_prob + (accept_prob - state.mean_accept_prob) / steps
            return FunctionSpaceState(
                i, *new[:1], energy, *new[1:], accept_prob, mean, info.diverging, info.num_grads, info.num_evals,
                adapt, key,
            )  # fmt: skip

        self._sample_fn = jax.vmap(step, in_axes=(0, None, None)) if vectorized else step
        # Compiled as one: op by op, some two hundred small compilations would take longer than a short run.
        return jax.jit(jax.vmap(first) if vectorized else first)(init_params, chain_key)

    def _sampler(self, rest_of_data: Callable, args: tuple, kwargs: dict) -> Sampler:
        return self._build(rest_of_data(*args, **kwargs))

    def sample(self, state, model_args, model_kwargs):
        """Take one step."""
        if self._sample_fn is None:
            raise ValueError(f"`{type(self).__name__}`: init must be called before sample")
        return self._sample_fn(state, model_args, {} if model_kwargs is None else model_kwargs)

    def postprocess_fn(self, args, kwargs):
        """Return the map from unconstrained to constrained sites, deterministic ones included."""
        if self._postprocess_fn is None:
            return lambda z: z
        return self._postprocess_fn(*args, **({} if kwargs is None else kwargs))

    def get_diagnostics_str(self, state):
        """Describe the chain for the progress bar."""
        angles = ", ".join(f"{angle:.2g}" for angle in np.ravel(state.adapt_state.angle))
        return f"angle {angles}, {state.num_grads} grads, acc. prob={state.mean_accept_prob:.2f}"

    def __getstate__(self):
        # A kernel is pickled with MCMC results; its compiled closures are not, and `init` rebuilds them.
        return self.__dict__ | {"_sample_fn": None, "_postprocess_fn": None}


class SplitHMC(FunctionSpaceKernel):
    """Split Hamiltonian Monte Carlo (infinity-HMC) as a NumPyro kernel; see `bnnwide.samplers.split_hmc`.

    On a collapsed `BNN` under a likelihood that is not Gaussian, hidden weights and function values move in turn: see
    `bnnwide.samplers.alternating_split_hmc`. `num_grads` then counts the gradients of the hidden weights, the only ones
    that evaluate the network.

    Args:
      model: a NumPyro model.
      potential_fn: instead of a model, a potential U(z); `MCMC.run` then needs `init_params`.
      step_size: rotation per integrator step in radians, in (0, pi/2]; None adapts it in warm-up.
      num_steps: steps (gradients) per draw, instead of `step_size`.
      trajectory_length: total rotation per draw in radians.
      jitter: relative spread of the trajectory length between draws.
      target_accept: acceptance that warm-up aims at.
      init_strategy: a NumPyro initialisation strategy; see `init_to_reference`, the default.
      alternate: whether to move function values apart from hidden weights where the model has them.

    Raises:
      ValueError: for options out of range, or both `step_size` and `num_steps`.
    """

    def __init__(
        self,
        model: Callable | None = None,
        potential_fn: Rest | None = None,
        *,
        step_size: float | None = None,
        num_steps: int | None = None,
        trajectory_length: float = math.pi / 2,
        jitter: float = 0.1,
        target_accept: float | None = None,
        init_strategy: Callable = init_to_reference,
        alternate: bool = True,
    ) -> None:
        check_positive("SplitHMC", "trajectory_length", trajectory_length)
        if not 0 <= jitter < 1:
            raise ValueError(f"`SplitHMC`: jitter must lie in [0, 1); got {jitter}")
        if step_size is not None and num_steps is not None:
            raise ValueError("`SplitHMC`: at most one of step_size and num_steps must be given; got both")
        if num_steps is not None:
            check_positive("SplitHMC", "num_steps", num_steps)
            step_size = trajectory_length / num_steps
        _check_angle("SplitHMC", "step_size", step_size, max(trajectory_length, math.pi / 2))
        super().__init__(
            model,
            potential_fn,
            partial(samplers.split_hmc, trajectory_length=trajectory_length, jitter=jitter),
            angle=step_size,
            target_accept=target_accept,
            init_strategy=init_strategy,
        )
        self._alternate = alternate
        self._trajectory: dict[str, Any] = {"trajectory_length": trajectory_length, "jitter": jitter}

    def _sampler(self, rest_of_data: Callable, args: tuple, kwargs: dict) -> Sampler:
        block = self._model.function_rest(*args, **kwargs) if self._alternate and isinstance(self._model, BNN) else None
        if block is None:
            return super()._sampler(rest_of_data, args, kwargs)
        rest = rest_of_data(*args, **kwargs)
        return samplers.alternating_split_hmc(rest, *block, FUNCTION_BASE, **self._trajectory)


class PCN(FunctionSpaceKernel):
    """Preconditioned Crank-Nicolson as a NumPyro kernel; see `bnnwide.samplers.pcn`.

    Args:
      model: a NumPyro model.
      potential_fn: instead of a model, a potential U(z); `MCMC.run` then needs `init_params`.
      beta: step size in (0, 1]; None adapts it in warm-up.
      target_accept: acceptance that warm-up aims at.
      init_strategy: a NumPyro initialisation strategy; see `init_to_reference`, the default.

    Raises:
      ValueError: for options out of range.
    """

    def __init__(
        self,
        model: Callable | None = None,
        potential_fn: Rest | None = None,
        *,
        beta: float | None = None,
        target_accept: float | None = None,
        init_strategy: Callable = init_to_reference,
    ) -> None:
        _check_angle("PCN", "beta", beta, 1.0)
        angle = None if beta is None else math.asin(beta)
        super().__init__(
            model, potential_fn, samplers.pcn, angle=angle, target_accept=target_accept, init_strategy=init_strategy
        )


class PCNL(FunctionSpaceKernel):
    """Preconditioned Crank-Nicolson Langevin as a NumPyro kernel; see `bnnwide.samplers.pcnl`.

    Args:
      model: a NumPyro model.
      potential_fn: instead of a model, a potential U(z); `MCMC.run` then needs `init_params`.
      delta: step size in (0, 2]; None adapts it in warm-up.
      target_accept: acceptance that warm-up aims at.
      init_strategy: a NumPyro initialisation strategy; see `init_to_reference`, the default.

    Raises:
      ValueError: for options out of range.
    """

    def __init__(
        self,
        model: Callable | None = None,
        potential_fn: Rest | None = None,
        *,
        delta: float | None = None,
        target_accept: float | None = None,
        init_strategy: Callable = init_to_reference,
    ) -> None:
        _check_angle("PCNL", "delta", delta, 2.0)
        angle = None if delta is None else 2 * math.atan(math.sqrt(delta / 2))
        super().__init__(
            model, potential_fn, samplers.pcnl, angle=angle, target_accept=target_accept, init_strategy=init_strategy
        )


def _check_angle(door: str, name: str, value: float | None, largest: float) -> None:
    if value is not None and not 0 < value <= largest + 1e-9:
        raise ValueError(f"`{door}`: {name} must lie in (0, {largest:.4g}]; got {value}")


class _Without(Messenger):
    """Leave some sites out of a model's log density, so that its potential is the rest R itself.

    Forming R as U - |z|^2/2 would cancel two numbers of the size of the number of weights.
    """

    def __init__(self, model: Callable, names: set[str]) -> None:
        self.names = names
        super().__init__(model)

    def process_message(self, msg: dict) -> None:
        if msg["type"] == "sample" and msg["name"] in self.names:
            msg["fn"] = msg["fn"].mask(False)


def is_batch(rng_key: Array) -> bool:
    """Say whether `rng_key`, typed or not, is a key for each of several chains."""
    return jnp.ndim(rng_key) > (0 if jnp.issubdtype(rng_key.dtype, jax.dtypes.prng_key) else 1)


def standard_normal_sites(model: Callable, args: tuple, kwargs: dict) -> set[str]:
    """Name the latent sites whose prior is N(0, I), seen with concrete values even while a chain is being traced."""
    with jax.ensure_compile_time_eval(), handlers.block(), handlers.seed(rng_seed=0):
        sites = handlers.trace(model).get_trace(*args, **kwargs).values()
    latent = (site for site in sites if site["type"] == "sample" and not site["is_observed"])
    return {site["name"] for site in latent if _is_standard_normal(site["fn"])}


def _is_standard_normal(fn: Any) -> bool:
    while isinstance(fn, (dist.Independent, dist.ExpandedDistribution)):
        fn = fn.base_dist
    if not isinstance(fn, dist.Normal) or not (is_concrete(fn.loc) and is_concrete(fn.scale)):
        return False
    return bool(np.all(np.asarray(fn.loc) == 0) and np.all(np.asarray(fn.scale) == 1))
