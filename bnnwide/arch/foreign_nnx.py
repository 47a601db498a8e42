"""Flax NNX modules as architectures."""

import dataclasses
import math
from functools import partial, reduce
from itertools import accumulate
from typing import Any

import jax
from jaxtyping import Array, Float, Real

from bnnwide.arch.module_network import BIAS, FIXED, UNKNOWN, Choices, PriorOf, network_of, pick_readout
from bnnwide.arch.modules import Arrays, Keys, ModuleFeatures, Part, Template, child, dotted, plain_keys, take_apart
from bnnwide.arch.network import Network
from bnnwide.checks import Data


@dataclasses.dataclass(frozen=True)
class NnxTemplate(Template):
    """An NNX module without its arrays; it acts on batches.

    Args:
      tree: the structure of its `nnx.State`.
      leaves: the places of its arrays.
      graph: its `nnx.GraphDef`.
    """

    graph: Any

    def module(self, arrays: Arrays) -> Any:  # noqa: D102
        from flax import nnx

        return nnx.merge(self.graph, super().module(arrays))

    def outputs(self, arrays: Arrays, x: Float[Array, "n ..."]) -> Any:  # noqa: D102
        return self.module(arrays)(x)


def from_nnx(
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
    """Make an architecture of a Flax NNX module that acts on a batch of inputs and ends in an `nnx.Linear`.

    Priors, scales and what is kept fixed are those of `from_equinox`; kernels are (in, out) here, and fan_in of
    `nnx.LinearGeneral` (attention) is the size of what it sums over. The module is put in evaluation mode: no dropout,
    and `nnx.BatchNorm` uses its running averages. Whatever is no `nnx.Param`, such as these averages and random
    states, is kept fixed at its values.

        net = bw.from_nnx(Classifier(rngs=nnx.Rngs(0)), x, w_scale=2**0.5, b_scale=0.1)

    Args:
      module: a module, called as module(batch of inputs); it is not changed.
      x: (n, *input_shape) a few example inputs, at which it is checked that the module ends in its readout.
      prior: as in `from_equinox`, with paths such as "layers.0.kernel".
      w_scale: prior standard deviation of sqrt(fan_in) times a weight.
      b_scale: prior standard deviation of a bias; None or 0 sets biases to zero.
      readout_w_scale: the same of the readout; None takes w_scale.
      readout_b_scale: the same of the readout; None takes b_scale if the readout has biases, 0 sets them to zero.
      readout: path of the readout; None takes the last `nnx.Linear` in the order of assignment.

    Returns:
      FromFunction(...) >> Dense(outputs, ...), with sites such as "hidden.0.layers.0.kernel"; `to_module` gives the
      module of a draw.

    Raises:
      ImportError: without Flax.
      TypeError: if `module` is no NNX module, or `prior` returns something else.
      ValueError: if the module does not end in its readout, mixes the inputs of a batch, or has an array that needs
        `prior`.
    """
    try:
        from flax import nnx
    except ImportError:
        raise ImportError("`from_nnx`: Flax must be installed; got none; pip install flax") from None
    door = "from_nnx"
    if not isinstance(module, nnx.Module):
        raise TypeError(f"`{door}`: module must be a flax.nnx.Module; got {type(module).__name__}")
    linears = {dotted(keys): keys for keys, node in nnx.iter_graph(module) if isinstance(node, nnx.Linear)}
    # The graph, and a clone of the module, is in alphabetical order, in which the readout may be anywhere.
    in_order = sorted(linears, key=lambda path: _order(module, linears[path]))
    last = pick_readout(door, in_order, readout)
    module = nnx.clone(module)
    module.eval()
    linear = reduce(child, linears[last], module)
    whole, _ = _take_apart(module)
    name: Any = linears[last][-1]
    holder: Any = reduce(child, linears[last][:-1], module)
    identity = nnx.Dropout(0.0, deterministic=True)
    if isinstance(name, int):
        holder[name] = identity
    else:
        setattr(holder, name, identity)
    hidden, parts = _take_apart(module)
    is_param = lambda part: any(  # noqa: E731
        isinstance(node, nnx.Param) for node in accumulate(part.keys, child, initial=module)
    )
    width, outputs = linear.kernel.shape
    features = ModuleFeatures(
        fixed={path: part.array for path, part in parts.items() if not is_param(part)},
        hidden=hidden,
        whole=whole,
        weight=f"{last}.kernel",
        bias=f"{last}.bias" if f"{last}.bias" in whole.paths else None,
        width=width,
        outputs=outputs,
        transposed=False,
    )
    parts = {path: part for path, part in parts.items() if is_param(part)}
    choices = Choices(door, prior, w_scale, b_scale, readout_w_scale, readout_b_scale)
    return network_of(features, parts, partial(_role, nnx), x, choices)


def _take_apart(module: Any) -> tuple[NnxTemplate, dict[str, Part]]:
    from flax import nnx

    graph, state = nnx.split(module)
    tree, leaves, parts = take_apart(state, module, _keys)
    return NnxTemplate(tree, leaves, graph), parts


def _keys(path: Any) -> Keys:
    """Return the keys of a path in an `nnx.State`, without the step from a variable to its value."""
    return plain_keys(key for key in path if not (isinstance(key, jax.tree_util.GetAttrKey) and key.name == "value"))


def _order(module: Any, keys: Keys) -> list[int]:
    """Return where a path stands in the order of assignment, key by key."""
    order = []
    for key in keys:
        names = module if isinstance(module, dict) else vars(module)
        order.append(key if isinstance(key, int) else list(names).index(key))
        module = child(module, key)
    return order


def _role(nnx: Any, part: Part) -> int | str:
    """Return the fan-in of a weight, or what else an array of a layer is."""
    layer = part.owner
    if isinstance(layer, (nnx.LayerNorm, nnx.RMSNorm, nnx.GroupNorm, nnx.BatchNorm, nnx.InstanceNorm, nnx.PReLU)):
        return FIXED
    if isinstance(layer, nnx.Embed):
        return 1
    if not isinstance(layer, (nnx.Linear, nnx.LinearGeneral, nnx.Conv, nnx.ConvTranspose)):
        return UNKNOWN
    if part.keys[-1] == "bias":
        return BIAS
    if part.keys[-1] != "kernel":
        return UNKNOWN
    # From the layer's own numbers: modules made by nnx.vmap have axes in front.
    inputs = layer.in_features if isinstance(layer, nnx.LinearGeneral) else (layer.in_features,)
    groups = layer.feature_group_count if isinstance(layer, nnx.Conv) else 1
    return math.prod((*inputs, *getattr(layer, "kernel_size", ()))) // groups
