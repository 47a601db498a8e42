"""Effective sample sizes and R-hat of many scalar functions at once, with ArviZ's estimators."""

import numpy as np
from arviz_stats.base.array import array_stats


def effective_sample_size(draws: np.ndarray) -> np.ndarray:
    """Return ArviZ's bulk effective sample size of each function.

    A function that is constant along any one chain counts as 0: estimators built on autocorrelations return the number
    of draws for a chain that never moved.

    Args:
      draws: (chains, draws, functions) values.

    Returns:
      (functions,) effective numbers of draws, over all chains; NaN with fewer than 4 draws.
    """
    stuck = np.ptp(draws, axis=1).min(axis=0) == 0
    sizes = np.array([array_stats.ess(draws[:, :, i], chain_axis=0, draw_axis=1) for i in range(draws.shape[2])])
    return np.where(stuck, 0.0, sizes)


def potential_scale_reduction(draws: np.ndarray) -> np.ndarray:
    """Return ArviZ's rank-normalised split R-hat of each function; infinite where a chain is constant.

    Args:
      draws: (chains, draws, functions) values.

    Returns:
      (functions,) values, 1 for chains that agree.
    """
    stuck = np.ptp(draws, axis=1).min(axis=0) == 0
    values = np.array([array_stats.rhat(draws[:, :, i], chain_axis=0, draw_axis=1) for i in range(draws.shape[2])])
    return np.where(stuck, np.inf, values)
