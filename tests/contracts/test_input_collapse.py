"""The input collapse: a factorisation of the training inputs under which nothing the data see is changed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer.util import log_density

import bnnwide as bw
from bnnwide.models import feature_map
from bnnwide.reparam import collapse_inputs

N, D = 4, 9
DENSE = [bw.Dense(6, w_scale=1.3), bw.Dense(6, w_scale=1.3, b_scale=0.4)]


def data(n=N, d=D, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(n, d)))


def stacked(layer, params):
    return params["w"] if layer.b_scale is None else jnp.concatenate([params["w"], params["b"][None]])


@pytest.mark.parametrize("traced", [False, True], ids=["concrete", "traced"])
@pytest.mark.parametrize("first", DENSE, ids=["no bias", "bias"])
def test_factorisation_and_weights(first, traced):
    x = data()

    def parts(x):
        collapse = collapse_inputs(first, x)
        v = jax.random.normal(jax.random.key(1), (N, 6))
        weights = collapse.weights(v, jax.random.key(2))
        return collapse.r, collapse.q, v, weights, collapse.span(weights), collapse.preactivation(v), first(weights, x)

    r, q, v, weights, span, preactivation, outputs = (jax.jit(parts) if traced else parts)(x)
    p = D + (first.b_scale is not None)
    assert r.shape == (N, N) and q.shape == (N, p)
    np.testing.assert_allclose(q @ q.T, np.eye(N), atol=1e-13)
    np.testing.assert_allclose(r @ q, first.features(x), atol=1e-13)
    np.testing.assert_allclose(span, v, atol=1e-13)
    np.testing.assert_allclose(preactivation, outputs, atol=1e-13)
    assert jax.tree.map(jnp.shape, weights) == jax.tree.map(lambda leaf: leaf.shape, first.weight_shapes((D,)))


def test_recovered_weights_keep_the_prior():
    first, x = DENSE[1], data()
    collapse = collapse_inputs(first, x)
    keys = jax.random.split(jax.random.key(3), 20_000)
    draws = jax.vmap(lambda key: collapse.weights(jax.random.normal(key, (N, 6)), jax.random.fold_in(key, 1)))(keys)
    full = np.asarray(jax.vmap(lambda params: stacked(first, params)[:, 0])(draws))
    assert np.abs(np.cov(full, rowvar=False) - np.eye(D + 1)).max() < 6 / np.sqrt(len(full))


@pytest.mark.parametrize("t", [3, 10, 25])
@pytest.mark.parametrize("first", DENSE, ids=["no bias", "bias"])
def test_test_inputs_split_into_span_and_residual(first, t):
    x, x_test = data(), data(t, D, 1)
    collapse = collapse_inputs(first, x)
    inside, outside = collapse.test_inputs(x_test)
    p = D + (first.b_scale is not None)
    assert inside.shape == (t, N) and outside.shape == (t, min(t, p))
    scaled = np.asarray(first.features(x_test))
    residual = scaled @ (np.eye(p) - np.asarray(collapse.q.T @ collapse.q))
    np.testing.assert_allclose(inside, scaled @ np.asarray(collapse.q).T, atol=1e-12)
    np.testing.assert_allclose(outside @ outside.T, residual @ residual.T, atol=1e-12)


@pytest.mark.parametrize("form", ["repriorised", "collapsed"])
def test_collapsed_inputs_give_the_same_density(form):
    """With V = Q [w; b], log p(V, Y) is log p(w, b, Y) less the prior of what V leaves out."""
    net = DENSE[1] >> bw.Gelu() >> bw.Dense(5, b_scale=0.2) >> bw.Tanh() >> bw.Dense(2)
    x, y = data(), data(N, 2, 2)
    on, off = (bw.bnn(net, bw.Gaussian(0.3), form, input_collapse=flag) for flag in (None, False))
    params = net.init(jax.random.key(4), (D,))
    rest = {"hidden.2.w": params[2]["w"], "hidden.2.b": params[2]["b"]}
    if form == "repriorised":
        rest["readout_base"] = params[4]["w"]
    span = collapse_inputs(net[0], x).span(params[0])
    collapsed, _ = log_density(on, (x, y), {}, rest | {"hidden.0.span": span})
    full, _ = log_density(off, (x, y), {}, rest | {"hidden.0.w": params[0]["w"], "hidden.0.b": params[0]["b"]})
    left_out = jnp.sum(stacked(net[0], params[0]) ** 2) - jnp.sum(span**2)
    missing = (D + 1 - N) * 6
    np.testing.assert_allclose(collapsed, full + 0.5 * left_out + 0.5 * missing * np.log(2 * np.pi), rtol=1e-11)


def test_where_it_applies():
    net = bw.Dense(6, b_scale=0.1) >> bw.Relu() >> bw.Dense(1)
    applies = lambda net, n, d, flag=None: feature_map(net, data(n, d), flag).collapse is not None  # noqa: E731
    assert applies(net, 4, 9) and not applies(net, 9, 9) and not applies(net, 12, 9)
    assert not applies(net, 4, 9, False)
    assert applies(net, 9, 9, True)  # n = d < d + 1
    assert not applies(bw.Relu() >> net, 4, 9)
    assert "input_collapse=auto (when n < d)" in repr(bw.bnn(net, bw.Gaussian(0.1)))
    assert "input_collapse=off" in repr(bw.bnn(net, bw.Gaussian(0.1), input_collapse=False))
    assert "input_collapse=off" in repr(bw.bnn(net, bw.Gaussian(0.1), "standard"))
    assert "input_collapse=off" in repr(bw.bnn(bw.Relu() >> net, bw.Gaussian(0.1)))
