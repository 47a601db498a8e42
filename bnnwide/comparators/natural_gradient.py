"""Natural gradient descent as a sampler of a model's weights, one kernel among NumPyro's: no acceptance, and a bias."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real, Shaped
from numpyro.infer.mcmc import MCMCKernel

from bnnwide.arch.network import weight_names
from bnnwide.checks import Data, check_choice, check_positive
from bnnwide.comparators.run import Run, run_chains
from bnnwide.models.bnn import BNN, READOUT
from bnnwide.models.kernel import is_batch
from bnnwide.natgrad import NGDState, fisher, minimise, natural_gradient
from bnnwide.natgrad.dual import DualFisher
from bnnwide.natgrad.fisher import FORMS

Position = dict[str, Array]


class NGDKernelState(NamedTuple):
    """The state of one chain (or of a batch of chains); its scalars are available as `extra_fields`.

    Attributes:
      i: number of steps taken.
      z: sites, which are their own unconstrained position.
      metric: arrays of the Fisher operator at the minimum that the chain started from.
      accept_prob: not a number: nothing is accepted or rejected.
      diverging: whether the last step came to no finite number.
      num_grads: passes through the network and back, over all data, of the last step.
      step_length: squared length of the last step in the metric, per weight.
      rng_key: the chain's PRNG key.
    """

    i: Array
    z: Position
    metric: list[Array]
    accept_prob: Float[Array, "*chains"]
    diverging: Array
    num_grads: Float[Array, "*chains"]
    step_length: Float[Array, "*chains"]
    rng_key: Array


class NGD(MCMCKernel):
    """Natural gradient descent at temperature 1 as a NumPyro kernel, one step per draw; see `ngd`.

    Args:
      model: a model made by `bnn` of the standard form, with numbers for all scales and parameters.
      learning_rate: eps, between 0 and 2.
      batch_size: inputs per minibatch, drawn with replacement; None for exact gradients.
      form: of the Fisher matrix, as for `bnnwide.natgrad.fisher`.

    Raises:
      TypeError: if the model is not made by `bnn`.
      ValueError: if the model has another form or parameters to learn, or an option is out of range.
    """

    sample_field = "z"  # type: ignore[assignment]
    default_fields = ("z", "diverging")  # type: ignore[assignment]

    def __init__(
        self, model: BNN, *, learning_rate: float = 0.1, batch_size: int | None = None, form: str = "auto"
    ) -> None:
        if type(model) is not BNN:  # a functional prior is another posterior than the weights' own
            raise TypeError(f"`ngd`: model must be made by bnn(...); got {type(model).__name__}")
        if model.form != "standard":
            raise ValueError(f"`ngd`: model must have form='standard'; got {model.form!r}")
        if model.priors or not model.net.readout.gaussian_weights:
            raise ValueError(f"`ngd`: scales, parameters and the readout's prior must be fixed and normal; got {model}")
        check_choice("ngd", "form", form, FORMS)
        check_positive("ngd", "learning_rate", learning_rate)
        self._model, self._form = model, form
        self._options: dict[str, Any] = {"learning_rate": learning_rate, "batch_size": batch_size}
        # NumPyro initialises a kernel whose `_sample_fn` is None.
        self._sample_fn: Any = None
        self._metric: Any = None  # the structure of the operator, of which a state holds the arrays

    @property
    def model(self) -> BNN:
        """The NumPyro model."""
        return self._model

    def init(self, rng_key, num_warmup, init_params, model_args, model_kwargs):
        """Start one chain, or as many as there are keys, each at the minimum of -log posterior near a prior draw."""
        x, y = self._data(model_args)
        net, likelihood = self._model.net, self._model.likelihood

        def first(item: tuple[Array, Any]) -> NGDKernelState:
            key, z = item
            key, start_key = jax.random.split(key)
            start = net.init(start_key, x.shape[1:]) if z is None else self._params(z, x)
            # To one nat of the mode: a posterior draw is further from it than that.
            params = minimise(net, likelihood, x, y, start, num_steps=100, tolerance=1.0).params
            metric, self._metric = jax.tree.flatten(fisher(net, params, x, likelihood, form=self._form, damping=1.0))
            nan, zero = jnp.full((), jnp.nan), jnp.zeros(())
            return NGDKernelState(jnp.int32(0), self._sites(params), metric, nan, jnp.bool_(False), zero, zero, key)

        vectorized = is_batch(rng_key)
        step = jax.vmap(self._step, (0, None, None)) if vectorized else self._step
        self._sample_fn = step
        # One after the other: chains that are done would wait for the last, at the price of a step each.
        start = (lambda item: jax.lax.map(first, item)) if vectorized else first
        return jax.jit(start)((rng_key, init_params))

    def _step(self, state: NGDKernelState, x: Array, y: Array) -> NGDKernelState:
        params, metric = self._params(state.z, x), jax.tree.unflatten(self._metric, state.metric)
        chain = natural_gradient(self._model.net, self._model.likelihood, x, y, params, fisher=metric, **self._options)
        key, step_key = jax.random.split(state.rng_key)
        new, info = chain.step(step_key, NGDState(params))
        finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(new.params)]).all()
        batch = self._options["batch_size"]
        # The gradient; and where the metric acts through the network, its solve and its root as well.
        passes = (1.0 if batch is None else batch / len(x)) + 2.0 * isinstance(metric, DualFisher)
        return state._replace(
            i=state.i + 1, z=self._sites(new.params), diverging=~finite, num_grads=jnp.asarray(passes, x.dtype),
            step_length=info.step_length, rng_key=key,
        )  # fmt: skip

    def sample(self, state, model_args, model_kwargs):
        """Take one step."""
        if self._sample_fn is None:
            raise ValueError("`ngd`: init must be called before sample")
        return self._sample_fn(state, *self._data(model_args))

    def _data(self, args: tuple[Any, ...]) -> tuple[Array, Array]:
        x = self._model.check_inputs("ngd", args[0])
        return x, self._model.check_targets("ngd", x, args[1])

    def _params(self, z: Position, x: Array) -> Any:
        """Return a network's weights from a model's sites."""
        features = self._model.feature_map(x)
        hidden = features.hidden_params(z, jax.random.key(0))  # without the input collapse the key is not used
        biased = self._model.net.readout.b_scale is not None
        theta = z[READOUT]
        return (*hidden, {"w": theta[:-1], "b": theta[-1]} if biased else {"w": theta})

    def _sites(self, params: Any) -> Position:
        """Undo `_params`."""
        return weight_names(params[:-1], "hidden") | {READOUT: self._model.net.readout.stacked(params[-1])}

    def get_diagnostics_str(self, state):
        """Describe the chain for the progress bar."""
        return f"step length {state.step_length:.2g}"

    def __getstate__(self):
        # As for the library's own kernels: compiled closures are not pickled, and `init` rebuilds them.
        return self.__dict__ | {"_sample_fn": None}


def ngd(
    model: BNN,
    x: Real[Data, "n d"],
    y: Shaped[Data, "n *k"],
    *,
    key: Array,
    learning_rate: float = 0.1,
    batch_size: int | None = None,
    form: str = "auto",
    num_warmup: int = 500,
    num_samples: int = 1000,
    num_chains: int = 4,
) -> Run:
    """Sample a BNN's posterior by natural gradient descent with the noise of temperature 1, *without* acceptance.

    w' = w - eps G^-1 grad C + s, s of covariance 2 eps G^-1, with G = F + I the Fisher matrix at the minimum of C near
    a draw of the prior, where the chain starts. A metric that stays as it is needs no correction: with exact gradients
    the draws tend to the posterior as eps goes to 0, and forget in 1/eps steps where G is like the posterior's
    precision. `bnnwide.natgrad.sample` draws from the same chain, from those of other temperatures, and with a metric
    that moves with the weights.

    The draws are biased, by O(eps): a direction of curvature c in the metric has variance 1 / (c (1 - eps c/2)) in
    place of 1/c, and minibatches add to it as far as their noise is not that of F. Nothing in the run corrects this; a
    run with half the learning rate shows how much it matters. Under a softmax G is small where the network is sure of
    its labels, as it is at the minimum: steps are then too long elsewhere.

    Source: Smith, Duckworth, Rezchikov, Le & Sohl-Dickstein 2018 (arXiv 1806.09597).

    Args:
      model: a model made by `bnn` of the standard form, with numbers for all scales and parameters.
      x: (n, d) training inputs.
      y: (n, k) training targets, or (n,) labels.
      key: PRNG key.
      learning_rate: eps, between 0 and 2.
      batch_size: inputs per minibatch, drawn with replacement; None for exact gradients.
      form: of the Fisher matrix, as for `bnnwide.natgrad.fisher`.
      num_warmup: steps before the first draw, per chain.
      num_samples: draws, one per step, per chain.
      num_chains: number of chains, stepped together.

    Returns:
      The draws. `stats`, all (chains, draws): `num_grads`, passes through the network and back over all data (1 for the
      gradient, or B/n, and 2 for a metric in the dual form); `step_length`, the squared length of a step in the metric,
      per weight; `diverging`, whether it came to no finite number.

    Raises:
      TypeError: if the model is not made by `bnn`.
      ValueError: if the model has another form or parameters to learn, an option is out of range (a learning rate whose
        minibatches hold more than temperature 1 among them), or data do not fit it.
    """
    kernel = NGD(model, learning_rate=learning_rate, batch_size=batch_size, form=form)
    return run_chains(
        "ngd", model, kernel, (x, y), key, num_warmup=num_warmup, num_samples=num_samples, num_chains=num_chains,
        fields=("num_grads", "step_length", "diverging"),
    )  # fmt: skip
