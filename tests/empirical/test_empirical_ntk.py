"""Empirical kernels: three methods, whole or in blocks, against Jacobians written out; and what the doors refuse."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import bnnwide as bw
from bnnwide.arch import Layer
from bnnwide.arch.layer import layer
from bnnwide.empirical import cost
from bnnwide.empirical.kernels import blocked_ntk
from bnnwide.empirical.methods import assemble
from bnnwide.empirical.structured import DenseSize, dense_sizes

KEY = jax.random.key(0)
N, K = 5, 3


@layer(data=("body",))
@dataclasses.dataclass(frozen=True)
class Wrapped(Layer):
    """A user's layer around another, which keeps the shape of its input."""

    body: Layer

    def output_shape(self, input_shape):
        return input_shape

    def weight_shapes(self, input_shape):
        return self.body.weight_shapes(input_shape)

    def propagate(self, state):
        raise NotImplementedError


class Twice(Wrapped):
    def apply(self, params, x):
        return self.body.apply(params, self.body.apply(params, x))


class Halved(Wrapped):
    def apply(self, params, x):
        return self.body.apply(jax.tree.map(lambda leaf: leaf / 2, params), x)


class OneByOne(Wrapped):
    def apply(self, params, x):
        return jax.vmap(lambda row: self.body.apply(params, row))(x)


class Folded(Wrapped):
    def apply(self, params, x):
        return self.body.apply(params, x[None])[0]


for wrapped in (Twice, Halved, OneByOne, Folded):
    layer(data=("body",))(wrapped)

INNER = bw.Dense(6, w_scale=1.3, b_scale=0.2)
FIRST, LAST = bw.Dense(6, b_scale=0.1) >> bw.Tanh(), bw.Dense(K, w_scale=0.8, b_scale=0.3)
DEEP = FIRST >> bw.Residual(INNER >> bw.Sin() >> bw.Residual(bw.Dense(6) >> bw.Silu())) >> bw.LayerNorm() >> LAST
BRANCHED = (
    FIRST
    >> bw.Product((INNER >> bw.Tanh(), bw.Dense(6, b_scale=0.5)))
    >> bw.Concatenate((bw.Identity(), bw.Dense(2) >> bw.LeakyRelu(0.3)))
    >> bw.Rescale(1.5)
    >> LAST
)
POSITIONS = bw.Dense(4, b_scale=0.1) >> bw.Tanh() >> bw.Dense(3) >> bw.Flatten() >> bw.Dense(K, b_scale=0.3)


def plain(params, x):
    """A function with a dictionary of weights, one of them used twice, and a leaf of no influence."""
    h = jnp.sin(x @ params["w"]) @ params["w"].T
    return jnp.tanh(h) @ params["nested"]["v"] + params["c"] ** 2


PLAIN_PARAMS = {
    "w": jax.random.normal(KEY, (4, 5)), "nested": {"v": jax.random.normal(KEY, (4, K))}, "c": jnp.asarray(0.7),
    "unused": jnp.ones(2),
}  # fmt: skip


def inputs(n, shape=(4,), key=1):
    return jax.random.normal(jax.random.key(key), (n, *shape))


def net_case(net, shape=(4,)):
    return net, net.init(KEY, shape), inputs(N, shape), inputs(N - 2, shape, key=2)


CASES = {
    "deep": net_case(DEEP),
    "branched": net_case(BRANCHED),
    "positions": net_case(POSITIONS, (2, 3)),
    "function": (plain, PLAIN_PARAMS, inputs(N), inputs(N - 2, key=2)),
}
METHODS = {
    "deep": ("jacobian", "vector_products", "structured"),
    "branched": ("structured",),
    "positions": ("jacobian", "structured"),
    "function": ("jacobian", "vector_products"),
}


def written_out(f, params, x1, x2):
    """The kernel of all pairs of outputs, from Jacobians with respect to all weights."""
    flat, unravel = ravel_pytree(params)
    jacobian = jax.jit(jax.jacobian(lambda flat, x: f(unravel(flat), x)))
    return jnp.einsum("iap,jbp->ijab", jacobian(flat, x1), jacobian(flat, x2))


def close(got, want, tolerance=1e-12):
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


def reduce(full):
    k = full.shape[-1]
    return {"full": full, "mean": jnp.einsum("ijaa->ij", full) / k, "pseudo": full.sum((2, 3)) / k}


@cache
def expected(name):
    f, params, x1, x2 = CASES[name]
    return reduce(written_out(f, params, x1, x2)), reduce(written_out(f, params, x1, x1))


