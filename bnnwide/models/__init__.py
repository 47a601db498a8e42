"""NumPyro models of wide BNNs, and the adapter that runs our samplers inside NumPyro's MCMC."""

from bnnwide.models.bnn import BNN, bnn
from bnnwide.models.features import FeatureMap, feature_map
from bnnwide.models.gp import GPModel, gp_model
from bnnwide.models.kernel import PCN, PCNL, FunctionSpaceKernel, FunctionSpaceState, SplitHMC
from bnnwide.models.parts import sample_params, sample_readout
from bnnwide.models.predict import hidden_weights, predict, predict_draws, readout_draws
from bnnwide.models.refine import refine_sites
from bnnwide.models.start import init_to_fit

__all__ = [
    "BNN",
    "PCN",
    "PCNL",
    "FeatureMap",
    "FunctionSpaceKernel",
    "FunctionSpaceState",
    "GPModel",
    "SplitHMC",
    "bnn",
    "feature_map",
    "gp_model",
    "hidden_weights",
    "init_to_fit",
    "predict",
    "predict_draws",
    "readout_draws",
    "refine_sites",
    "sample_params",
    "sample_readout",
]
