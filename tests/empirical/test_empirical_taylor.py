"""Taylor expansions: each order against finite differences, degree 1 against Jacobians, and as a network of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import bnnwide as bw

NET = bw.Dense(6, w_scale=1.2, b_scale=0.3) >> bw.Tanh() >> bw.Residual(bw.Dense(6) >> bw.Sin()) >> bw.Dense(2)
LINEAR = bw.Dense(4, b_scale=0.3) >> bw.Dense(3, b_scale=0.2) >> bw.Dense(2, b_scale=0.5)
X = jax.random.normal(jax.random.key(1), (4, 3))
PARAMS, DELTA = (NET.init(jax.random.key(key), (3,)) for key in (2, 3))


def moved(params, delta, step=1.0):
    return jax.tree.map(lambda old, new: old + step * new, params, delta)


def close(got, want, tolerance=1e-12):
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("degree", [0, 1, 2, 3, 4])
def test_the_error_is_of_one_order_above_the_degree(degree):
    taylor = bw.empirical.taylor_expand(NET, PARAMS, degree)
    error = jax.jit(lambda step: jnp.abs(taylor(moved(PARAMS, DELTA, step), X) - NET(moved(PARAMS, DELTA, step), X)))
    step = 0.02
    # |error| = c step^(degree + 1) (1 + O(step)).
    order = np.log2(jnp.sum(error(step)) / jnp.sum(error(step / 2)))
    assert abs(order - (degree + 1)) < 0.15
    assert float(jnp.sum(error(step))) > 1e-13
    close(error(0.0), 0)


def test_degree_one_is_the_jacobian():
    flat, unravel = ravel_pytree(PARAMS)
    jacobian = jax.jit(jax.jacobian(lambda flat: NET(unravel(flat), X)))(flat)
    want = NET(PARAMS, X) + jacobian @ ravel_pytree(DELTA)[0]
    linear = bw.empirical.linearize(NET, PARAMS)
    close(jax.jit(linear)(moved(PARAMS, DELTA), X), want)
    # A function of (params, x) is expanded as an architecture is.
    function = bw.empirical.taylor_expand(lambda params, x: NET(params, x), PARAMS, 1)
    close(jax.jit(function)(moved(PARAMS, DELTA), X), want)


def test_a_polynomial_in_the_weights_is_its_own_expansion():
    # Three linear layers multiply three weights.
    params, other = (LINEAR.init(jax.random.key(key), (3,)) for key in (4, 5))
    want = LINEAR(other, X)
    two, three = (jax.jit(bw.empirical.taylor_expand(LINEAR, params, degree))(other, X) for degree in (2, 3))
    close(three, want, 1e-11)
    assert float(jnp.max(jnp.abs(two - want))) > 0.01


def test_a_linearised_network_keeps_its_ntk():
    linear, elsewhere = bw.empirical.linearize(NET, PARAMS), moved(PARAMS, DELTA, 3.0)
    want = bw.empirical.ntk(NET, PARAMS, X, outputs="full")
    close(bw.empirical.ntk(linear, elsewhere, X, outputs="full"), want, 1e-11)
    assert float(jnp.max(jnp.abs(bw.empirical.ntk(NET, elsewhere, X, outputs="full") - want))) > 0.1


def test_training_it_is_kernel_gradient_descent():
    # One step of gradient descent on the linearised network moves its outputs by -rate Theta (f - y), exactly.
    linear, y, rate = bw.empirical.linearize(NET, PARAMS), jnp.ones((4, 2)), 0.1
    loss = lambda params: 0.5 * jnp.sum((linear(params, X) - y) ** 2)  # noqa: E731
    stepped = jax.tree.map(lambda p, g: p - rate * g, PARAMS, jax.jit(jax.grad(loss))(PARAMS))
    residual = NET(PARAMS, X) - y
    want = NET(PARAMS, X) - rate * bw.empirical.ntk_vector_product(NET, PARAMS, X, None, residual)
    close(jax.jit(linear)(stepped, X), want)


def test_it_is_a_value():
    taylor = bw.empirical.taylor_expand(NET, PARAMS, 2)
    leaves, tree = jax.tree.flatten(taylor)
    traces = []

    @jax.jit
    def call(taylor, params, x):
        traces.append(1)
        return taylor(params, x)

    want = taylor(moved(PARAMS, DELTA), X)
    close(call(taylor, moved(PARAMS, DELTA), X), want)
    close(call(jax.tree.unflatten(tree, leaves), moved(PARAMS, DELTA), X), want)
    assert len(traces) == 1
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), PARAMS)
    each = jax.jit(jax.vmap(taylor, in_axes=(0, None)))(many, X)
    close(each[1], call(taylor, jax.tree.map(lambda leaf: 2 * leaf, PARAMS), X))
    assert repr(bw.empirical.linearize(bw.Dense(2), {"w": jnp.ones((3, 2))})) == (
        "Taylor(Dense(width=2, w_scale=1.0, b_scale=None), degree=1)"
    )


def test_float32_stays_float32():
    params, x = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (PARAMS, X))
    assert jax.eval_shape(bw.empirical.taylor_expand(NET, params, 2), params, x).dtype == jnp.float32


REFUSED = {
    "degree negative": (
        lambda: bw.empirical.taylor_expand(NET, PARAMS, -1), ValueError,
        "`taylor_expand`: degree must be at least 0; got -1",
    ),
    "degree not whole": (
        lambda: bw.empirical.taylor_expand(NET, PARAMS, 1.0), TypeError,
        "`taylor_expand`: degree must be a whole number; got 1.0",
    ),
    "f": (
        lambda: bw.empirical.taylor_expand(None, PARAMS, 1), TypeError,
        "`taylor_expand`: f must be an architecture or a function f(params, x); got None",
    ),
    "complex": (
        lambda: bw.empirical.linearize(NET, jax.tree.map(lambda leaf: leaf + 1j, PARAMS)), TypeError,
        "`linearize`: params must hold real floating-point arrays; got dtype complex128 at params[0]['b']",
    ),
    "other weights": (
        lambda: bw.empirical.linearize(NET, PARAMS)(PARAMS[:2], X), ValueError,
        "`Taylor`: params must have the shapes",
    ),
}  # fmt: skip


@pytest.mark.usefixtures("only_the_librarys_own_checks")
@pytest.mark.parametrize("name", REFUSED)
def test_wrong_arguments_are_refused(name):
    call, kind, text = REFUSED[name]
    with pytest.raises(kind) as caught:
        call()
    assert text in str(caught.value)
