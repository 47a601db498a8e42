"""bnnwide: probabilistic modelling with wide Bayesian neural networks, in JAX, NumPyro and ArviZ.

The public names, by what they are for. Each is loaded when it is first used (PEP 562), so that `import bnnwide.arch`
brings in neither NumPyro's inference nor ArviZ.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    # architectures: a finite network, an infinite-width kernel, and a prior
    "bnnwide.arch": (
        "Layer", "Network", "Dense", "Residual", "Sum", "Product", "Concatenate", "Identity", "Rescale", "LayerNorm",
        "Flatten", "Kernels", "signal_propagation", "critical_w_scale", "FromFunction", "from_features", "from_equinox",
        "from_nnx", "to_module",
        # priors of weights and of scales
        "Horseshoe", "scale_priors", "with_scales",
    ),
    "bnnwide.arch.activation": ("Activation", "Elementwise"),
    "bnnwide.arch.activations": ("Elu", "Sigmoid", "Silu", "Softplus", "Swish", "Tanh"),
    "bnnwide.arch.polynomials": ("Hermite", "Monomial", "Polynomial"),
    "bnnwide.arch.rectifiers": ("Abs", "ABRelu", "LeakyRelu", "RectifiedMonomial", "Relu", "Sign"),
    "bnnwide.arch.smooth": ("Cos", "Erf", "Exp", "Gabor", "GaussianBump", "Gelu", "Rbf", "SigmoidLike", "Sin"),
    # likelihoods and what is predicted
    "bnnwide.likelihoods": (
        "Likelihood", "Gaussian", "StudentT", "Laplace", "HeteroscedasticGaussian",
        "Categorical", "Bernoulli", "Poisson",
    ),
    "bnnwide.prediction": ("Prediction",),
    # the map behind the forms, as a value of its own
    "bnnwide.reparam": ("Repriorisation", "Sites"),
    # NumPyro models, kernels for NumPyro's MCMC, predictions
    "bnnwide.models": (
        "BNN", "bnn", "SplitHMC", "PCN", "PCNL", "predict", "predict_draws", "readout_draws", "hidden_weights",
        "GPModel", "gp_model", "sample_params", "sample_readout", "refine_sites",
        "init_to_fit",
    ),
    # priors over functions
    "bnnwide.functional": ("functional_bnn",),
    # ArviZ, and the comparison of methods across widths
    "bnnwide.diagnostics": ("METHODS", "ess_by_width", "format_ess_table", "plot_ess_by_width",
        "plot_phase_diagram", "to_arviz"),
}  # fmt: skip
_MODULES = (
    "arch",
    "comparators",
    "datasets",
    "diagnostics",
    "empirical",
    "functional",
    "gp",
    "likelihoods",
    "linalg",
    "models",
    "natgrad",
    "reparam",
    "samplers",
)
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [*_HOME_OF, *_MODULES, "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(importlib.import_module(_HOME_OF[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"bnnwide.{name}")
    raise AttributeError(f"module 'bnnwide' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