@pytest.mark.parametrize(("name", "method"), [(name, method) for name in CASES for method in METHODS[name]])
def test_methods_and_blocks_are_the_jacobians_written_out(name, method):
    f, params, x1, x2 = CASES[name]
    cross, own = expected(name)
    how = {"method": method}
    close(bw.empirical.ntk(f, params, x1, x2, outputs="full", batch_size=2, **how), cross["full"])
    close(bw.empirical.ntk(f, params, x1, outputs="mean", **how), own["mean"])
    if name == "deep":
        close(bw.empirical.ntk(f, params, x1, outputs="full", **how), own["full"])
        close(bw.empirical.ntk(f, params, x1, x2, outputs="pseudo", **how), cross["pseudo"])


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(
    ("n1", "n2", "batch"), [(5, None, 2), (6, None, 3), (7, None, 7), (7, None, 1), (5, 3, 2), (2, 9, 4)]
)
def test_blocks_are_put_together(n1, n2, batch, full):
    x1, x2 = inputs(n1, (3, 4)), None if n2 is None else inputs(n2, (3, 4), key=2)
    right = x1 if x2 is None else x2
    seen = []

    def contract(a, b):
        seen.append((len(a), len(b)))
        return jnp.einsum("iap,jbp->ijab", a, b) if full else jnp.einsum("iap,jap->ij", a, b)

    close(assemble(lambda x: x, contract, x1, x2, batch), contract(x1, right))
    assert max(seen[0]) <= batch


def test_nngp_and_vector_product():
    f, params, x1, x2 = CASES["deep"]
    y1, y2 = (jax.jit(f)(params, x) for x in (x1, x2))
    close(bw.empirical.nngp(f, params, x1, x2), sum(np.outer(y1[:, a], y2[:, a]) for a in range(K)) / K)
    full = bw.empirical.nngp(f, params, x1, outputs="full")
    close(full, np.asarray(y1)[:, None, :, None] * np.asarray(y1)[None, :, None, :])
    v = inputs(len(x2), (K,), key=5)
    want = jnp.einsum("ijab,jb->ia", expected("deep")[0]["full"], v)
    close(bw.empirical.ntk_vector_product(f, params, x1, x2, v), want)
    v = inputs(len(x1), (K,), key=5)
    want = jnp.einsum("ijab,jb->ia", expected("deep")[1]["full"], v)
    close(bw.empirical.ntk_vector_product(f, params, x1, None, v), want)


@pytest.mark.parametrize("wrap", [Twice, Halved, OneByOne, Folded])
def test_weights_that_are_not_simply_those_of_a_dense_layer_are_found_out(wrap):
    net = FIRST >> wrap(INNER) >> LAST
    params, x = net.init(KEY, (4,)), inputs(N)
    assert dense_sizes(net, params, x) is None
    close(bw.empirical.ntk(net, params, x, outputs="full"), written_out(net, params, x, x))
    with pytest.raises(ValueError, match="`ntk`: method 'structured' must be given an architecture whose weights all"):
        bw.empirical.ntk(net, params, x, method="structured")


def test_dense_layers_are_found_in_any_combination():
    assert dense_sizes(BRANCHED, CASES["branched"][1], inputs(1)) == (
        (1, 5, 6), (1, 7, 6), (1, 7, 6), (1, 6, 2), (1, 9, K),
    )  # fmt: skip
    assert dense_sizes(POSITIONS, CASES["positions"][1], inputs(1, (2, 3))) == ((2, 4, 4), (2, 4, 3), (1, 7, K))


def test_composes_with_transformations():
    f, (_, _, x1, x2) = FIRST >> bw.Gelu() >> LAST, CASES["deep"]
    params = f.init(KEY, (4,))
    weight = inputs(N, (N - 2,), key=7)
    value = lambda params, x1, **how: jnp.sum(weight * bw.empirical.ntk(f, params, x1, x2, **how))  # noqa: E731
    slow = lambda params, x1: jnp.sum(weight * reduce(written_out(f, params, x1, x2))["mean"])  # noqa: E731
    want = jax.jit(jax.grad(slow, (0, 1)))(params, x1)
    for how in ({"method": "structured", "batch_size": 2}, {"method": "vector_products"}):
        got = jax.jit(jax.grad(lambda *args, how=how: value(*args, **how), (0, 1)))(params, x1)
        jax.tree.map(lambda a, b: close(a, b, 1e-10), got, want)
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
    each = jax.vmap(lambda params: bw.empirical.ntk(f, params, x1))(many)
    close(each[1], bw.empirical.ntk(f, jax.tree.map(lambda leaf: 2 * leaf, params), x1))


