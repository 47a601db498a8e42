"""Data augmentation for kernel predictors: an ensemble with one member per augmentation."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Real

from bnnwide.checks import Data
from bnnwide.gp.posterior import Posterior
from bnnwide.prediction import Prediction, mixture

Augmentation = Callable[[Array], Array]


@dataclasses.dataclass(frozen=True)
class AugmentedEnsemble:
    """Posteriors on augmented copies of one training set, predicting as one; built by `augmented`.

    Args:
      members: the posteriors, one per training augmentation.
      test_augmentations: what is done to the test inputs; every member predicts at each.
    """

    members: tuple[Posterior, ...]
    test_augmentations: tuple[Augmentation, ...]

    def predict(self, x_test: Real[Data, "t ..."], full_cov: bool = False) -> Prediction:
        """Return the moments of the equal mixture of all members at all test augmentations.

        Args:
          x_test: (t, *input_shape) test inputs.
          full_cov: whether to return the covariance (k, t, t) of the function as well.

        Returns:
          Moments (t, k): the mean is the average of means; `epistemic` the average of variances plus the variance of
          means.

        Raises:
          ValueError: for a wrong shape, or NaN or infinite numbers.
        """
        views = [_augment("predict", fn, x_test) for fn in self.test_augmentations]
        return mixture([member.predict(view, full_cov) for member in self.members for view in views])

    def __repr__(self) -> str:
        return f"AugmentedEnsemble(members={len(self.members)}, test_augmentations={len(self.test_augmentations)})"


def augmented(
    posterior: Callable[[Any, Any], Posterior],
    x: Real[Data, "n ..."],
    y: Real[Data, "n k"],
    augmentations: Sequence[Augmentation],
    *,
    test_augmentations: Sequence[Augmentation] = (),
) -> AugmentedEnsemble:
    """Return an ensemble of posteriors, each on the training inputs under one augmentation.

    mean = 1/S sum_s K(x*, a_s(X)) (K(a_s(X), a_s(X)) + ...)^-1 y: S problems of size n instead of one of size S n.

    Source: Lee et al. 2020 (arXiv 2007.15801), "Ensembling kernel predictors enables practical data augmentation".

    Args:
      posterior: how to build one from inputs and targets, e.g. lambda x, y: bw.gp.nngp(net, x, y, noise).
      x: (n, *input_shape) training inputs.
      y: (n, k) training targets, which augmentation leaves as they are.
      augmentations: functions from inputs (n, *input_shape) to inputs of the same shape: flips, crops, or the identity.
      test_augmentations: functions that are averaged over at the test inputs too; none for the test inputs as they are.

    Returns:
      The ensemble, with `predict`.

    Raises:
      ValueError: without augmentations, or if one changes the shape of the inputs.
    """
    if not augmentations:
        raise ValueError("`augmented`: augmentations must hold at least one function; got none")
    members = tuple(posterior(_augment("augmented", fn, x), y) for fn in augmentations)
    return AugmentedEnsemble(members, tuple(test_augmentations) or (lambda x: x,))


def _augment(door: str, fn: Augmentation, x: Data) -> Array:
    view = fn(jnp.asarray(x, jnp.result_type(float)))
    if np.shape(view) != np.shape(x):
        raise ValueError(f"`{door}`: an augmentation must keep the shape {np.shape(x)}; got {np.shape(view)} from {fn}")
    return view
