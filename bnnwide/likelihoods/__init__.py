"""Likelihoods as values: the law of the targets given the network's outputs."""

from bnnwide.likelihoods.continuous import Gaussian, HeteroscedasticGaussian, Laplace, StudentT
from bnnwide.likelihoods.core import Likelihood, Outcome
from bnnwide.likelihoods.discrete import Bernoulli, Categorical, Poisson

__all__ = [
    "Bernoulli",
    "Categorical",
    "Gaussian",
    "HeteroscedasticGaussian",
    "Laplace",
    "Likelihood",
    "Outcome",
    "Poisson",
    "StudentT",
]
