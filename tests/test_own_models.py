"""A wide network inside a user's own NumPyro model: random effects, missing targets, inputs observed with error."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer import MCMC, NUTS, Predictive
from numpyro.infer.util import log_density
from scipy import stats

import bnnwide as bw

N, K, W = 8, 2, 4
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 1))
GROUP = np.arange(N) % 3
Y = np.sin(2 * X) + np.asarray([0.0, 1.0, -0.7])[GROUP][:, None] + 0.3 * RNG.normal(size=(N, K))
OBSERVED = np.ones((N, K), bool)
OBSERVED[[1, 2, 5], [0, 1, 0]] = False
OBSERVED[3] = False  # a whole row
NOISE = 0.3


def network(outputs=1, width=W):
    return bw.Dense(width, w_scale=2.0, b_scale=1.0) >> bw.Tanh() >> bw.Dense(outputs, w_scale=1.5, b_scale=0.5)


def random_effect(x=X, y=Y[:, :1], *, repriorised=True):
    """y = f(x) + the effect of a group + noise; the noise and the spread of the effects are learned."""
    net = network()
    noise = numpyro.sample("noise", dist.LogNormal(-1.0, 0.4))
    spread = numpyro.sample("spread", dist.LogNormal(0.0, 0.3))
    effect = numpyro.sample("effect", dist.Normal(0.0, spread).expand([3]).to_event(1))[GROUP][:, None]
    psi = net.features(bw.sample_params("hidden", net[:-1], (1,)), x)
    if repriorised:
        readout = bw.sample_readout("readout", psi, y - effect, noise)
    else:
        readout = bw.sample_readout("readout", psi, outputs=1)
    f = numpyro.deterministic("f", psi @ readout)
    numpyro.sample("y", dist.Normal(f + effect, noise).to_event(2), obs=y)


def missing_targets(x=X, y=Y, *, repriorised=True, width=W, hidden=None, observed=OBSERVED, solver="auto"):
    """Two outputs, some of whose targets are missing."""
    net = network(y.shape[1], width)
    params = bw.sample_params("hidden", net[:-1], (1,)) if hidden is None else hidden
    psi = net.features(params, x)
    if repriorised:
        readout = bw.sample_readout("readout", psi, y, jnp.where(observed, NOISE, jnp.inf), solver=solver)
    else:
        readout = bw.sample_readout("readout", psi, outputs=y.shape[1])
    f = numpyro.deterministic("f", psi @ readout)
    numpyro.sample("y", dist.Normal(f, NOISE).mask(observed), obs=np.where(observed, y, 0.0))


def latent_input(x=X, y=Y, *, repriorised=True):
    """Inputs observed with a standard error of 0.2."""
    net = network(K)
    true_x = numpyro.sample("true_x", dist.Normal(x, 0.2).to_event(2))
    psi = net.features(bw.sample_params("hidden", net[:-1], (1,)), true_x)
    if repriorised:
        readout = bw.sample_readout("readout", psi, y, NOISE)
    else:
        readout = bw.sample_readout("readout", psi, outputs=K)
    numpyro.sample("y", dist.Normal(psi @ readout, NOISE).to_event(2), obs=y)


MODELS = {"random effect": random_effect, "missing targets": missing_targets, "latent input": latent_input}


def prior_draw(model, **options):
    """One prior draw of the latent sites of a model, the base of the readout among them."""
    trace = handlers.trace(handlers.seed(model, jax.random.key(1))).get_trace(**options)
    return {
        name: site["value"] for name, site in trace.items()
        if site["type"] == "sample" and not site["is_observed"] and not name.endswith("_sites")
    }  # fmt: skip


# Coordinates


@pytest.mark.parametrize("name", MODELS)
def test_the_density_in_phi_is_that_in_theta_and_the_jacobian(name):
    """log p(phi, rest, y) = log p(theta(phi), rest, y) + log|det dtheta/dphi|, the determinant by autodiff."""
    model = MODELS[name]
    draw = prior_draw(model)
    phi = draw["readout_base"]

    rest = {site: value for site, value in draw.items() if site != "readout_base"}

    @jax.jit
    def both_sides(phi):
        def density(phi):
            value, trace = log_density(model, (), {}, rest | {"readout_base": phi})
            return trace["readout"]["value"], (value, trace["readout"]["value"])

        jacobian, (value, theta) = jax.jacobian(density, has_aux=True)(phi)
        plain, _ = log_density(model, (), {"repriorised": False}, rest | {"readout": theta})
        return value, plain, jnp.linalg.slogdet(jacobian.reshape(phi.size, phi.size))[1]

    value, plain, log_det = both_sides(phi)
    np.testing.assert_allclose(value, plain + log_det, rtol=1e-9)
    assert abs(log_det) > 1.0  # without the determinant the two would differ


def test_group_effects_and_function_are_those_of_the_plain_readout():
    """One posterior in two coordinates, by two samplers: means and variances agree within Monte-Carlo error."""
    moments = []
    for repriorised, kernel in ((False, NUTS(random_effect, max_tree_depth=5)), (True, bw.SplitHMC(random_effect))):
        mcmc = MCMC(
            kernel, num_warmup=150, num_samples=300, num_chains=4, chain_method="vectorized", progress_bar=False
        )
        mcmc.run(jax.random.key(0), repriorised=repriorised)
        draws = mcmc.get_samples(group_by_chain=True)
        values = np.concatenate([draws["effect"], draws["f"][..., 0], np.log(draws["noise"])[..., None]], axis=-1)
        values = np.concatenate([values, (values - values.mean((0, 1))) ** 2], axis=-1)
        ess = bw.diagnostics.effective_sample_size(values)
        assert ess.min() > 50
        moments.append((values.mean((0, 1)), values.std((0, 1)) / np.sqrt(ess)))
    (plain, plain_error), (other, other_error) = moments
    z = (plain - other) / np.hypot(plain_error, other_error)
    assert np.abs(z).max() < 4


# Missing targets


def density_of(phi, **options):
    return float(jax.jit(lambda phi: log_density(missing_targets, (), options, phi)[0])(phi))


@pytest.mark.parametrize("solver", ["primal", "dual"])
def test_what_is_written_in_a_missing_entry_is_not_read(solver):
    draw = prior_draw(missing_targets)
    other = np.where(OBSERVED, Y, 1e6)
    assert density_of(draw, solver=solver) == density_of(draw, y=other, solver=solver)
    assert density_of(draw, solver=solver) == density_of(draw, y=np.where(OBSERVED, Y, np.nan), solver=solver)
    changed = Y.copy()
    changed[0, 0] += 0.5  # observed
    assert abs(density_of(draw, solver=solver) - density_of(draw, y=changed, solver=solver)) > 0.1


@pytest.mark.parametrize("width", [3, 20])
def test_missing_targets_are_rows_left_out(width):
    """The density is that of one model per output, each with its own rows: the outputs share hidden weights only."""
    draw = prior_draw(missing_targets, width=width)
    solver = "primal" if width == 3 else "dual"
    hidden = {site: value for site, value in draw.items() if site != "readout_base"}
    prior = sum(stats.norm.logpdf(np.asarray(value)).sum() for value in hidden.values())
    parts = []
    for j in range(K):
        rows = OBSERVED[:, j]
        options = {"x": X[rows], "y": Y[rows, j : j + 1], "observed": np.ones((rows.sum(), 1), bool)}
        column = hidden | {"readout_base": draw["readout_base"][:, [j]]}
        parts.append(density_of(column, **options, width=width, solver=solver) - prior)
    np.testing.assert_allclose(density_of(draw, width=width, solver=solver), prior + sum(parts), rtol=1e-10)


@pytest.mark.parametrize("width", [3, 20])
def test_missing_entries_are_predicted_by_conditioning_on_the_rest(width):
    """With hidden weights frozen phi is N(0, I) a posteriori, and f = Psi theta(phi) is the conditional Gaussian."""
    net = network(K, width)
    hidden = net[:-1].init(jax.random.key(2), (1,))
    psi = np.asarray(net.features(hidden, X))
    shape = (psi.shape[1], K)

    @jax.jit
    def trace_of(phi):
        value, trace = log_density(missing_targets, (), {"width": width, "hidden": hidden}, {"readout_base": phi})
        return value, trace["f"]["value"]

    prior = psi @ psi.T
    evidence, means, covariances = 0.0, [], []
    for j in range(K):
        seen = OBSERVED[:, j]
        noisy = prior[np.ix_(seen, seen)] + NOISE**2 * np.eye(seen.sum())
        gain = np.linalg.solve(noisy, prior[seen]).T
        means.append(gain @ Y[seen, j])
        covariances.append(prior - gain @ prior[seen])
        evidence += stats.multivariate_normal(np.zeros(seen.sum()), noisy).logpdf(Y[seen, j])
    for seed in (0, 1):
        phi = jax.random.normal(jax.random.key(seed), shape)
        np.testing.assert_allclose(trace_of(phi)[0], evidence + stats.norm.logpdf(np.asarray(phi)).sum(), rtol=1e-9)
    np.testing.assert_allclose(trace_of(jnp.zeros(shape))[1], np.stack(means, axis=1), atol=1e-9)
    jacobian = np.asarray(jax.jacobian(lambda phi: trace_of(phi)[1])(jnp.zeros(shape))).reshape(N, K, -1)
    for j in range(K):
        np.testing.assert_allclose(jacobian[:, j] @ jacobian[:, j].T, covariances[j], atol=1e-9)
    np.testing.assert_allclose(jacobian[:, 0] @ jacobian[:, 1].T, 0.0, atol=1e-9)


def test_missing_targets_under_learned_noise_have_finite_gradients():
    def model(y):
        net = network(K)
        noise = numpyro.sample("noise", dist.LogNormal(-1.0, 0.4))
        psi = net.features(bw.sample_params("hidden", net[:-1], (1,)), X)
        readout = bw.sample_readout("readout", psi, y, jnp.where(OBSERVED, noise, jnp.inf))
        filled = np.where(OBSERVED, y, 0.0)
        numpyro.sample("y", dist.Normal(psi @ readout, noise).mask(OBSERVED), obs=filled)

    draw = prior_draw(model, y=Y)
    for y in (Y, np.where(OBSERVED, Y, np.nan)):
        density = jax.jit(lambda draw, y=y: log_density(model, (y,), {}, draw)[0])
        gradient = jax.jit(jax.grad(density))(draw)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
        above, below = (density(draw | {"noise": draw["noise"] + step}) for step in (1e-5, -1e-5))
        np.testing.assert_allclose(gradient["noise"], (above - below) / 2e-5, rtol=1e-5)


def test_one_scale_per_output():
    """A scale (k,) broadcasts to (n, k), as that of `Gaussian`."""
    net = network(K)
    psi = net.features(net.init(jax.random.key(2), (1,)), X)
    scale, phi = np.asarray([0.2, 0.5]), {"readout_base": jnp.ones((psi.shape[1], K))}

    def model(scale):
        bw.sample_readout("readout", psi, Y, scale)

    values = [log_density(model, (s,), {}, phi)[0] for s in (scale, np.broadcast_to(scale, Y.shape))]
    assert values[0] == values[1]


# Predictions


def test_predictive_takes_the_readout_of_the_samples():
    """Without targets the readout is a site of the name that the samples hold, at other inputs as well."""
    net, x_test = network(K), np.linspace(-1, 1, 3)[:, None]
    hidden, readout = jax.vmap(lambda key: net.init(key, (1,)))(jax.random.split(jax.random.key(0), 5))[::2]
    theta = jnp.concatenate([readout["w"], readout["b"][:, None]], axis=1)
    samples = {"hidden.0.w": hidden["w"], "hidden.0.b": hidden["b"], "readout": theta, "readout_base": 0 * theta}

    def at_test(x):
        psi = net.features(bw.sample_params("hidden", net[:-1], (1,)), x)
        numpyro.deterministic("f", psi @ bw.sample_readout("readout", psi, outputs=K))

    f = Predictive(at_test, samples)(jax.random.key(1), x_test)["f"]
    by_hand = jax.vmap(lambda hidden, readout: net((hidden, (), readout), x_test))(hidden, readout)
    np.testing.assert_allclose(f, by_hand, rtol=1e-12)
