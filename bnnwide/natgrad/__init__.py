"""Natural gradient as Bayes: Fisher operators, samplers, optimisers and approximations that are made of them."""

from bnnwide.natgrad.curvature import Fisher
from bnnwide.natgrad.draws import Draws
from bnnwide.natgrad.dynamics import NaturalGradient, NGDInfo, NGDState, natural_gradient
from bnnwide.natgrad.fisher import fisher
from bnnwide.natgrad.gaussian import GaussianPosterior
from bnnwide.natgrad.laplace import LaplacePosterior, laplace
from bnnwide.natgrad.minimise import Minimum, minimise
from bnnwide.natgrad.noisy import noisy_vi
from bnnwide.natgrad.noisy_quadratic import NoisyQuadratic
from bnnwide.natgrad.sample import sample
from bnnwide.natgrad.temperature import temperature

__all__ = [
    "Draws",
    "Fisher",
    "GaussianPosterior",
    "LaplacePosterior",
    "Minimum",
    "NGDInfo",
    "NGDState",
    "NaturalGradient",
    "NoisyQuadratic",
    "fisher",
    "laplace",
    "minimise",
    "natural_gradient",
    "noisy_vi",
    "sample",
    "temperature",
]
