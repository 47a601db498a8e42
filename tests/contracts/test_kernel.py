"""The adapter inside NumPyro's MCMC: any model, any chain method, adaptation, fields, and continued runs."""

import math
import pickle

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC
from scipy import integrate, stats

import bnnwide as bw
from bnnwide.models.kernel import standard_normal_sites

KERNELS = {"SplitHMC": bw.SplitHMC, "PCN": bw.PCN, "PCNL": bw.PCNL}
X = np.linspace(-1, 1, 5)[:, None]
Y = np.sin(3 * X)
BNN = bw.bnn(bw.Dense(4, b_scale=0.3) >> bw.Tanh() >> bw.Dense(1), bw.Gaussian(0.3))
FIELDS = ("accept_prob", "num_grads", "num_evals", "diverging", "potential_energy")


def run(kernel, *args, key=0, fields=FIELDS, num_warmup=50, num_samples=50, num_chains=1, **options):
    options = {"progress_bar": False, "chain_method": "vectorized"} | options
    mcmc = MCMC(kernel, num_warmup=num_warmup, num_samples=num_samples, num_chains=num_chains, **options)
    mcmc.run(jax.random.key(key), *args, extra_fields=fields)
    return mcmc


def one_number(y=0.6):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(jnp.sin(2 * z), 0.4), obs=y)


def scaled(y):
    """A model with a site that is not standard normal, and one that is by its numbers only."""
    tau = numpyro.sample("tau", dist.HalfCauchy(2.0))
    z = numpyro.sample("z", dist.Normal(jnp.zeros(len(y)), jnp.ones(len(y))))
    numpyro.deterministic("theta", tau * z)
    numpyro.sample("y", dist.Normal(tau * z, 1.0), obs=y)


def scaled_moments(y):
    """Integrate the effects out: y_i ~ N(0, 1 + tau^2)."""
    density = lambda t: stats.halfcauchy.pdf(t, scale=2) * stats.norm.pdf(y, 0, np.sqrt(1 + t**2)).prod()  # noqa: E731
    mass = integrate.quad(density, 0, 200, limit=200)[0]
    return integrate.quad(lambda u: u * np.exp(u) * density(np.exp(u)), -30, 12, limit=400, points=[-2, 0, 2])[0] / mass


@pytest.mark.parametrize(
    ("name", "method"),
    [("SplitHMC", "sequential"), ("SplitHMC", "parallel"), ("PCN", "parallel"), ("PCNL", "vectorized")],
)
def test_chain_methods_and_fields(name, method):
    mcmc = run(KERNELS[name](BNN), X, Y, num_chains=2, chain_method=method, num_warmup=10, num_samples=20)
    fields, samples = mcmc.get_extra_fields(group_by_chain=True), mcmc.get_samples(group_by_chain=True)
    assert samples["hidden.0.w"].shape == (2, 20, 1, 4)
    assert not np.array_equal(*samples["hidden.0.w"])
    for field in FIELDS:
        assert fields[field].shape == (2, 20)
    assert ((fields["accept_prob"] >= 0) & (fields["accept_prob"] <= 1)).all()
    gradients = fields["num_grads"]
    assert (gradients == 0).all() if name == "PCN" else (gradients >= 1).all()
    assert (fields["num_evals"] == 1).all() and not fields["diverging"].any()
    last = {name: jnp.asarray(value[1, -1]) for name, value in samples.items()}
    joint, _ = numpyro.infer.util.log_density(BNN, (X, Y), {}, last)
    size = sum(value.size for value in last.values())
    energy = -float(joint) - 0.5 * size * math.log(2 * math.pi)  # the energy leaves out the normal sites' constants
    np.testing.assert_allclose(fields["potential_energy"][1, -1], energy, rtol=1e-8)


def test_runs_are_reproducible_and_continue():
    first, again, other = (run(bw.SplitHMC(BNN), X, Y, key=key) for key in (0, 0, 1))
    draws = [mcmc.get_samples()["hidden.0.w"] for mcmc in (first, again, other)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])
    state, angle = first.last_state, first.last_state.adapt_state.angle
    np.testing.assert_array_equal(state.z["hidden.0.w"], draws[0][-1])
    first.post_warmup_state = state
    first.run(state.rng_key, X, Y)
    assert first.last_state.adapt_state.angle == angle
    assert int(first.last_state.i) == int(state.i) + 50
    assert not np.array_equal(first.get_samples()["hidden.0.w"], draws[0])


