"""Equinox modules as architectures."""

import math
from functools import partial
from typing import Any

import jax
from jaxtyping import Real

from bnnwide.arch.module_network import BIAS, FIXED, UNKNOWN, Choices, PriorOf, network_of, pick_readout
from bnnwide.arch.modules import ModuleFeatures, Part, Template, dotted, plain_keys, take_apart
from bnnwide.arch.network import Network
from bnnwide.checks import Data


def from_equinox(
    module: Any,
    x: Real[Data, "n ..."],
    *,
    prior: PriorOf | None = None,
    w_scale: Any = 1.0,
    b_scale: Any = None,
    readout_w_scale: Any = None,
    readout_b_scale: Any = None,
    readout: str | None = None,
) -> Network:
    """Make an architecture of an Equinox module that acts on one input and ends in an `eqx.nn.Linear`.

    The module's own weights do not matter, except those kept fixed; its map does. By default, as in the standard
    parameterisation of a wide network,

        weights ~ N(0, w_scale^2 / fan_in),  biases ~ N(0, b_scale^2),  gains and shifts of norm layers: kept fixed,

    with fan_in the inputs of a Linear or of a recurrent cell, input channels (of a group) times kernel size of a
    convolution, 1 of an Embedding. The slope of PReLU is kept fixed as well; an array of any other layer needs `prior`.
    The readout is Dense with readout_w_scale^2 / width: the same prior on functions in NTK parameterisation.

        net = bw.from_equinox(eqx.nn.MLP(64, 10, 512, 2, key=key), x, w_scale=2**0.5, b_scale=0.1)

    The module is put in inference mode (no dropout); arrays that are not floating-point are kept fixed.

    Args:
      module: a module, called as module(one input); without state (`eqx.nn.BatchNorm` has some).
      x: (n, *input_shape) a few example inputs, at which it is checked that the module ends in its readout.
      prior: a function of (path, array), such as ("layers.0.weight", ...), that returns the array's prior, a NumPyro
        distribution of its shape or of one number for all its entries; None to keep the array fixed at its value;
        NotImplemented for the default. Asked for every hidden floating-point array.
      w_scale: prior standard deviation of sqrt(fan_in) times a weight.
      b_scale: prior standard deviation of a bias; None or 0 sets biases to zero.
      readout_w_scale: the same of the readout; None takes w_scale.
      readout_b_scale: the same of the readout; None takes b_scale if the readout has biases, 0 sets them to zero.
      readout: path of the readout; None takes the last `eqx.nn.Linear` in the order of fields.

    Returns:
      FromFunction(...) >> Dense(outputs, ...), with sites such as "hidden.0.layers.0.weight"; `to_module` gives the
      module of a draw.

    Raises:
      ImportError: without Equinox.
      TypeError: if `module` is no Equinox module, or `prior` returns something else.
      ValueError: if the module does not end in its readout, has state, or has an array that needs `prior`.
    """
    try:
        import equinox as eqx
    except ImportError:
        raise ImportError("`from_equinox`: Equinox must be installed; got none; pip install equinox") from None
    door = "from_equinox"
    if not isinstance(module, eqx.Module):
        raise TypeError(f"`{door}`: module must be an equinox.Module; got {type(module).__name__}")
    is_state = lambda node: isinstance(node, eqx.nn.StateIndex)  # noqa: E731
    if any(map(is_state, jax.tree.leaves(module, is_leaf=is_state))):
        raise ValueError(
            f"`{door}`: module must be a function of one input alone; got one with state (eqx.nn.BatchNorm, say); take "
            "another normalisation, or use from_features with its state fixed"
        )
    module = eqx.nn.inference_mode(module)
    is_linear = lambda node: isinstance(node, eqx.nn.Linear)  # noqa: E731
    linears_of = lambda tree: [  # noqa: E731
        (dotted(plain_keys(path)), node)
        for path, node in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_linear)[0]
        if is_linear(node)
    ]
    paths = [path for path, _ in linears_of(module)]
    last = pick_readout(door, paths, readout)
    linear = dict(linears_of(module))[last]
    without = eqx.tree_at(lambda tree: dict(linears_of(tree))[last], module, eqx.nn.Identity())
    hidden, parts = _take_apart(without)
    whole, _ = _take_apart(module)
    outputs, width = linear.weight.shape
    features = ModuleFeatures(
        fixed={},
        hidden=hidden,
        whole=whole,
        weight=f"{last}.weight",
        bias=f"{last}.bias" if f"{last}.bias" in whole.paths else None,
        width=width,
        outputs=outputs,
        transposed=True,
    )
    choices = Choices(door, prior, w_scale, b_scale, readout_w_scale, readout_b_scale)
    return network_of(features, parts, partial(_role, eqx.nn), x, choices)


def _take_apart(module: Any) -> tuple[Template, dict[str, Part]]:
    tree, leaves, parts = take_apart(module, module, plain_keys)
    return Template(tree, leaves), parts


def _role(nn: Any, part: Part) -> int | str:
    """Return the fan-in of a weight, or what else an array of a layer is."""
    layer, shape = part.owner, part.array.shape
    if isinstance(layer, (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.PReLU)):
        return FIXED
    linear = isinstance(layer, (nn.Linear, nn.GRUCell, nn.LSTMCell))
    convolution = isinstance(layer, (nn.Conv, nn.ConvTranspose))
    if (linear or convolution) and str(part.keys[-1]).startswith("bias"):
        return BIAS
    # From the end: modules made by filter_vmap have axes in front.
    if linear:
        return shape[-1]
    if convolution:
        return math.prod(shape[-layer.num_spatial_dims - 1 :])
    return 1 if isinstance(layer, nn.Embedding) else UNKNOWN
