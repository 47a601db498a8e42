"""Composition: a chain of layers."""

import dataclasses
from typing import Any, overload

import jax
from jaxtyping import Array, Float, Real

from bnnwide.arch.dense import Dense
from bnnwide.arch.kernel import KernelState
from bnnwide.arch.layer import Layer, Params, Shape, layer, propagate
from bnnwide.arch.scales import check_numbers
from bnnwide.checks import Data


@layer(data=("layers",))
@dataclasses.dataclass(frozen=True)
class Network(Layer):
    """A chain of layers, made by `>>`; indexing gives a layer, slicing a shorter network.

    Its parameters are a tuple, one entry per layer, so that `net[:-1]` takes `params[:-1]`.

    Args:
      layers: the layers, first to last.
    """

    layers: tuple[Layer, ...]

    def output_shape(self, input_shape: Shape) -> Shape:  # noqa: D102
        for part in self.layers:
            input_shape = part.output_shape(input_shape)
        return input_shape

    def weight_shapes(self, input_shape: Shape) -> Any:  # noqa: D102
        shapes = []
        for part in self.layers:
            shapes.append(part.weight_shapes(input_shape))
            input_shape = part.output_shape(input_shape)
        return tuple(shapes)

    def apply(self, params: Params, x: Float[Array, "n ..."]) -> Float[Array, "n ..."]:  # noqa: D102
        for part, weights in zip(self.layers, params, strict=True):
            x = part.apply(weights, x)
        return x

    def propagate(self, state: KernelState) -> KernelState:  # noqa: D102
        for part in self.layers:
            state = propagate(part, state)
        return state

    def features(self, params: Params, x: Real[Data, "n ..."]) -> Float[Array, "n m"]:
        """Return the readout features Psi at `x`, with net(params, x) = Psi @ concatenate([W, b]) of the last layer.

        So it is if the readout's weights are normal (`Dense.gaussian_weights`).

        Args:
          params: weights as `init` returns them; the readout's own may be left out (`params[:-1]`).
          x: (n, d) inputs.

        Returns:
          (n, m) features, scales and bias column included; m = width + 1, or width without readout biases.

        Raises:
          ValueError: if the last layer is not Dense, the weights do not fit, or a scale is a distribution.
        """
        readout = self.readout
        check_numbers("features", self)
        return readout.features(self[:-1](tuple(params)[: len(self) - 1], x))

    @property
    def readout(self) -> Dense:
        """The last layer, which must be Dense."""
        if not self.layers or not isinstance(self.layers[-1], Dense):
            last = type(self.layers[-1]).__name__ if self.layers else "nothing"
            raise ValueError(f"`Network`: the last layer must be Dense to have readout features; got {last}")
        return self.layers[-1]

    def __len__(self) -> int:
        return len(self.layers)

    @overload
    def __getitem__(self, index: int) -> Layer: ...
    @overload
    def __getitem__(self, index: slice) -> "Network": ...
    def __getitem__(self, index: int | slice) -> "Layer | Network":
        return Network(self.layers[index]) if isinstance(index, slice) else self.layers[index]

    def __repr__(self) -> str:
        return " >> ".join(map(repr, self.layers)) or "Network(())"


def weight_names(shapes: Any, prefix: str) -> dict[str, Any]:
    """Flatten a pytree to a dict named by path, such as {"hidden.0.w": leaf}, in the order of `jax.tree.leaves`."""
    leaves = jax.tree_util.tree_flatten_with_path(shapes)[0]
    return {f"{prefix}.{jax.tree_util.keystr(path, simple=True, separator='.')}": leaf for path, leaf in leaves}
