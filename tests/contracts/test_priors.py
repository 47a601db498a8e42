"""Priors of weights: every family against its quantiles, layers with them, and what infinite width keeps of them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.distributions import transforms
from scipy import special, stats

import bnnwide as bw
from bnnwide.arch.priors import from_normal

X = np.random.default_rng(0).normal(size=(4, 3))
Z = np.concatenate([np.linspace(-8, 8, 401), [-1e-5, 1e-5]])

# name: (prior, SciPy's)
FAMILIES = {
    "Normal": (dist.Normal(0.5, 2.0), stats.norm(0.5, 2.0)),
    "Laplace": (dist.Laplace(0.0, 2.0), stats.laplace(0, 2)),
    "Cauchy": (dist.Cauchy(0.0, 2.0), stats.cauchy(0, 2)),
    "Logistic": (dist.Logistic(0.0, 2.0), stats.logistic(0, 2)),
    "Gumbel": (dist.Gumbel(1.0, 2.0), stats.gumbel_r(1, 2)),
    "Uniform": (dist.Uniform(-1.0, 2.0), stats.uniform(-1, 3)),
    "HalfNormal": (dist.HalfNormal(0.5), stats.halfnorm(0, 0.5)),
    "HalfCauchy": (dist.HalfCauchy(0.5), stats.halfcauchy(0, 0.5)),
    "Exponential": (dist.Exponential(2.0), stats.expon(0, 0.5)),
    "LogNormal": (dist.LogNormal(0.1, 0.3), stats.lognorm(0.3, 0, np.exp(0.1))),
    "Gamma(0.7)": (dist.Gamma(0.7, 2.0), stats.gamma(0.7, 0, 0.5)),
    "Gamma(20)": (dist.Gamma(20.0, 2.0), stats.gamma(20, 0, 0.5)),
    "InverseGamma": (dist.InverseGamma(2.0, 3.0), stats.invgamma(2, 0, 3)),
    "Pareto": (dist.Pareto(1.0, 2.0), stats.pareto(2)),
} | {
    f"StudentT({df:g})": (dist.StudentT(df, 0.0, 1.5), stats.t(df, 0, 1.5)) for df in (0.5, 1, 2, 3, 6.5, 30, 1e3, 1e6)
}


def quantiles(name, law, z):
    """Quantiles of SciPy's law, from the side on which the probability is small."""
    lower = law.ppf(stats.norm.cdf(z))
    if name == "HalfNormal":  # whose ppf goes through a probability near 1/2
        lower = 0.5 * 2**0.5 * special.erfinv(stats.norm.cdf(z))
    return np.where(z < 0, lower, law.isf(stats.norm.sf(z)))


