"""Priors over functions: a BNN that has one exactly at given points, or whose scales are tuned to one."""

from bnnwide.functional.bnn import FunctionalBNN, functional_bnn
from bnnwide.functional.limit import WideLimit, wide_limit
from bnnwide.functional.matching import match_prior
from bnnwide.functional.wasserstein import sliced_wasserstein

__all__ = ["FunctionalBNN", "WideLimit", "functional_bnn", "match_prior", "sliced_wasserstein", "wide_limit"]
