"""Signal propagation against closed forms, plain iteration, and the published critical scales."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnnwide as bw


def test_relu_is_linear_in_the_variance():
    # q' = w^2 q / 2 + b^2, so q* = b^2 / (1 - w^2 / 2) and chi = w^2 / 2 at any variance.
    w, b = np.array([0.5, 1.0, 1.3, 2**0.5, 1.6]), 0.3
    deep = bw.signal_propagation(bw.Relu(), w, b)
    wanted = np.where(w**2 < 2 - 1e-9, b**2 / np.where(w**2 < 2 - 1e-9, 1 - w**2 / 2, 1), np.inf)
    np.testing.assert_allclose(deep.variance, wanted, rtol=1e-10)
    np.testing.assert_allclose(deep.chi, w**2 / 2, rtol=1e-10)
    np.testing.assert_allclose(deep.variance_length[:3], -1 / np.log(w[:3] ** 2 / 2), rtol=1e-8)
    assert list(deep.phase) == ["ordered"] * 3 + ["critical", "chaotic"]
    assert np.isinf(deep.variance_length[3:]).all()


@jax.jit
def iterated(activation, w, b):
    """Variance and correlation after 400 layers each, and what a layer makes of a correlation that is 1e-5 less."""

    def after(c):
        return (w**2 * activation.dual(q, c * q, q) + b**2) / q

    q = jax.lax.fori_loop(0, 400, lambda _, q: w**2 * activation.dual_diag(q) + b**2, jnp.asarray(1.0))
    c = jax.lax.fori_loop(0, 400, lambda _, c: after(c), jnp.asarray(0.3))
    return q, c, after(c - 1e-5)


@pytest.mark.parametrize("activation", [bw.Erf(), bw.Gelu(), bw.Sin()], ids=repr)
@pytest.mark.parametrize(("w", "b"), [(0.7, 0.2), (1.4, 0.3), (2.2, 0.5)])
def test_fixed_points_are_where_plain_iteration_ends(activation, w, b):
    deep = bw.signal_propagation(activation, w, b)
    if not np.isfinite(deep.variance):
        pytest.skip("variances grow without bound here")
    q, c, after = iterated(activation, w, b)
    np.testing.assert_allclose(deep.variance, q, rtol=1e-8)
    np.testing.assert_allclose(deep.correlation, c, atol=1e-6)
    # The distance to the fixed point falls by exp(-1 / length) a layer.
    np.testing.assert_allclose(-1 / np.log(abs(after - c) / 1e-5), deep.correlation_length, rtol=2e-2)


@pytest.mark.parametrize(
    ("activation", "scale"), [(bw.Relu(), 2**0.5), (bw.Erf(), math.sqrt(math.pi) / 2), (bw.Tanh(), 1.0)], ids=repr
)
def test_critical_scales_without_biases(activation, scale):
    # phi'(0)^2 w^2 = 1 for odd sigmoids, whose variance then tends to 0; He et al. 2015 for ReLU.
    assert bw.critical_w_scale(activation) == pytest.approx(scale, rel=2e-3)


def test_a_critical_scale_is_critical():
    w = bw.critical_w_scale(bw.Erf(), 0.2)
    deep = bw.signal_propagation(bw.Erf(), w, 0.2)
    assert deep.chi == pytest.approx(1.0, abs=1e-6) and deep.correlation == pytest.approx(1.0)
    assert bw.critical_w_scale(bw.Erf()) < w < 1.5


def test_deep_kernels_end_at_the_fixed_points():
    net = bw.Identity()
    for _ in range(60):
        net = net >> bw.Dense(4, w_scale=1.7, b_scale=0.4) >> bw.Erf()
    net = net >> bw.Dense(1, w_scale=1.7, b_scale=0.4)
    deep = bw.signal_propagation(bw.Erf(), 1.7, 0.4)
    kernel = net.kernel(np.array([[1.0, 0.5], [-0.3, 2.0]]), ntk=False).nngp
    np.testing.assert_allclose(jnp.diagonal(kernel), deep.variance, rtol=1e-9)
    np.testing.assert_allclose(kernel[0, 1] / kernel[0, 0], deep.correlation, rtol=1e-4)


def test_the_phase_diagram_is_drawn(tmp_path):
    figure = bw.plot_phase_diagram(bw.Erf(), resolution=8)
    figure.savefig(tmp_path / "phases.png")
    assert len(figure.axes) == 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bw.signal_propagation(bw.Relu(), -1.0, 0.0), "`signal_propagation`: w_scale must be positive"),
        (
            lambda: bw.signal_propagation(bw.Relu(), 1.0, -0.1),
            "`signal_propagation`: b_scale must be at least 0; got -0.1",
        ),
        (lambda: bw.signal_propagation(bw.Relu(), np.nan, 0.1), "`signal_propagation`: w_scale must be finite"),
        (lambda: bw.critical_w_scale(bw.GaussianBump(1e-3, 1.0)), "no w_scale in [0.05, 20] has chi = 1"),
    ],
)
@pytest.mark.usefixtures("only_the_librarys_own_checks")
def test_what_it_refuses(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert message in str(error.value)
