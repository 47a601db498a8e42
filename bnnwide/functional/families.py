"""Variational families: Gaussian laws of a network's weights, as functions of standard normal noise."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from bnnwide.arch import Layer, Network, Params
from bnnwide.checks import check_count, check_positive
from bnnwide.likelihoods import Gaussian, Likelihood
from bnnwide.models.features import prior_covariance
from bnnwide.reparam import SitedRepriorisation, Sites, find_sites

Function = Callable[[Float[Array, "n d"]], Float[Array, "n k"]]


class Family(abc.ABC):
    """A law of weights w = t(params, noise) with standard normal noise; a subclass states t and where it starts.

    `smooth` says that t is differentiable in the noise, so that the network can be linearised in it.
    """

    net: Layer
    smooth: bool = True

    @abc.abstractmethod
    def init(self, key: Array) -> Any:
        """Return parameters to start from."""

    @abc.abstractmethod
    def noise(self, key: Array) -> Any:
        """Draw the standard normal noise of one function."""

    @abc.abstractmethod
    def weights(self, params: Any, noise: Any) -> Params:
        """Return the weights of `net` that belong to one draw of the noise."""

    def sample(self, params: Any, key: Array, num_samples: int) -> Function:
        """Draw functions.

        Args:
          params: of the family.
          key: PRNG key.
          num_samples: s, how many.

        Returns:
          A function of x (n, d) to the values (s, n, k) of all draws; always the same draws.
        """
        keys = jax.random.split(key, num_samples)
        draws = jax.vmap(lambda one: self.weights(params, self.noise(one)))(keys)
        return lambda x: jax.vmap(self.net.apply, in_axes=(0, None))(draws, x)

    def linearised(self, params: Any, x: Float[Array, "n d"]) -> tuple[Float[Array, "n k"], Float[Array, "kn p"]]:
        """Return the network at noise 0, (n, k), and its Jacobian there, the rows of the first output first.

        The linearised network is Gaussian, f = mean + J noise; for a model that is linear in the noise it is the
        network. Costs n k reverse passes.
        """
        f, zero = self._of_noise(params, x)
        return f(zero), jax.jacrev(lambda noise: f(noise).T.ravel())(zero)

    def sample_linearised(self, params: Any, key: Array, num_samples: int) -> Function:
        """Draw functions of the linearised network; arguments and result as those of `sample`."""
        noise = jax.vmap(lambda one: ravel_pytree(self.noise(one))[0])(jax.random.split(key, num_samples))

        def at(x: Array) -> Array:
            f, zero = self._of_noise(params, x)
            mean, push = jax.linearize(f, zero)
            return mean + jax.vmap(push)(noise)

        return at

    def _of_noise(self, params: Any, x: Array) -> tuple[Callable[[Array], Array], Array]:
        zero, unravel = ravel_pytree(jax.tree.map(jnp.zeros_like, self.noise(jax.random.key(0))))
        return lambda noise: self.net.apply(self.weights(params, unravel(noise)), x), zero


@dataclasses.dataclass(frozen=True, eq=False)
class WeightFamily(Family):
    """A law centred at a weight vector, whose noise has the shape of the weights.

    Args:
      net: the architecture.
      input_shape: the shape of one input, without the batch axis.
      init_scale: standard deviations at the start; the means start at a draw of N(0, 1).
    """

    net: Layer
    input_shape: tuple[int, ...]
    init_scale: float = 0.1

    def __post_init__(self) -> None:
        check_positive(type(self).__name__, "init_scale", self.init_scale)

    def noise(self, key: Array) -> Any:  # noqa: D102  # as in the base class
        return self.net.init(key, self.input_shape)


@dataclasses.dataclass(frozen=True, eq=False)
class Factorised(WeightFamily):
    """Independent normals: w = mean + exp(log_scale) noise.

    Args:
      net: the architecture.
      input_shape: the shape of one input, without the batch axis.
      init_scale: standard deviations at the start; the means start at a draw of N(0, 1).
    """

    def init(self, key: Array) -> Any:  # noqa: D102  # as in the base class
        mean = self.net.init(key, self.input_shape)
        return {"mean": mean, "log_scale": jax.tree.map(lambda w: jnp.full_like(w, jnp.log(self.init_scale)), mean)}

    def weights(self, params: Any, noise: Any) -> Params:  # noqa: D102  # as in the base class
        return jax.tree.map(_shift, params["mean"], params["log_scale"], noise)


@dataclasses.dataclass(frozen=True, eq=False)
class MatrixVariate(WeightFamily):
    """Matrix normals for weight matrices, W = M + A E B^T with lower triangular A and B; independent normals elsewhere.

    Source: Louizos & Welling 2016 (arXiv 1603.04733), section 2, with full covariances of rows and of columns.

    Args:
      net: the architecture.
      input_shape: the shape of one input, without the batch axis.
      init_scale: standard deviations at the start; the means start at a draw of N(0, 1).
    """

    def init(self, key: Array) -> Any:  # noqa: D102  # as in the base class
        mean = self.net.init(key, self.input_shape)
        return {"mean": mean, "spread": [self._start(leaf) for leaf in jax.tree.leaves(mean)]}

    def _start(self, leaf: Array) -> dict[str, Array]:
        log_scale = jnp.log(jnp.asarray(self.init_scale, leaf.dtype))
        if leaf.ndim != 2:
            return {"log_scale": jnp.full_like(leaf, log_scale)}
        # Half of the scale each, with the logarithms of the diagonals on the diagonals.
        return {
            side: 0.5 * log_scale * jnp.eye(size, dtype=leaf.dtype) for side, size in zip("AB", leaf.shape, strict=True)
        }

    def weights(self, params: Any, noise: Any) -> Params:  # noqa: D102  # as in the base class
        mean, tree = jax.tree.flatten(params["mean"])
        parts = zip(mean, params["spread"], jax.tree.leaves(noise), strict=True)
        return jax.tree.unflatten(tree, [_matrix_normal(*part) for part in parts])


@dataclasses.dataclass(frozen=True, eq=False)
class RepriorisedFamily(Family):
    """Independent normals of (hidden weights, phi), with readout theta = mu + Sigma^(1/2) phi given the hidden weights.

    mu and Sigma are those of the readout's posterior under its N(0, I) prior, so that phi ~ N(0, I) is that posterior
    and the hidden weights' effect on it is followed exactly; as widths grow the NNGP posterior is in the family.

    Source: Hron, Novak, Pennington & Sohl-Dickstein 2022 (arXiv 2206.07673), section 3, read as a change of family.

    Args:
      net: the architecture, its last layer Dense with normal weights.
      x: (n, d) training inputs.
      sites: Gaussian factors in place of the likelihood's.
      init_scale: standard deviations of hidden weights at the start; phi starts at N(0, I).
    """

    net: Network
    x: Float[Array, "n d"]
    sites: Sites
    init_scale: float = 0.1

    def init(self, key: Array) -> Any:  # noqa: D102  # as in the base class
        noise = self.noise(key)
        start = {"hidden": jnp.log(self.init_scale), "phi": 0.0}
        log_scale = {
            name: jax.tree.map(lambda w, v=start[name]: jnp.full_like(w, v), part) for name, part in noise.items()
        }
        return {"mean": noise | {"phi": jnp.zeros_like(noise["phi"])}, "log_scale": log_scale}

    def noise(self, key: Array) -> Any:  # noqa: D102  # as in the base class
        hidden_key, phi_key = jax.random.split(key)
        hidden = self.net[:-1].init(hidden_key, self.x.shape[1:])
        readout = self.net.readout
        num_features = self.net[:-1].output_shape(self.x.shape[1:])[-1] + (readout.b_scale is not None)
        return {"hidden": hidden, "phi": jax.random.normal(phi_key, (num_features, readout.width), self.x.dtype)}

    def weights(self, params: Any, noise: Any) -> Params:  # noqa: D102  # as in the base class
        drawn = jax.tree.map(_shift, params["mean"], params["log_scale"], noise)
        psi = self.net.features(drawn["hidden"], self.x)
        theta = SitedRepriorisation(psi, self.sites).forward_and_log_det(drawn["phi"])[0]
        last = {"w": theta} if self.net.readout.b_scale is None else {"w": theta[:-1], "b": theta[-1]}
        return (*drawn["hidden"], last)


@dataclasses.dataclass(frozen=True, eq=False)
class MixtureFamily(Family):
    """An equal mixture of laws of one family: an ensemble whose members have a spread of their own.

    Args:
      family: of the members.
      num_components: how many; a draw picks one of them.
    """

    family: Family
    num_components: int = 5
    smooth = False

    def __post_init__(self) -> None:
        check_count("MixtureFamily", "num_components", self.num_components)

    @property
    def net(self) -> Layer:  # noqa: D102  # as in the base class
        return self.family.net

    def init(self, key: Array) -> Any:  # noqa: D102  # as in the base class
        return jax.vmap(self.family.init)(jax.random.split(key, self.num_components))

    def noise(self, key: Array) -> Any:  # noqa: D102  # as in the base class
        which_key, key = jax.random.split(key)
        return jax.random.randint(which_key, (), 0, self.num_components), self.family.noise(key)

    def weights(self, params: Any, noise: Any) -> Params:  # noqa: D102  # as in the base class
        which, noise = noise
        return self.family.weights(jax.tree.map(lambda leaf: leaf[which], params), noise)


def _shift(mean: Array, log_scale: Array, noise: Array) -> Array:
    return mean + jnp.exp(log_scale) * noise


def _matrix_normal(mean: Array, spread: dict[str, Array], noise: Array) -> Array:
    if "log_scale" in spread:
        return _shift(mean, spread["log_scale"], noise)
    lower = [jnp.tril(spread[side], -1) + jnp.diag(jnp.exp(jnp.diagonal(spread[side]))) for side in "AB"]
    return mean + lower[0] @ noise @ lower[1].T


FAMILIES = ("factorised", "matrix", "repriorised", "mixture")


def make_family(name: str, net: Network, x: Float[Array, "n d"], y: Array, likelihood: Likelihood) -> Family:
    """Return one of `FAMILIES` for an architecture and data.

    Args:
      name: which one.
      net: the architecture.
      x: (n, d) training inputs.
      y: (n, k) training targets, or (n,) labels, checked.
      likelihood: of the targets; a learned parameter counts at the median of its prior.
    """
    if name == "factorised":
        return Factorised(net, x.shape[1:])
    if name == "matrix":
        return MatrixVariate(net, x.shape[1:])
    if name == "mixture":
        return MixtureFamily(Factorised(net, x.shape[1:]))
    fixed = likelihood.at_medians()
    if isinstance(fixed, Gaussian) and jnp.ndim(fixed.scale) == 0:
        sites = Sites(y, jnp.full((len(y), 1), fixed.scale, x.dtype) ** -2)
    else:
        sites = find_sites(fixed, y, prior_covariance(net, x), net.readout.width)
    return RepriorisedFamily(net, x, sites)
