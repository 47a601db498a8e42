"""Priors over functions: Gaussian processes, laws given by a sampler of functions, and mixtures."""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float, Real

from bnnwide.arch import Layer
from bnnwide.checks import Data, check_array, check_count, check_inputs, is_concrete
from bnnwide.functional.hyper import fit_hyper
from bnnwide.functional.posterior import GPPosterior
from bnnwide.gp.regression import Regression, condition
from bnnwide.gp.ridge import noise_variance
from bnnwide.likelihoods import Gaussian
from bnnwide.linalg import cho_solve, cholesky, log_diag_sum


class FunctionPrior(abc.ABC):
    """A law over real functions of x; several outputs are independent draws of it.

    A subclass states how functions are drawn at given inputs. Where `explicit` is true it also has a density of noisy
    values, f(x) + N(0, nugget I), and so an exact score; elsewhere the score is estimated from draws.
    """

    explicit: bool = False

    @abc.abstractmethod
    def sample(self, key: Array, x: Real[Data, "n d"], num_samples: int) -> Float[Array, "s n"]:
        """Draw functions, jointly over the inputs.

        Args:
          key: PRNG key.
          x: (n, d) inputs.
          num_samples: s, how many functions.
        """

    def log_prob(self, f: Float[Array, "n"], x: Float[Array, "n d"], nugget: Array | float) -> Float[Array, ""]:
        """Return log p(f) of one function's values at `x` plus independent noise of variance `nugget`.

        Raises:
          NotImplementedError: if the law is known by its draws only.
        """
        raise NotImplementedError(f"`log_prob`: {type(self).__name__} is known by its draws only")

    def score(self, f: Float[Array, "s n"], x: Float[Array, "n d"], nugget: Array | float) -> Float[Array, "s n"]:
        """Return d log p(f) / df, row by row, of values at `x` plus independent noise of variance `nugget`."""
        return jax.vmap(jax.grad(lambda values: self.log_prob(values, x, nugget)))(f)

    def moments(self, key: Array, x: Float[Array, "n d"], num_samples: int) -> tuple[Array, Array]:
        """Return mean (n,) and covariance (n, n) at `x`; of that many draws, unless they are known."""
        draws = self.sample(key, x, num_samples)
        off = draws - draws.mean(axis=0)
        return draws.mean(axis=0), off.T @ off / (num_samples - 1)


