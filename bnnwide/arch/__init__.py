"""Architectures as values: layers, activations, their composition by `>>`, and their kernels at infinite width."""

from bnnwide.arch.activation import Activation, Elementwise
from bnnwide.arch.activations import Elu, Sigmoid, Silu, Softplus, Swish, Tanh
from bnnwide.arch.branches import Concatenate, Product, Residual, Sum
from bnnwide.arch.dense import Dense
from bnnwide.arch.foreign import FromFunction, from_features
from bnnwide.arch.foreign_equinox import from_equinox
from bnnwide.arch.foreign_nnx import from_nnx
from bnnwide.arch.kernel import Kernels, KernelState
from bnnwide.arch.layer import Layer, Params, layer
from bnnwide.arch.modules import to_module
from bnnwide.arch.network import Network
from bnnwide.arch.polynomials import Hermite, Monomial, Polynomial
from bnnwide.arch.rectifiers import ABRelu, Abs, LeakyRelu, RectifiedMonomial, Relu, Sign
from bnnwide.arch.scales import scale_priors, with_scales
from bnnwide.arch.scaling import Flatten, Identity, LayerNorm, Rescale
from bnnwide.arch.signal import SignalPropagation, critical_w_scale, signal_propagation
from bnnwide.arch.smooth import Cos, Erf, Exp, Gabor, GaussianBump, Gelu, Rbf, SigmoidLike, Sin
from bnnwide.arch.weight_priors import Horseshoe

__all__ = [
    "ABRelu", "Abs", "Activation", "Concatenate", "Cos", "Dense", "Elementwise", "Elu", "Erf", "Exp", "Flatten",
    "FromFunction", "Gabor", "GaussianBump", "Gelu", "Hermite", "Horseshoe", "Identity", "KernelState", "Kernels",
    "Layer", "LayerNorm", "LeakyRelu", "Monomial", "Network", "Params", "Polynomial", "Product", "Rbf",
    "RectifiedMonomial", "Relu", "Rescale", "Residual", "Sigmoid", "SigmoidLike", "Sign", "SignalPropagation", "Silu",
    "Sin", "Softplus", "Sum", "Swish", "Tanh", "critical_w_scale", "from_equinox", "from_features", "from_nnx", "layer",
    "scale_priors", "signal_propagation", "to_module", "with_scales",
]  # fmt: skip
