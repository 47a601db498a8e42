"""Networks of other libraries, and functions of one's own: the same functions, the same posteriors, clear refusals."""

import re
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from flax import nnx
from numpyro.infer import MCMC
from numpyro.infer.util import log_density
from scipy import stats

import bnnwide as bw

N, D, K, W = 5, 3, 2, 6
SCALES = {"w_scale": 1.4, "b_scale": 0.3, "readout_w_scale": 0.8, "readout_b_scale": 0.2}
FORMS = ["standard", "repriorised", "collapsed"]
KEY = jax.random.key(0)


def data(seed=0, d=D):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(N, d)), rng.normal(size=(N, K))


X, Y = data()


def mlp(seed=0, **options):
    return eqx.nn.MLP(D, K, W, 2, activation=jnp.tanh, key=jax.random.key(seed), **options)


class Perceptron(nnx.Module):
    """Its readout is the last in order of assignment, not in that of the alphabet."""

    def __init__(self, seed=0, *, end=None, bias=True):
        rngs = nnx.Rngs(seed)
        self.middle = nnx.List([nnx.Linear(D, W, rngs=rngs), nnx.Linear(W, W, rngs=rngs)])
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.end = nnx.Linear(W, K, use_bias=bias, rngs=rngs)
        self.act = end

    def __call__(self, x):
        for part in self.middle:
            x = self.drop(jnp.tanh(part(x)))
        return self.end(x) if self.act is None else self.act(self.end(x))


def from_module(library):
    """A module in evaluation mode, as a function of a batch, and our network of it."""
    if library == "equinox":
        module = mlp()
        return jax.vmap(module), bw.from_equinox(module, X, **SCALES)
    module = Perceptron()
    net = bw.from_nnx(module, X, **SCALES)
    module.eval()
    return module, net


HOUSE = (
    bw.Dense(W, w_scale=1.4, b_scale=0.3) >> bw.Tanh()
    >> bw.Dense(W, w_scale=1.4, b_scale=0.3) >> bw.Tanh()
    >> bw.Dense(K, w_scale=0.8, b_scale=0.2)
)  # fmt: skip


def laplace_net():
    prior = {"w": dist.Laplace(0.0, 0.5).expand([D, W]).to_event(2), "b": [dist.Normal(0.1, 0.7).expand([W])]}
    return bw.from_features(lambda p, x: jnp.tanh(x @ p["w"] + p["b"][0]), prior, K, w_scale=1.2, b_scale=0.1)


NETS = {
    "function": laplace_net,
    "equinox": lambda: from_module("equinox")[1],
    "nnx": lambda: from_module("nnx")[1],
}


def theta_of(net, params):
    last = params[-1]
    return last["w"] if net.readout.b_scale is None else jnp.concatenate([last["w"], last["b"][None]])


def sites_of(params):
    hidden = params[0]
    leaves = jax.tree_util.tree_flatten_with_path(hidden)[0]
    return {f"hidden.0.{jax.tree_util.keystr(path, simple=True, separator='.')}": leaf for path, leaf in leaves}


# One function


@pytest.mark.parametrize("library", ["equinox", "nnx"])
def test_at_the_modules_weights_the_network_is_the_module(library):
    """Weights divided by their prior scales, written by hand, give back the module's own outputs."""
    module, net = from_module(library)
    if library == "equinox":
        layers = mlp().layers
        weights, biases = [np.asarray(part.weight).T for part in layers], [np.asarray(part.bias) for part in layers]
    else:
        layers = [*module.middle, module.end]
        weights, biases = [np.asarray(part.kernel[...]) for part in layers], [part.bias[...] for part in layers]
    hidden = {}
    for i, fan_in in enumerate((D, W)):
        z = weights[i] / (1.4 / np.sqrt(fan_in))
        path = f"layers.{i}.weight" if library == "equinox" else f"middle.{i}.kernel"
        hidden[path] = jnp.asarray(z.T if library == "equinox" else z)
        hidden[path.replace("weight", "bias").replace("kernel", "bias")] = jnp.asarray(biases[i] / 0.3)
    params = (hidden, {"w": jnp.asarray(weights[2] * np.sqrt(W) / 0.8), "b": jnp.asarray(biases[2] / 0.2)})
    np.testing.assert_allclose(net(params, X), module(jnp.asarray(X)), rtol=1e-5, atol=1e-6)  # the module's are float32


