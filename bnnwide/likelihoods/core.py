"""What every likelihood is: a NumPyro distribution of the targets for given outputs, and what targets it takes."""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float, Shaped

from bnnwide.checks import as_array, check_array, check_positive, is_concrete


class Outcome(NamedTuple):
    """What a likelihood says of one new target, given the network's outputs.

    Attributes:
      mean: (n, k) conditional mean of the target; of the one-hot target for classes.
      variance: (n, k) conditional variance.
      probs: (n, k) probabilities of the classes (or of the event, for binary targets); None if the outcome has none.
      entropy: entropy of the outcome in nats, (n,) for classes, (n, k) for binary targets; None without `probs`.
    """

    mean: Float[Array, "n k"]
    variance: Float[Array, "n k"]
    probs: Float[Array, "n k"] | None = None
    entropy: Float[Array, "n ..."] | None = None


@dataclasses.dataclass(frozen=True)
class Likelihood(abc.ABC):
    """The law of targets y given outputs f, independent over inputs; a subclass states `law` and is a likelihood.

    A field that holds a NumPyro distribution is a parameter with a prior: models sample it as the site
    "noise_<field>" and pass the likelihood with numbers in its place, so that `law` sees numbers only.

    Class attributes:
      heads: outputs of the network per column of targets.
      shift_invariant: whether a constant added to all outputs of an input changes nothing (softmax).
      wanted: the targets it takes, for messages.
    """

    heads: ClassVar[int] = 1
    shift_invariant: ClassVar[bool] = False
    wanted: ClassVar[str] = "numbers in the support of its law"

    @abc.abstractmethod
    def law(self, f: Float[Array, "n outputs"]) -> dist.Distribution:
        """Return the law of the targets: a distribution with one entry per target, given outputs (n, outputs)."""

    def outcome(self, f: Float[Array, "n outputs"]) -> Outcome:
        """Return what is said of new targets, given outputs (n, outputs)."""
        law = self.law(f)
        return Outcome(law.mean, law.variance)

    def log_prob(self, f: Float[Array, "n outputs"], y: Shaped[Array, "n *k"]) -> Float[Array, "n"]:
        """Return the log probability (density) of the targets of each input, given outputs."""
        values: Any = self.law(f).log_prob(y)
        return values.reshape(len(values), -1).sum(axis=1)

    def fisher_factor(self, f: Float[Array, "n outputs"]) -> Float[Array, "n outputs r"]:
        """Return S with S S^T = H, the Fisher information of each input's targets in its outputs.

        H_i = E_{y | f_i} [s s^T], s = d log p(y | f_i) / d f_i: the expected Hessian of -log p where the law is smooth.
        A likelihood of your own inherits 1000 draws with a fixed key in place of the expectation, whose error is about
        5%, and whose derivative in f is not that of H; state the closed form where either matters.

        Args:
          f: (n, outputs) outputs of the network.
        """

        def score(row: Array, y: Array) -> Array:
            return jax.grad(lambda row: self.log_prob(row[None], y[None])[0])(row)

        draws = jnp.moveaxis(jax.lax.stop_gradient(self.law(f).sample(jax.random.key(0), (1000,))), 0, 1)
        scores = jax.vmap(jax.vmap(score, (None, 0)))(f, draws)
        values, vectors = jnp.linalg.eigh(jnp.einsum("nsa,nsb->nab", scores, scores) / 1000)
        return vectors * jnp.sqrt(jnp.maximum(values, 0.0))[:, None, :]

    def check_outputs(self, door: str, outputs: int) -> None:
        """Check that a network with so many outputs can serve.

        Raises:
          ValueError: if it cannot.
        """
        name = type(self).__name__
        if outputs % self.heads:
            raise ValueError(
                f"`{door}`: {name} needs {self.heads} outputs per column of targets; got a readout Dense({outputs})"
            )
        k = outputs // self.heads
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            shape = value.shape() if isinstance(value, dist.Distribution) else np.shape(value)
            if shape not in ((), (k,)):
                raise ValueError(
                    f"`{door}`: {field.name} of {name} must be one number or one per target column, k={k}; got shape "
                    f"{shape}"
                )

    def check_targets(self, door: str, y: Any, n: int, outputs: int, name: str = "y") -> Array:
        """Check targets (n, k), or (n,) where the law is that of labels or k is 1 and the law discrete.

        Raises:
          TypeError: if `y` is no array of real numbers.
          ValueError: if the shape is wrong, a number is not finite, or outside of the law's support.
        """
        with jax.ensure_compile_time_eval():
            law = self.at_medians().law(jnp.zeros((n, outputs)))
        shape, discrete = law.batch_shape, law.is_discrete
        if discrete and len(shape) == 2 and shape[1] == 1 and np.ndim(y) == 1:
            y = y[:, None]
        if len(shape) == 2 and np.ndim(y) == 2 and len(y) == n and np.shape(y)[1] != shape[1]:
            check_array(door, name, y, ("n", shape[1]), f"k={shape[1]} from the readout Dense({outputs})")
        check_array(door, name, y, (n, *("k" for _ in shape[1:])), f"n={n} from {name.replace('y', 'x', 1)}")
        if is_concrete(y):
            with jax.ensure_compile_time_eval():
                support: Any = law.support
                fits = np.broadcast_to(np.asarray(support(jnp.asarray(y))), np.shape(y))
            if not fits.all():
                bad = np.asarray(y)[~fits]
                raise ValueError(
                    f"`{door}`: {name} must be {self._wanted(outputs)} for {type(self).__name__}; got {bad[0]}, one of "
                    f"{len(bad)} such entries"
                )
        return as_array(y, jnp.result_type(int if discrete else float))

    def _wanted(self, outputs: int) -> str:
        return self.wanted

    @property
    def priors(self) -> dict[str, dist.Distribution]:
        """The parameters with a prior, by site name."""
        values = {f"noise_{field.name}": getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, dist.Distribution)}

    @property
    def numbers(self) -> dict[str, Any]:
        """The parameters that are numbers, by field name."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, (float, np.ndarray, jax.Array))}

    @property
    def learned(self) -> bool:
        """Whether a parameter has a prior."""
        return bool(self.priors)

    def at(self, draw: Mapping[str, Any]) -> Any:
        """Return the likelihood with the numbers of a draw in place of its priors."""
        return dataclasses.replace(self, **{name.removeprefix("noise_"): draw[name] for name in self.priors})

    def at_medians(self) -> Any:
        """Return the likelihood with the median of each prior in its place."""
        return self.at({name: median(prior) for name, prior in self.priors.items()})

    def __repr__(self) -> str:
        shown = ", ".join(f"{field.name}={_show(getattr(self, field.name))}" for field in dataclasses.fields(self))
        return f"{type(self).__name__}({shown})"


def diagonal_factor(information: Float[Array, "n outputs"]) -> Float[Array, "n outputs outputs"]:
    """Return S with S S^T = diag(information) for each input, where a likelihood does not couple its outputs."""
    return jnp.sqrt(information)[:, :, None] * jnp.eye(information.shape[1], dtype=information.dtype)


def median(prior: dist.Distribution) -> Array:
    """Return the median of a prior, by its quantile function or else from a thousand draws."""
    try:
        return jnp.broadcast_to(jnp.asarray(prior.icdf(0.5)), prior.shape())
    except NotImplementedError:
        return jnp.median(prior.sample(jax.random.key(0), (1001,)), axis=0)


def check_parameter(name: str, field: str, value: Any) -> None:
    """Check a positive parameter of the likelihood `name`: a number, one per target column, or a prior over either.

    Raises:
      ValueError: if the number is not positive and finite, or the prior's support is not the positive numbers.
      TypeError: if it is neither a number nor a distribution.
    """
    if isinstance(value, dist.Distribution):
        if len(value.shape()) > 1 or value.event_shape:
            raise ValueError(
                f"`{name}`: the prior on {field} must be of one number, or of one per target column; got shape "
                f"{value.shape()}"
            )
        support: Any = value.support
        with jax.ensure_compile_time_eval():  # a likelihood may be made again inside a traced program
            edges = np.asarray([np.all(support(jnp.full(value.shape(), edge))) for edge in (-1.0, 0.5)])
        if edges[0] or not edges[1]:
            raise ValueError(f"`{name}`: the prior on {field} must live on the positive numbers; got {value}")
    elif isinstance(value, (int, float, np.ndarray, np.generic, jax.Array)) and not isinstance(value, bool):
        if np.ndim(value) > 1:
            raise ValueError(
                f"`{name}`: {field} must be one number, or one per target column; got shape {np.shape(value)}"
            )
        check_positive(name, field, value)
    else:
        came = type(value).__name__
        raise TypeError(f"`{name}`: {field} must be a positive number or a NumPyro distribution; got {came}")


def _show(value: Any) -> str:
    return type(value).__name__ + "(...)" if isinstance(value, dist.Distribution) else repr(value)