@dataclasses.dataclass(frozen=True, eq=False)
class GPPrior(FunctionPrior):
    """A Gaussian process: f ~ GP(mean, kernel).

    Args:
      kernel: a function of (x1 (n1, d), x2 (n2, d)) to (n1, n2), for instance a kernel of tinygp; or an architecture,
        whose NNGP kernel it is. With `hyper`, a function of those names to such a kernel:
        lambda scale, length: scale**2 * tinygp.kernels.ExpSquared(length).
      mean: None for zero, a number, or a function of x (n, d) to (n,). Afterwards `prior.mean(x)` in any case.
      hyper: hyper-parameters by name, each a number or a NumPyro distribution. Afterwards `prior.hyper` holds those
        with a distribution, and `numbers` the others.
      numbers: hyper-parameters that are numbers.

    Raises:
      TypeError: if `kernel` is no function, or a hyper-parameter neither a number nor a distribution.
    """

    kernel: Any
    mean: Any = None
    hyper: Any = None
    numbers: Any = None
    explicit = True

    def __post_init__(self) -> None:
        if not (callable(self.kernel) or isinstance(self.kernel, Layer)):
            raise TypeError(
                "`GPPrior`: kernel must be a function of (x1, x2), such as a kernel of tinygp, or an architecture; got "
                f"{self.kernel!r}"
            )
        priors, numbers = {}, dict(self.numbers or {})
        for name, value in dict(self.hyper or {}).items():
            if isinstance(value, dist.Distribution):
                priors[name] = value
            elif isinstance(value, (int, float, np.ndarray, np.generic, jax.Array)) and not isinstance(value, bool):
                numbers[name] = value
            else:
                raise TypeError(f"`GPPrior`: hyper[{name!r}] must be a number or a NumPyro distribution; got {value!r}")
        mean = self.mean
        if mean is None or not callable(mean):
            mean = _Constant(0.0 if mean is None else mean)
        for name, value in (("hyper", priors), ("numbers", numbers), ("mean", mean)):
            object.__setattr__(self, name, value)

    def at(self, values: Mapping[str, Any]) -> "GPPrior":
        """Return the process with numbers in place of hyper-parameters, all or some of them.

        Args:
          values: one number per name, such as a draw of MCMC; names that are no hyper-parameters are not looked at.
        """
        chosen = {name: values[name] for name in [*self.hyper, *self.numbers] if name in values}
        rest = {name: prior for name, prior in self.hyper.items() if name not in chosen}
        return GPPrior(self.kernel, self.mean, rest, {**self.numbers, **chosen})

    def with_kernel(self, kernel: Any) -> "GPPrior":
        """Return the process with another kernel of the same form."""
        return GPPrior(kernel, self.mean, self.hyper, self.numbers)

    def covariance(self, x1: Real[Data, "n1 d"], x2: Real[Data, "n2 d"] | None = None) -> Float[Array, "n1 n2"]:
        """Return the prior covariance between two sets of inputs, in squared units of f.

        Args:
          x1: (n1, d) inputs.
          x2: (n2, d) inputs; None takes x1.

        Raises:
          ValueError: for wrong shapes, NaN or infinite inputs, a hyper-parameter that still has a distribution, or a
            kernel that does not return (n1, n2).
        """
        door = "covariance"
        x1 = check_inputs(door, "x1", x1)
        x2 = x1 if x2 is None else check_inputs(door, "x2", x2, x1.shape[1:], "x1")
        self.check_numbers(door)
        kernel = self.kernel(**self.numbers) if self.numbers else self.kernel
        matrix = kernel.kernel(x1, None if x2 is x1 else x2, ntk=False).nngp if isinstance(kernel, Layer) else (
            kernel(x1, x2)
        )  # fmt: skip
        if jnp.shape(matrix) != (len(x1), len(x2)):
            raise ValueError(
                f"`{door}`: kernel must return shape {(len(x1), len(x2))} for such inputs; got {jnp.shape(matrix)}"
            )
        return jnp.asarray(matrix, x1.dtype)

    def variance(self, x: Float[Array, "n d"]) -> Float[Array, "n"]:
        """Return the prior variance (n,) at inputs, one at a time: no (n, n) matrix."""
        return jax.vmap(lambda row: self.covariance(row[None])[0, 0])(x)

    def sample(  # noqa: D102  # as in the base class
        self, key: Array, x: Real[Data, "n d"], num_samples: int
    ) -> Float[Array, "s n"]:
        check_count("sample", "num_samples", num_samples)
        x = check_inputs("sample", "x", x)
        draws = jax.random.normal(key, (num_samples, len(x)), x.dtype)
        # By eigenvectors, because a smooth kernel at many inputs is singular to rounding.
        values, vectors = jnp.linalg.eigh(self.covariance(x))
        return self.mean(x) + draws @ (vectors * jnp.sqrt(jnp.maximum(values, 0.0))).T

    def log_prob(  # noqa: D102  # as in the base class
        self, f: Float[Array, "n"], x: Float[Array, "n d"], nugget: Array | float
    ) -> Float[Array, ""]:
        factor = self._factor(x, nugget)
        off = f - self.mean(x)
        return -0.5 * off @ cho_solve(factor, off[:, None])[:, 0] - log_diag_sum(factor) - 0.5 * len(f) * jnp.log(
            2 * jnp.pi
        )  # fmt: skip

    def score(  # noqa: D102  # as in the base class
        self, f: Float[Array, "s n"], x: Float[Array, "n d"], nugget: Array | float
    ) -> Float[Array, "s n"]:
        return -cho_solve(self._factor(x, nugget), (f - self.mean(x)).T).T

    def moments(  # noqa: D102  # as in the base class
        self, key: Array, x: Float[Array, "n d"], num_samples: int
    ) -> tuple[Array, Array]:
        return self.mean(x), self.covariance(x)

    def _factor(self, x: Array, nugget: Array | float) -> Float[Array, "n n"]:
        return cholesky(self.covariance(x) + nugget * jnp.eye(len(x), dtype=x.dtype))

    def posterior(self, x: Real[Data, "n d"], y: Real[Data, "n k"], likelihood: Gaussian | None) -> GPPosterior:
        """Return the exact posterior under Gaussian noise, by the dense textbook formula, O(n^3).

        Args:
          x: (n, d) training inputs.
          y: (n, k) training targets; the outputs are independent and share the kernel.
          likelihood: `Gaussian(scale)` with a number, or None for targets without noise.

        Returns:
          A process with `predict(x_test, full_cov=False)`, `sample` and `log_marginal_likelihood`.

        Raises:
          TypeError: if the likelihood is not Gaussian.
          ValueError: for wrong shapes, NaN or infinite numbers, or a learned scale or hyper-parameter.
        """
        return GPPosterior(self, *self._condition("posterior", x, y, likelihood))

    def log_marginal_likelihood(
        self, x: Real[Data, "n d"], y: Real[Data, "n k"], likelihood: Gaussian | None
    ) -> Float[Array, ""]:
        """Return log p(y) of targets under the process and Gaussian noise, all outputs together.

        Source: Rasmussen & Williams 2006, eq. 2.30.

        Args:
          x: (n, d) training inputs.
          y: (n, k) training targets.
          likelihood: `Gaussian(scale)` with a number, or None.
        """
        return self._condition("log_marginal_likelihood", x, y, likelihood)[-1].log_marginal_likelihood()

    def _condition(self, door: str, x: Data, y: Data, likelihood: Any) -> tuple[Array, Array, Regression]:
        variance = noise_variance(door, likelihood)
        x = check_inputs(door, "x", x)
        check_array(door, "y", y, (len(x), "k"), f"n={len(x)} from x")
        self.check_numbers(door)
        off = jnp.asarray(y, x.dtype) - self.mean(x)[:, None]
        return x, variance, condition(door, self.covariance(x), off, variance, None)

    def fit(
        self,
        x: Real[Data, "n d"],
        y: Real[Data, "n k"],
        likelihood: Gaussian,
        *,
        parameters: Sequence[str] | None = None,
        num_steps: int = 200,
        tolerance: float = 1e-5,
    ) -> tuple["GPPrior", Gaussian]:
        """Fit hyper-parameters and the noise scale by the marginal likelihood log N(y; mean, K + scale^2 I).

        With `hyper`, its numbers are fitted on the log scale from where they stand, and those with a distribution from
        their medians, their log density added to the objective. Without, every number in the kernel is fitted on the
        log scale (the scales of an architecture, the length scales of a kernel of tinygp).

        Source: Rasmussen & Williams 2006, section 5.4.1.

        Args:
          x: (n, d) training inputs.
          y: (n, k) training targets.
          likelihood: `Gaussian(scale)`, where the search starts; a scale with a prior is treated as `hyper` is.
          parameters: names that are fitted, "noise" among them; what is left out stays. None fits all.
          num_steps: of L-BFGS-B, at most.
          tolerance: stop when the largest gradient entry, per target, is below it.

        Returns:
          The process and the likelihood with the numbers found.

        Raises:
          TypeError: if the likelihood is not Gaussian.
          ValueError: for wrong shapes, NaN or infinite numbers, unknown names, a number that is not positive, or an
            objective that is not finite.
        """
        return fit_hyper(self, x, y, likelihood, parameters, num_steps, tolerance)

    def check_numbers(self, door: str) -> None:
        """Check at the public door named `door` that no hyper-parameter has a distribution.

        Raises:
          ValueError: if one has.
        """
        if self.hyper:
            raise ValueError(
                f"`{door}`: the hyper-parameters of the prior must be numbers; got distributions for "
                f"{sorted(self.hyper)}; use prior.at(values), or prior.fit(x, y, likelihood)"
            )

    def __repr__(self) -> str:
        shown = {name: value for name, value in self.numbers.items() if is_concrete(value)} | {
            name: type(prior).__name__ for name, prior in self.hyper.items()
        }
        values = "".join(f", {name}={value}" for name, value in shown.items())
        kernel = self.kernel if not hasattr(self.kernel, "__name__") else self.kernel.__name__
        return f"GPPrior({kernel}{values})"