def test_warmup_then_run():
    mcmc = MCMC(bw.PCN(BNN), num_warmup=50, num_samples=20, progress_bar=False)
    mcmc.warmup(jax.random.key(0), X, Y)
    adapted = mcmc.post_warmup_state.adapt_state.angle
    mcmc.run(mcmc.post_warmup_state.rng_key, X, Y)
    assert mcmc.last_state.adapt_state.angle == adapted


def test_progress_bar_thinning_arviz_and_pickle(capsys, monkeypatch):
    for quiet in ("CI", "PYTEST_XDIST_WORKER"):  # under either, NumPyro shows no bar
        monkeypatch.delenv(quiet, raising=False)
    mcmc = run(bw.SplitHMC(BNN), X, Y, progress_bar=True, chain_method="sequential", num_samples=40, thinning=4)
    assert "grads, acc. prob=" in capsys.readouterr().err
    assert mcmc.get_samples()["hidden.0.w"].shape == (10, 1, 4)
    tree = az.from_numpyro(mcmc)
    assert tree.posterior["hidden.0.w"].shape == (1, 10, 1, 4)
    assert "diverging" in tree.sample_stats
    assert pickle.loads(pickle.dumps(bw.PCN(one_number)))._angle is None
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(bw.SplitHMC(BNN, num_steps=3)))._angle, math.pi / 6)


@pytest.mark.parametrize("name", KERNELS)
def test_any_model_with_a_learned_reference(name):
    """A scale with heavy tails and its non-centred effects, against quadrature."""
    y = np.array([2.8, 0.8, -0.3, 0.7, -2.1, 0.1, 1.8, 1.2])
    kernel = KERNELS[name](scaled)
    mcmc = run(kernel, y, num_chains=8, num_warmup=800, num_samples=3000)
    draws = mcmc.get_samples(group_by_chain=True)
    assert set(draws) == {"tau", "theta", "z"} and (draws["tau"] > 0).all()
    np.testing.assert_allclose(draws["theta"], draws["tau"][..., None] * draws["z"], rtol=1e-9)
    log_tau = np.log(draws["tau"])
    chain_means = np.asarray(log_tau.mean(1))
    error = chain_means.std(ddof=1) / np.sqrt(len(chain_means))
    assert abs(chain_means.mean() - scaled_moments(y)) < 4.5 * error
    assert error < 0.1
    reference = mcmc.last_state.adapt_state.reference
    assert set(reference.loc) == {"tau"} and standard_normal_sites(scaled, (y,), {}) == {"z"}
    spread = np.asarray(log_tau.std())
    assert (np.abs(reference.loc["tau"] - log_tau.mean()) < 2 * spread).all()
    assert ((reference.scale["tau"] > 0.3 * spread) & (reference.scale["tau"] < 2 * spread)).all()


@pytest.mark.parametrize("method", ["vectorized", "parallel"])
def test_what_is_standard_normal(method):
    def model():
        numpyro.sample("a", dist.Normal(jnp.zeros(3), jnp.ones(3)))
        numpyro.sample("b", dist.Normal(0, 1).expand([2, 2]).to_event(1))
        with numpyro.plate("rows", 3):
            numpyro.sample("c", dist.Normal())
        numpyro.sample("d", dist.Normal(0.0, 2.0))
        numpyro.sample("e", dist.Normal(jnp.array([0.0, 1e-3]), 1.0))
        numpyro.sample("f", dist.StudentT(3.0))
        a = numpyro.sample("g", dist.Normal(0.0, 1.0))
        numpyro.sample("h", dist.Normal(a, 1.0))

    assert standard_normal_sites(model, (), {}) == {"a", "b", "c", "g"}
    mcmc = run(bw.PCN(model), num_chains=2, chain_method=method, num_warmup=5, num_samples=5)
    assert set(mcmc.last_state.adapt_state.reference.loc) == {"d", "e", "f", "h"}


