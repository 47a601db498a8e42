"""The house stands in rows: a file imports from the rows below it, never from its own roof."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "bnnwide"
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))

# From the ground to the roof, as docs/design.md section 2 lists them.
ROWS = (
    "checks",
    "arch",
    "likelihoods",
    "prediction",
    "linalg",
    "empirical",
    "gp",
    "reparam",
    "samplers",
    "natgrad",
    "models",
    "comparators",
    "functional",
    "diagnostics",
    "inference",
    "sklearn",
    "datasets",
    "cli",
)
# Rows that the design keeps apart from the rest of the house: only checks stands under them.
APART = ("arch", "likelihoods", "linalg", "samplers")
FACTS = ("bnnwide.__version__",)  # of the package itself, not of a row
ROOF = "cli"  # speaks to the library as its users do, through `import bnnwide`
NUMPYRO_FROM = "models"
ARVIZ_FROM = "diagnostics"
MAX_LINES = 400


def row_of(file):
    """The row a file belongs to: its folder, or its own name."""
    return Path(file).parts[0].removesuffix(".py")


def imported(source):
    """Full names of all that a source imports, wherever in the file it does so."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                # `import numpyro.distributions` binds `numpyro` itself, unless it is renamed.
                yield alias.name if alias.asname else alias.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def forbidden(file, source):
    """The imports of a file that the design does not allow."""
    row = row_of(file)
    height = ROWS.index(row)
    for name in imported(source):
        top, second = (name.split(".") + [""])[:2]
        if top == "bnnwide" and row != ROOF and name not in FACTS:
            own = second == row
            below = second in ROWS and ROWS.index(second) < height
            ground = second == ROWS[0]
            if not own and not (ground if row in APART else below):
                yield name
        elif top == "numpyro" and second != "distributions" and height < ROWS.index(NUMPYRO_FROM):
            yield name
        elif top.startswith("arviz") and height < ROWS.index(ARVIZ_FROM):
            yield name


@pytest.mark.parametrize("file", [file for file in FILES if file != "__init__.py"])  # the page of names sees all rows
def test_a_file_imports_only_from_rows_below(file):
    assert list(forbidden(file, (PACKAGE / file).read_text())) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("arch/dense.py", "from bnnwide.likelihoods import Gaussian"),
        ("arch/dense.py", "import bnnwide as bw"),
        ("arch/dense.py", "from bnnwide import models"),
        ("arch/dense.py", "def f():\n    import numpyro"),
        ("arch/dense.py", "import numpyro.distributions"),
        ("samplers/pcn.py", "from bnnwide.arch import Dense"),
        ("samplers/pcn.py", "from numpyro.infer import MCMC"),
        ("reparam/readout.py", "from bnnwide.models import bnn"),
        ("models/bnn.py", "import arviz"),
        ("models/bnn.py", "from arviz_stats import ess"),
        ("models/bnn.py", "from bnnwide.cli import main"),
        ("models/bnn.py", "from bnnwide.nowhere import anything"),
        ("datasets.py", "import bnnwide"),
    ],
)
def test_a_wrong_import_is_found(file, line):
    assert list(forbidden(file, line))


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("arch/dense.py", "from bnnwide.checks import check_array"),
        ("arch/dense.py", "from bnnwide.arch.layer import Layer"),
        ("likelihoods.py", "import numpyro.distributions as dist"),
        ("likelihoods.py", "from numpyro import distributions"),
        ("models/bnn.py", "import numpyro\nfrom bnnwide.reparam.readout import Repriorisation"),
        ("diagnostics/ess.py", "import arviz\nimport arviz_stats\nfrom bnnwide import models"),
        ("diagnostics/sweep.py", "from bnnwide import __version__"),
        ("cli.py", "import bnnwide as bw"),
    ],
)
def test_a_right_import_passes(file, line):
    assert not list(forbidden(file, line))


def test_every_file_has_a_row():
    assert {row_of(file) for file in FILES} - {"__init__"} <= set(ROWS)


@pytest.mark.parametrize("file", FILES)
def test_a_file_holds_one_idea(file):
    assert len((PACKAGE / file).read_text().splitlines()) <= MAX_LINES


def test_architectures_come_without_inference_and_diagnostics():
    code = (
        "import sys, bnnwide.arch\n"
        "print([name for name in sys.modules if name.startswith('arviz') or name.startswith('numpyro.infer')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