@pytest.mark.parametrize("library", ["equinox", "nnx"])
def test_standard_parameterisation_by_rescaling_is_the_houses_network(library):
    """The same standard normal weights give the same function, exactly: the prior on functions is one."""
    net = from_module(library)[1]
    ours = HOUSE.init(KEY, (D,))
    name, bias = (
        ("layers.{}.weight", "layers.{}.bias") if library == "equinox" else ("middle.{}.kernel", "middle.{}.bias")
    )
    hidden = {}
    for i, layer in enumerate((ours[0], ours[2])):
        hidden[name.format(i)] = layer["w"].T if library == "equinox" else layer["w"]
        hidden[bias.format(i)] = layer["b"]
    np.testing.assert_allclose(net((hidden, ours[-1]), X), HOUSE(ours, X), rtol=1e-12)
    assert net.weight_shapes((D,)) == jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (hidden, ours[-1])
    )


@pytest.mark.parametrize("library", ["equinox", "nnx"])
def test_a_draw_read_back_as_a_module_is_the_network(library):
    net = from_module(library)[1]
    params = net.init(KEY, (D,))
    module = bw.to_module(net, params[:-1], theta_of(net, params))
    assert isinstance(module, eqx.nn.MLP if library == "equinox" else Perceptron)
    got = jax.vmap(module)(X) if library == "equinox" else module(jnp.asarray(X))
    np.testing.assert_allclose(got, net(params, X), rtol=1e-12)


def test_a_readout_without_biases_or_with_its_biases_left_out():
    net = bw.from_nnx(Perceptron(bias=False), X, b_scale=0.5)
    assert net.readout.b_scale is None
    params = net.init(KEY, (D,))
    np.testing.assert_allclose(bw.to_module(net, params[:-1], params[-1]["w"])(X), net(params, X), rtol=1e-12)
    net = bw.from_equinox(mlp(), X, b_scale=0.5, readout_b_scale=0.0)
    assert net.readout.b_scale is None
    params = net.init(KEY, (D,))
    module = bw.to_module(net, params[:-1], params[-1]["w"])
    assert (module.layers[-1].bias == 0).all()
    np.testing.assert_allclose(jax.vmap(module)(X), net(params, X), rtol=1e-12)
    # Without b_scale biases are zero, as those of Dense, and no sites.
    net = bw.from_equinox(mlp(), X)
    assert set(net.init(KEY, (D,))[0]) == {"layers.0.weight", "layers.1.weight"}
    house = bw.Dense(W) >> bw.Tanh() >> bw.Dense(W) >> bw.Tanh() >> bw.Dense(K)
    ours = house.init(KEY, (D,))
    hidden = {"layers.0.weight": ours[0]["w"].T, "layers.1.weight": ours[2]["w"].T}
    np.testing.assert_allclose(net((hidden, ours[-1]), X), house(ours, X), rtol=1e-12)


def test_a_module_in_half_precision_is_solved_in_that_of_the_inputs():
    rngs = nnx.Rngs(0)
    half = [nnx.Linear(D, W, dtype=jnp.bfloat16, rngs=rngs), jnp.tanh, nnx.Linear(W, K, dtype=jnp.bfloat16, rngs=rngs)]
    net = bw.from_nnx(nnx.Sequential(*half), X)
    params = net.init(KEY, (D,))
    assert net.features(params, X).dtype == jnp.float64
    expected = jnp.tanh(X @ params[0]["layers.0.kernel"] / np.sqrt(D)) / np.sqrt(W)
    np.testing.assert_allclose(net.features(params, X), expected, atol=0.03)


def test_dropout_is_off_and_the_users_module_is_left_alone():
    module = Perceptron()
    bw.from_nnx(module, X)
    assert not module.drop.deterministic and isinstance(module.end, nnx.Linear)
    dropping = eqx.nn.Sequential(
        [eqx.nn.Linear(D, W, key=KEY), eqx.nn.Dropout(0.5), eqx.nn.Lambda(jnp.tanh), eqx.nn.Linear(W, K, key=KEY)]
    )
    net = bw.from_equinox(dropping, X)
    params = net.init(KEY, (D,))
    expected = jnp.tanh(X @ params[0]["layers.0.weight"].T / np.sqrt(D)) @ params[1]["w"] / np.sqrt(W)
    np.testing.assert_allclose(net(params, X), expected, rtol=1e-12)


