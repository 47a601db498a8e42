"""The dense layer in NTK parameterisation."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from bnnwide.arch.kernel import KernelState
from bnnwide.arch.layer import Layer, Params, Shape, layer, weight
from bnnwide.checks import check_count, check_positive


@layer(meta=("width",), data=("w_scale", "b_scale"))
@dataclasses.dataclass(frozen=True)
class Dense(Layer):
    """A dense layer y = w_scale/sqrt(fan_in) x W + b_scale b, with W and b i.i.d. N(0, 1) ("NTK parameterisation").

    Args:
      width: number of outputs.
      w_scale: prior standard deviation of sqrt(fan_in) times a weight, positive.
      b_scale: prior standard deviation of a bias; None or 0 for a layer without biases.

    Raises:
      TypeError: if `width` is not a whole number.
      ValueError: if `width` is below 1 or a scale is negative or not finite.
    """

    width: int
    w_scale: Any = 1.0
    b_scale: Any = None

    def __post_init__(self) -> None:
        check_count("Dense", "width", self.width)
        if isinstance(self.w_scale, (int, float)):
            check_positive("Dense", "w_scale", self.w_scale)
        if isinstance(self.b_scale, (int, float)):
            if self.b_scale == 0:
                object.__setattr__(self, "b_scale", None)
            else:
                check_positive("Dense", "b_scale", self.b_scale)

    def output_shape(self, input_shape: Shape) -> Shape:  # noqa: D102
        if len(input_shape) < 1 or input_shape[-1] < 1:
            raise ValueError(f"`Dense`: inputs must have a non-empty feature axis; got input shape {input_shape}")
        return (*input_shape[:-1], self.width)

    def weight_shapes(self, input_shape: Shape) -> Any:  # noqa: D102
        self.output_shape(input_shape)
        shapes = {"w": weight((input_shape[-1], self.width))}
        return shapes if self.b_scale is None else shapes | {"b": weight((self.width,))}

    def apply(self, params: Params, x: Float[Array, "n ..."]) -> Float[Array, "n ..."]:  # noqa: D102
        y = x @ params["w"] * (self.w_scale / x.shape[-1] ** 0.5)
        return y if self.b_scale is None else y + self.b_scale * params["b"]

    def propagate(self, state: KernelState) -> KernelState:  # noqa: D102
        # K -> w_scale^2 K + b_scale^2 and T -> that + w_scale^2 T (Jacot et al. 2018, theorem 1).
        constant = 0.0 if self.b_scale is None else self.b_scale**2
        new = state.affine(self.w_scale**2, constant)
        ntk = None if new.ntk is None else new.cov + new.ntk
        return dataclasses.replace(new, ntk=ntk, gaussian=True, fresh=True)

    def features(self, h: Float[Array, "n width"]) -> Float[Array, "n m"]:
        """Return Psi = [w_scale h / sqrt(width), b_scale 1], so that the layer is Psi @ concatenate([W, b]).

        Args:
          h: (n, width) inputs of this layer.

        Returns:
          (n, m) features, with m = width + 1, or m = width without biases.
        """
        psi = h * (self.w_scale / h.shape[-1] ** 0.5)
        if self.b_scale is None:
            return psi
        return jnp.concatenate([psi, jnp.full((h.shape[0], 1), self.b_scale, psi.dtype)], axis=1)
