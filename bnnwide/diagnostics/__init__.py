"""ArviZ conversion, effective sample sizes, and the comparison of methods across widths."""

from bnnwide.diagnostics.arviz import to_arviz
from bnnwide.diagnostics.baseline import PaperHMC
from bnnwide.diagnostics.ess import effective_sample_size, potential_scale_reduction
from bnnwide.diagnostics.methods import DEFAULT_METHODS, METHODS
from bnnwide.diagnostics.plots import plot_ess_by_width, plot_phase_diagram
from bnnwide.diagnostics.sweep import ess_by_width, format_ess_table

__all__ = [
    "DEFAULT_METHODS",
    "METHODS",
    "PaperHMC",
    "effective_sample_size",
    "ess_by_width",
    "format_ess_table",
    "plot_ess_by_width",
    "plot_phase_diagram",
    "potential_scale_reduction",
    "to_arviz",
]
