"""Other people's ways to a posterior, one call each, on the same models and into the same predictions."""

from bnnwide.comparators.elliptical_slice import EllipticalSlice, elliptical_slice
from bnnwide.comparators.ensemble import deep_ensemble
from bnnwide.comparators.mclmc import MCLMC, mclmc
from bnnwide.comparators.natural_gradient import NGD, ngd
from bnnwide.comparators.plain import predict_plain
from bnnwide.comparators.run import Run
from bnnwide.comparators.stochastic_gradient import sghmc, sgld
from bnnwide.comparators.variational import laplace, mean_field

__all__ = [
    "MCLMC",
    "NGD",
    "EllipticalSlice",
    "Run",
    "deep_ensemble",
    "elliptical_slice",
    "laplace",
    "mclmc",
    "mean_field",
    "ngd",
    "predict_plain",
    "sghmc",
    "sgld",
]
