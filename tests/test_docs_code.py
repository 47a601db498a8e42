"""Every Python block of README and documentation runs, at small size."""

import re
from pathlib import Path

import jax
import matplotlib
import pytest

ROOT = Path(__file__).parent.parent
PAGES = (
    "README.md",
    "docs/quickstart.md",
    "docs/kernels.md",
    "docs/priors.md",
    "docs/sites.md",
    "docs/functional_mcmc.md",
    "docs/which_variance_which_scale.md",
    "docs/comparators.md",
    "docs/functional_vi.md",
    "docs/natural_gradient.md",
    "docs/api/samplers.md",
)
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)

# (as printed, small): every block is executed as it stands but for these.
SMALLER = (
    ("Dense(512,", "Dense(16,"),
    ("num_train=128", "num_train=12"),
    ("num_warmup=200, num_samples=200", "num_warmup=20, num_samples=20"),
    ("widths=[64, 256, 1024]", "widths=[8]"),
    ('methods=["nuts-standard", "paper", "splithmc-collapsed"]', 'methods=["splithmc-collapsed"]'),
    ("seconds=10", "seconds=0.3"),
    ("num_steps=2000", "num_steps=20"),
    ("Dense(64,", "Dense(8,"),
    ("batch_size=32, step_size=0.03", "batch_size=8, step_size=0.03"),
    ("num_steps=300)", "num_steps=3, num_draws=300, batch_size=20)"),
    ("num_warmup=1000, num_samples=1000", "num_warmup=50, num_samples=20"),
)


def blocks(page: str) -> list[str]:
    return BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES)
def test_code_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    matplotlib.use("Agg")
    found = blocks(page)
    assert found, f"{page} has no Python block"
    x64, names = jax.config.jax_enable_x64, {}
    try:
        for number, block in enumerate(found):
            for printed, small in SMALLER:
                block = block.replace(printed, small)
            exec(compile(block, f"{page}, block {number}", "exec"), names)
    finally:
        jax.config.update("jax_enable_x64", x64)
    if "ess.png" in "".join(found):
        assert (tmp_path / "ess.png").stat().st_size > 1000


@pytest.mark.parametrize("printed", [printed for printed, _ in SMALLER])
def test_sizes_are_those_printed(printed):
    # A size that is reworded would run at full size, and slowly.
    assert any(printed in block for page in PAGES for block in blocks(page))


@pytest.mark.parametrize(
    "page", sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md")) + ["README.md"]
)
def test_named_files_exist(page):
    # The papers' pages map equations to files and functions; a renamed one must be renamed there too.
    text = (ROOT / page).read_text(encoding="utf-8")
    for file, name in re.findall(r"`((?:bnnwide|benchmarks|notebooks)/[\w/]+\.py)(?::(\w+))?", text):
        assert (ROOT / file).exists(), f"{page} names {file}"
        if name:
            source = (ROOT / file).read_text(encoding="utf-8")
            assert re.search(rf"^\s*(def|class) {name}\b", source, re.MULTILINE), f"{page} names {file}:{name}"
