"""Kernels, Monte-Carlo kernels and Taylor expansions of finite networks: ours, or any function `f(params, x)`."""

from bnnwide.empirical.kernels import nngp, ntk, ntk_vector_product
from bnnwide.empirical.monte_carlo import KernelEstimate, monte_carlo
from bnnwide.empirical.taylor import Taylor, linearize, taylor_expand

__all__ = ["KernelEstimate", "Taylor", "linearize", "monte_carlo", "nngp", "ntk", "ntk_vector_product", "taylor_expand"]
