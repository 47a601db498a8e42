"""Natural gradient as Bayes: Fisher operators, samplers, optimisers and approximations that are made of them."""

from bnnwide.natgrad.curvature import Fisher
from bnnwide.natgrad.fisher import fisher

__all__ = ["Fisher", "fisher"]
