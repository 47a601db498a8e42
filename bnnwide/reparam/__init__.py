"""Repriorisation: coordinates in which a wide network's posterior is close to its prior."""

from bnnwide.reparam.inputs import InputCollapse, collapse_inputs
from bnnwide.reparam.projected import ProjectedValues, find_projection
from bnnwide.reparam.readout import ReadoutMarginal, Repriorisation
from bnnwide.reparam.sited import FactoredValues, FunctionValues, SitedRepriorisation, nugget, repriorisation
from bnnwide.reparam.sites import Sites, find_sites, match_draws

__all__ = [
    "FactoredValues",
    "FunctionValues",
    "InputCollapse",
    "ProjectedValues",
    "ReadoutMarginal",
    "Repriorisation",
    "SitedRepriorisation",
    "Sites",
    "collapse_inputs",
    "find_projection",
    "find_sites",
    "match_draws",
    "nugget",
    "repriorisation",
]