def test_scales_of_an_architecture_are_traced():
    x, scale = inputs(3), jnp.asarray(1.3)
    value = lambda scale: jnp.sum(bw.empirical.ntk(bw.Dense(2, w_scale=scale), {"w": jnp.ones((4, 2))}, x))  # noqa: E731
    close(jax.grad(value)(scale), 2 * scale * jnp.sum(x @ x.T) / 4)


def test_float32():
    net = FIRST >> bw.Relu() >> LAST
    params, x = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (net.init(KEY, (4,)), inputs(N)))
    want = reduce(written_out(net, params, x, x))["mean"]
    for method in ("jacobian", "vector_products", "structured"):
        got = bw.empirical.ntk(net, params, x, method=method, batch_size=3)
        assert got.dtype == jnp.float32
        close(got, want, 1e-5)


def test_whole_numbers_and_numpy_weights_are_taken():
    tokens = np.array([[0, 2], [1, 1], [2, 0]])
    embed = lambda params, x: params["table"][x].sum(1)  # noqa: E731
    table = np.arange(6.0).reshape(3, 2)
    # d f_a / d table[t, a] counts the token t, so that the kernel is the product of counts, for equal outputs.
    counts = np.array([[1, 0, 1], [0, 2, 0], [1, 0, 1]])
    close(bw.empirical.ntk(embed, {"table": table}, tokens), counts @ counts.T)


def memory(batch, n=48, method="jacobian"):
    net = bw.Dense(256) >> bw.Tanh() >> bw.Dense(K)
    params, x = net.init(KEY, (64,)), inputs(n, (64,))
    compiled = blocked_ntk.lower(net, params, x, None, K, "mean", method, batch).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_blocks_bound_memory():
    one_row = 8 * K * (64 + K) * 256  # bytes of one row's Jacobian
    whole, blocks, more = memory(48), memory(4), memory(4, n=96)
    assert whole > 48 * one_row
    assert blocks < 20 * one_row
    assert more < blocks + 2 * one_row  # the kernel itself grows, the Jacobians held do not
    assert memory(48, method="vector_products") < 20 * one_row  # no Jacobian, in a block of any size


