"""Every public door refuses what it cannot take, in one voice; and bad data before anything compiles."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC

import bnnwide as bw

N, D, K = 5, 3, 2
NET = bw.Dense(4, b_scale=0.1) >> bw.Gelu() >> bw.Dense(K)
NOISE = bw.Gaussian(0.3)
MODEL = bw.bnn(NET, NOISE)
LEARNED = bw.bnn(NET, bw.Gaussian(dist.HalfNormal(1.0)))
X, Y = np.random.default_rng(0).normal(size=(N, D)), np.random.default_rng(1).normal(size=(N, K))
SAMPLES = {"hidden.0.w": np.zeros((7, D, 4)), "hidden.0.b": np.zeros((7, 4))}
KEY = jax.random.key(0)

pytestmark = pytest.mark.usefixtures("only_the_librarys_own_checks")


def spoiled(array, value):
    array = np.array(array)
    array[0, 1] = value
    return array


def run(kernel, *args, num_warmup=2, **kwargs):
    mcmc = MCMC(kernel, num_warmup=num_warmup, num_samples=2, progress_bar=False)
    mcmc.run(KEY, *args, **kwargs)


def predict(samples=SAMPLES, x=X, y=Y, x_test=X, model=MODEL, **options):
    return bw.predict(model, samples, x, y, x_test, **options)


CASES = {
    # architectures
    "width 0": (lambda: bw.Dense(0), "`Dense`: width must be at least 1; got 0"),
    "width negative": (lambda: bw.Dense(-3), "`Dense`: width must be at least 1; got -3"),
    "width not whole": (lambda: bw.Dense(2.5), "`Dense`: width must be a whole number; got 2.5"),
    "w_scale negative": (lambda: bw.Dense(2, w_scale=-1.0), "`Dense`: w_scale must be positive and finite; got -1.0"),
    "w_scale NaN": (lambda: bw.Dense(2, w_scale=float("nan")), "`Dense`: w_scale must be positive and finite"),
    "b_scale negative": (lambda: bw.Dense(2, b_scale=-0.1), "`Dense`: b_scale must be positive and finite; got -0.1"),
    "fn": (lambda: bw.Elementwise(3), "`Elementwise`: fn must be a function of an array; got 3"),
    ">>": (lambda: bw.Dense(2) >> jnp.tanh, "`>>`: the right-hand side must be a Layer"),
    "residual": (
        lambda: bw.Residual(bw.Dense(4)).init(KEY, (D,)), "`Residual`: the body must keep the input's shape (3,)",
    ),
    "no features axis": (lambda: bw.Dense(2).init(KEY, ()), "`Dense`: inputs must have a non-empty feature axis"),
    "no batch axis": (
        lambda: NET(NET.init(KEY, (D,)), X[0]), "`Network`: x must have a batch axis, shape (n, d); got (3,)",
    ),
    "params of other inputs": (lambda: NET(NET.init(KEY, (D + 1,)), X), "`Network`: params must have the shapes"),
    "readout": (lambda: bw.bnn(bw.Dense(4) >> bw.Relu(), NOISE), "`Network`: the last layer must be Dense"),
    # the model
    "net": (lambda: bw.bnn("mlp", NOISE), "`bnn`: net must be an architecture"),
    "one layer": (lambda: bw.bnn(bw.Dense(2), NOISE), "`bnn`: net must have at least one layer before its Dense"),
    "likelihood": (lambda: bw.bnn(NET, 0.1), "`bnn`: likelihood must be a likelihood such as Gaussian(scale=0.1)"),
    "form": (
        lambda: bw.bnn(NET, NOISE, "colapsed"),
        "`bnn`: form must be one of 'standard', 'repriorised', 'collapsed'; got 'colapsed'",
    ),
    "solver": (lambda: bw.bnn(NET, NOISE, solver="lu"), "`bnn`: solver must be one of 'auto', 'primal', 'dual'"),
    "scale 0": (lambda: bw.Gaussian(0.0), "`Gaussian`: scale must be positive and finite; got 0.0"),
    "scale negative": (lambda: bw.Gaussian(-0.1), "`Gaussian`: scale must be positive and finite; got -0.1"),
    "scale text": (lambda: bw.Gaussian("0.1"), "`Gaussian`: scale must be a positive number or a NumPyro distribution"),
    "scale matrix": (
        lambda: bw.Gaussian(jnp.ones((2, 2))), "`Gaussian`: scale must be one number, or one per target column;",
    ),
    "scale prior": (lambda: bw.Gaussian(dist.Normal()), "`Gaussian`: the prior on scale must live on the positive"),
    "scale priors": (
        lambda: bw.Gaussian(dist.HalfNormal(jnp.ones((2, 2)))),
        "`Gaussian`: the prior on scale must be of one number, or of one per target column; got shape (2, 2)",
    ),
    # data, through MCMC
    "x of rank 1": (lambda: run(bw.PCN(MODEL), X[:, 0], Y), "`bnn`: x must have shape (n, d); got (5,)"),
    "y of rank 1": (lambda: run(bw.PCN(MODEL), X, Y[:, 0]), "`bnn`: y must have shape (5, k) with n=5 from x"),
    "y too short": (
        lambda: run(bw.PCN(MODEL), X, Y[1:]), "`bnn`: y must have shape (5, k) with n=5 from x; got (4, 2)",
    ),
    "y too wide": (
        lambda: run(bw.PCN(MODEL), X, np.ones((N, 3))),
        "`bnn`: y must have shape (n, 2) with k=2 from the readout Dense(2); got (5, 3)",
    ),
    "no data": (lambda: run(bw.PCN(MODEL), X[:0], Y[:0]), "`bnn`: x must hold at least one entry on every axis"),
    "no features": (lambda: run(bw.PCN(MODEL), X[:, :0], Y), "`bnn`: x must hold at least one entry on every axis"),
    "text": (lambda: run(bw.PCN(MODEL), X.astype(str), Y), "`bnn`: x must be an array of real numbers"),
    "complex": (
        lambda: run(bw.PCN(MODEL), X, Y * 1j),
        "`bnn`: y must be an array of real numbers; got dtype complex128",
    ),
    "NaN in x": (
        lambda: run(bw.PCN(MODEL), spoiled(X, np.nan), Y),
        "`bnn`: x must be finite; got 1 NaN or infinite of 15 entries",
    ),
    "infinite y": (
        lambda: run(bw.PCN(MODEL), X, spoiled(Y, np.inf)),
        "`bnn`: y must be finite; got 1 NaN or infinite of 10 entries",
    ),
    "input collapse": (
        lambda: run(bw.PCN(bw.bnn(NET, NOISE, input_collapse=True)), X, Y), "`bnn`: input_collapse=True needs a Dense",
    ),
    # kernels
    "model and potential": (lambda: bw.PCN(MODEL, lambda z: 0.0), "`PCN`: exactly one of model and potential_fn"),
    "nothing": (lambda: bw.SplitHMC(), "`SplitHMC`: exactly one of model and potential_fn must be given"),
    "both": (
        lambda: bw.SplitHMC(MODEL, step_size=0.1, num_steps=3),
        "`SplitHMC`: at most one of step_size and num_steps must be given; got both",
    ),
    "step_size": (lambda: bw.SplitHMC(MODEL, step_size=0.0), "`SplitHMC`: step_size must lie in (0, 1.571]; got 0.0"),
    "num_steps": (lambda: bw.SplitHMC(MODEL, num_steps=0), "`SplitHMC`: num_steps must be"),
    "trajectory": (
        lambda: bw.SplitHMC(MODEL, trajectory_length=-1.0),
        "`SplitHMC`: trajectory_length must be positive",
    ),
    "jitter": (lambda: bw.SplitHMC(MODEL, jitter=1.0), "`SplitHMC`: jitter must lie in [0, 1); got 1.0"),
    "target": (
        lambda: bw.SplitHMC(MODEL, target_accept=1.2),
        "`SplitHMC`: target_accept must lie between 0 and 1; got 1.2",
    ),
    "beta": (lambda: bw.PCN(MODEL, beta=1.5), "`PCN`: beta must lie in (0, 1]; got 1.5"),
    "beta NaN": (lambda: bw.PCN(MODEL, beta=float("nan")), "`PCN`: beta must lie in (0, 1]; got nan"),
    "delta": (lambda: bw.PCNL(MODEL, delta=2.5), "`PCNL`: delta must lie in (0, 2]; got 2.5"),
    "no init_params": (
        lambda: run(bw.PCN(potential_fn=lambda z: jnp.sum(z**2))), "`PCN`: init_params must be given with potential_fn",
    ),
    "no latent site": (lambda: run(bw.PCN(lambda: None)), "`PCN`: the model must have at least one latent site"),
    # predictions
    "no bnn": (lambda: predict(model=lambda x, y: None), "`predict`: model must be made by bnn(...); got function"),
    "missing site": (
        lambda: predict({"hidden.0.w": SAMPLES["hidden.0.w"]}), "`predict`: samples must hold the site 'hidden.0.b'",
    ),
    "missing noise": (lambda: predict(model=LEARNED), "`predict`: samples must hold the site 'noise_scale'"),
    "by chain": (
        lambda: predict({name: value[None] for name, value in SAMPLES.items()}),
        "`predict`: samples['hidden.0.b'] must have shape (draws, 4); got (1, 7, 4)",
    ),
    "other x": (lambda: predict(x=X[:, :2], x_test=X[:, :2]), "`predict`: samples['hidden.0.w'] must have shape"),
    "x_test": (
        lambda: predict(x_test=X[:, :2]),
        "`predict`: x_test must have shape (n, 3) with d=3 from x; got (5, 2)",
    ),
    "no x_test": (lambda: predict(x_test=X[:0]), "`predict`: x_test must hold at least one entry on every axis"),
    "NaN in x_test": (lambda: predict(x_test=spoiled(X, np.nan)), "`predict`: x_test must be finite"),
    "predict y": (lambda: predict(y=Y[:, 0]), "`predict`: y must have shape (5, k) with n=5 from x; got (5,)"),
    "batch_size": (lambda: predict(batch_size=0), "`predict`: batch_size must be at least 1; got 0"),
    "NaN in samples": (
        lambda: predict(SAMPLES | {"hidden.0.b": np.full((7, 4), np.nan)}), "`predict`: Psi Psi^T + scale^2 I has no",
    ),
    "readout draws": (
        lambda: bw.readout_draws(MODEL, {}, X, Y, key=KEY), "`readout_draws`: samples must hold the site 'hidden.0.b'",
    ),
    "hidden": (
        lambda: bw.hidden_weights(MODEL, {}, X, Y, key=KEY),
        "`hidden_weights`: samples must hold the site 'hidden.0.b'",
    ),
    # the map itself
    "repriorisation solver": (
        lambda: bw.Repriorisation(jnp.ones((3, 2)), jnp.ones((3, 1)), 0.1, "lu").forward_and_log_det(jnp.ones((2, 1))),
        "`Repriorisation`: solver must be one of 'auto', 'primal', 'dual'; got 'lu'",
    ),
    "repriorisation shapes": (
        lambda: bw.Repriorisation(jnp.ones((3, 2)), jnp.ones((4, 1)), 0.1),
        "`Repriorisation`: y must have shape (3, k)",
    ),
    "repriorisation scale": (
        lambda: bw.Repriorisation(jnp.ones((3, 2)), jnp.ones((3, 1)), -0.1), "`Repriorisation`: scale must be positive",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_says_what_was_expected_and_what_came(name):
    call, message = CASES[name]
    with pytest.raises((ValueError, TypeError), match="^" + re.escape(message)):
        call()


def test_bad_data_raise_before_anything_compiles():
    compiled = []

    def listen(event, *_, **__):
        if "backend_compile" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    jax.jit(lambda u: u + 41.5)(1.0)
    assert compiled  # the listener listens
    compiled.clear()
    bad = spoiled(Y, np.nan)
    for call in (
        lambda: MODEL(X, bad),
        lambda: predict(y=bad),
        lambda: predict(x_test=spoiled(X, np.inf)),
        lambda: bw.readout_draws(MODEL, SAMPLES, X, bad, key=KEY),
    ):
        with pytest.raises(ValueError, match="must be finite"):
            call()
    assert not compiled


def test_lists_of_numbers_are_taken_as_arrays():
    with pytest.raises(ValueError, match=re.escape("`predict`: y must have shape (5, k) with n=5 from x; got (2, 1)")):
        predict(x=X.tolist(), y=[[1.0], [2.0]])
    assert predict(x=X.tolist(), y=Y.tolist()).mean.shape == (N, K)
