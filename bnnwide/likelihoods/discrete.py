"""Likelihoods of labels and counts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float

from bnnwide.likelihoods.core import Likelihood, Outcome, diagonal_factor


@dataclasses.dataclass(frozen=True, repr=False)
class Categorical(Likelihood):
    """Classes: P(y_i = c) = softmax(f_i)_c, with labels (n,) from 0 to k - 1 and one output per class.

    Classes that no training label shows, and labels all of one class, are allowed: the prior is proper, and their
    probabilities are what it leaves them.
    """

    shift_invariant = True

    def law(self, f: Float[Array, "n k"]) -> dist.Distribution:  # noqa: D102  # as in the base class
        return dist.CategoricalLogits(f)

    def fisher_factor(self, f):  # noqa: D102  # as in the base class
        # S = diag(sqrt p) - p sqrt(p)^T gives S S^T = diag(p) - p p^T, since sqrt(p) has norm 1.
        root = jnp.exp(0.5 * jax.nn.log_softmax(f))
        return root[:, :, None] * (jnp.eye(f.shape[1], dtype=f.dtype) - root[:, :, None] * root[:, None, :])

    def outcome(self, f: Float[Array, "n k"]) -> Outcome:  # noqa: D102  # as in the base class
        log_probs = jax.nn.log_softmax(f)
        probs = jnp.exp(log_probs)
        return Outcome(probs, probs * (1 - probs), probs, -jnp.sum(probs * log_probs, axis=-1))

    def check_outputs(self, door: str, outputs: int) -> None:  # noqa: D102  # as in the base class
        if outputs < 2:
            raise ValueError(
                f"`{door}`: Categorical needs one output per class, at least 2; got a readout Dense({outputs}); for "
                "labels 0 and 1 use Bernoulli()"
            )

    def check_targets(self, door, y, n, outputs, name="y"):  # noqa: D102  # as in the base class
        if np.ndim(y) == 2:
            raise ValueError(
                f"`{door}`: {name} must have shape ({n},), integer labels, for Categorical; got {np.shape(y)}; turn "
                f"one-hot rows into labels with {name}.argmax(axis=1)"
            )
        return super().check_targets(door, y, n, outputs, name)

    def _wanted(self, outputs: int) -> str:
        return f"labels, whole numbers from 0 to {outputs - 1}"


@dataclasses.dataclass(frozen=True, repr=False)
class Bernoulli(Likelihood):
    """Binary targets: P(y_ij = 1) = 1 / (1 + exp(-f_ij)), with labels 0 and 1, (n,) for one output or (n, k)."""

    wanted = "labels, 0 or 1,"

    def law(self, f: Float[Array, "n k"]) -> dist.Distribution:  # noqa: D102  # as in the base class
        return dist.BernoulliLogits(f)

    def fisher_factor(self, f):  # noqa: D102  # as in the base class
        return diagonal_factor(jax.nn.sigmoid(f) * jax.nn.sigmoid(-f))

    def outcome(self, f: Float[Array, "n k"]) -> Outcome:  # noqa: D102  # as in the base class
        probs = jax.nn.sigmoid(f)
        entropy = -probs * jax.nn.log_sigmoid(f) - (1 - probs) * jax.nn.log_sigmoid(-f)
        return Outcome(probs, probs * (1 - probs), probs, entropy)


@dataclasses.dataclass(frozen=True, repr=False)
class Poisson(Likelihood):
    """Counts: y_ij ~ Poisson(exp(f_ij)), (n,) for one output or (n, k)."""

    wanted = "counts, whole numbers of at least 0,"

    def law(self, f: Float[Array, "n k"]) -> dist.Distribution:  # noqa: D102  # as in the base class
        return dist.Poisson(jnp.exp(f))

    def fisher_factor(self, f):  # noqa: D102  # as in the base class
        return diagonal_factor(jnp.exp(f))
