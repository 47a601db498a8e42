"""What every method predicts: one class for BNNs, Gaussian processes and all that follows."""

import dataclasses

from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Posterior predictive moments at the test inputs.

    Args:
      mean: (n_test, k) posterior mean of the function, in the units of y.
      epistemic: (n_test, k) posterior variance of the function (what more data would remove).
      aleatoric: (n_test, k) expected noise variance of an observation given the function.
    """

    mean: Float[Array, "n_test k"]
    epistemic: Float[Array, "n_test k"]
    aleatoric: Float[Array, "n_test k"]

    @property
    def variance(self) -> Float[Array, "n_test k"]:
        """(n_test, k) variance of a new observation: epistemic + aleatoric."""
        return self.epistemic + self.aleatoric

    def __repr__(self) -> str:
        n, k = self.mean.shape
        return f"Prediction(n_test={n}, k={k})"
