"""Bayesian neural networks whose prior is over functions."""

from bnnwide.functional.piecewise import piecewise_constant, piecewise_linear
from bnnwide.functional.posterior import GPPosterior
from bnnwide.functional.priors import FunctionPrior, GPPrior, ImplicitPrior, Mixture

__all__ = [
    "FunctionPrior",
    "GPPosterior",
    "GPPrior",
    "ImplicitPrior",
    "Mixture",
    "piecewise_constant",
    "piecewise_linear",
]