def value_and_slope(prior, z):
    return jax.vmap(jax.value_and_grad(lambda z: from_normal(prior, z)))(jnp.asarray(z))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_standard_normal_becomes_a_draw_with_all_digits_in_both_tails(name):
    prior, law = FAMILIES[name]
    wanted = quantiles(name, law, Z)
    w, slope = value_and_slope(prior, Z)
    # At +-1e-5 a probability near 1/2 leaves SciPy ten digits of a quantile near 0.
    np.testing.assert_allclose(w[:-2], wanted[:-2], rtol=2e-10, atol=1e-12)
    np.testing.assert_allclose(w[-2:], wanted[-2:], rtol=1e-8)
    np.testing.assert_allclose(slope, np.exp(stats.norm.logpdf(Z) - law.logpdf(wanted)), rtol=1e-8)
    assert (np.diff(w[:-2]) > 0).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_single_precision_keeps_its_digits_and_finite_gradients(name):
    prior, law = FAMILIES[name]
    z = np.linspace(-6, 6, 201).astype(np.float32)
    wanted = quantiles(name, law, z.astype(float))
    with jax.enable_x64(False):
        w, slope = value_and_slope(prior, z)
    assert w.dtype == jnp.float32
    np.testing.assert_allclose(w, wanted, rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(slope, np.exp(stats.norm.logpdf(z) - law.logpdf(wanted)), rtol=1e-4, atol=1e-30)


@pytest.mark.parametrize("name", ["Laplace", "Cauchy", "Gumbel", "HalfCauchy", "Gamma(0.7)", "StudentT(3)"])
def test_second_derivatives(name):
    prior, z, step = FAMILIES[name][0], Z[::20] + 0.013, 1e-5
    slope = jax.grad(lambda z: from_normal(prior, z))
    numeric = (jax.vmap(slope)(z + step) - jax.vmap(slope)(z - step)) / (2 * step)
    np.testing.assert_allclose(jax.vmap(jax.grad(slope))(z), numeric, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", FAMILIES)
def test_far_out_nothing_is_nan(name):
    far = [-20.0, -12.0, -9.5, 9.5, 12.0, 20.0]
    w, slope = value_and_slope(FAMILIES[name][0], far)
    assert np.isfinite(w).all() and (np.diff(w) >= 0).all()
    assert np.isfinite(slope).all() and (np.asarray(slope) >= 0).all()


def test_any_other_prior_goes_through_its_own_quantiles():
    z = Z[np.abs(Z) < 5]
    soft = stats.hypsecant()
    np.testing.assert_allclose(
        from_normal(dist.SoftLaplace(0.0, 1.0), jnp.asarray(z)), soft.ppf(stats.norm.cdf(z)), 1e-8
    )
    w, slope = value_and_slope(dist.TruncatedNormal(0.0, 1.0, low=-1.0, high=2.0), [-30.0, -8.0, 8.0, 30.0])
    assert np.isfinite(w).all() and np.isfinite(slope).all()


def test_batches_events_and_transforms():
    z = jax.random.normal(jax.random.key(0), (5, 3))
    scale = jnp.asarray([0.5, 1.0, 2.0])
    wanted = scale * from_normal(dist.Laplace(), z)
    for prior in (
        dist.Laplace(0.0, scale),
        dist.Laplace(0.0, scale).to_event(1),
        dist.Laplace(0.0, scale).expand((5, 3)).to_event(2),
        dist.Laplace(0.0, scale[None]).expand((5, 3)),
    ):
        np.testing.assert_allclose(from_normal(prior, z), wanted, rtol=1e-14)
    df = np.asarray([1.0, 3.0, 30.0])
    columns = [from_normal(dist.StudentT(nu), z[:, i]) for i, nu in enumerate(df)]
    np.testing.assert_allclose(from_normal(dist.StudentT(df), z), jnp.stack(columns, 1), rtol=1e-12)
    falling = dist.TransformedDistribution(dist.Gumbel(0.0, 1.0), transforms.AffineTransform(1.0, -2.0))
    np.testing.assert_allclose(from_normal(falling, z), 1 - 2 * stats.gumbel_r.ppf(stats.norm.sf(z)), rtol=1e-8)


def test_parameters_have_gradients_where_they_move_and_stretch():
    z = jnp.asarray([-1.5, 0.3, 2.0])
    unit = from_normal(dist.StudentT(3.0), z)
    stretch = lambda loc, scale: from_normal(dist.StudentT(3.0, loc, scale), z)  # noqa: E731
    for slope, wanted in zip(jax.jacobian(stretch, argnums=(0, 1))(0.2, 0.7), (jnp.ones(3), unit), strict=True):
        np.testing.assert_allclose(slope, wanted, rtol=1e-13)


def draws(layer, key, num_draws, width=1):
    """Weights of a layer, from its values at the input 1."""
    keys = jax.random.split(jax.random.key(key), num_draws)
    return np.asarray(jax.vmap(lambda key: layer(layer.init(key, (width,)), jnp.ones((1, width)))[0])(keys))


def test_weights_and_biases_have_their_priors():
    layer = bw.Dense(2, w_scale=0.7, b_scale=0.3, w_prior=dist.StudentT(3.0), b_prior=dist.Laplace(0.0, 2.0))
    params = layer.init(jax.random.key(0), (3,))
    wanted = 0.7 / 3**0.5 * X @ stats.t(3).ppf(stats.norm.cdf(params["w"]))
    np.testing.assert_allclose(
        layer(params, X), wanted + 0.6 * stats.laplace.ppf(stats.norm.cdf(params["b"])), rtol=1e-8
    )
    w = draws(bw.Dense(1, w_scale=0.7, w_prior=dist.StudentT(3.0)), 0, 4000)[:, 0]
    assert stats.kstest(w, stats.t(3, 0, 0.7).cdf).pvalue > 1e-3
    np.testing.assert_array_equal(
        *[bw.Dense(3, w_prior=p)({"w": jnp.ones((3, 3))}, X) for p in (None, dist.Normal(0.0, 1.0))]
    )


def test_the_horseshoe_is_a_product_of_two_half_cauchys_and_a_normal():
    layer = bw.Dense(50, w_prior=bw.Horseshoe(0.3))
    shapes = {name: leaf.shape for name, leaf in layer.weight_shapes((2,)).items()}
    assert shapes == {"w": (2, 50), "w_local": (2, 50), "w_global": ()}
    logs = np.log(np.abs(draws(layer, 1, 2000)))
    # log|HalfCauchy(1)| has mean 0 and variance pi^2/4, log|N(0, 1)| mean -(gamma + log 2)/2 and variance pi^2/8.
    across, within = np.pi**2 / 4, 3 * np.pi**2 / 8
    mean = np.log(0.3) - 0.5 * (np.euler_gamma + np.log(2))
    layers = logs.mean(1)
    assert abs(layers.mean() - mean) < 4.5 * np.sqrt((across + within / 50) / 2000)
    kurtosis = 5 - 3  # of log HalfCauchy: a hyperbolic secant law
    assert abs(layers.var() - across - within / 50) < 4.5 * across * np.sqrt((2 + kurtosis) / 2000)
    np.testing.assert_allclose(logs.var(1, ddof=1).mean(), within, rtol=0.03)


def test_equal_priors_are_one_static_object():
    build = lambda df: bw.Dense(4, w_prior=dist.StudentT(df), b_scale=0.1, b_prior=bw.Horseshoe(2)) >> bw.Tanh()  # noqa: E731
    assert build(3.0) == build(3) and build(3.0) != build(4.0)
    traces = []

    def call(net, params):
        traces.append(1)
        return net(params, X)

    params = build(3.0).init(jax.random.key(0), (3,))
    values = [jax.jit(call)(build(df), params) for df in (3.0, 3.0, 4.0)]
    assert len(traces) == 2
    np.testing.assert_array_equal(values[0], values[1])
    assert not np.allclose(values[0], values[2])
    assert len(jax.tree.leaves(build(3.0))) == 2
    # What is no family of NumPyro's may hold more than its leaves tell: it is compared by identity.
    falling = lambda: dist.TransformedDistribution(dist.Laplace(), transforms.AffineTransform(0.0, -2.0))  # noqa: E731
    prior = falling()
    assert bw.Dense(4, w_prior=prior) == bw.Dense(4, w_prior=prior) != bw.Dense(4, w_prior=falling())


def test_normal_weights_of_mean_0_are_told_from_others():
    normal = dict(w_prior=dist.Normal(0.0, 2.0), b_scale=0.3, b_prior=dist.Normal(0.0, 0.5))
    assert bw.Dense(3).gaussian_weights and bw.Dense(3, **normal).gaussian_weights
    for prior in (dist.Normal(0.1, 1.0), dist.Laplace(), dist.LogNormal(), bw.Horseshoe()):
        assert not bw.Dense(3, w_prior=prior).gaussian_weights
        assert not bw.Dense(3, **(normal | {"b_prior": prior})).gaussian_weights
    assert repr(bw.Dense(3, **normal)) == (
        "Dense(width=3, w_scale=1.0, b_scale=0.3, w_prior=Normal(loc=0.0, scale=2.0), "
        "b_prior=Normal(loc=0.0, scale=0.5))"
    )


# At infinite width


def test_normal_priors_of_each_layer_are_scales():
    def net(*options):
        return (
            bw.Dense(4, **options[0]) >> bw.Erf() >> bw.Dense(4, **options[1]) >> bw.Relu() >> bw.Dense(1, w_scale=0.8)
        )

    priors = net(
        dict(w_scale=1.5, w_prior=dist.Normal(0.0, 0.6), b_scale=0.3), dict(b_scale=0.2, b_prior=dist.Normal(0.0, 2.0))
    )
    scales = net(dict(w_scale=0.9, b_scale=0.3), dict(b_scale=0.4))
    for a, b in zip(priors.kernel(X), scales.kernel(X), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13)
    # The finite tangent kernel, in standard normal coordinates, is that of the scales too.
    params = priors.init(jax.random.key(0), (3,))
    finite = bw.empirical.ntk(scales, params, X, method="jacobian")
    for method in ("jacobian", "structured"):
        np.testing.assert_allclose(bw.empirical.ntk(priors, params, X, method=method), finite, rtol=1e-11)


def deep(width):
    return (
        bw.Dense(width, w_scale=1.3, b_scale=0.2)
        >> bw.Relu()
        >> bw.Dense(width, w_scale=0.9, b_scale=0.3, w_prior=dist.Laplace())
        >> bw.Erf()
        >> bw.Dense(width, w_scale=1.1, w_prior=dist.StudentT(6.0))
        >> bw.Gelu()
    )


def test_deep_layers_of_any_finite_variance_have_the_kernel_of_their_variance_at_the_monte_carlo_rate():
    readout = bw.Dense(1, w_scale=1.2, b_scale=0.3, w_prior=dist.Laplace(0.0, 0.5), b_prior=dist.Laplace())
    wanted = np.asarray((deep(8) >> readout).kernel(X, ntk=False).nngp)
    widths, num_draws, errors, deviations = (24, 216), 48, [], []
    for width in widths:
        body = deep(width)

        def covariance(key, body=body, width=width):
            h = body(body.init(key, (3,)), X)
            # The readout is averaged exactly: Laplace(0, b) has the variance 2 b^2.
            return 1.44 * 0.5 / width * h @ h.T + 0.09 * 2

        keys = jax.random.split(jax.random.key(0), num_draws)
        values = np.asarray(jax.jit(lambda keys, one=covariance: jax.lax.map(one, keys))(keys))
        errors.append(np.abs(values.mean(0) - wanted) / wanted.max())
        deviations.append(values.std(0) / wanted.max())
    ratio = np.sqrt((deviations[0] ** 2).mean() / (deviations[1] ** 2).mean())
    np.testing.assert_allclose(ratio, np.sqrt(widths[1] / widths[0]), rtol=0.35)
    allowed = 4.5 * deviations[1] / np.sqrt(num_draws) + 3 / widths[1]
    assert (errors[1] < allowed).all(), (errors[1] / allowed).max()
    assert (allowed < 0.1).all()  # so that a wrong kernel is found


def test_a_first_layer_has_its_covariance_but_no_gaussian_limit():
    one, x = jnp.asarray([[1.0], [0.4]]), dist.Laplace()
    first = bw.Dense(64, w_scale=1.5, b_scale=0.5, w_prior=x)
    np.testing.assert_allclose(first.kernel(one, ntk=False).nngp, 2 * 1.5**2 * one @ one.T + 0.25, rtol=1e-13)
    # Its units are summed by the next layer, whose outputs are Gaussian.
    linear = first >> bw.Dense(64) >> bw.Relu() >> bw.Dense(1)
    same = bw.Dense(64, w_scale=1.5 * 2**0.5, b_scale=0.5) >> bw.Dense(64) >> bw.Relu() >> bw.Dense(1)
    np.testing.assert_allclose(linear.kernel(one, ntk=False).nngp, same.kernel(one, ntk=False).nngp, rtol=1e-13)
    # Why an activation is refused: E erf(u)^2 is another number when u is Laplace and not normal of its variance.
    z, weight = np.polynomial.hermite_e.hermegauss(180)
    moment = lambda u: np.sum(weight * special.erf(u) ** 2) / weight.sum()  # noqa: E731
    laplace, normal = moment(1.5 * np.asarray(from_normal(x, jnp.asarray(z)))), moment(1.5 * 2**0.5 * z)
    assert abs(laplace - normal) > 0.05
    gaussian = bw.Dense(64, w_scale=1.5 * 2**0.5) >> bw.Erf() >> bw.Dense(1)
    np.testing.assert_allclose(gaussian.kernel(one[:1], ntk=False).nngp, normal, rtol=1e-4)


def kernel(net, **options):
    return lambda: (net >> bw.Dense(1)).kernel(X, **({"ntk": False} | options))


def hidden(**options):
    return bw.Dense(8) >> bw.Relu() >> bw.Dense(8, **options) >> bw.Relu()


LAPLACE = bw.Dense(8, w_prior=dist.Laplace())
HEAVY = "`kernel`: w_prior must have a finite variance; got {}: heavy tails have no Gaussian limit"
NO_GAUSSIAN = "`Relu`: the kernel of an activation needs Gaussian inputs"
REFUSED = {
    "a number": (lambda: bw.Dense(2, w_prior=0.5), "`Dense`: w_prior must be None for N(0, 1), a NumPyro distribution"),
    "many weights": (
        lambda: bw.Dense(2, w_prior=dist.Normal().expand((2,))),
        "`Dense`: w_prior must be the prior of one weight; got one of shape (2,)",
    ),
    "discrete": (lambda: bw.Dense(2, w_prior=dist.Poisson(1.0)), "`Dense`: w_prior must be continuous; got Poisson("),
    "no quantiles": (
        lambda: bw.Dense(2, b_scale=1.0, b_prior=dist.Weibull(1.0, 2.0)),
        "`Dense`: b_prior must have a quantile function (icdf); Weibull has none here",
    ),
    "parameters": (
        lambda: bw.Dense(2, w_prior=dist.Laplace(0.0, -1.0, validate_args=False)),
        "`Dense`: w_prior must have parameters that its family allows; got Laplace(loc=0.0, scale=-1.0)",
    ),
    "traced": (
        lambda: jax.jit(lambda s: bw.Dense(2, w_prior=dist.Laplace(0.0, s))(({"w": jnp.ones((3, 2))}), X))(1.0),
        "`Dense`: w_prior must have numbers for parameters; got traced ones in Laplace; what is to be learned belongs "
        "in w_scale",
    ),
    "no biases": (lambda: bw.Dense(2, b_prior=dist.Laplace()), "`Dense`: b_prior needs biases; got b_scale=None"),
    "horseshoe": (lambda: bw.Horseshoe(-1.0), "`Horseshoe`: global_scale must be positive and finite; got -1.0"),
    "horseshoe text": (lambda: bw.Horseshoe("1"), "`Horseshoe`: global_scale must be a number; got '1'"),
    "no distribution": (lambda: from_normal(0.5, jnp.ones(2)), "`from_normal`: prior must be a NumPyro distribution"),
    "over arrays": (
        lambda: from_normal(dist.Dirichlet(jnp.ones(3)), jnp.ones(3)),
        "`from_normal`: prior must be a distribution over numbers; got Dirichlet over arrays of shape (3,)",
    ),
    "shapes": (
        lambda: from_normal(dist.Laplace(jnp.zeros(3), 1.0), jnp.ones((3, 2))),
        "`from_normal`: the prior's shape must broadcast to that of z, (3, 2); got (3,)",
    ),
    "not monotone": (
        lambda: from_normal(dist.FoldedDistribution(dist.Normal(1.0, 1.0)), jnp.ones(2)),
        "`from_normal`: transforms of a prior must be monotone; got FoldedDistribution",
    ),
    "traced df": (
        lambda: jax.grad(lambda df: from_normal(dist.StudentT(df), jnp.ones(())))(3.0),
        "`StudentT`: df must be a number, not traced",
    ),
    "extreme df": (
        lambda: from_normal(dist.StudentT(0.01), jnp.ones(())),
        "`StudentT`: df must be such that quantiles can be represented; got 0.01",
    ),
    "first layer": (kernel(LAPLACE >> bw.Relu()), NO_GAUSSIAN),
    "first layer, summed": (kernel(bw.Sum((LAPLACE, bw.Dense(8))) >> bw.Relu()), NO_GAUSSIAN),
    "over the input itself": (
        kernel(bw.Concatenate((bw.Identity(), bw.Dense(8))) >> LAPLACE >> bw.Relu()), NO_GAUSSIAN,
    ),
    "over input plus hidden": (kernel(bw.Residual(bw.Dense(3)) >> LAPLACE >> bw.Relu()), NO_GAUSSIAN),
    "over input times hidden": (
        kernel(bw.Product((bw.Identity(), bw.Dense(3))) >> LAPLACE >> bw.Relu()), NO_GAUSSIAN,
    ),
    "biases": (kernel(hidden(b_scale=0.1, b_prior=dist.Laplace())), NO_GAUSSIAN),
    "Cauchy": (kernel(hidden(w_prior=dist.Cauchy())), HEAVY.format("Cauchy(loc=0.0, scale=1.0)")),
    "StudentT(2)": (kernel(hidden(w_prior=dist.StudentT(2.0))), HEAVY.format("StudentT(df=2.0, loc=0.0, scale=1.0)")),
    "StudentT(1)": (kernel(hidden(w_prior=dist.StudentT(1.0))), HEAVY.format("StudentT(df=1.0, loc=0.0, scale=1.0)")),
    "Horseshoe": (kernel(hidden(w_prior=bw.Horseshoe())), HEAVY.format("Horseshoe(global_scale=1.0)")),
    "Horseshoe, diagonal": (
        lambda: bw.Dense(1, w_prior=bw.Horseshoe()).kernel_diag(X), HEAVY.format("Horseshoe(global_scale=1.0)"),
    ),
    "mean": (kernel(hidden(w_prior=dist.Normal(0.5, 1.0))), "`kernel`: w_prior must have mean 0, or the mean of a"),
    "mean of biases": (
        kernel(hidden(b_scale=1.0, b_prior=dist.LogNormal())), "`kernel`: b_prior must have mean 0",
    ),
    "unknown variance": (
        kernel(hidden(w_prior=dist.TransformedDistribution(dist.Laplace(), transforms.AffineTransform(0.0, 2.0)))),
        "`kernel`: w_prior must have a known variance; NumPyro has none for TransformedDistribution()",
    ),
    "ntk": (
        kernel(hidden(w_prior=dist.Laplace()), ntk=True),
        "`kernel`: the NTK needs normal weights of mean 0, since it depends on the coordinates in which they are",
    ),
    "structured": (
        lambda: bw.empirical.ntk(LAPLACE, LAPLACE.init(jax.random.key(0), (3,)), X, method="structured"),
        "`ntk`: method 'structured' must be given an architecture whose weights all sit in Dense layers",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_says_what_was_expected_and_what_came(name, only_the_librarys_own_checks):
    call, message = REFUSED[name]
    with pytest.raises((ValueError, TypeError), match="^" + re.escape(message)):
        call()


def test_normal_weights_over_the_input_itself_are_allowed():
    net = bw.Concatenate((bw.Identity(), bw.Dense(8))) >> bw.Dense(8) >> bw.Relu()
    assert np.isfinite(kernel(net)().nngp).all()


def test_tangent_kernels_of_finite_networks_take_any_prior():
    net = bw.Dense(6, w_prior=dist.Laplace()) >> bw.Tanh() >> bw.Dense(1)
    params = net.init(jax.random.key(0), (3,))
    jacobian = jax.jacobian(lambda p: net(p, X)[:, 0])(params)
    flat = np.concatenate([leaf.reshape(4, -1) for leaf in jax.tree.leaves(jacobian)], axis=1)
    np.testing.assert_allclose(bw.empirical.ntk(net, params, X), flat @ flat.T, rtol=1e-10)
