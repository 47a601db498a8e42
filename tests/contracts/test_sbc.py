"""Simulation-based calibration of every sampler on every form of a tiny BNN.

Truth from the prior, data from the truth, a chain on the data: the truth's rank among the chain's draws is uniform. The
chain passes *through* the truth, at a random place of its own (Gandy & Scott 2020, arXiv 2001.06465): the samplers are
reversible, so that two chains started at the truth are one chain's past and future, and ranks are exactly uniform
whatever the chain's length, with no burn-in to be believed.
"""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import bnnwide as bw
from bnnwide.models.features import feature_map
from bnnwide.samplers import Info

NOISE, N, D, DRAWS, REPLICATIONS = 0.3, 4, 2, 15, 512
NET = bw.Dense(6, w_scale=2**0.5, b_scale=0.3) >> bw.Tanh() >> bw.Dense(1, b_scale=0.3)
X = jnp.asarray([[-1.0, 0.2], [-0.3, 1.0], [0.4, -0.8], [1.1, 0.5]])
# Kernel and steps between draws: enough that successive draws are mostly different, for the test's power.
KERNELS = {
    "SplitHMC": (lambda model: bw.SplitHMC(model, num_steps=4), 1),
    "PCN": (lambda model: bw.PCN(model, beta=0.4), 8),
    "PCNL": (lambda model: bw.PCNL(model, delta=0.15), 4),
}
FORMS = ["standard", "repriorised", "collapsed"]


def functionals(sites, theta, y):
    """What is ranked: a projection of the hidden weights, f at the inputs' first, log p(y | f), log p(Y | Psi)."""
    psi = feature_map(NET, X, False).features(sites)
    weights = sites["hidden.0.w"]
    return jnp.stack([
        jnp.sum(weights * jnp.cos(jnp.arange(weights.size)).reshape(weights.shape)),
        (psi @ theta)[0, 0],
        -jnp.sum((y - psi @ theta) ** 2),
        bw.linalg.log_marginal(psi, y, NOISE),
    ])  # fmt: skip


def rank_of_the_truth(key, form, build, thin):
    """Run one replication and return the rank of each functional, 0 to DRAWS, and whether the chain moved."""
    keys = jax.random.split(key, 7)
    sites = {"hidden.0.w": jax.random.normal(keys[0], (D, 6)), "hidden.0.b": jax.random.normal(keys[1], (6,))}
    psi = feature_map(NET, X, False).features(sites)
    theta = jax.random.normal(keys[2], (7, 1))
    y = psi @ theta + NOISE * jax.random.normal(keys[3], (N, 1))
    if form == "standard":
        start = sites | {"readout": theta}
    elif form == "repriorised":
        start = sites | {"readout_base": bw.Repriorisation(psi, y, NOISE).inverse_and_log_det(theta)[0]}
    else:
        start = sites

    def readout(z, key):
        if form == "standard":
            return z["readout"]
        phi = z["readout_base"] if form == "repriorised" else jax.random.normal(key, (7, 1))
        return bw.Repriorisation(feature_map(NET, X, False).features(z), y, NOISE).forward_and_log_det(phi)[0]

    def chain(key):
        kernel = build(bw.bnn(NET, bw.Gaussian(NOISE), form))
        state = kernel.init(key, 0, start, (X, y), {})

        def draw(state, key):
            state = jax.lax.fori_loop(0, thin, lambda _, s: kernel.sample(s, (X, y), {}), state)
            return state, functionals(state.z, readout(state.z, key), y)

        return jax.lax.scan(draw, state, jax.random.split(key, DRAWS))[1]

    past, future = jax.vmap(chain)(keys[4:6])  # one program for both
    place_key, tie_key = jax.random.split(keys[6])
    before = jnp.arange(DRAWS)[:, None] < jax.random.randint(place_key, (), 0, DRAWS + 1)
    draws = jnp.where(before, past, future[::-1])
    truth = functionals(sites, theta, y)
    # A chain that has stayed at the truth is tied with it, up to the rounding of two compilations of one function.
    tie = jnp.abs(draws - truth) < 1e-8 * (1 + jnp.abs(truth))
    ties = jnp.sum(tie, axis=0)
    tied = jnp.floor(jax.random.uniform(tie_key, truth.shape) * (ties + 1)).astype(int)
    return jnp.sum((draws < truth) & ~tie, axis=0) + tied, ties


def rank_p_values(form, build, thin, seed=0):
    keys = jax.random.split(jax.random.key(seed), REPLICATIONS)
    ranks, ties = jax.jit(jax.vmap(lambda key: rank_of_the_truth(key, form, build, thin)))(keys)
    assert float(ties.mean()) < 0.5 * DRAWS
    counts = np.stack([np.bincount(column, minlength=DRAWS + 1) for column in np.asarray(ranks).T])
    return [stats.chisquare(row).pvalue for row in counts]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", KERNELS)
def test_ranks_are_uniform(name, form):
    assert min(rank_p_values(form, *KERNELS[name])) > 1e-4


def tempered(model):
    """Make a kernel whose target forgets 40 percent of the rest."""
    kernel = bw.SplitHMC(model, num_steps=4)
    build = kernel._build
    kernel._build = lambda rest: build(lambda z: 0.6 * rest(z))
    return kernel


def test_it_sees_forty_percent_of_the_rest_go_missing():
    assert min(rank_p_values("standard", tempered, 1)) < 1e-4


def test_it_sees_a_coarse_integrator_without_accept_step(monkeypatch):
    accept = lambda key, log_ratio, state, proposal, *counts: (  # noqa: E731
        proposal, Info(jnp.exp(log_ratio), jnp.bool_(True), jnp.bool_(False), *map(jnp.int32, counts))
    )  # fmt: skip
    monkeypatch.setattr(importlib.import_module("bnnwide.samplers.split_hmc"), "accept_or_stay", accept)
    assert min(rank_p_values("standard", lambda model: bw.SplitHMC(model, num_steps=1), 1)) < 1e-4