# Priors


def test_a_laplace_prior_on_hidden_weights():
    net = laplace_net()
    z = net.init(KEY, (D,))
    w = net[0].parameters(z[0])
    np.testing.assert_allclose(w["w"], stats.laplace(scale=0.5).ppf(stats.norm.cdf(z[0]["w"])), rtol=1e-10)
    np.testing.assert_allclose(w["b"][0], 0.1 + 0.7 * z[0]["b"][0], rtol=1e-14)
    h = np.tanh(X @ np.asarray(w["w"]) + np.asarray(w["b"][0]))
    np.testing.assert_allclose(net(z, X), 1.2 / np.sqrt(W) * h @ z[1]["w"] + 0.1 * z[1]["b"], rtol=1e-12)


def test_the_standard_forms_density_is_that_of_the_users_own_model():
    """In the user's parameters: log density in z = log Laplace(w) + log p(y | w, theta) + log|dw/dz|, autodiff."""
    net = laplace_net()
    params = net.init(KEY, (D,))
    model = bw.bnn(net, bw.Gaussian(0.3), "standard")
    theta = theta_of(net, params)
    got = float(log_density(model, (X, Y), {}, sites_of(params) | {"readout": theta})[0])
    flat, rebuild = jax.flatten_util.ravel_pytree(params[0])
    log_det = jnp.linalg.slogdet(
        jax.jacobian(lambda z: jax.flatten_util.ravel_pytree(net[0].parameters(rebuild(z)))[0])(flat)
    )[1]
    w = net[0].parameters(params[0])
    expected = stats.laplace(scale=0.5).logpdf(w["w"]).sum() + stats.norm(0.1, 0.7).logpdf(w["b"][0]).sum()
    expected += stats.norm.logpdf(theta).sum() + stats.norm.logpdf(Y, net(params, X), 0.3).sum() + float(log_det)
    np.testing.assert_allclose(got, expected, rtol=1e-10)


def test_the_prior_of_the_function_is_asked_by_path():
    seen = {}

    def prior(path, array):
        seen[path] = array.shape
        if path == "layers.0.weight":
            return dist.Laplace(0.0, 0.5)
        if path == "layers.1.weight":
            return None
        return NotImplemented if path == "layers.0.bias" else dist.Normal(0.0, np.full(W, 2.0))

    module = mlp()
    net = bw.from_equinox(module, X, prior=prior, b_scale=0.3)
    shapes = {"layers.0.weight": (W, D), "layers.0.bias": (W,), "layers.1.weight": (W, W), "layers.1.bias": (W,)}
    assert seen == shapes
    z = net.init(KEY, (D,))[0]
    w = net[0].parameters(z)
    assert set(z) == set(shapes) - {"layers.1.weight"}
    np.testing.assert_allclose(w["layers.0.weight"], stats.laplace(scale=0.5).ppf(stats.norm.cdf(z["layers.0.weight"])))
    np.testing.assert_allclose(w["layers.0.bias"], 0.3 * z["layers.0.bias"])
    np.testing.assert_allclose(w["layers.1.bias"], 2.0 * z["layers.1.bias"])
    first = jnp.tanh(X @ w["layers.0.weight"].T + w["layers.0.bias"])
    h = jnp.tanh(first @ np.asarray(module.layers[1].weight, float).T + w["layers.1.bias"])
    np.testing.assert_allclose(net[0](z, X), h, rtol=1e-12)


def scale_of(net, path, params):
    """The scale of a prior, as what one unit of z does."""
    moved = params | {path: params[path] + 1.0}
    return float(jnp.ravel(net[0].parameters(moved)[path] - net[0].parameters(params)[path])[0])


