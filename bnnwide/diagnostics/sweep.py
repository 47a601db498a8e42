"""Effective sample sizes of many methods at many widths, on one problem and one time budget per cell."""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Real, Shaped
from tqdm.auto import tqdm

from bnnwide import __version__
from bnnwide.arch import Layer
from bnnwide.checks import Data, check_choice, check_count, check_positive
from bnnwide.comparators.extra import require
from bnnwide.diagnostics.approximations import MAX_DRAWS, fit_in_time
from bnnwide.diagnostics.cell import over_chains, run_cell
from bnnwide.diagnostics.functionals import (
    NUM_INPUTS,
    constrained,
    outcomes_of,
    parts_read,
    predictions_of,
    projections_of,
)
from bnnwide.diagnostics.methods import DEFAULT_METHODS, METHODS, Approximation, Method
from bnnwide.diagnostics.run import TimedRun
from bnnwide.likelihoods import Likelihood
from bnnwide.models import bnn
from bnnwide.models.bnn import BNN

WARMUP_SHARE = 0.5
MIN_DRAWS = 50  # per chain: below it an ESS means nothing
FIGURES = (
    "accept_prob", "rhat", "ess_min", "ess_median", "ess_per_grad_min", "ess_per_grad_median", "ess_per_second_min",
    "ess_per_second_median", "num_draws", "num_grads", "diverging", "sampling_seconds", "compile_seconds", "rmse",
    "accuracy",
)  # fmt: skip


def ess_by_width(
    net_of_width: Callable[[int], Layer],
    likelihood: Likelihood,
    x: Real[Data, "n d"],
    y: Shaped[Data, "n *k"],
    *,
    widths: Sequence[int],
    key: Array,
    methods: Sequence[str] = DEFAULT_METHODS,
    x_test: Real[Data, "t d"] | None = None,
    y_test: Shaped[Data, "t *k"] | None = None,
    num_chains: int = 4,
    num_warmup: int = 100,
    seconds: int | float = 15.0,
    max_draws: int = 1000,
    progress: bool = True,
    store: str | os.PathLike[str] | None = None,
    model_of: Callable[..., BNN] = bnn,
) -> xr.Dataset:
    """Compare samplers across widths: effective sample size per gradient and per second.

    Every cell (method, width) gets the same time: `seconds` of sampling after a warm-up of `num_warmup` steps, which is
    cut short after half of that; compilation is timed apart. The effective sample size is ArviZ's bulk ESS, of
    (a) predictions at the first 20 test inputs, all outputs, and (b) 20 fixed random projections of the sampled hidden
    weights; the table has the minimum and the median over these. A chain that never moves counts as 0. Draws are
    reduced to these numbers block by block, so that memory does not grow with width times draws.

    The approximations "mean-field", "functional-vi", "functional-laplace", "laplace" and "ensemble" are fitted for
    `seconds` instead. Their draws are independent draws of something else than the posterior: they have no ESS, and
    RMSE and accuracy are those of the networks drawn, readout included ("functional-laplace": linearised ones). Where
    one refuses (Laplace on a large model) its cell is empty, with a warning.

    Args:
      net_of_width: from a width to an architecture with a Dense readout.
      likelihood: the noise.
      x: (n, d) training inputs.
      y: (n, k) training targets, or (n,) labels.
      widths: widths to compare.
      key: PRNG key.
      methods: names in `METHODS`.
      x_test: (t, d) test inputs; None takes the training inputs.
      y_test: (t, k) test targets, or (t,) labels, for RMSE (of probabilities against one-hot labels) and, with k > 1,
        accuracy by the largest output; None for neither.
      num_chains: number of chains, at least 2; ESS is usually taken over 4 or more.
      num_warmup: warm-up steps per chain.
      seconds: sampling time of a cell.
      max_draws: draws per chain at which a cell stops early.
      progress: whether to show a progress bar.
      store: a netCDF file to write as an ArviZ DataTree: the table, and for every cell the predictions, projections
        and sample statistics of its draws. On Ctrl-C the finished cells are still written.
      model_of: from (architecture, likelihood, form=..., and other options of `bnn`) to the model: another prior, such
        as that of `functional_bnn`.

    Returns:
      A dataset over (method, width). `num_grads` counts the gradients of all chains (evaluations for pCN and elliptical
      slices, which use none); `rhat` is the largest over all functions; `rmse` is in the units of y. Figures that need
      an ESS are NaN with fewer than 50 draws per chain, or where time allowed fewer than 30 warm-up steps, and for
      approximations; acceptance is NaN for MCLMC and natural gradient descent, which have no accept
      step: their chains are biased.

    Raises:
      ImportError: if a method needs a package of the extra "comparators" that is not installed.
      ValueError: for wrong shapes, NaN or infinite data, or unknown methods.
    """
    for name in methods:
        check_choice("ess_by_width", "methods", name, tuple(METHODS))
        if (package := METHODS[name].package) is not None:
            require("ess_by_width", package)  # now, and not after an hour of other cells
    for width in widths:
        check_count("ess_by_width", "widths", width)
    for name, value, least in (
        ("num_chains", num_chains, 2),
        ("num_warmup", num_warmup, 1),
        ("max_draws", max_draws, 4),
    ):
        check_count("ess_by_width", name, value, least)
    check_positive("ess_by_width", "seconds", seconds)
    if not (len(widths) and len(methods)):
        raise ValueError("`ess_by_width`: widths and methods must not be empty")
    models = {(m, w): model_of(net_of_width(w), likelihood, **METHODS[m].options) for m in methods for w in widths}
    first = next(iter(models.values()))
    x = first.check_inputs("ess_by_width", x)
    y = first.check_targets("ess_by_width", x, y)
    x_test = x if x_test is None else first.check_inputs("ess_by_width", x_test, "x_test", x.shape[1])
    if y_test is not None:
        y_test = first.likelihood.check_targets("ess_by_width", y_test, len(x_test), first.outputs, name="y_test")

    values = {name: np.full((len(methods), len(widths)), np.nan) for name in FIGURES}
    cells: dict[str, xr.Dataset] = {}
    bar = tqdm(total=seconds * (1 + WARMUP_SHARE) * len(models), unit="s", disable=not progress, bar_format=_BAR)
    problem = _Problem(x, y, x_test, y_test, num_chains, num_warmup, seconds, max_draws)
    try:
        for i, method in enumerate(methods):
            for j, width in enumerate(widths):
                bar.set_description(f"{method}, width {width}: compiling")
                cell_key = jax.random.fold_in(jax.random.fold_in(key, i), j)
                figures, draws = _run_cell(METHODS[method], models[method, width], problem, cell_key, bar)
                for name, value in figures.items():
                    values[name][i, j] = value
                cells |= {f"{method}/width_{width}/{group}": data for group, data in draws.items()}
                # A cell may end early, or overrun by the length of its last step; the bar shows its share either way.
                bar.update(seconds * (1 + WARMUP_SHARE) * (i * len(widths) + j + 1) - bar.n)
    finally:
        bar.close()
        table = _table(values, methods, widths, problem, first)
        if store is not None and cells:
            Path(store).parent.mkdir(parents=True, exist_ok=True)
            xr.DataTree.from_dict({"/": table, **cells}).to_netcdf(store, engine="h5netcdf")
    return table


