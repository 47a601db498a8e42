"""Scales that have priors: found by name, filled with numbers, and refused by whatever needs numbers."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import bnnwide as bw

X = np.random.default_rng(0).normal(size=(4, 3))
Y = np.ones((4, 1))
SLOPE = dist.Uniform(0.0, 0.5)
INNER = dist.InverseGamma(2.0, 1.0)
NET = (
    bw.Dense(6, w_scale=dist.LogNormal(0.0, 0.3), b_scale=dist.HalfNormal(0.5))
    >> bw.LeakyRelu(SLOPE)
    >> bw.Residual(bw.Dense(6, w_scale=INNER) >> bw.Tanh())
    >> bw.Concatenate((bw.Identity(), bw.Dense(2, b_scale=dist.HalfCauchy(1.0))))
    >> bw.Dense(1, w_scale=0.7, w_prior=dist.Laplace())
)
VALUES = {"0.w_scale": 1.3, "0.b_scale": 0.2, "1.slope": 0.1, "2.body.0.w_scale": 0.9, "3.branches.1.b_scale": 0.4}
FILLED = (
    bw.Dense(6, w_scale=1.3, b_scale=0.2)
    >> bw.LeakyRelu(0.1)
    >> bw.Residual(bw.Dense(6, w_scale=0.9) >> bw.Tanh())
    >> bw.Concatenate((bw.Identity(), bw.Dense(2, b_scale=0.4)))
    >> bw.Dense(1, w_scale=0.7, w_prior=dist.Laplace())
)


def test_priors_of_scales_are_named_by_position():
    priors = bw.scale_priors(NET)
    assert list(priors) == list(VALUES)
    assert priors["1.slope"] is SLOPE and priors["2.body.0.w_scale"] is INNER
    assert bw.scale_priors(FILLED) == {}  # priors of weights are none of scales
    assert list(bw.scale_priors(NET[0])) == ["w_scale", "b_scale"]


def test_numbers_take_the_places_of_priors():
    assert bw.with_scales(NET, VALUES) == FILLED
    assert bw.with_scales(FILLED, {}) == FILLED
    arrays = bw.with_scales(NET, {name: np.float32(value) for name, value in VALUES.items()})
    np.testing.assert_allclose(arrays.kernel(X, ntk=False).nngp, FILLED.kernel(X, ntk=False).nngp, rtol=1e-6)


def test_shapes_and_weights_need_no_numbers():
    assert NET.output_shape((3,)) == FILLED.output_shape((3,)) == (1,)
    assert NET.weight_shapes((3,)) == FILLED.weight_shapes((3,))
    key = jax.random.key(0)
    jax.tree.map(np.testing.assert_array_equal, NET.init(key, (3,)), FILLED.init(key, (3,)))


def test_values_may_be_traced_mapped_and_differentiated():
    params = FILLED.init(jax.random.key(0), (3,))
    total = lambda values: jnp.sum(bw.with_scales(NET, values)(params, X) ** 2)  # noqa: E731
    values = {name: jnp.asarray(value) for name, value in VALUES.items()}
    np.testing.assert_allclose(jax.jit(total)(values), jnp.sum(FILLED(params, X) ** 2), rtol=1e-12)
    slopes, step = jax.grad(total)(values), 1e-6
    for name in VALUES:
        ends = [total(values | {name: values[name] + sign * step}) for sign in (1, -1)]
        np.testing.assert_allclose(slopes[name], (ends[0] - ends[1]) / (2 * step), rtol=1e-6)
    many = {name: value * jnp.asarray([0.5, 1.0]) for name, value in values.items()}
    np.testing.assert_allclose(jax.vmap(total)(many)[1], total(values), rtol=1e-12)
    # The architecture itself may be an argument, its priors' parameters then being traced.
    through = jax.jit(lambda net, values: bw.with_scales(net, values)(params, X))
    np.testing.assert_allclose(through(NET, values), FILLED(params, X), rtol=1e-12)
    # Concrete arrays from outside a traced program are checked there as they are outside.
    inside = jax.jit(lambda x: bw.with_scales(NET, values)(params, x))
    np.testing.assert_allclose(inside(X), FILLED(params, X), rtol=1e-12)
    negative = values | {"0.b_scale": jnp.asarray(-7.0)}
    with pytest.raises(ValueError, match="0.b_scale must be a number that"):
        jax.jit(lambda x: bw.with_scales(NET, negative)(params, x))(X)


LEFT = "every scale must be a number; got priors for 0.w_scale, 0.b_scale, 1.slope, 2.body.0.w_scale, "
LEFT += "3.branches.1.b_scale; put numbers in with with_scales(net, values)"
PARAMS = FILLED.init(jax.random.key(0), (3,))
REFUSED = {
    "call": (lambda: NET(PARAMS, X), f"`Network`: {LEFT}"),
    "features": (lambda: NET.features(PARAMS, X), f"`features`: {LEFT}"),
    "kernel": (lambda: NET.kernel(X), f"`kernel`: {LEFT}"),
    "kernel_diag": (lambda: NET.kernel_diag(X), f"`kernel_diag`: {LEFT}"),
    "fit": (lambda: bw.gp.fit(NET, X, Y, bw.Gaussian(0.1)), f"`fit`: {LEFT}"),
    "posterior": (lambda: bw.gp.nngp(NET, X, Y, bw.Gaussian(0.1)), f"`kernel`: {LEFT}"),
    "finite kernels": (lambda: bw.empirical.ntk(NET, PARAMS, X), f"`Network`: {LEFT}"),
    "one layer": (lambda: NET[0].features(X), "`Dense`: every scale must be a number; got priors for w_scale, b_scale"),
    "readout alone": (
        lambda: (bw.Dense(2) >> bw.Dense(1, w_scale=dist.HalfNormal())).features(PARAMS, X),
        "`features`: every scale must be a number; got priors for 1.w_scale;",
    ),
    "missing": (
        lambda: bw.with_scales(NET, {"0.w_scale": 1.0}),
        "`with_scales`: values must have the names ['0.b_scale', '0.w_scale', '1.slope', '2.body.0.w_scale', "
        "'3.branches.1.b_scale']; got ['0.w_scale']",
    ),
    "unknown": (
        lambda: bw.with_scales(FILLED, {"0.w_scale": 1.0}), "`with_scales`: values must have the names []; got ['0.w",
    ),
    "not in the support": (
        lambda: bw.with_scales(NET, VALUES | {"0.w_scale": -1.0}),
        "`with_scales`: 0.w_scale must be a number that LogNormal(loc=0.0, scale=0.3) allows; got -1.0",
    ),
    "NaN": (lambda: bw.with_scales(NET, VALUES | {"1.slope": np.nan}), "`with_scales`: 1.slope must be a number that"),
    "draws": (
        lambda: bw.with_scales(NET, VALUES | {"1.slope": np.full(5, 0.1)}),
        "`with_scales`: 1.slope must be one number; got shape (5,); map over draws",
    ),
    "no mapping": (lambda: bw.with_scales(NET, [1.0]), "`with_scales`: values must be a mapping from names to numbers"),
    "no net": (lambda: bw.scale_priors("mlp"), "`scale_priors`: net must be an architecture such as Dense(512)"),
    "no net to fill": (lambda: bw.with_scales(None, {}), "`with_scales`: net must be an architecture"),
    "real support": (
        lambda: bw.Dense(2, w_scale=dist.Normal(0.0, 1.0)),
        "`Dense`: the prior on w_scale must live on the positive numbers; got Normal(loc=0.0, scale=1.0)",
    ),
    "interval": (
        lambda: bw.Dense(2, b_scale=dist.Uniform(-0.1, 1.0)), "`Dense`: the prior on b_scale must live on the positive",
    ),
    "discrete": (
        lambda: bw.Dense(2, b_scale=dist.Poisson(1.0)), "`Dense`: the prior on b_scale must live on the positive",
    ),
    "many": (
        lambda: bw.Dense(2, w_scale=dist.HalfNormal(jnp.ones(2))),
        "`Dense`: the prior on w_scale must be of one number; got shape (2,)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_says_what_was_expected_and_what_came(name, only_the_librarys_own_checks):
    call, message = REFUSED[name]
    with pytest.raises((ValueError, TypeError), match="^" + re.escape(message)):
        call()
