"""Simulation-based calibration under likelihoods that are not Gaussian; the scheme is that of `test_sbc`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import bnnwide as bw
from bnnwide.reparam import FunctionValues, ProjectedValues, SitedRepriorisation, Sites, find_sites

N, D, DRAWS, REPLICATIONS = 4, 2, 15, 512
X = jnp.asarray([[-1.0, 0.2], [-0.3, 1.0], [0.4, -0.8], [1.1, 0.5]])
CASES = {
    # likelihood, outputs, form (or the number of projections of the collapsed one), kernel, steps between draws
    "categorical, in turn": (bw.Categorical(), 3, "collapsed", lambda m: bw.SplitHMC(m, num_steps=2), 1),
    "categorical, two projections": (bw.Categorical(), 3, 2, lambda m: bw.SplitHMC(m, num_steps=2), 1),
    "categorical, repriorised": (bw.Categorical(), 3, "repriorised", lambda m: bw.SplitHMC(m, num_steps=4), 1),
    "poisson, in turn": (bw.Poisson(), 1, "collapsed", lambda m: bw.SplitHMC(m, num_steps=2), 1),
    "bernoulli, at once": (bw.Bernoulli(), 1, "collapsed", lambda m: bw.PCNL(m, delta=0.3), 3),
    "student t, repriorised": (bw.StudentT(3.0, 0.3), 1, "repriorised", lambda m: bw.SplitHMC(m, num_steps=6), 1),
    "heteroscedastic, in turn": (
        bw.HeteroscedasticGaussian(0.3), 2, "collapsed", lambda m: bw.SplitHMC(m, num_steps=3), 1,
    ),
}  # fmt: skip


def replication(key, case):
    """Run one replication: the rank of the truth in each functional, 0 to DRAWS, and the number of ties."""
    likelihood, outputs, form, build, thin = case
    net = bw.Dense(6, w_scale=2**0.5, b_scale=0.3) >> bw.Tanh() >> bw.Dense(outputs, b_scale=0.3)
    keys = jax.random.split(key, 7)
    params = net.init(keys[0], (D,))
    hidden = {f"hidden.0.{name}": leaf for name, leaf in params[0].items()}
    theta = jnp.concatenate([params[-1]["w"], params[-1]["b"][None]])
    y = likelihood.law(net(params, X)).sample(keys[1])
    # The sites depend on the data alone, as in use; any other sites would be as right.
    sites = find_sites(likelihood, y, net.kernel(X, ntk=False).nngp, outputs)
    rank = form if isinstance(form, int) else N
    model = bw.bnn(net, likelihood, "collapsed" if rank < N else form, sites=sites, rank=rank)
    features = model.feature_map(X)
    psi = features.features(hidden)
    truth_f = psi @ theta

    def values(psi, z):
        """Return the coordinates of the function values, and what is added to what they make."""
        if rank == N:
            return FunctionValues(psi, sites).factor(), 0.0
        return ProjectedValues(psi, sites, model.find_projection(X, y)).factor(z["readout_base"])

    if form == "repriorised":
        start = hidden | {"readout_base": SitedRepriorisation(psi, sites).inverse_and_log_det(theta)[0]}
    else:
        # What the projections see of the readout theta_0 is drawn afresh: any theta_0 with this theta is as likely.
        start = hidden
        if rank < N:
            q = jnp.linalg.qr((model.find_projection(X, y) @ psi).T)[0]
            start = start | {"readout_base": theta + q @ (q.T @ (jax.random.normal(keys[6], theta.shape) - theta))}
        factored, outside = values(psi, start)
        shape = (rank, outputs)
        v = jnp.linalg.lstsq(factored.root, truth_f - outside)[0]
        slope = jax.jacobian(factored.prior_coordinates)(jnp.zeros(shape)).reshape(rank * outputs, -1)
        offset = factored.prior_coordinates(jnp.zeros(shape))
        start = start | {"function_base": jnp.linalg.solve(slope, (v - offset).ravel()).reshape(shape)}

    def function(z):
        psi = features.features(z)
        if form == "repriorised":
            return psi @ SitedRepriorisation(psi, sites).forward_and_log_det(z["readout_base"])[0]
        factored, outside = values(psi, z)
        return factored.forward(z["function_base"]) + outside

    def functionals(sites, f):
        weights = sites["hidden.0.w"]
        return jnp.stack([
            jnp.sum(weights * jnp.cos(jnp.arange(weights.size)).reshape(weights.shape)),
            f[0, 0] - (f[0, -1] if likelihood.shift_invariant else 0.0),
            likelihood.log_prob(f, y).sum(),
        ])  # fmt: skip

    def chain(key):
        kernel = build(model)
        state = kernel.init(key, 0, start, (X, y), {})

        def draw(state, _):
            state = jax.lax.fori_loop(0, thin, lambda _, s: kernel.sample(s, (X, y), {}), state)
            return state, functionals(state.z, function(state.z))

        return jax.lax.scan(draw, state, length=DRAWS)[1]

    past, future = jax.vmap(chain)(keys[2:4])  # one program for both
    before = jnp.arange(DRAWS)[:, None] < jax.random.randint(keys[4], (), 0, DRAWS + 1)
    draws = jnp.where(before, past, future[::-1])
    truth = functionals(hidden, truth_f)
    tie = jnp.abs(draws - truth) < 1e-7 * (1 + jnp.abs(truth))
    ties = jnp.sum(tie, axis=0)
    tied = jnp.floor(jax.random.uniform(keys[5], truth.shape) * (ties + 1)).astype(int)
    return jnp.sum((draws < truth) & ~tie, axis=0) + tied, ties


def p_values(case, seed=0):
    keys = jax.random.split(jax.random.key(seed), REPLICATIONS)
    ranks, ties = jax.jit(jax.vmap(lambda key: replication(key, case)))(keys)
    assert float(ties.mean()) < 0.5 * DRAWS
    counts = np.stack([np.bincount(column, minlength=DRAWS + 1) for column in np.asarray(ranks).T])
    return [stats.chisquare(row).pvalue for row in counts]


@pytest.mark.parametrize("name", CASES)
def test_ranks_are_uniform(name):
    assert min(p_values(CASES[name])) > 1e-4


def test_it_sees_a_potential_that_is_the_likelihood_alone(monkeypatch):
    """What a sampler would target that forgets the sites: the likelihood of theta(phi) without the change of prior."""
    monkeypatch.setattr(SitedRepriorisation, "log_marginal", lambda self: jnp.zeros(()))
    monkeypatch.setattr(Sites, "log_density", lambda self, f: jnp.zeros(()))
    assert min(p_values(CASES["student t, repriorised"])) < 1e-4
