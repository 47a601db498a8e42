"""UCI regression with the standard splits: test RMSE and log-likelihood of methods, beside published figures.

    python benchmarks/uci.py --data PATH/TO/uci --sets yacht,boston --splits 0,1,2 --methods gp,functional --out FILE
    python benchmarks/uci.py --out FILE --table

Each set is a folder with data.txt, index_features.txt, index_target.txt and index_train_<k>.txt, index_test_<k>.txt
(the splits of Hernandez-Lobato & Adams 2015, as Gal & Ghahramani 2016 published them). A set that is not there is
skipped, with the reason. Inputs and targets are standardised by the training rows; figures are in the target's units.
Every figure goes to FILE as a line of JSON, and what FILE has is not run again; --table prints means over splits.

With --validate the last tenth of the shuffled training rows stands in for the test rows, which nothing reads then:
settings were chosen so.

Another method is one more entry of `uci_methods.METHODS`: from a `Problem`, in standardised units, to the predictive
mean (t, 1) and the log density (t,) of the test targets.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from uci_methods import METHODS, Problem

# A re-run of functional variational BNNs in the literature, mean over splits and its error.
PUBLISHED_RMSE = {
    "boston": "4.17 +- 1.27",
    "concrete": "5.21 +- 0.52",
    "energy": "0.51 +- 0.05",
    "yacht": "0.23 +- 0.06",
    "wine": "0.65 +- 0.04",
}


def load(folder: Path, split: int):
    """Return x, y, x_test, y_test of one split, in the units of the file."""
    table = np.loadtxt(folder / "data.txt")
    features = np.loadtxt(folder / "index_features.txt").astype(int)
    target = int(np.loadtxt(folder / "index_target.txt"))
    rows = [np.loadtxt(folder / f"index_{part}_{split}.txt").astype(int) for part in ("train", "test")]
    return [table[np.ix_(part, columns)] for part in rows for columns in (features, [target])]


def make_problem(folder: Path, split: int, args) -> tuple[Problem, float]:
    """Shuffle and standardise a split; return it, and the standard deviation of the training targets."""
    import jax

    x, y, x_test, y_test = load(folder, split)
    order = np.random.default_rng(split).permutation(len(x))
    x, y = x[order], y[order]
    if args.validate:
        kept = int(0.9 * len(x))
        x, y, x_test, y_test = x[:kept], y[:kept], x[kept:], y[kept:]
    centre, scale = x.mean(0), x.std(0)
    scale[scale == 0] = 1.0  # a feature that the training rows do not vary
    at, unit = y.mean(), y.std()
    x, x_test, y, y_test = (x - centre) / scale, (x_test - centre) / scale, (y - at) / unit, (y_test - at) / unit
    return Problem(folder.name, x, y, x_test, y_test, jax.random.key(split), args), float(unit)


def measure(problem: Problem, unit: float, method: str) -> dict[str, Any]:
    """Run a method; return its RMSE and log-likelihood in the units of the target, and CPU seconds."""
    start = time.process_time()
    mean, density = METHODS[method](problem)
    rmse = unit * np.sqrt(np.mean((np.asarray(mean) - problem.y_test) ** 2))
    return {
        "rmse": float(rmse), "log_lik": float(np.mean(density) - np.log(unit)), "cpu": time.process_time() - start
    }  # fmt: skip


def dropout(folder: Path, splits: list[int]) -> list[dict[str, Any]]:
    """Return what Gal & Ghahramani 2016 published of Monte-Carlo dropout on these splits, if it lies by the data."""
    files = [folder / "dropout_results" / f"test_{part}_100_xepochs_1_hidden_layers.txt" for part in ("MC_rmse", "ll")]
    if not all(file.exists() for file in files):
        return []
    rmse, log_lik = (np.loadtxt(file) for file in files)
    return [{"rmse": rmse[split], "log_lik": log_lik[split], "cpu": np.nan} for split in splits]


def print_table(rows: list[dict[str, Any]], data: Path) -> None:
    """Print means over splits and their standard errors, in Markdown."""
    print("| set | method | splits | RMSE | log-likelihood | CPU seconds a split |\n|---|---|---|---|---|---|")
    for name in [name for name in PUBLISHED_RMSE if any(row["set"] == name for row in rows)]:
        print(f"| {name} | re-run fBNN, published | | {PUBLISHED_RMSE[name]} | | |")
        own = [row for row in rows if row["set"] == name]
        some = {method: [row for row in own if row["method"] == method] for method in METHODS}
        some["MC dropout, published"] = dropout(data / name, sorted({row["split"] for row in own}))
        for method, found in some.items():
            if found:
                figures = np.array([[row["rmse"], row["log_lik"], row["cpu"]] for row in found])
                mean, error = figures.mean(0), figures.std(0) / max(len(found) - 1, 1) ** 0.5
                shown = [f"{value:.3f} +- {spread:.3f}" for value, spread in zip(mean[:2], error[:2], strict=True)]
                print(f"| | {method} | {len(found)} | {' | '.join(shown)} | {mean[2]:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/uci"))
    parser.add_argument("--sets", default=",".join(PUBLISHED_RMSE))
    parser.add_argument("--splits", default="0,1", help="numbers from 0 to 19, a range such as 0-9, or 'all'")
    parser.add_argument("--methods", default="gp,functional", help=f"of {', '.join(METHODS)}")
    parser.add_argument("--width", type=int, default=50, help="of networks that are not wide")
    parser.add_argument("--steps", type=int, default=4000, help="of function-space fits")
    parser.add_argument("--wide", type=int, default=1024, help="width of the wide network")
    parser.add_argument("--draws", type=int, default=10, help="of the wide network that interpolates")
    parser.add_argument("--validate", action="store_true", help="a tenth of the training rows for test rows")
    parser.add_argument("--out", type=Path, default=None, help="where figures are kept, one line of JSON each")
    parser.add_argument("--table", action="store_true", help="only print what --out has")
    parser.add_argument("--cache", default=None, help="folder for JAX's compilation cache: splits share programs")
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out and args.out.exists() else []
    if not args.table:
        rows = run(args, rows)
    print_table(rows, args.data)


def run(args, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    import jax

    jax.config.update("jax_enable_x64", True)
    if args.cache:
        jax.config.update("jax_compilation_cache_dir", args.cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    first, _, last = ("0-19" if args.splits == "all" else args.splits).partition("-")
    splits = range(int(first), int(last) + 1) if last else [int(split) for split in args.splits.split(",")]
    done = {(row["set"], row["split"], row["method"]) for row in rows}
    for name in args.sets.split(","):
        folder = args.data / name
        if not (folder / "data.txt").exists():
            print(f"{name}: skipped, there is no {folder / 'data.txt'}; pass --data")
            continue
        for split in splits:
            problem, unit = make_problem(folder, split, args)
            for method in args.methods.split(","):
                if (name, split, method) in done:
                    continue
                row = {"set": name, "split": split, "method": method} | measure(problem, unit, method)
                rows.append(row)
                print(json.dumps(row), flush=True)
                if args.out:
                    with args.out.open("a") as file:
                        file.write(json.dumps(row) + "\n")
    return rows


if __name__ == "__main__":
    main()