def test_potential_fn():
    potential = lambda z: 0.5 * jnp.sum((z["u"] - 1.0) ** 2)  # noqa: E731
    mcmc = MCMC(bw.SplitHMC(potential_fn=potential), num_warmup=100, num_samples=4000, progress_bar=False)
    mcmc.run(jax.random.key(0), init_params={"u": jnp.zeros(2)}, extra_fields=("potential_energy",))
    draws = mcmc.get_samples()["u"]
    assert (np.abs(draws.mean(0) - 1) < 0.15).all() and (np.abs(draws.std(0) - 1) < 0.15).all()
    energies = jax.vmap(lambda u: potential({"u": u}))(draws)
    np.testing.assert_allclose(mcmc.get_extra_fields()["potential_energy"], energies, atol=1e-10)


@pytest.mark.parametrize(
    ("kernel", "angle", "gradients"),
    [
        (bw.SplitHMC(one_number, step_size=0.4), 0.4, round(math.pi / 2 / 0.4)),
        (bw.SplitHMC(one_number, num_steps=5), math.pi / 10, 5),
        (bw.SplitHMC(one_number, num_steps=2, trajectory_length=1.0), 0.5, 2),
        (bw.PCN(one_number, beta=0.6), math.asin(0.6), 0),
        (bw.PCNL(one_number, delta=0.5), 2 * math.atan(0.5), 1),
    ],
)
def test_fixed_numbers_stay_fixed(kernel, angle, gradients):
    mcmc = run(kernel, num_warmup=30, num_samples=30)
    np.testing.assert_allclose(mcmc.last_state.adapt_state.angle, angle, rtol=1e-12)
    assert (mcmc.get_extra_fields()["num_grads"] == gradients).all()


@pytest.mark.parametrize(("name", "target"), [("SplitHMC", 0.8), ("PCN", 0.4), ("PCNL", 0.7)])
def test_adaptation_reaches_its_target(name, target):
    def model():
        z = numpyro.sample("z", dist.Normal(jnp.zeros(20), 1.0).to_event(1))
        numpyro.factor("rest", -2.0 * jnp.sum(z[:10] ** 2) + jnp.sum(jnp.cos(3 * z)))

    mcmc = run(KERNELS[name](model, target_accept=target), num_warmup=1000, num_samples=1000, num_chains=2)
    # SplitHMC settles on a whole number of steps, which accepts at least as much.
    acceptance = float(mcmc.get_extra_fields()["accept_prob"].mean())
    assert target - 0.07 < acceptance < target + (0.2 if name == "SplitHMC" else 0.07)
    angles = mcmc.last_state.adapt_state.angle
    if name == "SplitHMC":
        steps = math.pi / 2 / angles
        np.testing.assert_allclose(steps, np.round(steps), atol=1e-6)


def test_no_warmup_and_a_chain_that_never_moves():
    mcmc = run(bw.PCN(one_number, beta=0.5), num_warmup=0, num_samples=20)
    assert mcmc.get_samples()["z"].shape == (20,)

    def wall(z):
        return jnp.where(z["u"][0] == 0.5, 0.0, jnp.nan)

    for name, kernel in KERNELS.items():
        mcmc = MCMC(kernel(potential_fn=wall), num_warmup=20, num_samples=20, progress_bar=False)
        mcmc.run(jax.random.key(0), init_params={"u": jnp.full(1, 0.5)}, extra_fields=FIELDS)
        assert (mcmc.get_samples()["u"] == 0.5).all(), name
        assert (mcmc.get_extra_fields()["num_grads"] <= 256).all()  # not answered by ever longer trajectories
        assert mcmc.get_extra_fields()["diverging"].all() and not mcmc.get_extra_fields()["accept_prob"].any()


def test_steps_per_draw_may_differ_between_chains():
    mcmc = run(bw.SplitHMC(one_number), num_chains=2, num_warmup=0, num_samples=1)
    state = mcmc.last_state
    adapt = state.adapt_state._replace(angle=jnp.asarray([math.pi / 4, math.pi / 14]))
    mcmc.post_warmup_state = state._replace(adapt_state=adapt)
    mcmc.run(state.rng_key[0], extra_fields=FIELDS)
    np.testing.assert_array_equal(mcmc.get_extra_fields(group_by_chain=True)["num_grads"][:, 0], [2, 7])
