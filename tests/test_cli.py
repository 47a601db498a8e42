"""The command line: what it asks of the library, what it writes, and how it refuses."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

import bnnwide as bw
from bnnwide import cli


@pytest.fixture(autouse=True)
def precision_stays():
    """A run sets the precision of the whole process; give it back."""
    before = jax.config.jax_enable_x64
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture
def calls(monkeypatch):
    """Calls of an `ess_by_width` that answers at once."""
    seen = []

    def ess_by_width(net_of_width, likelihood, x, y, **options):
        seen.append({"net_of_width": net_of_width, "likelihood": likelihood, "x": x, "y": y, **options})
        return xr.Dataset()

    monkeypatch.setattr(bw, "ess_by_width", ess_by_width, raising=False)
    monkeypatch.setattr(bw, "format_ess_table", lambda table: "THE TABLE", raising=False)
    monkeypatch.setattr(bw, "plot_ess_by_width", lambda table: Figure(), raising=False)
    return seen


def refusal(capsys, *argv):
    """Run to a refusal and return its one line on standard error."""
    try:
        status = cli.main(argv)
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    assert status == 2
    assert out == ""
    assert err.endswith("\n") and err.count("\n") == 1 and err.startswith("bnnwide: ")
    return err


def test_defaults_are_the_demo(calls, tmp_path, capsys):
    assert cli.main(["ess", "--out", str(tmp_path / "new" / "demo")]) == 0
    (call,) = calls
    assert call["x"].shape == (128, 64) and call["y"].shape == (128, 10)
    assert call["x_test"].shape[1] == 64 and call["y_test"].shape[1] == 10
    assert call["widths"] == [64, 256, 1024]
    assert call["methods"] == list(bw.diagnostics.DEFAULT_METHODS)
    assert call["num_chains"] == 4 and call["seconds"] == 10.0 and call["progress"] is True
    assert call["likelihood"].scale == 0.1
    assert jax.random.key_data(call["key"]).tolist() == jax.random.key_data(jax.random.key(0)).tolist()
    assert jax.config.jax_enable_x64
    out, _ = capsys.readouterr()
    folder = tmp_path / "new" / "demo"
    assert "digits: n = 128, d = 64, 10 classes" in out and "THE TABLE" in out
    assert str(folder / "ess.png") in out and (folder / "ess.png").stat().st_size > 0
    assert str(folder / "ess.nc") in out and call["store"] == folder / "ess.nc"


def test_options_reach_the_sweep(calls, tmp_path):
    path = tmp_path / "plane.csv"
    path.write_text("".join(f"{i},{-i},{i / 3}\n" for i in range(10)))
    argv = (
        "ess --n 6 --widths 8,16 --methods paper --noise 0.3 --depth 3 --chains 2 --seconds .5 --seed 4 --precision 32"
    )
    assert cli.main([*argv.split(), "--data", str(path), "--out", str(tmp_path)]) == 0
    (call,) = calls
    assert call["x"].shape == (6, 2) and call["y"].shape == (6, 1)
    assert call["widths"] == [8, 16] and call["methods"] == ["paper"]
    assert call["num_chains"] == 2 and call["seconds"] == 0.5
    assert not jax.config.jax_enable_x64
    net = call["net_of_width"](8)
    assert [layer.width for layer in net.layers if isinstance(layer, bw.Dense)] == [8, 8, 8, 1]
    assert [type(layer).__name__ for layer in net.layers] == ["Dense", "Gelu"] * 3 + ["Dense"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the following arguments are required: COMMAND; see bnnwide --help"),
        (["fit"], "invalid choice: 'fit'"),
        (["ess", "--width", "64"], "unrecognized arguments: --width 64"),
        (["ess", "--widths", "64,"], "argument --widths: must be distinct names with commas between; got '64,'"),
        (["ess", "--widths", "64,0"], "argument --widths: must be whole numbers of at least 1 with commas between"),
        (["ess", "--widths", "64,wide"], "got '64,wide'; see bnnwide ess --help"),
        (["ess", "--widths", "64,64"], "got '64,64'"),
        (["ess", "--n", "-3"], "argument --n: must be a whole number of at least 1; got '-3'"),
        (["ess", "--n", "2.5"], "argument --n: must be a whole number of at least 1; got '2.5'"),
        (["ess", "--noise", "0"], "argument --noise: must be a positive number; got '0'"),
        (["ess", "--seconds", "nan"], "argument --seconds: must be a positive number; got 'nan'"),
        (["ess", "--chains", "1"], "argument --chains: must be a whole number of at least 2; got '1'"),
        (["ess", "--seed", "-1"], "argument --seed: must be a whole number from 0"),
        (["ess", "--precision", "16"], "argument --precision: invalid choice"),
    ],
)
def test_bad_flags_get_one_line(capsys, argv, message):
    assert message in refusal(capsys, *argv)


def test_unknown_method_gets_the_known_ones(capsys, tmp_path):
    line = refusal(capsys, "ess", "--methods", "paper,gibbs", "--out", str(tmp_path / "out"))
    assert "'gibbs'" in line and all(method in line for method in bw.METHODS)
    assert not (tmp_path / "out").exists()


def test_bad_files_get_one_line(capsys, tmp_path):
    out = ["--out", str(tmp_path / "out")]
    assert "missing.csv', no such file" in refusal(capsys, "ess", "--data", str(tmp_path / "missing.csv"), *out)
    assert "must be 'digits' or a path that ends in" in refusal(capsys, "ess", "--data", "mnist", *out)
    table = tmp_path / "table.csv"
    table.write_text("1,2\n3,abc\n")
    line = refusal(capsys, "ess", "--data", str(table), *out)
    assert line == "bnnwide: `load_csv`: column 2 must be numeric; got 'abc' in row 2; remove or encode it\n"
    archive = tmp_path / "text.npz"
    np.savez(archive, x=np.ones((2, 2)), y=np.array(["cat", "dog"]))
    assert "y must be an array of real numbers" in refusal(capsys, "ess", "--data", str(archive), *out)
    assert str(table) in refusal(capsys, "ess", "--out", str(table))


def test_interrupt_is_one_line(monkeypatch, calls, tmp_path, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(bw, "ess_by_width", interrupted)
    assert cli.main(["ess", "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "bnnwide: interrupted\n"


def test_help_names_every_method_and_version_is_the_packages(capsys):
    for argv in (["--help"], ["ess", "--help"], ["--version"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(argv)
        assert stop.value.code == 0
    out = capsys.readouterr().out
    assert set(bw.METHODS) <= set(out.split())
    assert out.endswith(f"bnnwide {bw.__version__}\n")


def test_help_is_quick_because_nothing_heavy_is_imported():
    code = (
        "import sys; from bnnwide import cli\n"
        "try: cli.main(['ess', '--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('jax', 'numpy', 'numpyro', 'arviz') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\n[]\n")


@pytest.mark.slow
def test_a_small_sweep_for_real(tmp_path):
    argv = "ess --n 16 --widths 8,16 --methods splithmc-collapsed --seconds 1 --seed 1"
    done = subprocess.run(
        [sys.executable, "-m", "bnnwide.cli", *argv.split(), "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    assert "splithmc-collapsed" in done.stdout
    assert (tmp_path / "ess.png").stat().st_size > 0
    with xr.open_datatree(tmp_path / "ess.nc") as tree:
        assert tree.groups