def test_default_priors_of_equinox_layers():
    class Many(eqx.Module):
        conv: eqx.nn.Conv2d
        norm: eqx.nn.LayerNorm
        cell: eqx.nn.GRUCell
        slope: eqx.nn.PReLU
        table: eqx.nn.Embedding
        counts: jax.Array
        readout: eqx.nn.Linear

        def __init__(self):
            keys = jax.random.split(KEY, 5)
            self.conv = eqx.nn.Conv2d(4, 6, (3, 2), groups=2, key=keys[0])
            self.norm = eqx.nn.LayerNorm(9)
            self.cell = eqx.nn.GRUCell(6, 9, key=keys[1])
            self.slope = eqx.nn.PReLU(0.3)
            self.table = eqx.nn.Embedding(7, 9, key=keys[2])
            self.counts = jnp.arange(9)
            self.readout = eqx.nn.Linear(9, K, key=keys[3])

        def __call__(self, x):
            h = self.conv(x).mean((1, 2))
            h = self.cell(h, self.table(2)) * self.counts
            return self.readout(self.slope(self.norm(h)))

    x = np.random.default_rng(0).normal(size=(2, 4, 5, 5))
    net = bw.from_equinox(Many(), x, w_scale=2.0, b_scale=0.3)
    z = net.init(KEY, (4, 5, 5))[0]
    wanted = {
        "conv.weight": 2 / np.sqrt(2 * 3 * 2), "conv.bias": 0.3, "cell.weight_ih": 2 / np.sqrt(6),
        "cell.weight_hh": 2 / np.sqrt(9), "cell.bias": 0.3, "cell.bias_n": 0.3, "table.weight": 2.0,
    }  # fmt: skip
    assert set(z) == set(wanted)
    for path, scale in wanted.items():
        np.testing.assert_allclose(scale_of(net, path, z), scale, rtol=1e-12)
    fixed = net[0].feature_fn.fixed
    assert set(fixed) == {"norm.weight", "norm.bias", "slope.negative_slope", "counts"}
    np.testing.assert_allclose(fixed["slope.negative_slope"], 0.3)
    assert (fixed["norm.weight"] == 1).all() and (fixed["norm.bias"] == 0).all()


