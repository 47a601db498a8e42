"""Priors over functions: by MCMC, exact at points of your choice, and by variational inference."""

from bnnwide.functional.bnn import FunctionalBNN, functional_bnn
from bnnwide.functional.elbo import FunctionalELBO, FunctionObjective, RegularisedELBO
from bnnwide.functional.families import Factorised, Family, MatrixVariate, MixtureFamily, RepriorisedFamily
from bnnwide.functional.fit import FunctionalFit, FunctionApproximation, fit
from bnnwide.functional.laplace import FunctionalLaplace, laplace
from bnnwide.functional.limit import WideLimit, wide_limit
from bnnwide.functional.matching import match_prior
from bnnwide.functional.measurement import FixedPoints, Measurement
from bnnwide.functional.piecewise import piecewise_constant, piecewise_linear
from bnnwide.functional.posterior import GPPosterior
from bnnwide.functional.priors import FunctionPrior, GPPrior, ImplicitPrior, Mixture
from bnnwide.functional.score import SteinScore
from bnnwide.functional.wasserstein import sliced_wasserstein

__all__ = [
    "Factorised",
    "Family",
    "FixedPoints",
    "FunctionApproximation",
    "FunctionObjective",
    "FunctionPrior",
    "FunctionalBNN",
    "FunctionalELBO",
    "FunctionalFit",
    "FunctionalLaplace",
    "GPPosterior",
    "GPPrior",
    "ImplicitPrior",
    "MatrixVariate",
    "Measurement",
    "Mixture",
    "MixtureFamily",
    "RegularisedELBO",
    "RepriorisedFamily",
    "SteinScore",
    "WideLimit",
    "fit",
    "functional_bnn",
    "laplace",
    "match_prior",
    "piecewise_constant",
    "piecewise_linear",
    "sliced_wasserstein",
    "wide_limit",
]
