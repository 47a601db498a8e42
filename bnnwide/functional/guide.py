"""How a sweep over widths fits approximations in function space to a model."""

from typing import Any

from jaxtyping import Array

from bnnwide.comparators.fit import Fit
from bnnwide.comparators.variational import mean_field_fit
from bnnwide.functional.bnn import FunctionalBNN
from bnnwide.functional.elbo import FunctionalELBO
from bnnwide.functional.laplace import laplace_fit
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
    objective = FunctionalELBO(_prior_of("functional_fit", model), num_samples=NUM_SAMPLES)
    return mean_field_fit(
        model, data, key,
        num_steps=num_steps, learning_rate=learning_rate, num_particles=NUM_SAMPLES, objective=objective,
    )[0]  # fmt: skip


def functional_laplace_fit(model: BNN, data: tuple[Any, ...], key: Array, *, num_steps: int = 5000) -> Fit:
    """Return how to fit `functional.laplace` to a model's network, likelihood and prior over functions.

    The prior is as for `functional_fit`. What is drawn is the network linearised at the mode: no sites of the model.

    Args:
      model: in any form.
      data: its arguments, (x, y).
      key: PRNG key.
      num_steps: of the optimiser.

    Raises:
      ImportError: if optax is not installed.
      ValueError: as for `functional_fit`; if the likelihood has parameters to learn, or the network is too large.
    """
    prior, (x, y) = _prior_of("functional_laplace_fit", model), data
    return laplace_fit(net_at_medians(model.net), prior, model.likelihood, x, y, key, num_steps=num_steps)


def _prior_of(door: str, model: BNN) -> GPPrior:
    prior: Any = at_medians(model.prior) if isinstance(model, FunctionalBNN) else GPPrior(net_at_medians(model.net))
    if not isinstance(prior, GPPrior):
        raise ValueError(f"`{door}`: the model's prior over functions must be a GPPrior; got {prior!r}")
    return prior