def test_default_priors_of_nnx_layers():
    class Many(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.conv = nnx.Conv(4, 6, (3, 2), feature_group_count=2, rngs=rngs)
            self.norm = nnx.BatchNorm(6, rngs=rngs)
            self.heads = nnx.LinearGeneral((5, 6), (3, 3), axis=(-2, -1), rngs=rngs)
            self.table = nnx.Embed(7, 9, rngs=rngs)
            self.slope = nnx.PReLU(0.3)
            self.a_readout = nnx.Linear(9, K, rngs=rngs)

        def __call__(self, x):
            h = self.norm(self.conv(x)).mean(1)
            h = self.heads(h).reshape(len(x), 9) + self.table(jnp.asarray([2]))
            return self.a_readout(self.slope(h))

    x = np.random.default_rng(0).normal(size=(2, 5, 5, 4))
    module = Many()
    module.norm.mean[...] = jnp.arange(6, dtype=jnp.float32)
    net = bw.from_nnx(module, x, w_scale=2.0, b_scale=0.3)
    z = net.init(KEY, (5, 5, 4))[0]
    wanted = {
        "conv.kernel": 2 / np.sqrt(2 * 3 * 2), "conv.bias": 0.3, "heads.kernel": 2 / np.sqrt(30), "heads.bias": 0.3,
        "table.embedding": 2.0,
    }  # fmt: skip
    assert set(z) == set(wanted)
    for path, scale in wanted.items():
        np.testing.assert_allclose(scale_of(net, path, z), scale, rtol=1e-12)
    fixed = net[0].feature_fn.fixed
    assert set(fixed) >= {"norm.scale", "norm.bias", "norm.mean", "norm.var", "slope.negative_slope"}
    np.testing.assert_array_equal(fixed["norm.mean"], np.arange(6.0))


def test_a_stack_of_layers_scanned_over_has_the_fan_in_of_one():
    net = bw.from_equinox(eqx.nn.MLP(D, K, W, 4, scan=True, key=KEY), X, w_scale=2.0)
    z = net.init(KEY, (D,))[0]
    assert z["layers.1.weight"].shape == (3, W, W)
    np.testing.assert_allclose(scale_of(net, "layers.1.weight", z), 2.0 / np.sqrt(W), rtol=1e-12)


def test_arrays_stand_for_standard_normals_and_a_pytree_gives_readable_names():
    module = mlp()
    prior = {"net": eqx.filter(module.layers[0], eqx.is_array), "pair": [jax.ShapeDtypeStruct((W,), float), np.ones(W)]}
    net = bw.from_features(
        lambda p, x: jnp.tanh(x @ p["net"].weight.T + p["net"].bias) * p["pair"][0] + p["pair"][1], prior, K
    )
    z = net.init(KEY, (D,))
    jax.tree.map(np.testing.assert_array_equal, net[0].parameters(z[0]), z[0])
    h = jnp.tanh(X @ z[0]["net"].weight.T + z[0]["net"].bias) * z[0]["pair"][0] + z[0]["pair"][1]
    np.testing.assert_allclose(net.features(z, X), h / np.sqrt(W), rtol=1e-12)
    names = set(bw.bnn(net, bw.Gaussian(0.3)).feature_map(jnp.asarray(X)).shapes)
    assert names == {"hidden.0.net.weight", "hidden.0.net.bias", "hidden.0.pair.0", "hidden.0.pair.1"}


def test_scales_of_priors_are_leaves():
    def net(scale):
        return bw.from_features(lambda p, x: jnp.tanh(x @ p), dist.Normal(0, scale).expand([D, W]), K)

    params = net(0.5).init(KEY, (D,))
    total = lambda net: jnp.sum(net(params, X) ** 2)  # noqa: E731
    slope = jax.grad(total)(net(0.5))[0].params_prior.base_dist.scale
    numeric = (total(net(0.5 + 1e-6)) - total(net(0.5 - 1e-6))) / 2e-6
    np.testing.assert_allclose(slope, numeric, rtol=1e-6)
    assert net(0.5) != net(0.6)


# Models and samplers


@pytest.mark.parametrize("name", NETS)
def test_three_forms_are_one_density(name):
    net = NETS[name]()
    params = net.init(KEY, (D,))
    sites, psi = sites_of(params), net.features(params, X)
    phi = jax.random.normal(jax.random.key(5), (psi.shape[1], K))
    theta, log_det = bw.Repriorisation(psi, jnp.asarray(Y), 0.3).forward_and_log_det(phi)
    extra = {"standard": {"readout": theta}, "repriorised": {"readout_base": phi}, "collapsed": {}}
    log_p = {
        form: float(log_density(bw.bnn(net, bw.Gaussian(0.3), form), (X, Y), {}, sites | extra[form])[0])
        for form in FORMS
    }
    np.testing.assert_allclose(log_p["repriorised"], log_p["standard"] + log_det, rtol=1e-10)
    np.testing.assert_allclose(log_p["repriorised"], log_p["collapsed"] + stats.norm.logpdf(phi).sum(), rtol=1e-12)
    expected = sum(stats.norm.logpdf(leaf).sum() for leaf in sites.values()) + stats.norm.logpdf(theta).sum()
    expected += stats.norm.logpdf(Y, psi @ theta, 0.3).sum()
    np.testing.assert_allclose(log_p["standard"], expected, rtol=1e-11)


def run(net, x, y, kernel=bw.SplitHMC, form="collapsed"):
    model = bw.bnn(net, bw.Gaussian(0.3), form)
    mcmc = MCMC(kernel(model), num_warmup=20, num_samples=20, progress_bar=False)
    mcmc.run(KEY, x, y)
    return model, mcmc.get_samples()


@pytest.mark.parametrize("name", ["function", "nnx"])  # a convolution of Equinox has its run below
def test_samplers_predictions_and_draws_as_modules(name):
    net, x_test = NETS[name](), data(1)[0]
    model, samples = run(net, X, Y)
    assert all(jnp.isfinite(draw).all() and (draw.std(0) > 0).all() for draw in samples.values())
    prediction = bw.predict(model, samples, X, Y, x_test)
    hidden = bw.hidden_weights(model, samples, X, Y, key=jax.random.key(1))
    # By hand: the mean of the readout given the hidden weights of each draw, by the normal equations.
    means = []
    for i in range(20):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], hidden)
        psi = np.asarray(net.features(one, X))
        theta = np.linalg.solve(psi.T @ psi + 0.09 * np.eye(psi.shape[1]), psi.T @ Y)
        means.append(np.asarray(net.features(one, x_test)) @ theta)
    np.testing.assert_allclose(prediction.mean, np.mean(means, 0), rtol=1e-8)
    if name == "nnx":
        np.testing.assert_allclose(bw.to_module(net, one, theta)(jnp.asarray(x_test)), means[-1], rtol=1e-8)