@dataclasses.dataclass(frozen=True)
class _Constant:
    """The mean function of one value."""

    value: Any

    def __call__(self, x: Array) -> Array:
        return jnp.full((len(x),), self.value, jnp.result_type(float))


@dataclasses.dataclass(frozen=True, eq=False)
class ImplicitPrior(FunctionPrior):
    """A law over functions that is known by its draws: a simulator, piecewise functions, anything.

    Args:
      sample_fn: (key, x (n, d)) -> (n,), the values of one random function at the inputs; traceable by JAX. All
        randomness must come from `key`, so that one key is one function, whatever the inputs.

    Raises:
      TypeError: if it is no function.
    """

    sample_fn: Callable[[Array, Array], Array]

    def __post_init__(self) -> None:
        if not callable(self.sample_fn):
            raise TypeError(f"`ImplicitPrior`: sample_fn must be a function of (key, x); got {self.sample_fn!r}")

    def sample(  # noqa: D102  # as in the base class
        self, key: Array, x: Real[Data, "n d"], num_samples: int
    ) -> Float[Array, "s n"]:
        check_count("sample", "num_samples", num_samples)
        x = check_inputs("sample", "x", x)
        draws = jax.vmap(lambda one: self.sample_fn(one, x))(jax.random.split(key, num_samples))
        if draws.shape != (num_samples, len(x)):
            raise ValueError(
                f"`sample`: sample_fn must return shape ({len(x)},) for such inputs; got {draws.shape[1:]}"
            )
        return draws


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture(FunctionPrior):
    """A mixture of laws over functions; with an exact density where every part has one.

    Args:
      priors: the parts.
      weights: their probabilities, positive; scaled to sum to 1. None for equal ones.

    Raises:
      TypeError: if a part is no prior over functions.
      ValueError: if there is no part, or the weights are not one positive number per part.
    """

    priors: Sequence[FunctionPrior]
    weights: Any = None

    def __post_init__(self) -> None:
        for part in self.priors:
            if not isinstance(part, FunctionPrior):
                raise TypeError(
                    f"`Mixture`: priors must be priors over functions, such as GPPrior(kernel); got {part!r}"
                )
        weights = np.ones(len(self.priors)) if self.weights is None else np.asarray(self.weights, float)
        if not self.priors or weights.shape != (len(self.priors),) or not (weights > 0).all():
            raise ValueError(
                f"`Mixture`: weights must be one positive number per prior, {len(self.priors)}; got {self.weights}"
            )
        object.__setattr__(self, "weights", weights / weights.sum())
        object.__setattr__(self, "explicit", all(part.explicit for part in self.priors))

    def sample(  # noqa: D102  # as in the base class
        self, key: Array, x: Real[Data, "n d"], num_samples: int
    ) -> Float[Array, "s n"]:
        choice_key, *keys = jax.random.split(key, 1 + len(self.priors))
        draws = jnp.stack([part.sample(k, x, num_samples) for part, k in zip(self.priors, keys, strict=True)])
        which = jax.random.choice(choice_key, len(self.priors), (num_samples,), p=jnp.asarray(self.weights))
        return draws[which, jnp.arange(num_samples)]

    def moments(  # noqa: D102  # as in the base class
        self, key: Array, x: Float[Array, "n d"], num_samples: int
    ) -> tuple[Array, Array]:
        parts = [part.moments(key, x, num_samples) for part in self.priors]
        mean: Any = sum(weight * part for weight, (part, _) in zip(self.weights, parts, strict=True))
        second = sum(w * (cov + jnp.outer(m, m)) for w, (m, cov) in zip(self.weights, parts, strict=True))
        return jnp.asarray(mean), second - jnp.outer(mean, mean)

    def log_prob(  # noqa: D102  # as in the base class
        self, f: Float[Array, "n"], x: Float[Array, "n d"], nugget: Array | float
    ) -> Float[Array, ""]:
        parts = jnp.stack([part.log_prob(f, x, nugget) for part in self.priors])
        return jax.scipy.special.logsumexp(parts + jnp.log(jnp.asarray(self.weights)))
