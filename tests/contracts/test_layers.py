"""Every layer: what it declares is what it does, under any transformation."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from flax import nnx

import bnnwide as bw

ACTIVATIONS = [
    bw.Relu(), bw.LeakyRelu(0.2), bw.Abs(), bw.Erf(), bw.Gelu(), bw.Sin(), bw.Cos(), bw.Tanh(), bw.Sigmoid(), bw.Silu(),
    bw.Softplus(), bw.Elementwise(jnp.arctan),
]  # fmt: skip
BLOCK = bw.Dense(5, b_scale=0.3) >> bw.Tanh()
NETWORKS = [
    bw.Dense(16, w_scale=2**0.5, b_scale=0.1) >> bw.Gelu() >> bw.Dense(2, b_scale=0.5),
    bw.Dense(16) >> bw.Relu() >> bw.Dense(8) >> bw.Erf() >> bw.Dense(3),
    bw.Residual(BLOCK) >> bw.Dense(4) >> bw.Sin() >> bw.Dense(1, w_scale=0.7, b_scale=0.2),
    bw.Dense(5, b_scale=0.4, w_prior=bw.Horseshoe(0.5), b_prior=dist.Laplace())
    >> bw.Tanh()
    >> bw.Dense(3, w_scale=0.7, b_scale=0.2, w_prior=dist.Normal(0.0, 1.5), b_prior=dist.Normal(0.0, 0.5)),
]
PRIORS = [
    bw.Dense(7, w_prior=dist.StudentT(3.0)),
    bw.Dense(7, b_scale=0.2, w_prior=dist.Cauchy(), b_prior=bw.Horseshoe()),
]
D, N = 5, 4


class Perceptron(nnx.Module):
    def __init__(self):
        self.first, self.last = nnx.Linear(D, 8, rngs=nnx.Rngs(0)), nnx.Linear(8, 3, rngs=nnx.Rngs(1))
        self.drop = nnx.Dropout(0.5, rngs=nnx.Rngs(2))

    def __call__(self, x):
        return self.last(self.drop(jnp.tanh(self.first(x))))


X = np.random.default_rng(0).normal(size=(2, D))
PRIOR = {"w": dist.Laplace(0.0, 0.5).expand([D, 6]), "b": dist.Normal(0.0, 0.3).expand([6])}
FOREIGN = [
    bw.from_features(lambda p, x: jnp.tanh(x @ p["w"] + p["b"]), PRIOR, 2, b_scale=0.1),
    bw.from_equinox(eqx.nn.MLP(D, 3, 8, 2, key=jax.random.key(0)), X, b_scale=0.1),
    bw.from_nnx(Perceptron(), X),
]
NETWORKS += FOREIGN
LAYERS = [*ACTIVATIONS, bw.Dense(7), bw.Dense(7, w_scale=1.5, b_scale=0.2), bw.Residual(BLOCK), *PRIORS, *NETWORKS]


def inputs(key=0, n=N):
    return jax.random.normal(jax.random.key(100 + key), (n, D))


def close(a, b, tolerance=1e-12):
    jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=tolerance, atol=tolerance), a, b)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_shapes_transformations_and_round_trip(layer):
    params, x = layer.init(jax.random.key(0), (D,)), inputs()
    y = layer(params, x)
    assert y.shape == (N, *layer.output_shape((D,)))
    assert y.dtype == jnp.float64
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, layer.weight_shapes((D,)))

    traces = []

    def call(layer, params, x):
        traces.append(1)
        return layer(params, x)

    jitted = jax.jit(call)
    close(jitted(layer, params, x), y)
    jitted(layer, layer.init(jax.random.key(1), (D,)), inputs(1))
    leaves, tree = jax.tree.flatten(layer)
    again = jax.tree.unflatten(tree, leaves)
    jitted(again, params, x)
    assert len(traces) == 1
    assert again == layer and repr(again) == repr(layer)
    close(again(params, x), y)

    # Each input is mapped on its own, and so is each set of weights.
    close(jax.vmap(lambda row: layer(params, row[None])[0])(x), y)
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf, -leaf]), params)
    each = [layer(jax.tree.map(lambda leaf, i=i: leaf[i], many), x) for i in range(3)]
    close(jax.vmap(layer, in_axes=(0, None), axis_size=3)(many, x), jnp.stack(each))


@pytest.mark.parametrize("net", NETWORKS, ids=lambda layer: type(layer).__name__)
def test_init_is_standard_normal_and_every_leaf_has_its_own_numbers(net):
    keys = jax.random.split(jax.random.key(3), 2000)
    leaves = jax.tree.leaves(jax.vmap(lambda key: net.init(key, (D,)))(keys))
    for leaf in leaves:
        for power, moment, variance in ((1, 0, 1), (2, 1, 2), (4, 3, 96)):
            error = abs(float(jnp.mean(leaf**power)) - moment)
            assert error < 5 * np.sqrt(variance / leaf.size)
    entries = jnp.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)
    correlation = np.corrcoef(entries, rowvar=False) - np.eye(entries.shape[1])
    assert np.abs(correlation).max() < 5.5 / np.sqrt(len(entries))


@pytest.mark.parametrize("net", NETWORKS, ids=lambda layer: type(layer).__name__)
def test_features_times_readout_is_the_network(net):
    params, x = net.init(jax.random.key(4), (D,)), inputs()
    last = params[-1]
    theta = last["w"] if net.readout.b_scale is None else jnp.concatenate([last["w"], last["b"][None]])
    psi = net.features(params, x)
    assert psi.shape == (N, theta.shape[0])
    close(psi @ theta, net(params, x))
    close(net.features(params[:-1], x), psi)
    close(net.readout(last, net[:-1](params[:-1], x)), net(params, x))


def test_dense_is_the_ntk_parameterisation():
    layer, x = bw.Dense(3, w_scale=1.7, b_scale=0.4), np.asarray(inputs())
    params = layer.init(jax.random.key(5), (D,))
    expected = 1.7 / np.sqrt(D) * x @ np.asarray(params["w"]) + 0.4 * np.asarray(params["b"])
    close(layer(params, x), expected)
    assert set(bw.Dense(3).init(jax.random.key(0), (D,))) == {"w"}
    assert bw.Dense(3, b_scale=0.0) == bw.Dense(3)


def test_prior_variance_does_not_depend_on_the_width():
    x = inputs()[:1]
    wanted = 2.0 / D * float(jnp.sum(x**2)) + 0.01
    for width in (4, 64):
        net = bw.Dense(width, w_scale=2**0.5, b_scale=0.1) >> bw.Elementwise(lambda u: u) >> bw.Dense(1)
        keys = jax.random.split(jax.random.key(6), 20_000)
        f = jax.jit(jax.vmap(lambda key, net=net: net(net.init(key, (D,)), x)[0, 0]))(keys)
        # Var f^2 is at most (kurtosis of a product of Gaussians) 9 - 1 times wanted^2.
        assert abs(float(jnp.var(f)) - wanted) < 5 * wanted * np.sqrt(8 / len(keys))


def test_composition_is_associative_and_slices():
    a, b, c = bw.Dense(4), bw.Relu(), bw.Dense(2)
    assert (a >> b) >> c == a >> (b >> c)
    net = a >> b >> c
    assert len(net) == 3 and net[0] == a and net[-1] == c and net[:-1] == a >> b
    assert net.readout == c
    params, x = net.init(jax.random.key(7), (D,)), inputs()
    close(net[1:](params[1:], net[:1](params[:1], x)), net(params, x))


def test_residual_adds_its_input():
    layer, x = bw.Residual(BLOCK), inputs()
    params = layer.init(jax.random.key(8), (D,))
    close(layer(params, x), x + BLOCK(params, x))


def test_scales_are_leaves_and_can_be_differentiated():
    net, x = NETWORKS[0], inputs()
    params = net.init(jax.random.key(9), (D,))
    total = lambda net: jnp.sum(net(params, x) ** 2)  # noqa: E731
    scale = lambda s: bw.Dense(16, w_scale=s, b_scale=0.1) >> net[1:]  # noqa: E731
    slope = jax.grad(total)(net)[0].w_scale
    step = 1e-6
    numeric = (total(scale(2**0.5 + step)) - total(scale(2**0.5 - step))) / (2 * step)
    np.testing.assert_allclose(slope, numeric, rtol=1e-6)
