"""Finite networks approach their limits, at the rate of theory: prior functions, posteriors, trained networks."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest

import bnnwide as bw

pytestmark = pytest.mark.optimised

X = np.array([-2.4, -1.1, -0.2, 0.9, 2.3])[:, None]
Y = np.sin(2 * X) + 0.3 * X
GRID = np.linspace(-3, 3, 13)[:, None]
NOISE = bw.Gaussian(0.2)


def network(width):
    return bw.Dense(width, w_scale=1.5, b_scale=0.5) >> bw.Erf() >> bw.Dense(1, w_scale=1.0, b_scale=0.2)


def root_mean_square(values):
    return float(np.sqrt(np.mean(np.asarray(values) ** 2)))


def posterior_distances(width, num_samples):
    """Distance of a finite network's posterior mean and variance to the Gaussian process's, by collapsed SplitHMC."""
    model = bw.bnn(network(width), NOISE)
    mcmc = numpyro.infer.MCMC(
        bw.SplitHMC(model), num_warmup=300, num_samples=num_samples, num_chains=4, chain_method="vectorized",
        progress_bar=False,
    )  # fmt: skip
    mcmc.run(jax.random.key(width), X, Y)
    found, limit = bw.predict(model, mcmc.get_samples(), X, Y, GRID), bw.gp.nngp(network(1), X, Y, NOISE).predict(GRID)
    return root_mean_square(found.mean - limit.mean), root_mean_square(found.epistemic - limit.epistemic)


@pytest.mark.slow
def test_posterior_of_a_network_tends_to_the_gaussian_process_as_one_over_width():
    narrow, wide = posterior_distances(4, 8000), posterior_distances(32, 8000)
    for few, many in zip(narrow, wide, strict=True):
        # Eight times as wide, eight times as near, but for higher orders and Monte-Carlo error.
        assert 4 < few / many < 16


def test_trained_networks_tend_to_the_tangent_kernels_ensemble():
    steps, rate, num = 300, 0.5, 128
    limit = bw.gp.ntk(network(1), X, Y, None, num_steps=steps, learning_rate=rate).predict(GRID)

    def ensemble(width):
        net = network(width)

        def train(key):
            loss = lambda params: 0.5 * jnp.mean((net(params, jnp.asarray(X)) - Y) ** 2)  # noqa: E731
            descend = lambda _, p: jax.tree.map(lambda a, g: a - rate * g, p, jax.grad(loss)(p))  # noqa: E731
            return net(jax.lax.fori_loop(0, steps, descend, net.init(key, (1,))), GRID)[:, 0]

        return np.asarray(jax.jit(jax.vmap(train))(jax.random.split(jax.random.key(1), num)))

    narrow, wide = ensemble(64), ensemble(512)
    distances = [root_mean_square(trained.mean(0) - limit.mean[:, 0]) for trained in (narrow, wide)]
    # Eight times as wide, up to eight times as near: 0.12 and 0.03, with a Monte-Carlo error of 0.004.
    assert distances[1] < distances[0] / 2.5 and distances[1] < 0.05
    np.testing.assert_allclose(np.mean(wide.var(0)), np.mean(limit.epistemic), rtol=0.35)


def squared_mmd(a, b, length_scale):
    """Unbiased estimate of MMD^2 (Gretton et al. 2012, eq. 3) with a Gaussian kernel."""

    def gram(u, v):
        squares = (u**2).sum(1)[:, None] + (v**2).sum(1)[None] - 2 * u @ v.T
        return np.exp(-0.5 * squares / length_scale**2)

    off = lambda k: (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))  # noqa: E731
    return off(gram(a, a)) + off(gram(b, b)) - 2 * gram(a, b).mean()


def test_functions_of_the_prior_tend_to_those_of_the_gaussian_process():
    x, num = np.random.default_rng(0).normal(size=(5, 4)), 2000

    def deep(width):
        hidden = bw.Dense(width, w_scale=1.3, b_scale=0.2) >> bw.Relu()
        return hidden >> hidden >> bw.Dense(1)

    def functions(width):
        net = deep(width)
        draw = jax.jit(jax.vmap(lambda key: net(net.init(key, (4,)), x)[:, 0]))
        return np.asarray(draw(jax.random.split(jax.random.key(0), num)))

    root = np.linalg.cholesky(np.asarray(deep(1).kernel(x, ntk=False).nngp))
    process = np.random.default_rng(1).normal(size=(num, 5)) @ root.T
    found = {width: squared_mmd(functions(width), process, 5**0.5) for width in (1, 4, 256)}
    # Seen: 3e-2, 6e-3 and 4e-4; the last is of the size of the estimate's own error.
    assert found[1] > 3 * found[4] and found[4] > 3 * found[256]
