"""Architectures as values: layers, activations, and their composition by `>>`."""

from bnnwide.arch.activations import (
    Abs,
    Cos,
    Elementwise,
    Erf,
    Gelu,
    LeakyRelu,
    Relu,
    Sigmoid,
    Silu,
    Sin,
    Softplus,
    Tanh,
)
from bnnwide.arch.dense import Dense
from bnnwide.arch.layer import Layer, Params
from bnnwide.arch.network import Network, Residual

__all__ = [
    "Abs",
    "Cos",
    "Dense",
    "Elementwise",
    "Erf",
    "Gelu",
    "Layer",
    "LeakyRelu",
    "Network",
    "Params",
    "Relu",
    "Residual",
    "Sigmoid",
    "Silu",
    "Sin",
    "Softplus",
    "Tanh",
]
