"""Function-space variational inference on a model's own sites: how a sweep over widths fits it."""

from typing import Any

from jaxtyping import Array

from bnnwide.comparators.fit import Fit
from bnnwide.comparators.variational import mean_field_fit
from bnnwide.functional.bnn import FunctionalBNN
from bnnwide.functional.elbo import FunctionalELBO
from bnnwide.functional.priors import GPPrior
from bnnwide.functional.process import at_medians
from bnnwide.models.bnn import BNN
from bnnwide.models.features import at_medians as net_at_medians

NUM_SAMPLES = 16


def functional_fit(
    model: BNN, data: tuple[Any, ...], key: Array, *, num_steps: int = 5000, learning_rate: float = 0.01
) -> Fit:
    """Return how to fit independent normals to a model's posterior over functions, by the functional ELBO.

    The family is that of `comparators.mean_field`, the prior one over functions: that of a `FunctionalBNN`, otherwise
    the infinite-width limit of the architecture, priors of scales and hyper-parameters counting at their medians.

    Args:
      model: in a form that holds a readout.
      data: its arguments, (x, y).
      key: PRNG key.
      num_steps: of the optimiser.
      learning_rate: Adam's at the start.

    Raises:
      ImportError: if optax is not installed.
      ValueError: if an option is out of range, no infinite-width limit is known, or the process of a `FunctionalBNN` is
        no `GPPrior`.
    """
    prior: Any = at_medians(model.prior) if isinstance(model, FunctionalBNN) else GPPrior(net_at_medians(model.net))
    if not isinstance(prior, GPPrior):
        raise ValueError(f"`functional_fit`: the model's prior over functions must be a GPPrior; got {prior!r}")
    objective = FunctionalELBO(prior, num_samples=NUM_SAMPLES)
    return mean_field_fit(
        model, data, key,
        num_steps=num_steps, learning_rate=learning_rate, num_particles=NUM_SAMPLES, objective=objective,
    )[0]  # fmt: skip