def test_an_equinox_convolution_of_images():
    class Images(eqx.Module):
        conv: eqx.nn.Conv2d
        readout: eqx.nn.Linear

        def __init__(self):
            self.conv = eqx.nn.Conv2d(1, 4, 3, key=KEY)
            self.readout = eqx.nn.Linear(4 * 4, K, key=KEY)

        def __call__(self, x):
            return self.readout(jnp.tanh(self.conv(x.reshape(1, 4, 4))).ravel())

    x, y = data(d=16)
    net = bw.from_equinox(Images(), x, w_scale=2**0.5, b_scale=0.1)
    # The same by the sum over windows: weights (4, 1, 3, 3) at the 2 x 2 places where they fit.
    params = net.init(KEY, (16,))
    w, images = params[0]["conv.weight"][:, 0] * np.sqrt(2) / 3, x.reshape(-1, 4, 4)
    windows = [[np.einsum("nij,cij->nc", images[:, a : a + 3, b : b + 3], w) for b in (0, 1)] for a in (0, 1)]
    h = np.tanh(np.moveaxis(np.asarray(windows), (0, 1, 3), (2, 3, 1)) + 0.1 * params[0]["conv.bias"][None])
    np.testing.assert_allclose(net[:-1](params[:-1], x), h.reshape(N, 16), rtol=1e-10)
    model, samples = run(net, x, y)
    assert samples["hidden.0.conv.weight"].shape == (20, 4, 1, 3, 3)
    assert np.isfinite(bw.predict(model, samples, x, y, x).variance).all()


def test_an_empirical_kernel_of_a_users_function():
    """Linear features of one Gaussian layer: the exact kernel is w_scale^2 x1.x2 / D."""
    net = bw.from_features(lambda w, x: x @ w, dist.Normal(0.0, D**-0.5).expand([D, 64]), 1, w_scale=1.3)
    estimate = bw.empirical.monte_carlo(net, KEY, X, num_draws=200)
    assert (abs(estimate.nngp - 1.3**2 * X @ X.T / D) < 5 * estimate.nngp_error).all()
    assert np.isfinite(estimate.ntk).all() and np.linalg.eigvalsh(estimate.ntk).min() > -1e-10


# Refusals


class Stateful(eqx.Module):
    norm: eqx.nn.BatchNorm
    readout: eqx.nn.Linear

    def __init__(self):
        self.norm = eqx.nn.BatchNorm(D, "batch", mode="ema")
        self.readout = eqx.nn.Linear(D, K, key=KEY)


class Raw(eqx.Module):
    matrix: jax.Array
    readout: eqx.nn.Linear

    def __init__(self):
        self.matrix = jnp.ones((W, D))
        self.readout = eqx.nn.Linear(W, K, key=KEY)

    def __call__(self, x):
        return self.readout(jnp.tanh(self.matrix @ x))


class Backwards(eqx.Module):
    """The readout comes first in the order of fields; both layers are square."""

    readout: eqx.nn.Linear
    first: eqx.nn.Linear
    skip: float = 0.0

    def __call__(self, x):
        return self.readout(jnp.tanh(self.first(x))) + self.skip * x


class Averaged(Perceptron):
    def __call__(self, x):
        return super().__call__(x - x.mean(0))