_BAR = "{desc} |{bar}| {n:.0f}/{total:.0f} s"


@dataclasses.dataclass(frozen=True)
class _Problem:
    """What all cells share."""

    x: Array
    y: Array
    x_test: Array
    y_test: Data | None
    num_chains: int
    num_warmup: int
    seconds: int | float
    max_draws: int


def _run_cell(
    method: Method | Approximation, model: BNN, problem: _Problem, key: Array, bar: Any
) -> tuple[dict, dict[str, xr.Dataset]]:
    if isinstance(method, Approximation):
        return _run_approximation(method, model, problem, key, bar)
    run_key, direction_key, test_key = jax.random.split(key, 3)
    x, y = problem.x, problem.y
    run = TimedRun(
        method.kernel(model), run_key, x, y,
        num_chains=problem.num_chains, num_warmup=problem.num_warmup, vectorized=method.vectorized,
        max_block=method.max_block,
    )  # fmt: skip
    title = bar.desc.split(":")[0]
    bar.set_description(f"{title}: warm-up")
    cell_end = bar.n + problem.seconds * (1 + WARMUP_SHARE)

    def progress(seconds: float, draws: int) -> None:
        if draws:
            bar.set_description(f"{title}: {draws} draws x {problem.num_chains} chains", refresh=False)
        bar.update(min(seconds, cell_end - bar.n))

    predictions = predictions_of(model, x, y, problem.x_test[:NUM_INPUTS])
    projections = projections_of(model, x, direction_key)
    sites, outcomes = constrained(model, x, y), outcomes_of(model, x, y, problem.x_test)

    def functions(z: dict[str, Array], key: Array) -> Array:
        draw = sites(z)
        return jnp.concatenate([predictions(draw, key).ravel(), projections(draw)])

    cell = run_cell(
        run, over_chains(functions), test_key,
        seconds=problem.seconds, warmup_seconds=problem.seconds * WARMUP_SHARE, max_draws=problem.max_draws,
        fit=over_chains(lambda z, key: outcomes(sites(z), key)), progress=progress,
    )  # fmt: skip
    figures = cell.figures() | _fit(cell.fit, problem.y_test)
    if not cell.tuned or cell.functions.shape[1] < MIN_DRAWS:
        figures = {name: value for name, value in figures.items() if not name.startswith(("ess", "rhat"))}
    shape = (min(NUM_INPUTS, len(problem.x_test)), model.outputs)
    at_tests, along = np.split(cell.functions, [math.prod(shape)], axis=2)
    posterior = xr.Dataset(
        {
            "prediction": (("chain", "draw", "input", "output"), at_tests.reshape(*at_tests.shape[:2], *shape)),
            "projection": (("chain", "draw", "direction"), along),
        }
    )
    return figures, {
        "posterior": posterior,
        "sample_stats": xr.Dataset({name: (("chain", "draw"), values) for name, values in cell.stats.items()}),
    }


