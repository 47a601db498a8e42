"""Effective sample sizes, the paper's sampler, the sweep over widths, and the ArviZ tree."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
import xarray as xr

import bnnwide as bw
from bnnwide.diagnostics import PaperHMC, effective_sample_size, potential_scale_reduction
from bnnwide.diagnostics.methods import Approximation

X = np.random.default_rng(0).normal(size=(7, 3))
Y = np.random.default_rng(1).normal(size=(7, 2))
X_TEST = np.random.default_rng(2).normal(size=(5, 3))
Y_TEST = np.random.default_rng(3).normal(size=(5, 2))


def network(width):
    return bw.Dense(width, w_scale=2**0.5, b_scale=0.1) >> bw.Gelu() >> bw.Dense(2, b_scale=0.1)


def autoregressive(rho, chains=4, draws=2000, functions=1):
    noise = np.random.default_rng(4).normal(size=(chains, draws, functions))
    values = np.zeros_like(noise)
    for t in range(1, draws):
        values[:, t] = rho * values[:, t - 1] + (1 - rho**2) ** 0.5 * noise[:, t]
    return values


@pytest.mark.parametrize("rho", [0.0, 0.6])
def test_ess_of_an_autoregression_is_its_closed_form(rho):
    draws = autoregressive(rho)
    expected = draws.shape[0] * draws.shape[1] * (1 - rho) / (1 + rho)
    assert effective_sample_size(draws)[0] == pytest.approx(expected, rel=0.15)


def test_a_chain_that_never_moves_counts_as_nothing():
    draws = autoregressive(0.3, functions=3)
    draws[2, :, 1] = 0.7
    ess, rhat = effective_sample_size(draws), potential_scale_reduction(draws)
    assert ess[1] == 0 and rhat[1] == np.inf
    assert (ess[[0, 2]] > 1000).all() and (rhat[[0, 2]] < 1.01).all()


def cheap_paper_hmc():
    """The benchmark's cheap evaluation of the released algorithm's chain."""
    path = Path(__file__).parents[1] / "benchmarks" / "ess_vs_width.py"
    spec = importlib.util.spec_from_file_location("ess_vs_width", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.same_chain_cheaply()


@pytest.mark.parametrize("options", [{"step_size": 0.2}, {"step_size": 0.3, "num_steps": 4, "damping": 1.0}])
def test_the_released_algorithm_and_its_cheap_twin_walk_the_same_chain(options):
    model = bw.bnn(network(9), bw.Gaussian(0.3), "repriorised", solver="primal", input_collapse=False)
    x, y = jnp.asarray(X), jnp.asarray(Y)
    states = []
    for kernel in (PaperHMC(model, **options), cheap_paper_hmc()(model, **options)):
        state = kernel.init(jax.random.key(0), 0, None, (x, y), {})
        step = jax.jit(lambda s, kernel=kernel: kernel.sample(s, (x, y), {}))
        path = [state := step(state) for _ in range(30)]
        states.append([(s.z, float(s.accept_prob)) for s in path])
    moved = 0
    for (paper, paper_accept), (cheap, cheap_accept) in zip(*states, strict=True):
        assert paper_accept == pytest.approx(cheap_accept, abs=1e-8)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-8), paper, cheap)
        moved += paper_accept < 1
    assert moved  # the acceptance was put to work


def test_the_released_algorithm_has_the_posterior():
    model = bw.bnn(network(6), bw.Gaussian(0.5), "repriorised", solver="primal", input_collapse=False)
    means = {}
    for name, kernel in {
        "paper": PaperHMC(model, step_size=0.25, num_steps=6, damping=1.0),
        "split": bw.SplitHMC(model),
    }.items():
        mcmc = numpyro.infer.MCMC(kernel, num_warmup=300, num_samples=4000, progress_bar=False)
        mcmc.run(jax.random.key(1), X, Y)
        means[name] = bw.predict(model, mcmc.get_samples(), X, Y, X_TEST)
    np.testing.assert_allclose(means["paper"].mean, means["split"].mean, atol=0.05)
    np.testing.assert_allclose(means["paper"].epistemic, means["split"].epistemic, atol=0.05)


def sweep(**options):
    defaults = {"widths": [4, 16], "methods": ["splithmc-collapsed", "pcn-repriorised"], "seconds": 1.0}
    return bw.ess_by_width(
        network, bw.Gaussian(0.3), X, Y, key=jax.random.key(0), progress=False, **(defaults | options)
    )


def test_a_sweep_fills_its_table_and_its_store(tmp_path):
    table = sweep(x_test=X_TEST, y_test=Y_TEST, max_draws=120, seconds=20.0, store=tmp_path / "ess.nc")
    assert table.sizes == {"method": 2, "width": 2}
    assert (table.num_draws == 480).all()
    assert ((table.accept_prob > 0) & (table.accept_prob <= 1)).all()
    assert (table.ess_min <= table.ess_median).all() and (table.ess_min > 0).all()
    np.testing.assert_allclose(table.ess_per_grad_min, table.ess_min / table.num_grads)
    np.testing.assert_allclose(table.ess_per_second_median, table.ess_median / table.sampling_seconds)
    assert (table.rmse > 0).all() and table.accuracy.notnull().all()
    with xr.open_datatree(tmp_path / "ess.nc", engine="h5netcdf") as tree:
        cell = tree["splithmc-collapsed/width_16"]
        assert cell["posterior"].prediction.dims == ("chain", "draw", "input", "output")
        assert cell["posterior"].projection.shape == (4, 120, 20)
        assert cell["sample_stats"].accept_prob.shape == (4, 120)
        draws = cell["posterior"].prediction.values.reshape(4, 120, -1)
        functions = np.concatenate([draws, cell["posterior"].projection.values], axis=2)
        assert effective_sample_size(functions).min() == pytest.approx(
            float(table.ess_min.sel({"method": "splithmc-collapsed", "width": 16}))
        )


def test_too_few_draws_give_a_dash_and_not_a_number():
    table = sweep(methods=["splithmc-collapsed"], widths=[8], max_draws=20)
    assert table.num_draws.item() == 80 and table.ess_min.isnull().all() and table.rhat.isnull().all()
    row = bw.format_ess_table(table).splitlines()[-1].split()
    assert row[:2] == ["splithmc-collapsed", "8"] and row[3] == "-" and "nan" not in " ".join(row)
    bw.plot_ess_by_width(table).savefig("/dev/null", format="png")


def test_every_kernel_and_every_form_runs():
    # Comparators: see test_comparators.py.
    methods = ["nuts-repriorised", "hmc-standard", "paper", "splithmc-standard", "pcn-collapsed", "pcnl-repriorised"]
    for name, method in bw.METHODS.items():
        assert method.options["form"] in name or name == "paper" or isinstance(method, Approximation)
    table = sweep(methods=methods, widths=[8], x_test=X_TEST, y_test=Y_TEST, max_draws=60, seconds=1.5)
    assert (table.num_draws >= 8).all() and (table.diverging < 0.02 * table.num_draws).all()
    figure = bw.plot_ess_by_width(table)
    assert len(figure.axes) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ["nuts"]}, "`ess_by_width`: methods must be one of 'nuts-standard'"),
        ({"widths": [0]}, "`ess_by_width`: widths must be at least 1; got 0"),
        ({"widths": []}, "widths and methods must not be empty"),
        ({"seconds": 0.0}, "`ess_by_width`: seconds must be positive and finite; got 0.0"),
        ({"num_chains": 1}, "`ess_by_width`: num_chains must be at least 2; got 1"),
        ({"x_test": X_TEST[:, :2]}, r"`ess_by_width`: x_test must have shape (n, 3) with d=3 from x; got (5, 2)"),
        (
            {"x_test": X_TEST, "y_test": Y},
            r"`ess_by_width`: y_test must have shape (5, k) with n=5 from x_test; got (7, 2)",
        ),
    ],
)
@pytest.mark.usefixtures("only_the_librarys_own_checks")
def test_the_sweep_refuses(options, message):
    with pytest.raises(ValueError) as error:
        sweep(**options)
    assert message in str(error.value)


def test_an_interrupted_sweep_stores_what_is_finished(tmp_path, monkeypatch):
    from bnnwide.diagnostics import sweep as module

    run, calls = module._run_cell, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run(*args)

    monkeypatch.setattr(module, "_run_cell", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep(widths=[4, 8], methods=["pcn-collapsed"], max_draws=60, store=tmp_path / "ess.nc")
    with xr.open_datatree(tmp_path / "ess.nc", engine="h5netcdf") as tree:
        assert tree.to_dataset().num_draws.values[0, 0] == 240
        assert np.isnan(tree.to_dataset().num_draws.values[0, 1])


def test_the_tree_holds_posterior_statistics_and_predictions():
    model = bw.bnn(network(8), bw.Gaussian(0.3))
    mcmc = numpyro.infer.MCMC(
        bw.SplitHMC(model), num_warmup=50, num_samples=40, num_chains=2, chain_method="vectorized", progress_bar=False
    )
    with pytest.raises(ValueError, match="mcmc must hold draws; call mcmc.run"):
        bw.to_arviz(mcmc)
    mcmc.run(jax.random.key(0), X, y=Y, extra_fields=("accept_prob", "num_grads"))
    tree = bw.to_arviz(mcmc, x_test=X_TEST, max_size=10)
    assert isinstance(tree, xr.DataTree)
    assert set(tree["posterior"].data_vars) == {"hidden.0.b"}  # the (3, 8) weights are above max_size
    assert tree["sample_stats"]["num_grads"].sizes == {"chain": 2, "draw": 40}
    assert tree["predictions"]["mean"].shape == (2, 40, 5, 2)
    expected = bw.predict(model, mcmc.get_samples(), X, Y, X_TEST)
    np.testing.assert_allclose(tree["predictions"]["mean"].mean(("chain", "draw")), expected.mean, atol=1e-10)
    total = tree["predictions"]["mean"].var(("chain", "draw")) + (tree["predictions"]["sd"] ** 2).mean(
        ("chain", "draw")
    )
    np.testing.assert_allclose(total, expected.epistemic, atol=1e-10)


def test_arviz_imported_first_is_no_obstacle():
    """`import arviz` before `from numpyro.infer import ...`: in a process of its own, since imports happen once."""
    code = "import arviz; from numpyro.infer import MCMC; import bnnwide; bnnwide.to_arviz; import numpyro; "
    done = subprocess.run(
        [sys.executable, "-c", code + "print(numpyro.infer.initialization.init_to_sample)"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
