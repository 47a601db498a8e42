"""One cell of a comparison: the chains of one method within a time budget, reduced to functions and figures."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from bnnwide.diagnostics.ess import effective_sample_size, potential_scale_reduction
from bnnwide.diagnostics.run import TimedRun

# From (positions of a block, which of its draws, key) to one array per chain.
Reduction = Callable[[dict[str, Array], Any, Array], Array]


@dataclasses.dataclass(frozen=True)
class Cell:
    """What is kept of a cell's draws.

    Args:
      functions: (chains, draws, functions) values whose mixing is measured.
      stats: (chains, draws) statistics by name.
      fit: mean over chains and a few draws of what `fit` of `run_cell` returned; None without.
      seconds: wall time of sampling.
      compile_seconds: wall time of compilation, not part of `seconds`.
      tuned: whether enough of the warm-up was run to have tuned the kernel.
    """

    functions: np.ndarray
    stats: dict[str, np.ndarray]
    fit: np.ndarray | None
    seconds: float
    compile_seconds: float
    tuned: bool

    def figures(self) -> dict[str, float]:
        """Return acceptance, costs, and the effective sample sizes: minimum and median over the functions.

        `num_grads` counts the gradients of all chains; evaluations for samplers that use none.
        """
        grads = sum(int(self.stats[name].sum()) for name in ("num_grads", "num_steps") if name in self.stats)
        grads = grads or int(self.stats["num_evals"].sum())
        figures = {
            "accept_prob": self.stats["accept_prob"].mean(),
            "rhat": potential_scale_reduction(self.functions).max(),
            "num_draws": self.functions.shape[0] * self.functions.shape[1],
            "num_grads": grads,
            "diverging": self.stats["diverging"].sum(),
            "sampling_seconds": self.seconds,
            "compile_seconds": self.compile_seconds,
        }
        ess = effective_sample_size(self.functions)
        for name, value in (("min", ess.min()), ("median", np.median(ess))):
            figures |= {
                f"ess_{name}": value,
                f"ess_per_grad_{name}": value / grads,
                f"ess_per_second_{name}": value / self.seconds,
            }
        return {name: float(value) for name, value in figures.items()}


def run_cell(
    run: TimedRun,
    functions: Reduction,
    key: Array,
    *,
    seconds: int | float,
    warmup_seconds: int | float,
    max_draws: int,
    fit: Reduction | None = None,
    progress: Callable[[float, int], Any] = lambda seconds, draws: None,
) -> Cell:
    """Warm a run up, sample within the time budget, and reduce its draws block by block.

    Args:
      run: chains that are compiled and not yet warmed up.
      functions: from a block's positions to (chains, functions).
      key: PRNG key of what the reductions draw.
      seconds: of sampling.
      warmup_seconds: at which warm-up is cut short.
      max_draws: draws per chain at which sampling stops early.
      fit: from a block's positions to what is averaged, taken once a block.
      progress: called with the seconds each block took and the draws per chain so far (0 in warm-up).
    """
    tuned = run.warm_up(warmup_seconds, lambda spent: progress(spent, 0))
    rows, stats, fits, spent = [], [], [], 0.0
    for block in run.blocks(seconds, max_draws):
        keys = jax.random.split(jax.random.fold_in(key, len(stats)), block.count)
        rows += [np.asarray(functions(block.positions, i, keys[i])) for i in range(block.count)]
        # The fit is averaged over a few draws only: it moves far less than its Monte-Carlo error matters.
        fits += [] if fit is None else [np.asarray(fit(block.positions, block.count - 1, keys[-1]))]
        stats.append(block.stats)
        spent += block.seconds
        progress(block.seconds, len(rows))
    return Cell(
        np.stack(rows, axis=1),
        {name: np.concatenate([block[name] for block in stats]).swapaxes(0, 1) for name in stats[0]},
        np.mean(fits, axis=(0, 1)) if fits else None,
        spent,
        run.compile_seconds,
        tuned,
    )


def over_chains(fn: Callable[[dict[str, Array], Array], Array]) -> Reduction:
    """Turn a function of (one chain's position, key) into a `Reduction`."""

    @jax.jit
    def reduction(positions: dict[str, Array], i: Array, key: Array) -> Array:
        z = jax.tree.map(lambda leaf: leaf[i], positions)
        keys = jax.random.split(key, jax.tree.leaves(z)[0].shape[0])
        return jax.lax.map(lambda item: fn(*item), (z, keys))

    return reduction