def _run_approximation(
    method: Approximation, model: BNN, problem: _Problem, key: Array, bar: Any
) -> tuple[dict, dict[str, xr.Dataset]]:
    fit_key, draw_key, test_key = jax.random.split(key, 3)
    x, y, title = problem.x, problem.y, bar.desc.split(":")[0]
    bar.set_description(f"{title}: fitting")
    try:
        draws, read, figures = fit_in_time(
            lambda num_steps: method.fit(model, (x, y), fit_key, num_steps=num_steps), draw_key,
            seconds=problem.seconds, num_draws=min(MAX_DRAWS, problem.max_draws * problem.num_chains),
        )  # fmt: skip
    except ValueError as refusal:
        warnings.warn(f"`ess_by_width`: {title}: {refusal}", stacklevel=3)
        return {}, {}
    keys = jax.random.split(test_key, len(jax.tree.leaves(draws)[0]))
    if read is None:
        parts = (predictions_of(model, x, y, problem.x_test[:NUM_INPUTS]), outcomes_of(model, x, y, problem.x_test))
    else:
        parts = parts_read(model.likelihood, read, problem.x_test)
    at = jax.jit(partial(jax.lax.map, lambda item: tuple(part(*item) for part in parts)))
    predictions, outcomes = at((draws, keys))
    at_tests = xr.Dataset({"prediction": (("chain", "draw", "input", "output"), np.asarray(predictions)[None])})
    return figures | _fit(np.asarray(outcomes).mean(0), problem.y_test), {"posterior": at_tests}


def _fit(mean: np.ndarray | None, y_test: Data | None) -> dict[str, float]:
    if mean is None or y_test is None:
        return {}
    targets = np.asarray(y_test)
    if targets.ndim == 1:  # labels
        targets = np.eye(mean.shape[1])[targets]
    figures = {"rmse": float(np.sqrt(np.mean((mean - targets) ** 2)))}
    if mean.shape[1] > 1:
        figures["accuracy"] = float(np.mean(mean.argmax(1) == targets.argmax(1)))
    return figures


def _table(values: dict, methods: Sequence[str], widths: Sequence[int], problem: _Problem, model: BNN):
    device = jax.devices()[0]
    attrs = {
        "n": len(problem.x),
        "d": problem.x.shape[1],
        "k": model.outputs,
        "likelihood": repr(model.likelihood),
        "num_chains": problem.num_chains,
        "seconds_per_cell": problem.seconds,
        "device": f"{device.platform}: {device.device_kind}",
        "precision": str(problem.x.dtype),
        "versions": f"bnnwide {__version__}, jax {jax.__version__}",
    }
    return xr.Dataset(
        {name: (("method", "width"), array) for name, array in values.items()},
        coords={"method": list(methods), "width": list(widths)},
        attrs=attrs,
    )


_COLUMNS = (
    ("accept_prob", "accept", "{:.2f}"),
    ("rhat", "R-hat", "{:.2f}"),
    ("num_draws", "draws", "{:.0f}"),
    ("ess_per_grad_min", "ESS/grad", "{:.3g}"),
    ("ess_per_grad_median", "(median)", "{:.3g}"),
    ("ess_per_second_min", "ESS/s", "{:.3g}"),
    ("ess_per_second_median", "(median)", "{:.3g}"),
    ("rmse", "test RMSE", "{:.3f}"),
    ("accuracy", "accuracy", "{:.3f}"),
)


def format_ess_table(table: xr.Dataset) -> str:
    """Lay out the table of `ess_by_width` as text, one row per cell; a dash stands for a figure that there is not.

    Args:
      table: what `ess_by_width` returned.

    Returns:
      Lines of text.
    """
    header = ["method", "width", *(title for _, title, _ in _COLUMNS)]
    rows = []
    for method in table.method.values:
        for width in table.width.values:
            cell = table.sel({"method": method, "width": width})
            values = [float(cell[name]) for name, _, _ in _COLUMNS]
            shown = ["-" if math.isnan(v) else f.format(v) for v, (_, _, f) in zip(values, _COLUMNS, strict=True)]
            rows.append([str(method), str(width), *shown])
    sizes = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = ["  ".join(c.ljust(s) if i == 0 else c.rjust(s) for i, (c, s) in enumerate(zip(row, sizes, strict=True)))
             for row in [header, *rows]]  # fmt: skip
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
