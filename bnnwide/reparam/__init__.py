"""Repriorisation: coordinates in which a wide network's posterior is close to its prior."""

from bnnwide.reparam.inputs import InputCollapse, collapse_inputs
from bnnwide.reparam.readout import ReadoutMarginal, Repriorisation

__all__ = ["InputCollapse", "ReadoutMarginal", "Repriorisation", "collapse_inputs"]