class Grown(nnx.Module):
    def __init__(self):
        self.matrix = nnx.Param(jnp.ones((D, W)))
        self.end = nnx.Linear(W, K, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.end(jnp.tanh(x @ self.matrix[...]))


def backwards(skip=0.0):
    return Backwards(eqx.nn.Linear(D, D, key=KEY), eqx.nn.Linear(D, D, key=jax.random.key(1)), skip)


def equinox(module=None, **options):
    return bw.from_equinox(mlp() if module is None else module, X, **options)


def features(fn=lambda p, x: x @ p, prior=np.ones((D, W)), outputs=K, **options):  # noqa: B008
    return bw.from_features(fn, prior, outputs, **options)


NORMAL = dist.Normal(0, 1)
CASES = {
    "fn": (TypeError, lambda: features(3), "`from_features`: feature_fn must be a function of (params, x); got 3"),
    "outputs": (ValueError, lambda: features(outputs=0), "`from_features`: outputs must be at least 1; got 0"),
    "readout scale": (ValueError, lambda: features(w_scale=-1.0), "`Dense`: w_scale must be positive and finite"),
    "no distribution": (
        TypeError, lambda: features(prior={"a": "normal"}),
        "`from_features`: params_prior must hold NumPyro distributions, or arrays for N(0, 1) of their shape; got str "
        "at 'a'",
    ),
    "discrete": (
        ValueError, lambda: features(prior={"a": [dist.Poisson(1.0)]}),
        "`from_features`: params_prior must hold continuous distributions; got Poisson at 'a.0'",
    ),
    "no quantile function": (
        (TypeError, ValueError), lambda: features(prior=dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2))),
        "MultivariateNormal",
    ),
    "two of one name": (
        ValueError, lambda: features(prior={"a.b": NORMAL, "a": {"b": NORMAL}}),
        "`from_features`: params_prior must name each parameter apart; got two named 'a.b'",
    ),
    "images of features": (
        ValueError, lambda: features(lambda p, x: x).init(KEY, (4, 4)),
        "`FromFunction`: feature_fn must return activations of shape (n, width); got an array of shape (2, 4, 4) for "
        "n=2 inputs of shape (4, 4); flatten the features",
    ),
    "several features": (
        ValueError, lambda: features(lambda p, x: (x, x)).init(KEY, (D,)),
        "`FromFunction`: feature_fn must return activations of shape (n, width); got tuple",
    ),
    "kernel": (
        ValueError, lambda: features().kernel(X),
        "`kernel`: no infinite-width kernel is known for a function of your own; got FromFunction(<lambda>, 18 weights "
        "in 1 arrays); estimate it with empirical.monte_carlo",
    ),
    "to_module": (
        TypeError, lambda: bw.to_module(HOUSE, (), Y),
        "`to_module`: net must be made by from_equinox or from_nnx; got Dense(",
    ),
    "readout of to_module": (
        ValueError, lambda: bw.to_module(equinox(), ({},), np.ones((W + 1, K))),
        "`to_module`: readout must have shape (6, 2) with one row per readout feature; got (7, 2)",
    ),
    # modules of Equinox
    "equinox type": (
        TypeError, lambda: equinox(Perceptron()), "`from_equinox`: module must be an equinox.Module; got Perceptron",
    ),
    "equinox x": (ValueError, lambda: bw.from_equinox(mlp(), X[0]), "`from_equinox`: x must have shape (n, d)"),
    "state": (
        ValueError, lambda: equinox(Stateful()),
        "`from_equinox`: module must be a function of one input alone; got one with state",
    ),
    "no Linear": (
        ValueError, lambda: equinox(eqx.nn.LayerNorm(D)),
        "`from_equinox`: module must end in a Linear layer; got none in it; use from_features instead",
    ),
    "a Linear alone": (
        ValueError, lambda: equinox(eqx.nn.Linear(D, K, key=KEY)),
        "`from_equinox`: module must have a layer before its readout; got one Linear layer alone",
    ),
    "relu at the end": (
        ValueError, lambda: equinox(mlp(final_activation=jax.nn.relu)),
        "`from_equinox`: module must end in its readout, the Linear layer 'layers.2': module(x) must be activations @ "
        "weights + bias; got a relative difference of",
    ),
    "tanh at the end": (
        ValueError, lambda: equinox(mlp(final_activation=jnp.tanh)), "take a final activation off, name another layer",
    ),
    "a skip past the readout": (
        ValueError, lambda: equinox(backwards(skip=0.01), readout="readout"), "module(x) must be activations @ weights",
    ),
    "another order": (
        ValueError, lambda: equinox(backwards()),
        "`from_equinox`: module must end in its readout, the Linear layer 'first': module(x) must be",
    ),
    "readout path": (
        ValueError, lambda: equinox(readout="head"),
        "`from_equinox`: readout must be the path of a Linear layer, one of ['layers.0', 'layers.1', 'layers.2']; got "
        "'head'",
    ),
    "another layer's path": (
        ValueError, lambda: equinox(readout="layers.1"),
        "the Linear layer 'layers.1': with the identity in its place it must return activations of shape (5, 6) for x; "
        "got (5, 2)",
    ),
    "an unknown array": (
        ValueError, lambda: equinox(Raw()),
        "`from_equinox`: no default prior is known for the array 'matrix' of shape (6, 3)",
    ),
    "prior of what": (
        TypeError, lambda: equinox(prior=lambda path, array: 1.0),
        "`from_equinox`: prior must return a NumPyro distribution, None or NotImplemented; got float for 'layers.0",
    ),
    "prior's shape": (
        ValueError, lambda: equinox(prior=lambda path, array: NORMAL.expand([9])),
        "`from_equinox`: prior must return a distribution of the array's shape (6, 3), or of one number for all its "
        "entries, for 'layers.0.weight'; got shape (9,)",
    ),
    "w_scale": (ValueError, lambda: equinox(w_scale=0.0), "`from_equinox`: w_scale must be positive and finite"),
    "b_scale": (ValueError, lambda: equinox(b_scale=-1.0), "`from_equinox`: b_scale must be positive and finite"),
    "readout_w_scale": (
        ValueError, lambda: equinox(readout_w_scale=0.0), "`from_equinox`: readout_w_scale must be positive and finite",
    ),
    "readout_b_scale": (
        ValueError, lambda: equinox(mlp(use_final_bias=False), readout_b_scale=0.1),
        "`from_equinox`: readout_b_scale must be None for a readout without biases; got 0.1",
    ),
    # modules of Flax
    "nnx type": (
        TypeError, lambda: bw.from_nnx(mlp(), X), "`from_nnx`: module must be a flax.nnx.Module; got MLP",
    ),
    "softmax at the end": (
        ValueError, lambda: bw.from_nnx(Perceptron(end=jax.nn.softmax), X),
        "`from_nnx`: module must end in its readout, the Linear layer 'end': module(x) must be activations @ weights",
    ),
    "mixes the batch": (
        ValueError, lambda: bw.from_nnx(Averaged(), X), "`from_nnx`: module must map each input on its own; got other",
    ),
    "an unknown parameter": (
        ValueError, lambda: bw.from_nnx(Grown(), X), "`from_nnx`: no default prior is known for the array 'matrix'",
    ),
}  # fmt: skip