def test_operations_are_counted_from_the_jaxpr():
    w, x = jnp.ones((7, 5)), jnp.ones((3, 7))
    assert cost.count(lambda w, x: x @ w, w, x) == (3 * 7 * 5, 15)
    image, kernel = jnp.ones((1, 6, 6, 2)), jnp.ones((3, 3, 2, 8))
    convolve = lambda kernel, image: jax.lax.conv_general_dilated(  # noqa: E731
        image, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert cost.count(convolve, kernel, image) == (4 * 4 * 8 * 9 * 2, 4 * 4 * 8)
    square = jnp.ones((4, 4))
    loop = lambda w: jax.lax.scan(lambda h, _: (jax.jit(jnp.matmul)(w, h), None), w, length=10)[0]  # noqa: E731
    assert cost.count(loop, square) == (10 * 64, 10 * 16)


def sizes(n, k, layers=None, *, entries, weights, forward):
    return cost.Sizes(n, n, k, entries, weights, forward, forward, layers)


def test_the_cheapest_method_is_chosen():
    # A wide dense network: Gram matrices cost width, Jacobians width squared.
    layers = (DenseSize(1, 785, 512), DenseSize(1, 513, 10))
    wide = {"entries": 100, "weights": 407_050, "forward": 407_050}
    assert cost.choose_method(sizes(1000, 10, layers, **wide), None) == "structured"
    # Not known to be dense, all pairs of many outputs: a forward pass is cheaper than k Jacobians.
    assert cost.choose_method(sizes(100, 10, **wide), None) == "vector_products"
    # Convolutions apply each weight at a thousand positions, and their Jacobian has it once.
    shared = {"entries": 10, "weights": 10_000, "forward": 10_000_000}
    assert cost.choose_method(sizes(100, 10, **shared), None) == "jacobian"


def test_default_blocks_stay_in_memory_and_are_as_large_as_may_be():
    large = sizes(1000, 10, entries=100, weights=407_050, forward=407_050)
    for method in ("jacobian", "vector_products"):
        batch = cost.choose_batch(method, large, None)
        assert cost.numbers(method, large, batch) <= cost.MOST_NUMBERS < cost.numbers(method, large, 2 * batch + 1)
    assert cost.choose_batch("jacobian", large, 7) == 7
    assert cost.choose_batch("jacobian", large, 5000) == 1000
    huge = sizes(10, 10, entries=100, weights=10**9, forward=10**9)
    assert cost.choose_batch("jacobian", huge, None) == 1


F, PARAMS, X, X2 = CASES["function"]
NET, WEIGHTS = DEEP, CASES["deep"][1]
REFUSED = {
    "outputs": (lambda: ntk(outputs="trace"), ValueError, "`ntk`: outputs must be one of 'mean', 'full', 'pseudo'; "),
    "method": (lambda: ntk(method="fast"), ValueError, "`ntk`: method must be one of 'auto', 'jacobian', 'vector_prod"),
    "structured": (
        lambda: ntk(method="structured"), ValueError, "`ntk`: method 'structured' must be given an architecture",
    ),
    "batch_size 0": (lambda: ntk(batch_size=0), ValueError, "`ntk`: batch_size must be at least 1; got 0"),
    "batch_size 1.5": (lambda: ntk(batch_size=1.5), TypeError, "`ntk`: batch_size must be a whole number; got 1.5"),
    "f": (lambda: ntk(f=3), TypeError, "`ntk`: f must be an architecture or a function f(params, x); got 3"),
    "no params": (lambda: ntk(params=()), ValueError, "`ntk`: params must hold at least one array of weights; got ()"),
    "complex params": (
        lambda: ntk(params={"w": jnp.ones(2, complex)}), TypeError,
        "`ntk`: params must hold real floating-point arrays; got dtype complex128 at params['w']",
    ),
    "whole params": (
        lambda: ntk(params=[jnp.ones(2), jnp.ones(2, int)]), TypeError,
        "`ntk`: params must hold real floating-point arrays; got dtype int64 at params[1]",
    ),
    "text params": (
        lambda: ntk(params={"w": "no"}), TypeError,
        "`ntk`: params must hold real floating-point arrays; got str at params['w']",
    ),
    "complex x1": (lambda: ntk(x1=X + 1j), TypeError, "`ntk`: x1 must be an array of real numbers; got dtype complex"),
    "x1 without rows": (lambda: ntk(x1=X[:0]), ValueError, "`ntk`: x1 must hold at least one entry on every axis"),
    "x1 a number": (lambda: ntk(x1=np.array(1.0)), ValueError, "`ntk`: x1 must have shape (n1,); got ()"),
    "x1 NaN": (lambda: ntk(x1=X.at[0, 0].set(jnp.nan)), ValueError, "`ntk`: x1 must be finite; got 1 NaN or infinite"),
    "x2": (lambda: ntk(x2=X[:, :2]), ValueError, "`ntk`: x2 must have shape (n2, 4) with the rest from x1; got (5, 2)"),
    "one output": (
        lambda: ntk(f=lambda params, x: x[:, 0] * params["c"]), ValueError,
        "`ntk`: f must return outputs of shape (n, k) with n=5 from x1; got (5,); flatten the outputs of each input",
    ),
    "several outputs": (
        lambda: ntk(f=lambda params, x: (x, x)), ValueError, "with n=5 from x1; got tuple; flatten",
    ),
    "complex outputs": (
        lambda: ntk(f=lambda params, x: 1j * params["c"] * x), TypeError,
        "`ntk`: f must return real floating-point outputs; got dtype complex128",
    ),
    "weights of other inputs": (
        lambda: bw.empirical.ntk(NET, WEIGHTS, X[:, :2]), ValueError, "`Network`: params must have the shapes",
    ),
    "nngp outputs": (
        lambda: bw.empirical.nngp(F, PARAMS, X, outputs="pseudo"), ValueError,
        "`nngp`: outputs must be one of 'mean', 'full'; got 'pseudo'",
    ),
    "nngp x2": (lambda: bw.empirical.nngp(F, PARAMS, X, X[0]), ValueError, "`nngp`: x2 must have shape (n2, 4)"),
    "v": (
        lambda: bw.empirical.ntk_vector_product(F, PARAMS, X, X2, np.ones((5, 3))), ValueError,
        "`ntk_vector_product`: v must have shape (3, 3) with n2=3 and k=3 from x2 and f; got (5, 3)",
    ),
}  # fmt: skip


def ntk(f=F, params=PARAMS, x1=X, x2=None, **how):
    return bw.empirical.ntk(f, params, x1, x2, **how)


@pytest.mark.usefixtures("only_the_librarys_own_checks")
@pytest.mark.parametrize("name", REFUSED)
def test_wrong_arguments_are_refused(name):
    call, kind, text = REFUSED[name]
    with pytest.raises(kind) as caught:
        call()
    assert text in str(caught.value)
