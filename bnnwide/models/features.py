"""From named hidden weights to readout features, at the training inputs and at any others."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bnnwide.arch import Dense, Network
from bnnwide.arch.network import weight_names
from bnnwide.arch.scales import scale_priors, with_scales
from bnnwide.likelihoods.core import median
from bnnwide.linalg import gram
from bnnwide.reparam import InputCollapse, collapse_inputs

SPAN = "hidden.0.span"
Draw = dict[str, Array]
Reader = Callable[[tuple[Array, ...]], Array]


@dataclasses.dataclass(frozen=True)
class FeatureMap:
    """How a model reads its hidden weights at given training inputs.

    Args:
      net: the architecture, last layer Dense.
      x: (n, d) training inputs.
      collapse: the input collapse, or None when the first layer's weights are sampled in full.
    """

    net: Network
    x: Float[Array, "n d"]
    collapse: InputCollapse | None

    @property
    def shapes(self) -> dict[str, Any]:
        """The hidden sites: names to `jax.ShapeDtypeStruct`; with the collapse, the first layer's are one span site."""
        shapes = self.net[:-1].weight_shapes(self.x.shape[1:])
        if self.collapse is None:
            return weight_names(shapes, "hidden")
        span = jax.ShapeDtypeStruct((self.collapse.r.shape[1], self.collapse.first.width), jnp.result_type(float))
        return {SPAN: span} | weight_names(((), *shapes[1:]), "hidden")

    @property
    def num_features(self) -> int:
        """m, the number of readout features, bias column included."""
        return self.net[:-1].output_shape(self.x.shape[1:])[-1] + (self.net.readout.b_scale is not None)

    def net_at(self, draw: Draw) -> Network:
        """Return the architecture with the scales of a draw in place of their priors."""
        return with_scales(self.net, {name: draw[site] for name, site in scale_sites(self.net).items()})

    def features(self, draw: Draw) -> Float[Array, "n m"]:
        """Return Psi (n, m) at the training inputs for one draw of the hidden weights."""
        net = self.net_at(draw)
        if self.collapse is None:
            return net.features(self._params(draw), self.x)
        u = self.collapse.preactivation(draw[SPAN])
        return net[1:].features(self._params(draw)[1:], u)

    def features_and_mean(self, draw: Draw) -> tuple[Float[Array, "n m"], Float[Array, "m 1"] | None]:
        """Return Psi (n, m) and the readout's prior mean, None for zero; the function is Psi (mean + theta).

        The coordinates theta that models sample are N(0, I) under the prior in any case.
        """
        return self.features(draw), None

    def test_basis(self, x_test: Float[Array, "t d"]) -> tuple[Array, ...]:
        """Return what a `reader` needs of the test inputs, with one row per input (so that it can be batched)."""
        return (x_test,) if self.collapse is None else self.collapse.test_inputs(x_test)

    def reading(self, draw: Draw, key: Array) -> tuple[Float[Array, "n m"], Float[Array, "m 1"] | None, Reader]:
        """Return `features_and_mean` and `reader` for one draw, what they need computed once."""
        return *self.features_and_mean(draw), self.reader(draw, key)

    def function(
        self, draw: Draw, theta: Float[Array, "m k"], basis: tuple[Array, ...], key: Array
    ) -> Float[Array, "t k"]:
        """Return the function (t, k) at test inputs for one draw of hidden weights and readout.

        Args:
          draw: hidden weights by site name.
          theta: (m, k) coordinates of the readout.
          basis: rows of what `test_basis` returned.
          key: PRNG key of the first layer's part outside the span; one key per draw, the same for every batch of rows.
        """
        _, mean, read = self.reading(draw, key)
        return read(basis) @ (theta if mean is None else theta + mean)

    def reader(self, draw: Draw, key: Array) -> Reader:
        """Return basis -> Psi (t, m) for one draw; what is the same for every batch of rows is done here, once."""
        net, params = self.net_at(draw), self._params(draw)
        if self.collapse is None:
            return lambda basis: net.features(params, *basis)
        span, width = draw[SPAN], self.collapse.first.width

        def read(basis: tuple[Array, ...]) -> Array:
            inside, outside = basis
            fresh = jax.random.normal(key, (outside.shape[1], width), inside.dtype)
            return net[1:].features(params[1:], inside @ span + outside @ fresh)

        return read

    def readout(self, draw: Draw, theta: Float[Array, "m k"]) -> Float[Array, "m k"]:
        """Return the weights of the network's last layer for coordinates `theta` of these features: the same here."""
        del draw
        return theta

    def at(self, rows: Int[Array, " b"]) -> "FeatureMap":
        """Return the map of some rows of the training inputs, that reads the same hidden weights."""
        collapse = self.collapse
        if collapse is not None:
            collapse = dataclasses.replace(collapse, r=collapse.r[rows])
        return dataclasses.replace(self, x=self.x[rows], collapse=collapse)

    def hidden_params(self, draw: Draw, key: Array) -> Any:
        """Return the full parameters of `net[:-1]`, the part that the collapse left out drawn from its prior."""
        if self.collapse is None:
            return self._params(draw)
        return (self.collapse.weights(draw[SPAN], key), *self._params(draw)[1:])

    def _params(self, draw: Draw) -> Any:
        """Rebuild the parameters of `net[:-1]` from sites; with the collapse, without those of its first layer."""
        shapes = self.net[:-1].weight_shapes(self.x.shape[1:])
        if self.collapse is not None:
            shapes = ((), *shapes[1:])
        return jax.tree.unflatten(jax.tree.structure(shapes), [draw[name] for name in weight_names(shapes, "hidden")])


