"""The sampler of the repriorisation paper's released code, as a baseline."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real
from numpyro.infer.mcmc import MCMCKernel

from bnnwide.checks import Data, check_choice, check_count, check_positive
from bnnwide.models.bnn import BNN, READOUT_BASE
from bnnwide.models.features import FeatureMap, offset_of
from bnnwide.reparam import Repriorisation
from bnnwide.samplers.core import dot, standard_normal_like


class PaperState(NamedTuple):
    """The state of one chain of `PaperHMC`."""

    i: Array
    z: dict[str, Array]
    momentum: dict[str, Array]
    grad: dict[str, Array]
    potential_energy: Float[Array, ""]
    accept_prob: Float[Array, ""]
    diverging: Array
    num_grads: Array
    rng_key: Array


class PaperHMC(MCMCKernel):
    """Leapfrog HMC on the primal repriorised form, as in the code released with Hron et al. 2022.

    The energy of (hidden weights, phi) is |theta|^2/2 + |Y - Psi theta|^2 / (2 scale^2) - log|det dtheta/dphi| with
    theta and the determinant from the Cholesky factor of the (width+1)^2 matrix Psi^T Psi + scale^2 I, all of it
    differentiated automatically. Momentum is refreshed partially before each trajectory,
    m <- sqrt(1 - damping) m + sqrt(damping) noise, and flipped on rejection. The defaults are those of the release:
    one leapfrog step per draw, damping 0.01, step size 0.1.

    Source: Hron, Novak, Pennington & Sohl-Dickstein 2022 (arXiv 2206.07673) and its code.

    Args:
      model: a repriorised `BNN` with a fixed noise scale.
      step_size: of the leapfrog integrator.
      num_steps: leapfrog steps per draw.
      damping: in (0, 1]; 1 refreshes the momentum in full.

    Raises:
      ValueError: if the model has another form or a learned noise, or an option is out of range.
    """

    sample_field = "z"  # type: ignore[assignment]

    def __init__(self, model: BNN, *, step_size: float = 0.1, num_steps: int = 1, damping: float = 0.01) -> None:
        check_choice("PaperHMC", "model.form", model.form, ("repriorised",))
        check_positive("PaperHMC", "step_size", step_size)
        check_count("PaperHMC", "num_steps", num_steps)
        likelihood: Any = model.likelihood
        if not model.exact or likelihood.learned or jnp.ndim(likelihood.scale):
            raise ValueError(
                f"`PaperHMC`: the likelihood must be Gaussian with one fixed noise scale, as in the paper's code; got "
                f"{model.likelihood}"
            )
        self._model, self._step_size, self._num_steps, self._damping = model, step_size, num_steps, damping
        self._sample_fn: Any = None

    @property
    def model(self) -> BNN:
        """The NumPyro model."""
        return self._model

    def potential(
        self, x: Real[Data, "n d"], y: Real[Data, "n k"]
    ) -> tuple[Callable[[dict[str, Array]], Array], FeatureMap]:
        """Return the energy of the sites, with the primal solver, and how it reads the hidden weights."""
        x = self._model.check_inputs("PaperHMC", x)
        y = self._model.check_targets("PaperHMC", x, y)
        likelihood: Any = self._model.likelihood
        scale, features = likelihood.scale, self._model.feature_map(x)

        def energy(z: dict[str, Array]) -> Array:
            psi, mean = features.features_and_mean(z)
            targets = y - offset_of(psi, mean)
            theta, log_det = Repriorisation(psi, targets, scale, "primal").forward_and_log_det(z[READOUT_BASE])
            hidden = {name: z[name] for name in features.shapes}
            return (
                0.5 * dot(hidden, hidden)
                + 0.5 * jnp.sum(theta**2)
                + 0.5 * jnp.sum((targets - psi @ theta) ** 2) / scale**2
                - log_det
            )

        return energy, features

    def init(self, rng_key, num_warmup, init_params, model_args, model_kwargs):
        """Start from a draw of the prior (or `init_params`); there is nothing to warm up."""
        energy, features = self.potential(*model_args)
        key, z_key, momentum_key = jax.random.split(rng_key, 3)
        readout = (features.num_features, self._model.outputs)
        shapes = features.shapes | {READOUT_BASE: jax.ShapeDtypeStruct(readout, jnp.result_type(float))}
        z = standard_normal_like(z_key, shapes) if init_params is None else init_params
        value, grad = jax.value_and_grad(energy)(z)
        self._sample_fn = self.sample
        zero = jnp.zeros((), value.dtype)
        momentum = standard_normal_like(momentum_key, z)
        return PaperState(jnp.int32(0), z, momentum, grad, value, zero, jnp.bool_(False), jnp.int32(0), key)

    def sample(self, state, model_args, model_kwargs):
        """Refresh the momentum, take `num_steps` leapfrog steps, accept or flip."""
        energy_and_grad = jax.value_and_grad(self.potential(*model_args)[0])
        key, noise_key, accept_key = jax.random.split(state.rng_key, 3)
        noise = standard_normal_like(noise_key, state.z)
        keep, renew = (1 - self._damping) ** 0.5, self._damping**0.5
        start = jax.tree.map(lambda m, e: keep * m + renew * e, state.momentum, noise)

        def leapfrog(carry: Any, _: None) -> Any:
            z, momentum, grad, _value = carry
            momentum = jax.tree.map(lambda m, g: m - 0.5 * self._step_size * g, momentum, grad)
            z = jax.tree.map(lambda a, m: a + self._step_size * m, z, momentum)
            value, grad = energy_and_grad(z)
            momentum = jax.tree.map(lambda m, g: m - 0.5 * self._step_size * g, momentum, grad)
            return (z, momentum, grad, value), None

        first = (state.z, start, state.grad, state.potential_energy)
        (z, momentum, grad, value), _ = jax.lax.scan(leapfrog, first, length=self._num_steps)
        log_ratio = state.potential_energy - value + 0.5 * (dot(start, start) - dot(momentum, momentum))
        diverging = ~jnp.isfinite(log_ratio)
        accept_prob = jnp.where(diverging, 0.0, jnp.exp(jnp.minimum(log_ratio, 0.0)))
        accepted = jax.random.uniform(accept_key, dtype=accept_prob.dtype) < accept_prob
        stay = (state.z, jax.tree.map(jnp.negative, start), state.grad, state.potential_energy)
        z, momentum, grad, value = jax.tree.map(
            lambda a, b: jnp.where(accepted, a, b), (z, momentum, grad, value), stay
        )
        count = jnp.int32(self._num_steps)
        return PaperState(state.i + 1, z, momentum, grad, value, accept_prob, diverging, count, key)
