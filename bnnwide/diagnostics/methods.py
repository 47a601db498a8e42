"""The samplers that a sweep over widths can compare, by name."""

import dataclasses
from collections.abc import Callable
from typing import Any

from numpyro.infer import HMC, NUTS
from numpyro.infer.initialization import init_to_sample
from numpyro.infer.mcmc import MCMCKernel

from bnnwide.diagnostics.baseline import PaperHMC
from bnnwide.models import PCN, PCNL, SplitHMC
from bnnwide.models.bnn import BNN


@dataclasses.dataclass(frozen=True)
class Method:
    """A sampler on one form of the model.

    Args:
      options: of `bnn`, its form among them.
      kernel: from a model to an MCMC kernel.
      vectorized: whether the kernel steps all chains at once; the others run one chain after the other.
      max_block: draws that are timed together at most; NUTS is timed draw by draw, since its trees differ in size.
    """

    options: dict[str, Any]
    kernel: Callable[[BNN], MCMCKernel]
    vectorized: bool
    max_block: int = 512


def _nuts(model: BNN) -> MCMCKernel:
    return NUTS(model, init_strategy=init_to_sample)


def _hmc(model: BNN) -> MCMCKernel:
    # A trajectory of pi/2 is the standard Gaussian's quarter period, the same length as SplitHMC's.
    return HMC(model, trajectory_length=1.5707963, init_strategy=init_to_sample)


def _methods() -> dict[str, Method]:
    table = {}
    for form in ("standard", "repriorised"):
        table[f"nuts-{form}"] = Method({"form": form}, _nuts, vectorized=False, max_block=1)
        table[f"hmc-{form}"] = Method({"form": form}, _hmc, vectorized=False)
    released = {"form": "repriorised", "solver": "primal", "input_collapse": False}
    table["paper"] = Method(released, PaperHMC, vectorized=False)
    for form in ("standard", "repriorised", "collapsed"):
        for name, kernel in (("splithmc", SplitHMC), ("pcn", PCN), ("pcnl", PCNL)):
            table[f"{name}-{form}"] = Method({"form": form}, kernel, vectorized=True)
    return table


METHODS = _methods()
DEFAULT_METHODS = ("nuts-standard", "paper", "splithmc-collapsed")