@pytest.mark.usefixtures("only_the_librarys_own_checks")
@pytest.mark.parametrize("case", CASES)
def test_refusals(case):
    error, call, message = CASES[case]
    with pytest.raises(error, match=re.escape(message)):
        call()


@pytest.mark.parametrize(("name", "package"), [("equinox", "equinox"), ("nnx", "flax")])
def test_a_missing_package_is_named(name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.nnx", None)
    with pytest.raises(ImportError, match=f"`from_{name}`: .* must be installed; .*pip install {package}"):
        getattr(bw, f"from_{name}")(None, X)


def test_what_was_refused_works_as_the_message_says():
    net = equinox(backwards(), readout="readout")
    params = net.init(KEY, (D,))
    h = jnp.tanh(X @ params[0]["first.weight"].T / np.sqrt(D))
    np.testing.assert_allclose(net(params, X), h @ params[1]["w"] / np.sqrt(D), rtol=1e-12)
    net = equinox(Raw(), prior=lambda path, array: NORMAL if path == "matrix" else NotImplemented)
    assert net.init(KEY, (D,))[0]["matrix"].shape == (W, D)
    net = bw.from_nnx(Grown(), X, prior=lambda path, array: dist.Normal(0.0, 0.5))
    params = net.init(KEY, (D,))
    np.testing.assert_allclose(net[:-1](params[:-1], X), jnp.tanh(0.5 * X @ params[0]["matrix"]), rtol=1e-12)
