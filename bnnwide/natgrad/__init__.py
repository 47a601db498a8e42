"""Natural gradient as Bayes: Fisher operators, samplers, optimisers and approximations that are made of them."""

from bnnwide.natgrad.curvature import Fisher
from bnnwide.natgrad.draws import Draws
from bnnwide.natgrad.dynamics import NaturalGradient, NGDInfo, NGDState, natural_gradient
from bnnwide.natgrad.fisher import fisher
from bnnwide.natgrad.minimise import Minimum, minimise
from bnnwide.natgrad.sample import sample
from bnnwide.natgrad.temperature import Schedule, temperature

__all__ = [
    "Draws",
    "Fisher",
    "Minimum",
    "NGDInfo",
    "NGDState",
    "NaturalGradient",
    "Schedule",
    "fisher",
    "minimise",
    "natural_gradient",
    "sample",
    "temperature",
]
