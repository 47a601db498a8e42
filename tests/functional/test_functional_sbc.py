"""Simulation-based calibration of a functional BNN; the scheme is that of `tests/contracts/test_sbc.py`.

The truth is drawn by the definition, a process with a mean at the points and the rest of the readout from its own
prior, without the transform that the model samples in.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from process_priors import Process
from scipy import stats

import bnnwide as bw
from bnnwide.functional import features
from bnnwide.functional.process import law_at

NOISE, D, WIDTH, DRAWS, REPLICATIONS = 0.3, 2, 7, 15, 512
NET = bw.Dense(WIDTH, w_scale=2**0.5, b_scale=0.5) >> bw.Tanh() >> bw.Dense(1, b_scale=0.3)
POINTS = jnp.asarray([[-1.0, 0.2], [0.4, -0.8], [0.9, 1.1]])
X = jnp.asarray([[-1.0, 0.2], [-0.3, 1.0], [0.4, -0.8], [1.1, 0.5]])  # two are points, two are not
PRIOR = Process(1.2, 1.0, level=0.7)


def plain_features(sites, x):
    return NET.features(({"w": sites["hidden.0.w"], "b": sites["hidden.0.b"]}, ()), x)


def truth_of(keys):
    """Hidden weights, f_M ~ N(m, K), theta_0 ~ N(0, I), and theta = A f_M + (I - A Psi_M) theta_0, A = pinv(Psi_M)."""
    sites = {"hidden.0.w": jax.random.normal(keys[0], (D, WIDTH)), "hidden.0.b": jax.random.normal(keys[1], (WIDTH,))}
    f = jax.random.multivariate_normal(keys[2], PRIOR.mean(POINTS), PRIOR.covariance(POINTS))[:, None]
    rest = jax.random.normal(keys[3], (WIDTH + 1, 1))
    psi = plain_features(sites, POINTS)
    gain = psi.T @ jnp.linalg.inv(psi @ psi.T)
    return sites, f, rest, rest + gain @ (f - psi @ rest)


def coordinates(sites, f, rest):
    """theta' of the same truth: G^-1 (f_M - m) along the rows of Q = L^-1 Psi_M, theta_0 elsewhere."""
    psi = plain_features(sites, POINTS)
    rows = jnp.linalg.solve(jnp.linalg.cholesky(psi @ psi.T), psi)
    inside = jnp.linalg.solve(jnp.linalg.cholesky(PRIOR.covariance(POINTS)), f - PRIOR.mean(POINTS)[:, None])
    return rows.T @ inside + rest - rows.T @ (rows @ rest)


def replication(key, form):
    """Run one replication and return the rank of each functional, 0 to DRAWS, and the number of ties."""
    keys = jax.random.split(key, 9)
    sites, f, rest, theta = truth_of(keys[:4])
    y = plain_features(sites, X) @ theta + NOISE * jax.random.normal(keys[4], (len(X), 1))
    model = bw.functional_bnn(NET, PRIOR, POINTS, bw.Gaussian(NOISE), form)
    read = model.feature_map(X)

    def function(sites, base):
        psi, mean = read.features_and_mean(sites)
        if form == "standard":
            return psi @ (base + mean)
        # The readout of a collapsed draw: exact, given the hidden weights.
        law = bw.Repriorisation(psi, y - psi @ mean, NOISE)
        return psi @ (law.forward_and_log_det(base)[0] + mean)

    def functionals(sites, f):
        weights = sites["hidden.0.w"]
        return jnp.stack([
            jnp.sum(weights * jnp.cos(jnp.arange(weights.size)).reshape(weights.shape)),
            f[1, 0],  # not at a point
            f[2, 0],  # at one
            -jnp.sum((y - f) ** 2),
        ])  # fmt: skip

    def chain(key):
        kernel = bw.SplitHMC(model, num_steps=24 if form == "standard" else 4)
        start = sites | ({"readout": coordinates(sites, f, rest)} if form == "standard" else {})
        state = kernel.init(key, 0, start, (X, y), {})

        def draw(state, key):
            state = kernel.sample(state, (X, y), {})
            base = state.z["readout"] if form == "standard" else jax.random.normal(key, (WIDTH + 1, 1))
            return state, functionals(state.z, function(state.z, base))

        return jax.lax.scan(draw, state, jax.random.split(key, DRAWS))[1]

    past, future = jax.lax.map(chain, keys[5:7])  # one program for both
    before = jnp.arange(DRAWS)[:, None] < jax.random.randint(keys[7], (), 0, DRAWS + 1)
    draws = jnp.where(before, past, future[::-1])
    truth = functionals(sites, plain_features(sites, X) @ theta)
    tie = jnp.abs(draws - truth) < 1e-7 * (1 + jnp.abs(truth))
    ties = jnp.sum(tie, axis=0)
    tied = jnp.floor(jax.random.uniform(keys[8], truth.shape) * (ties + 1)).astype(int)
    return jnp.sum((draws < truth) & ~tie, axis=0) + tied, ties


def rank_p_values(form):
    ranks, ties = jax.jit(jax.vmap(lambda key: replication(key, form)))(
        jax.random.split(jax.random.key(0), REPLICATIONS)
    )
    assert float(ties.mean()) < 0.5 * DRAWS
    counts = np.stack([np.bincount(column, minlength=DRAWS + 1) for column in np.asarray(ranks).T])
    return [stats.chisquare(row).pvalue for row in counts]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["standard", "collapsed"])
def test_ranks_are_uniform(form):
    assert min(rank_p_values(form)) > 1e-4


@pytest.mark.slow
def test_it_sees_a_mean_that_is_left_out(monkeypatch):
    monkeypatch.setattr(features, "law_at", lambda *args: (law_at(*args)[0], jnp.zeros((len(POINTS), 1))))
    assert min(rank_p_values("standard")) < 1e-4
