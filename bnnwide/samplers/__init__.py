"""Function-space samplers as pure (init, step) pairs, for targets close to a standard Gaussian."""

from bnnwide.samplers.adaptation import Adaptation, adaptation
from bnnwide.samplers.alternating import alternating_split_hmc
from bnnwide.samplers.core import Info, Reference, Sampler, State, rest_of
from bnnwide.samplers.pcn import pcn
from bnnwide.samplers.pcnl import pcnl
from bnnwide.samplers.split_hmc import split_hmc

__all__ = [
    "Adaptation",
    "Info",
    "Reference",
    "Sampler",
    "State",
    "adaptation",
    "alternating_split_hmc",
    "pcn",
    "pcnl",
    "rest_of",
    "split_hmc",
]
