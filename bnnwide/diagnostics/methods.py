"""The methods that a sweep over widths can compare, by name."""

import dataclasses
from collections.abc import Callable
from typing import Any

from numpyro.infer import HMC, NUTS
from numpyro.infer.initialization import init_to_sample
from numpyro.infer.mcmc import MCMCKernel

from bnnwide.comparators import MCLMC, NGD, EllipticalSlice
from bnnwide.comparators.ensemble import ensemble_fit
from bnnwide.comparators.fit import Fit
from bnnwide.comparators.variational import laplace_fit, mean_field_fit
from bnnwide.diagnostics.baseline import PaperHMC
from bnnwide.functional.guide import functional_fit, functional_laplace_fit
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
      package: of the extra "comparators", if the kernel needs one.
    """

    options: dict[str, Any]
    kernel: Callable[[BNN], MCMCKernel]
    vectorized: bool
    max_block: int = 512
    package: str | None = None


@dataclasses.dataclass(frozen=True)
class Approximation:
    """A fitted approximation on one form of the model: it has no chains, so that its draws have no ESS.

    Args:
      options: of `bnn`, its form among them.
      fit: from (model, (x, y), key) and a number of steps to how it is fitted.
      package: of the extra "comparators" that the fit needs.
    """

    options: dict[str, Any]
    fit: Callable[..., Fit]
    package: str | None = "optax"


def _nuts(model: BNN) -> MCMCKernel:
    return NUTS(model, init_strategy=init_to_sample)


def _hmc(model: BNN) -> MCMCKernel:
    # A trajectory of pi/2 is the standard Gaussian's quarter period, the same length as SplitHMC's.
    return HMC(model, trajectory_length=1.5707963, init_strategy=init_to_sample)


def _mclmc(model: BNN) -> MCMCKernel:
    # A warm-up step is one integrator step here, and a trajectory elsewhere: tuning has a number of steps of its own.
    return MCLMC(model, num_tuning=1000)


def _methods() -> dict[str, Method | Approximation]:
    table: dict[str, Method | Approximation] = {}
    for form in ("standard", "repriorised"):
        table[f"nuts-{form}"] = Method({"form": form}, _nuts, vectorized=False, max_block=1)
        table[f"hmc-{form}"] = Method({"form": form}, _hmc, vectorized=False)
    released = {"form": "repriorised", "solver": "primal", "input_collapse": False}
    table["paper"] = Method(released, PaperHMC, vectorized=False)
    for form in ("standard", "repriorised", "collapsed"):
        for name, kernel in (("splithmc", SplitHMC), ("pcn", PCN), ("pcnl", PCNL)):
            table[f"{name}-{form}"] = Method({"form": form}, kernel, vectorized=True)
    for form in ("standard", "repriorised"):
        table[f"mclmc-{form}"] = Method({"form": form}, _mclmc, vectorized=True, package="blackjax")
    table["ngd-standard"] = Method({"form": "standard"}, NGD, vectorized=True)
    for form in ("standard", "repriorised", "collapsed"):
        table[f"ess-{form}"] = Method({"form": form}, EllipticalSlice, vectorized=True, package="blackjax")
    table["mean-field"] = Approximation({"form": "standard"}, lambda *args, **kw: mean_field_fit(*args, **kw)[0])
    table["functional-vi"] = Approximation({"form": "standard"}, functional_fit)
    table["functional-laplace"] = Approximation({"form": "standard"}, functional_laplace_fit)
    table["laplace"] = Approximation({"form": "standard"}, lambda *args, **kw: laplace_fit(*args, **kw)[0])
    table["ensemble"] = Approximation({"form": "standard"}, lambda *args, **kw: ensemble_fit(*args, **kw)[0])
    return table


METHODS = _methods()
DEFAULT_METHODS = ("nuts-standard", "paper", "splithmc-collapsed")
