"""Priors over functions: a BNN that has one exactly at given points."""

from bnnwide.functional.bnn import FunctionalBNN, functional_bnn
from bnnwide.functional.limit import WideLimit, wide_limit

__all__ = ["FunctionalBNN", "WideLimit", "functional_bnn", "wide_limit"]