def offset_of(psi: Float[Array, "n m"], mean: Float[Array, "m 1"] | None) -> Float[Array, "n 1"] | float:
    """Return the part Psi mean of the function that the readout's prior mean gives, 0 without one."""
    return 0.0 if mean is None else psi @ mean


def scale_sites(net: Network) -> dict[str, str]:
    """Return the sites of the scales with a prior by their names in `scale_priors`: "hidden.0.w_scale" of "0.w_scale".

    Those of the last layer are "readout.w_scale" and "readout.b_scale".
    """
    last = f"{len(net) - 1}."
    return {
        name: f"readout.{name.removeprefix(last)}" if name.startswith(last) else f"hidden.{name}"
        for name in scale_priors(net)
    }


def at_medians(net: Network) -> Network:
    """Return the architecture with the median of each scale's prior in its place."""
    return with_scales(net, {name: median(prior) for name, prior in scale_priors(net).items()})


def feature_map(net: Network, x: Float[Array, "n d"], input_collapse: bool | None) -> FeatureMap:
    """Decide on the input collapse from static facts and build the map.

    Args:
      net: the architecture, last layer Dense.
      x: (n, d) training inputs.
      input_collapse: None collapses when n < d and the first layer is Dense; True insists; False never does.

    Raises:
      ValueError: if the collapse is insisted on where it cannot be.
    """
    first, (n, d) = net[0], x.shape
    # With a prior on its scale, the span of a first layer's scaled inputs is not fixed; nor are weights outside of the
    # span independent of those inside, unless their prior is normal.
    possible = isinstance(first, Dense) and first.gaussian_weights and not scale_priors(first)
    possible = possible and len(net) > 1 and n < d + (first.b_scale is not None)  # type: ignore[attr-defined]
    if input_collapse and not possible:
        raise ValueError(
            f"`bnn`: input_collapse=True needs a Dense first layer of normal weights and fixed scales, a hidden layer "
            f"and fewer inputs than features; got {first} and x of shape {x.shape}; leave it at None"
        )
    collapse = n < d if input_collapse is None else input_collapse
    return FeatureMap(net, x, collapse_inputs(first, x) if possible and collapse else None)  # type: ignore[arg-type]


def prior_covariance(net: Network, x: Float[Array, "n d"], num_draws: int = 64) -> Float[Array, "n n"]:
    """Return the prior covariance (n, n) of an output at `x`: of the infinitely wide network where it is known.

    Elsewhere the average of Psi Psi^T over draws of the hidden weights, at the network's own width. Scales with a prior
    stand at their medians.
    """
    net = at_medians(net)
    try:
        return net.kernel(x, ntk=False).nngp
    except ValueError:  # no such limit, or none in closed form
        keys = jax.random.split(jax.random.key(0), num_draws)
        draw = lambda key: net.features(net[:-1].init(key, x.shape[1:]), x)  # noqa: E731
        return jnp.mean(jax.lax.map(lambda key: gram(draw(key)), keys), axis=0)
