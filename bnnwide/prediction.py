"""What every method predicts: one class for BNNs, Gaussian processes and all that follows."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.scipy.special import entr
from jaxtyping import Array, Float

from bnnwide.likelihoods import Outcome


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prediction:
    """Posterior predictive moments at the test inputs.

    Args:
      mean: (n_test, k) mean of a new observation, in the units of y: for Gaussian noise the posterior mean of the
        function; for classes, of the one-hot observation.
      epistemic: (n_test, k) posterior variance of the mean of an observation given the function (what more data would
        remove).
      aleatoric: (n_test, k) expected variance of an observation given the function.
      covariance: posterior covariance of the function between test inputs, without noise; (n_test, n_test) where all
        outputs have the same, (k, n_test, n_test) where they differ, None where it was not asked for. Its diagonal is
        `epistemic`, not `variance`.
      probs: (n_test, k) probabilities of the classes, or of label 1 for each of k binary targets; None for others.
      expected_entropy: expected entropy of the outcome given the function, in nats, (n_test,) for classes and
        (n_test, k) for binary targets; None for others.
    """

    mean: Float[Array, "n_test k"]
    epistemic: Float[Array, "n_test k"]
    aleatoric: Float[Array, "n_test k"]
    covariance: Float[Array, "*k n_test n_test"] | None = None
    probs: Float[Array, "n_test k"] | None = None
    expected_entropy: Float[Array, "n_test *k"] | None = None

    @property
    def variance(self) -> Float[Array, "n_test k"]:
        """(n_test, k) variance of a new observation: epistemic + aleatoric."""
        return self.epistemic + self.aleatoric

    @property
    def entropy(self) -> Float[Array, "n_test *k"] | None:
        """Entropy of the predicted outcome in nats, shaped as `expected_entropy`: total uncertainty."""
        if self.probs is None or self.expected_entropy is None:
            return None
        if self.expected_entropy.ndim == 1:
            return jnp.sum(entr(self.probs), axis=1)
        return entr(self.probs) + entr(1 - self.probs)

    @property
    def mutual_information(self) -> Float[Array, "n_test *k"] | None:
        """Mutual information of outcome and function in nats, entropy - expected entropy: the epistemic part.

        Source: Houlsby, Huszar, Ghahramani & Lengyel 2011 (arXiv 1112.5745, eq. 2).
        """
        if self.entropy is None or self.expected_entropy is None:
            return None
        return jnp.maximum(self.entropy - self.expected_entropy, 0.0)

    def __repr__(self) -> str:
        n, k = self.mean.shape
        return f"Prediction(n_test={n}, k={k})"


def mixture(predictions: Sequence[Prediction]) -> Prediction:
    """Return the moments of an equal mixture of predictive laws, by the law of total variance.

    mean = avg m_i, epistemic = avg v_i + avg (m_i - mean)^2, aleatoric = avg a_i; the covariance likewise, and then per
    output, because the means differ from output to output.

    Args:
      predictions: predictions at the same test inputs, at least one.

    Returns:
      One prediction; with a covariance (k, n_test, n_test) if every part has one.
    """
    mean, epistemic, aleatoric = (
        jnp.mean(jnp.stack([getattr(part, name) for part in predictions]), axis=0)
        for name in ("mean", "epistemic", "aleatoric")
    )
    off = jnp.stack([part.mean - mean for part in predictions])
    epistemic = epistemic + jnp.mean(off**2, axis=0)
    parts = [part.covariance for part in predictions if part.covariance is not None]
    if len(parts) < len(predictions):
        return Prediction(mean, epistemic, aleatoric)
    shape = (mean.shape[1], len(mean), len(mean))
    within = jnp.mean(jnp.stack([jnp.broadcast_to(part, shape) for part in parts]), axis=0)
    return Prediction(mean, epistemic, aleatoric, within + jnp.einsum("sik,sjk->kij", off, off) / len(off))


def over_draws(each: Outcome) -> Prediction:
    """Return the predictive moments of draws: avg E[y | f_s], its variance over draws s, and avg Var[y | f_s].

    Args:
      each: outcomes given the function, every leaf with a leading axis of draws.
    """
    average = jax.tree.map(lambda leaf: leaf.mean(axis=0), each)
    return Prediction(
        average.mean, each.mean.var(axis=0), average.variance, probs=average.probs, expected_entropy=average.entropy
    )
