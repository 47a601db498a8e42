"""The notebooks run at small size, cell by cell, and convert to .ipynb."""

from pathlib import Path

import jax
import jupytext
import matplotlib
import nbformat
import pytest

pytestmark = pytest.mark.optimised
NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.py"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_converts(path):
    notebook = jupytext.read(path)
    nbformat.validate(nbformat.reads(jupytext.writes(notebook, fmt="ipynb"), as_version=4))
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# ")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("BNNWIDE_NOTEBOOK_SIZE", "small")
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    x64, names, figures = jax.config.jax_enable_x64, {}, 0
    try:
        cells = [cell for cell in jupytext.read(path).cells if cell.cell_type == "code"]
        for number, cell in enumerate(cells):
            exec(compile(cell.source, f"{path.name}, cell {number}", "exec"), names)
            for shown in plt.get_fignums():
                plt.figure(shown).savefig(tmp_path / "figure.png")  # a figure that cannot be drawn fails here
                figures += 1
            plt.close("all")
    finally:
        jax.config.update("jax_enable_x64", x64)
    assert figures
