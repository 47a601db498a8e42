"""From a module that was taken apart to an architecture: a prior for each hidden array, and a check of the readout."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bnnwide.arch.dense import Dense
from bnnwide.arch.foreign import FromFunction, with_floats
from bnnwide.arch.layer import Params, weight
from bnnwide.arch.modules import ModuleFeatures, Part
from bnnwide.arch.network import Network
from bnnwide.checks import Data, check_inputs, check_positive, is_concrete

# What an array of a layer is, where it is no weight of a known fan-in.
BIAS, FIXED, UNKNOWN = "bias", "fixed", "unknown"
PriorOf = Callable[[str, Array], Any]


@dataclasses.dataclass(frozen=True)
class Choices:
    """What a user chose about priors; the arguments of `from_equinox` and `from_nnx`.

    Args:
      door: the public function that was called, for messages.
      prior: a function of (path, array), or None.
      w_scale: of hidden weights.
      b_scale: of hidden biases.
      readout_w_scale: of the readout; None for w_scale.
      readout_b_scale: of the readout's biases; None for b_scale if there are biases.
    """

    door: str
    prior: PriorOf | None
    w_scale: Any
    b_scale: Any
    readout_w_scale: Any
    readout_b_scale: Any

    def __post_init__(self) -> None:
        for name in ("w_scale", "b_scale", "readout_w_scale", "readout_b_scale"):
            scale = getattr(self, name)
            if not (_is_zero(scale) and name.endswith("b_scale")):
                check_positive(self.door, name, 1.0 if scale is None and name != "w_scale" else scale)

    def readout(self, features: ModuleFeatures) -> Dense:
        """Return the readout."""
        w_scale = self.w_scale if self.readout_w_scale is None else self.readout_w_scale
        b_scale = self.b_scale if self.readout_b_scale is None else self.readout_b_scale
        if features.bias is None:
            if not _is_zero(self.readout_b_scale):
                raise ValueError(
                    f"`{self.door}`: readout_b_scale must be None for a readout without biases; got "
                    f"{self.readout_b_scale}; build the module's last Linear layer with biases"
                )
            b_scale = None
        return Dense(features.outputs, w_scale=w_scale, b_scale=b_scale)

    def of_array(self, path: str, array: Array, role: Any) -> Any:
        """Return the prior of an array, or the array at which it is kept fixed."""
        import numpyro.distributions as dist

        chosen = NotImplemented if self.prior is None else self.prior(path, array)
        if chosen is NotImplemented:
            return self._default(path, array, role)
        if chosen is None:
            return array
        if not isinstance(chosen, dist.Distribution):
            raise TypeError(
                f"`{self.door}`: prior must return a NumPyro distribution, None or NotImplemented; got "
                f"{type(chosen).__name__} for {path!r}"
            )
        shape = chosen.batch_shape + chosen.event_shape
        if shape not in ((), array.shape):
            raise ValueError(
                f"`{self.door}`: prior must return a distribution of the array's shape {array.shape}, or of one number "
                f"for all its entries, for {path!r}; got shape {shape}"
            )
        return chosen.expand(array.shape) if shape == () else chosen

    def _default(self, path: str, array: Array, role: Any) -> Any:
        import numpyro.distributions as dist

        if role == UNKNOWN:
            raise ValueError(
                f"`{self.door}`: no default prior is known for the array {path!r} of shape {array.shape}; got it in no "
                "layer known here; pass prior=lambda path, array: ..., which returns a NumPyro distribution, None to "
                "keep the array fixed, or NotImplemented for the default"
            )
        if role == FIXED:
            return array
        if role == BIAS:
            no_biases = _is_zero(self.b_scale)
            return jnp.zeros_like(array) if no_biases else dist.Normal(0.0, self.b_scale).expand(array.shape)
        return dist.Normal(0.0, self.w_scale / role**0.5).expand(array.shape)


def network_of(
    features: ModuleFeatures, parts: dict[str, Part], role_of: Callable[[Part], int | str], x: Data, choices: Choices
) -> Network:
    """Build the architecture of a module and check that it ends in its readout.

    Args:
      features: the module's hidden activations; arrays without a prior join its fixed ones.
      parts: the hidden arrays, by path.
      role_of: what an array is: a weight's fan-in, `BIAS`, `FIXED` or `UNKNOWN`; asked of floating-point arrays.
      x: (n, *input_shape) example inputs.
      choices: the user's.
    """
    x = check_inputs(choices.door, "x", x)
    fixed, priors = dict(features.fixed), {}
    for path, part in parts.items():
        floating = jnp.issubdtype(part.array.dtype, jnp.inexact)
        chosen = choices.of_array(path, part.array, role_of(part)) if floating else part.array
        (fixed if isinstance(chosen, jax.Array) else priors)[path] = chosen
    hidden = FromFunction(dataclasses.replace(features, fixed=fixed), with_floats(priors))
    net = hidden >> choices.readout(features)
    _check_ends_in_readout(choices.door, hidden, x)
    return net


def pick_readout(door: str, linears: list[str], wanted: str | None) -> str:
    """Return the path of the readout among those of linear layers, first to last: the last, or the one asked for.

    Raises:
      ValueError: if there is none.
    """
    if not linears:
        raise ValueError(f"`{door}`: module must end in a Linear layer; got none in it; use from_features instead")
    if wanted is not None and wanted not in linears:
        raise ValueError(f"`{door}`: readout must be the path of a Linear layer, one of {linears}; got {wanted!r}")
    readout = linears[-1] if wanted is None else wanted
    if readout == "":
        raise ValueError(f"`{door}`: module must have a layer before its readout; got one Linear layer alone")
    return readout


def _check_ends_in_readout(door: str, hidden: FromFunction, x: Array) -> None:
    """Check with numbers that the module is activations @ W + b, at drawn hidden weights and two opposite readouts."""
    features: Any = hidden.feature_fn
    wanted = (len(x), features.width)
    # Drawn on the host: compiling a generator for every array would take longer than the rest.
    rng = np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype)  # noqa: E731
    z = jax.tree.map(draw, hidden.weight_shapes(x.shape[1:]))
    must_end = f"`{door}`: module must end in its readout, the Linear layer {features.weight.rpartition('.')[0]!r}"
    activations = jax.eval_shape(lambda hidden, z: hidden.feature_fn(hidden.parameters(z), x), hidden, z)
    shape = getattr(activations, "shape", type(activations).__name__)
    if shape != wanted:
        raise ValueError(
            f"{must_end}: with the identity in its place it must return activations of shape {wanted} for x; got "
            f"{shape}; name another layer with readout=..., or use from_features"
        )
    with jax.default_matmul_precision("highest"):
        w, b = draw(weight((features.width, features.outputs))), draw(weight((features.outputs,)))
        mixing, past, tolerance = _differences(hidden, z, w, b, x)
    if not mixing <= tolerance:
        raise ValueError(
            f"`{door}`: module must map each input on its own; got other activations for x[:1] alone than in x; take "
            "out what averages over the batch"
        )
    if not past <= tolerance:
        raise ValueError(
            f"{must_end}: module(x) must be activations @ weights + bias; got a relative difference of {past:.2g}; "
            "take a final activation off, name another layer with readout=..., or use from_features"
        )


@jax.jit
def _differences(hidden: FromFunction, z: Params, w: Array, b: Array, x: Array) -> tuple[Array, Array, Array]:
    """Return how much activations mix inputs, how far the readout is from last, and what counts as rounding."""
    features: Any = hidden.feature_fn
    params = hidden.parameters(z)
    h = features(params, x)
    b = b * (features.bias is not None)
    # Outputs of size 3, in both signs: any final activation shows.
    size = jnp.sqrt(jnp.mean((h @ w) ** 2))
    w = 3 * w / jnp.where(size > 0, size, 1.0)
    past, eps = jnp.zeros(()), float(jnp.finfo(h.dtype).eps)
    for sign in (1, -1):
        expected = sign * (h @ w + b)
        got = features.whole.outputs(features.arrays(params, sign * w, sign * b), x)
        fits = getattr(got, "size", None) == expected.size
        eps = max(eps, float(jnp.finfo(got.dtype).eps)) if fits else eps
        past = jnp.maximum(past, _relative(jnp.reshape(got, expected.shape), expected) if fits else jnp.inf)
    return _relative(features(params, x[:1]), h[:1]), past, jnp.asarray(eps**0.5)


def _relative(got: Array, expected: Array) -> Array:
    return jnp.max(jnp.abs(got - expected)) / (1 + jnp.max(jnp.abs(expected)))


def _is_zero(scale: Any) -> bool:
    return scale is None or (is_concrete(scale) and bool(np.all(np.asarray(scale) == 0)))
