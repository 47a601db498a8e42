"""The kernel reading of every architecture is the limit of the finite one, whatever is done to it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bnnwide as bw

X1 = np.random.default_rng(0).normal(size=(4, 3))
X2 = np.concatenate([X1[:1], np.random.default_rng(1).normal(size=(2, 3))])
IMAGES = np.random.default_rng(2).normal(size=(3, 2, 2, 3))


def dense(width, w_scale=1.3, b_scale=0.2):
    return bw.Dense(width, w_scale=w_scale, b_scale=b_scale)


# From a width to an architecture whose kernel is the limit; the last two read images.
BODIES = {
    "deep": lambda w: dense(w) >> bw.Relu() >> dense(w, 1.1, None) >> bw.Erf(),
    "residual": lambda w: dense(w) >> bw.Residual(bw.Tanh() >> dense(w)) >> bw.Relu(),
    "residual ending in an activation": lambda w: dense(w) >> bw.Residual(dense(w) >> bw.Relu()),
    "two activated branches": lambda w: bw.Sum((dense(w) >> bw.Relu(), dense(w, 0.7) >> bw.Gelu())),
    "product": lambda w: dense(w) >> bw.Product((bw.Identity(), dense(w) >> bw.Sigmoid())),
    "concatenation": lambda w: bw.Concatenate((dense(w) >> bw.Relu(), dense(3 * w, 0.5) >> bw.Sin())),
    "rescaled": lambda w: dense(w) >> bw.Relu() >> bw.Rescale(-0.6) >> dense(w) >> bw.Rescale(2.0) >> bw.Abs(),
    "norm before activation": lambda w: dense(w) >> bw.LayerNorm(0.1) >> bw.Gelu(),
    "norm after activation": lambda w: dense(w) >> bw.Relu() >> bw.LayerNorm(0.1) >> dense(w) >> bw.Relu(),
    "images, flattened first": lambda w: bw.Flatten() >> dense(w) >> bw.Relu(),
    "images, position by position": lambda w: dense(w) >> bw.Relu() >> dense(w) >> bw.Erf() >> bw.Flatten(),
}
READOUT = bw.Dense(1, w_scale=1.2, b_scale=0.3)


def inputs_of(name):
    return IMAGES if name.startswith("images") else X1


def finite_kernels(net, key, x):
    """NNGP (from the last hidden layer, the readout averaged exactly) and NTK of one draw of a finite network."""
    params = net.init(key, x.shape[1:])
    psi = net.features(params, x)
    jacobian = jax.jacobian(lambda p: net(p, x)[:, 0])(params)
    flat = jnp.concatenate([leaf.reshape(len(x), -1) for leaf in jax.tree.leaves(jacobian)], axis=1)
    return jnp.stack([psi @ psi.T, flat @ flat.T])


@pytest.mark.parametrize("name", BODIES)
def test_the_kernel_is_the_limit_of_finite_networks_at_the_monte_carlo_rate(name):
    x, errors, deviations = inputs_of(name), [], []
    kernels = (BODIES[name](8) >> READOUT).kernel(x)
    wanted = jnp.stack([kernels.nngp, kernels.ntk])
    widths, num_draws = (32, 512), 64
    for width in widths:
        net = BODIES[name](width) >> READOUT
        sample = jax.jit(
            lambda key, net=net: jax.lax.map(lambda k: finite_kernels(net, k, x), jax.random.split(key, num_draws))
        )
        draws = np.asarray(sample(jax.random.key(0)))
        errors.append(np.abs(draws.mean(0) - wanted) / np.abs(wanted).max())
        deviations.append(draws.std(0) / np.abs(wanted).max())
    # One draw scatters as 1/sqrt(width); the mean of draws is off by that / sqrt(draws), and by a bias of 1/width.
    ratio = np.sqrt((deviations[0] ** 2).mean((1, 2)) / (deviations[1] ** 2).mean((1, 2)))
    np.testing.assert_allclose(ratio, np.sqrt(widths[1] / widths[0]), rtol=0.35)
    allowed = 4.5 * deviations[1] / np.sqrt(num_draws) + 5 / widths[1]
    assert (errors[1] < allowed).all(), (errors[1] / allowed).max()
    assert (allowed < 0.08).all()  # so that a wrong kernel is found


@pytest.mark.parametrize("name", BODIES)
def test_transformations_shapes_and_halves(name):
    x, net = inputs_of(name), BODIES[name](8) >> READOUT
    whole = net.kernel(x)
    for kernel in whole:
        np.testing.assert_array_equal(kernel, kernel.T)
        assert np.linalg.eigvalsh(kernel).min() > -1e-12
    crossed = net.kernel(x, x[:2])
    for kernel, cut in zip(whole, crossed, strict=True):
        np.testing.assert_allclose(cut, kernel[:, :2], rtol=1e-7)
    np.testing.assert_allclose(net.kernel(x, ntk=False).nngp, whole.nngp, rtol=1e-13)
    for diagonal, kernel in zip(net.kernel_diag(x), whole, strict=True):
        np.testing.assert_allclose(diagonal, jnp.diagonal(kernel), rtol=1e-9)
    again = jax.tree.unflatten(*jax.tree.flatten(net)[::-1])
    mapped = jax.vmap(lambda row: again.kernel(row[None], x).nngp[0])(jnp.asarray(x))
    np.testing.assert_allclose(mapped, whole.nngp, rtol=1e-7)
    traces = []

    def count(net, x):
        traces.append(1)
        return net.kernel(x).ntk

    jitted = jax.jit(count)
    np.testing.assert_allclose(jitted(net, x), whole.ntk, rtol=1e-12)
    jitted(again, 2 * x)
    assert len(traces) == 1


@pytest.mark.parametrize("name", BODIES)
def test_gradients_are_right_and_finite_at_degenerate_points(name):
    net, x = BODIES[name](8) >> READOUT, inputs_of(name)
    points = jnp.asarray(np.concatenate([x[:2], -x[:1], 0 * x[:1], x[:1]]))

    def totals(net, x):
        return jnp.stack([jnp.sum(jnp.cos(kernel)) for kernel in net.kernel(x)])

    # Both kernels at once, in one program for reverse mode and one for forward mode.
    for leaf in jax.tree.leaves(jax.jit(jax.jacrev(totals, argnums=(0, 1)))(net, points)):
        assert np.isfinite(leaf).all()
    apart = jnp.asarray(x)
    slopes = jax.jit(lambda x: jax.jvp(lambda x: totals(net, x), (x,), (jnp.ones_like(x),))[1])(apart)
    step = 1e-5
    numeric = (totals(net, apart + step) - totals(net, apart - step)) / (2 * step)
    np.testing.assert_allclose(slopes, numeric, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("activation", [bw.Relu(), bw.Erf(), bw.Gelu()], ids=repr)
def test_deep_networks_stay_finite_in_float32(activation):
    hidden = bw.Dense(8, w_scale=2**0.5, b_scale=0.1) >> activation
    net = bw.Identity()
    for _ in range(60):
        net = net >> hidden
    with jax.enable_x64(False):
        kernels = (net >> bw.Dense(1)).kernel(np.asarray(X1, np.float32))
        assert kernels.nngp.dtype == jnp.float32
        assert all(np.isfinite(kernel).all() for kernel in kernels)


def block(w_scale, b_scale):
    return bw.Dense(4, w_scale=w_scale, b_scale=b_scale)


# Few structures, each compiled once; scales and inputs are what varies.
ANY = {
    "relu": lambda d: d >> bw.Relu() >> d >> bw.Relu() >> d >> bw.Relu(),
    "erf, residual": lambda d: d >> bw.Residual(bw.Erf() >> d) >> bw.Erf(),
    "gelu and leaky relu": lambda d: d >> bw.Gelu() >> d >> bw.LeakyRelu(0.2),
    "sine, then sign": lambda d: d >> bw.Sin() >> d >> bw.Sign(),
    "norm and absolute value": lambda d: d >> bw.LayerNorm() >> bw.Abs(),
}


@settings(max_examples=512, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(sorted(ANY)),
    w_scale=st.floats(0.05, 4.0),
    b_scale=st.floats(0.01, 2.0),
    seed=st.integers(0, 2**31),
    size=st.sampled_from([1e-3, 1.0, 30.0]),
)
def test_any_kernel_is_symmetric_semi_definite_finite_and_has_its_diagonal(name, w_scale, b_scale, seed, size):
    x = size * np.random.default_rng(seed).normal(size=(6, 3))
    x[3], x[4], x[5] = 0.0, -x[0], x[1] * (1 + 1e-9)
    net = ANY[name](block(w_scale, b_scale)) >> bw.Dense(1, b_scale=b_scale)
    whole, diagonal = net.kernel(x), net.kernel_diag(x)
    for kernel, own in zip(whole, diagonal, strict=True):
        kernel, own = np.asarray(kernel), np.asarray(own)
        assert np.isfinite(kernel).all()
        np.testing.assert_array_equal(kernel, kernel.T)
        np.testing.assert_allclose(np.diagonal(kernel), own, rtol=1e-7, atol=1e-300)
        assert np.linalg.eigvalsh(kernel).min() >= -1e-7 * max(np.trace(kernel), 1e-300)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net: net.kernel(X1[0]), "`kernel`: x1 must have shape (n, d); got (3,)"),
        (
            lambda net: net.kernel(X1, X2[:, :2]),
            "`kernel`: x2 must have shape (n, 3) with the rest from x1; got (3, 2)",
        ),
        (lambda net: net.kernel(np.full((2, 3), np.nan)), "`kernel`: x1 must be finite; got 6 NaN or infinite of 6"),
        (lambda net: net.kernel_diag(X1[:0]), "`kernel_diag`: x must hold at least one entry on every axis"),
        (lambda net: net.kernel(IMAGES), "put Flatten() before the readout"),
        (lambda net: (bw.Relu() >> net).kernel(X1), "`Relu`: the kernel of an activation needs Gaussian inputs"),
        (lambda net: bw.Sum((net, bw.Identity(), bw.Identity())).kernel(X1[:, :1]), "must have weights of their own"),
        (
            lambda net: bw.Sum((net, bw.Dense(2))).kernel(X1),
            "`Sum`: branches must have one output shape; got [(1,), (2,)]",
        ),
        (lambda net: bw.Sum(()), "`Sum`: branches must hold at least one layer; got none"),
    ],
)
@pytest.mark.usefixtures("only_the_librarys_own_checks")
def test_what_kernels_refuse(call, message):
    with pytest.raises(ValueError) as error:
        call(bw.Dense(4) >> bw.Erf() >> bw.Dense(1))
    assert message in str(error.value)
