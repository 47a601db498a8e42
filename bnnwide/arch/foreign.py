"""A network that is not made of our layers: any function that ends before a linear readout."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from bnnwide.arch.dense import Dense
from bnnwide.arch.kernel import KernelState
from bnnwide.arch.layer import Layer, Params, Shape, layer, weight
from bnnwide.arch.network import Network, weight_names
from bnnwide.checks import check_count


@layer(data=("feature_fn", "params_prior"))
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class FromFunction(Layer):
    """Hidden activations h = feature_fn(w, x) of any function, under any prior of independent parameters w.

    Its weights z are standard normal like those of every layer, and w = F^-1(Phi(z)) with F the prior's distribution
    function: w = loc + scale z for a normal prior. Usually made by `from_features`, which checks what it is given.

    Args:
      feature_fn: a function of (params, x (n, *input_shape)) that returns (n, width) activations, without scaling; each
        row must depend on its own input only. A function is static; a callable pytree is one of leaves.
      params_prior: a pytree of NumPyro distributions, one per parameter array, whose (batch + event) shape is the
        array's; an array or `jax.ShapeDtypeStruct` stands for N(0, 1) of its shape.
    """

    feature_fn: Callable[[Any, Array], Array]
    params_prior: PyTree

    def __post_init__(self) -> None:
        # A function is a leaf of itself; what was registered as a pytree is not.
        if jax.tree_util.all_leaves([self.feature_fn]):
            object.__setattr__(self, "feature_fn", jax.tree_util.Partial(self.feature_fn))
        object.__setattr__(self, "params_prior", _each_prior(_standard, self.params_prior))

    def output_shape(self, input_shape: Shape) -> Shape:  # noqa: D102
        x = weight((2, *input_shape))
        out = jax.eval_shape(lambda z, x: self.feature_fn(self.parameters(z), x), self.weight_shapes(input_shape), x)
        shape = getattr(out, "shape", None)
        if shape is None or len(shape) != 2 or shape[0] != 2 or shape[1] < 1:
            got = f"an array of shape {shape}" if shape is not None else type(out).__name__
            raise ValueError(
                f"`FromFunction`: feature_fn must return activations of shape (n, width); got {got} for n=2 inputs of "
                f"shape {tuple(input_shape)}; flatten the features of each input to one axis"
            )
        return (shape[1],)

    def weight_shapes(self, input_shape: Shape) -> Any:  # noqa: D102
        return _each_prior(lambda prior: weight(prior.batch_shape + prior.event_shape), self.params_prior)

    def parameters(self, params: Params) -> Any:
        """Return what `feature_fn` takes, w = F^-1(Phi(z)), given standard normal weights z.

        Args:
          params: z, a pytree as `init` returns it.
        """
        from bnnwide.arch.priors import from_normal  # loads NumPyro's inference

        return _each_prior(from_normal, self.params_prior, params)

    def apply(self, params: Params, x: Float[Array, "n ..."]) -> Float[Array, "n ..."]:  # noqa: D102
        h = self.feature_fn(self.parameters(params), x)
        # What follows is solved in the precision of the inputs, whatever the function computes in.
        return h.astype(jnp.promote_types(h.dtype, x.dtype))

    def propagate(self, state: KernelState) -> KernelState:  # noqa: D102
        raise ValueError(
            f"`kernel`: no infinite-width kernel is known for a function of your own; got {self}; estimate it with "
            "empirical.monte_carlo(net, key, x, num_draws=...)"
        )

    def __eq__(self, other: object) -> bool:
        (mine, tree), (theirs, other_tree) = jax.tree.flatten(self), jax.tree.flatten(other)
        return tree == other_tree and all(map(jnp.array_equal, mine, theirs))

    def __hash__(self) -> int:
        return hash(jax.tree.structure(self))

    def __repr__(self) -> str:
        fn = getattr(self.feature_fn, "func", self.feature_fn)
        shapes = weight_names(self.weight_shapes(()), "w").values()
        return f"FromFunction({getattr(fn, '__name__', fn)}, {sum(map(_size, shapes))} weights in {len(shapes)} arrays)"


def from_features(
    feature_fn: Callable[[Any, Array], Array],
    params_prior: PyTree,
    outputs: int,
    *,
    w_scale: Any = 1.0,
    b_scale: Any = None,
) -> Network:
    """Make an architecture of any function with a linear last layer: f = [w_scale h/sqrt(width), b_scale 1] theta.

    h = feature_fn(w, x) are the activations that enter the last layer, `FromFunction`; the last layer is `Dense`. So it
    is a `Network`: `bnn` takes it in every form, with all samplers and predictions.

        prior = {"w": dist.Normal(0.0, 1 / 8).expand([64, 128]), "b": dist.Laplace(0.0, 0.1).expand([128])}
        net = bw.from_features(lambda p, x: jnp.tanh(x @ p["w"] + p["b"]), prior, 10, w_scale=1.0, b_scale=0.1)

    Args:
      feature_fn: a function of (params, x (n, *input_shape)) that returns (n, width) activations; each row must depend
        on its own input only. (`bnn` gives it inputs (n, d); reshape images inside.)
      params_prior: a pytree of NumPyro distributions of independent entries, one per parameter array, whose
        (batch + event) shape is the array's; an array or `jax.ShapeDtypeStruct` stands for N(0, 1) of its shape.
      outputs: k, the number of outputs.
      w_scale: prior standard deviation of sqrt(width) times a readout weight.
      b_scale: prior standard deviation of a readout bias; None or 0 for a readout without biases.

    Returns:
      FromFunction(...) >> Dense(outputs, ...). Weights are standard normal; `net[0].parameters(z)` gives the
      parameters that `feature_fn` takes.

    Raises:
      TypeError: if `feature_fn` cannot be called or `params_prior` holds anything else.
      ValueError: if a prior is discrete or has no quantile function, or two parameters would have one site name.
    """
    if not callable(feature_fn):
        raise TypeError(f"`from_features`: feature_fn must be a function of (params, x); got {feature_fn!r}")
    check_count("from_features", "outputs", outputs)
    leaves = jax.tree_util.tree_flatten_with_path(params_prior, is_leaf=_is_prior)[0]
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"`from_features`: params_prior must name each parameter apart; got two named {name!r}, as their "
                "sites would be; rename a key"
            )
    for name, (_, leaf) in zip(names, leaves, strict=True):
        _check_prior(name, leaf)
    return FromFunction(feature_fn, with_floats(params_prior)) >> Dense(outputs, w_scale=w_scale, b_scale=b_scale)


def with_floats(params_prior: PyTree) -> PyTree:
    """Return the priors with floats for whole numbers: leaves of an architecture can be differentiated."""
    return jax.tree.map(lambda leaf: float(leaf) if isinstance(leaf, int) else leaf, params_prior)


def _check_prior(name: str, leaf: Any) -> None:
    if not _is_prior(leaf):
        if not hasattr(leaf, "shape"):
            raise TypeError(
                "`from_features`: params_prior must hold NumPyro distributions, or arrays for N(0, 1) of their shape; "
                f"got {type(leaf).__name__} at {name!r}"
            )
        return
    if leaf.support.is_discrete:
        raise ValueError(
            f"`from_features`: params_prior must hold continuous distributions; got {type(leaf).__name__} at {name!r}"
        )
    from bnnwide.arch.priors import from_normal

    jax.eval_shape(lambda z: from_normal(leaf, z), weight(leaf.batch_shape + leaf.event_shape))


def _is_prior(leaf: Any) -> bool:
    import numpyro.distributions as dist

    return isinstance(leaf, dist.Distribution)


def _each_prior(fn: Callable[..., Any], priors: Any, *trees: Any) -> Any:
    return jax.tree.map(fn, priors, *trees, is_leaf=_is_prior)


def _standard(leaf: Any) -> Any:
    import numpyro.distributions as dist

    return leaf if _is_prior(leaf) else dist.Normal(0.0, 1.0).expand(leaf.shape)


def _size(shape: jax.ShapeDtypeStruct) -> int:
    return int(np.prod(shape.shape))
