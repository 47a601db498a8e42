"""The dense layer in NTK parameterisation."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from bnnwide.arch.kernel import KernelState
from bnnwide.arch.layer import Layer, Params, Shape, layer, weight
from bnnwide.arch.scales import check_numbers, check_scale_prior
from bnnwide.arch.weight_priors import (
    check_weight_prior,
    describe,
    is_distribution,
    limit_variance,
    normal_scale,
    prior_shapes,
    prior_weights,
)
from bnnwide.checks import check_count, check_positive


@layer(meta=("width", "w_prior", "b_prior"), data=("w_scale", "b_scale"))
@dataclasses.dataclass(frozen=True)
class Dense(Layer):
    """A dense layer y = w_scale/sqrt(fan_in) x W + b_scale b, with W and b i.i.d. N(0, 1) ("NTK parameterisation").

    With priors of weights y = w_scale/sqrt(fan_in) x g(W) + b_scale g_b(b): W and b are still held as N(0, 1), and g
    makes them draws of their prior (`from_normal`).

    Args:
      width: number of outputs.
      w_scale: prior standard deviation of sqrt(fan_in) times a weight, positive; or a NumPyro distribution over
        positive numbers, which is then its prior (see `scale_priors`).
      b_scale: prior standard deviation of a bias; None or 0 for a layer without biases; or a distribution.
      w_prior: prior of a weight, before its scale: None for N(0, 1), a NumPyro distribution over real numbers, or
        `Horseshoe`. Its parameters are fixed numbers.
      b_prior: the same of a bias.

    Raises:
      TypeError: if `width` is not a whole number, or a prior is no distribution with a quantile function.
      ValueError: if `width` is below 1, a scale is negative or not finite, a distribution is not over one number
        (positive, of a scale), or there is a prior of biases without biases.
    """

    width: int
    w_scale: Any = 1.0
    b_scale: Any = None
    w_prior: Any = dataclasses.field(default=None, kw_only=True)
    b_prior: Any = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_count("Dense", "width", self.width)
        if isinstance(self.b_scale, (int, float)) and self.b_scale == 0:
            object.__setattr__(self, "b_scale", None)
        for name in ("w_scale", "b_scale"):
            scale = getattr(self, name)
            if isinstance(scale, (int, float)):
                check_positive("Dense", name, scale)
            elif is_distribution(scale):
                check_scale_prior("Dense", name, scale)
        if self.b_prior is not None and self.b_scale is None:
            raise ValueError(f"`Dense`: b_prior needs biases; got b_scale={self.b_scale}; give b_scale as well")
        for name in ("w_prior", "b_prior"):
            object.__setattr__(self, name, check_weight_prior("Dense", name, getattr(self, name)))

    @property
    def gaussian_weights(self) -> bool:
        """Whether the layer is linear in standard normals: `features` @ concatenate([W, b]).

        So it is with priors that are None or normal with mean 0. What conditions on a layer's weights in closed form
        (repriorisation, the collapse of the readout or of the inputs) needs this.
        """
        return normal_scale(self.w_prior) is not None and normal_scale(self.b_prior) is not None

    def output_shape(self, input_shape: Shape) -> Shape:  # noqa: D102
        if len(input_shape) < 1 or input_shape[-1] < 1:
            raise ValueError(f"`Dense`: inputs must have a non-empty feature axis; got input shape {input_shape}")
        return (*input_shape[:-1], self.width)

    def weight_shapes(self, input_shape: Shape) -> Any:  # noqa: D102
        self.output_shape(input_shape)
        shapes = prior_shapes(self.w_prior, "w", weight((input_shape[-1], self.width)))
        return shapes if self.b_scale is None else shapes | prior_shapes(self.b_prior, "b", weight((self.width,)))

    def apply(self, params: Params, x: Float[Array, "n ..."]) -> Float[Array, "n ..."]:  # noqa: D102
        y = x @ prior_weights(self.w_prior, "w", params) * (self.w_scale / x.shape[-1] ** 0.5)
        return y if self.b_scale is None else y + self.b_scale * prior_weights(self.b_prior, "b", params)

    def propagate(self, state: KernelState) -> KernelState:  # noqa: D102
        # K -> w_scale^2 K + b_scale^2 and T -> that + w_scale^2 T (Jacot et al. 2018, theorem 1).
        # A prior of weights adds its variance to w_scale^2, and one of biases to b_scale^2.
        constant = 0.0 if self.b_scale is None else self.b_scale**2 * limit_variance("b_prior", self.b_prior)
        new = state.affine(self.w_scale**2 * limit_variance("w_prior", self.w_prior), constant)
        if new.ntk is not None and not self.gaussian_weights:
            raise ValueError(
                "`kernel`: the NTK needs normal weights of mean 0, since it depends on the coordinates in which they "
                f"are learned; got {self}; ask for ntk=False"
            )
        ntk = None if new.ntk is None else new.cov + new.ntk
        # Weights of any finite variance sum to a Gaussian over infinitely many units; over the few numbers of an input
        # only normal weights do, and a bias is a sum of one.
        summed = state.wide or normal_scale(self.w_prior) is not None
        gaussian = summed and normal_scale(self.b_prior) is not None
        return dataclasses.replace(new, ntk=ntk, gaussian=gaussian, fresh=True, wide=True)

    def features(self, h: Float[Array, "n width"]) -> Float[Array, "n m"]:
        """Return Psi = [w_scale h / sqrt(width), b_scale 1], so that the layer is Psi @ concatenate([W, b]).

        The standard deviation of a normal prior of mean 0 counts as part of the scale. With any other prior the layer
        is Psi @ concatenate([g(W), g_b(b)]), not linear in standard normals: see `gaussian_weights`.

        Args:
          h: (n, width) inputs of this layer.

        Returns:
          (n, m) features, with m = width + 1, or m = width without biases.

        Raises:
          ValueError: if a scale is a distribution.
        """
        check_numbers("Dense", self)
        psi = h * (self.w_scale * (normal_scale(self.w_prior) or 1.0) / h.shape[-1] ** 0.5)
        if self.b_scale is None:
            return psi
        constant = self.b_scale * (normal_scale(self.b_prior) or 1.0)
        return jnp.concatenate([psi, jnp.full((h.shape[0], 1), constant, psi.dtype)], axis=1)

    def stacked(self, params: Params) -> Float[Array, "m width"]:
        """Return the weights by which `features` are multiplied: [g(W); g_b(b)], or [W; b] with normal priors.

        Args:
          params: weights as `init` returns them.
        """
        parts = [("w", self.w_prior), *([] if self.b_scale is None else [("b", self.b_prior)])]
        rows = [params[name] if normal_scale(prior) is not None else prior_weights(prior, name, params)
                for name, prior in parts]  # fmt: skip
        return jnp.concatenate([jnp.atleast_2d(row) for row in rows])

    def __repr__(self) -> str:
        fields = {name: getattr(self, name) for name in ("width", "w_scale", "b_scale", "w_prior", "b_prior")}
        shown = {name: value for name, value in fields.items() if value is not None or "scale" in name}
        return f"Dense({', '.join(f'{name}={describe(value)}' for name, value in shown.items())})"
