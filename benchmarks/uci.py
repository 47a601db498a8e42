"""UCI regression with the standard splits: test RMSE and log-likelihood of methods, beside published figures.

    python benchmarks/uci.py --data PATH/TO/uci --sets yacht,boston --splits 0,1,2 --methods functional,gp

Each set is a folder with data.txt, index_features.txt, index_target.txt and index_train_<k>.txt, index_test_<k>.txt
(the splits of Hernandez-Lobato & Adams 2015, as Gal & Ghahramani 2016 published them). A set that is not there is
skipped, with the reason. Inputs and targets are standardised by the training rows; figures are in the target's units.

Another method is one more entry of METHODS: from a `Problem`, in standardised units, to the predictive mean (t, 1) and
the log density (t,) of the test targets.
"""

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# A re-run of functional variational BNNs in the literature, the mean over splits and its standard error.
PUBLISHED_RMSE = {
    "boston": "4.17 +- 1.27",
    "concrete": "5.21 +- 0.52",
    "energy": "0.51 +- 0.05",
    "yacht": "0.23 +- 0.06",
    "wine": "0.65 +- 0.04",
}
MAX_PRIOR_FIT = 1000  # rows that hyper-parameters are fitted to, as in Sun et al. 2019


class Problem(NamedTuple):
    """A split in standardised units, with what methods share: the prior over functions and the noise, both fitted."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    prior: Any
    noise: Any
    key: Any
    width: int
    num_steps: int


def network(width):
    import bnnwide as bw

    return bw.Dense(width, w_scale=2.0, b_scale=1.0) >> bw.Tanh() >> bw.Dense(1, w_scale=2.0, b_scale=1.0)


def log_density(y, mean, sd):
    """log N(y; mean, sd^2), averaged as a density over a leading axis of draws, (s, t, 1) to (t,)."""
    from scipy.special import logsumexp

    each = -0.5 * ((y - mean) / sd) ** 2 - np.log(sd) - 0.5 * np.log(2 * np.pi)
    return logsumexp(each[..., 0], axis=0) - np.log(len(each))


def functional(problem, score="gaussian", family="repriorised"):
    """Function-space variational inference with the Gaussian process prior."""
    import jax
    import numpyro.distributions as dist

    from bnnwide.functional import FunctionalELBO, Measurement, fit
    from bnnwide.likelihoods import Gaussian

    objective = FunctionalELBO(problem.prior, measurement=Measurement(30, 10), score=score, num_samples=32)
    learned = Gaussian(dist.LogNormal(np.log(problem.noise.scale), 0.3))
    found = fit(
        network(problem.width), problem.prior, learned, problem.x, problem.y, key=problem.key,
        num_steps=problem.num_steps, family=family, objective=objective, learning_rate=0.01,
    )  # fmt: skip
    draw_key, noise_key = jax.random.split(problem.key)
    draws = np.asarray(found.draws(draw_key, problem.x_test, 500))
    scales = np.asarray(found.noise_draws(noise_key, 500)["noise_scale"])[:, None, None]
    return draws.mean(0), log_density(problem.y_test, draws, scales)


def laplace(problem):
    """Laplace in function space, with the noise of the fitted process."""
    from bnnwide.functional import Measurement, laplace

    found = laplace(
        network(problem.width), problem.prior, problem.noise, problem.x, problem.y, key=problem.key,
        num_steps=problem.num_steps, measurement=Measurement(50, 50), learning_rate=0.01,
    )  # fmt: skip
    return of_prediction(problem, found.predict(problem.x_test))


def gp(problem):
    """The exact posterior of the process itself."""
    return of_prediction(problem, problem.prior.posterior(problem.x, problem.y, problem.noise).predict(problem.x_test))


def mean_field(problem):
    """Mean-field variational inference on the weights, under their own prior."""
    import bnnwide as bw

    model = bw.bnn(network(problem.width), problem.noise, "standard")
    run = bw.comparators.mean_field(
        model, problem.x, problem.y, key=problem.key, num_steps=problem.num_steps, num_samples=500
    )
    pred = bw.comparators.predict_plain(model, run.get_samples(), problem.x, problem.x_test)
    return of_prediction(problem, pred)


def of_prediction(problem, pred):
    mean = np.asarray(pred.mean)
    return mean, log_density(problem.y_test, mean[None], np.sqrt(np.asarray(pred.variance))[None])


METHODS = {
    "functional": functional,
    "functional-factorised": lambda problem: functional(problem, family="factorised"),
    "functional-stein": lambda problem: functional(problem, score="stein"),
    "laplace": laplace,
    "gp": gp,
    "mean_field": mean_field,
}


def load(folder: Path, split: int):
    """Return x, y, x_test, y_test of one split, in the units of the file."""
    table = np.loadtxt(folder / "data.txt")
    features = np.loadtxt(folder / "index_features.txt").astype(int)
    target = int(np.loadtxt(folder / "index_target.txt"))
    rows = [np.loadtxt(folder / f"index_{part}_{split}.txt").astype(int) for part in ("train", "test")]
    return [table[np.ix_(part, columns)] for part in rows for columns in (features, [target])]


def make_problem(folder: Path, split: int, args) -> tuple[Problem, float]:
    """Standardise a split and fit the prior; return it, and the standard deviation of the training targets."""
    import jax
    import tinygp

    import bnnwide as bw

    x, y, x_test, y_test = load(folder, split)
    centre, scale = x.mean(0), x.std(0)
    scale[scale == 0] = 1.0  # a feature that the training rows do not vary
    at, unit = y.mean(), y.std()
    x, x_test, y, y_test = (x - centre) / scale, (x_test - centre) / scale, (y - at) / unit, (y_test - at) / unit
    some = np.random.default_rng(split).permutation(len(x))[:MAX_PRIOR_FIT]
    kernel = 1.0 * tinygp.kernels.ExpSquared(x.shape[1] ** 0.5)
    prior, noise = bw.functional.GPPrior(kernel).fit(x[some], y[some], bw.Gaussian(0.3))
    key = jax.random.key(split)
    return Problem(x, y, x_test, y_test, prior, noise, key, args.width, args.steps), float(unit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/uci"))
    parser.add_argument("--sets", default=",".join(PUBLISHED_RMSE))
    parser.add_argument("--splits", default="0,1", help="numbers from 0 to 19, or 'all'")
    parser.add_argument("--methods", default="functional,gp", help=f"of {', '.join(METHODS)}")
    parser.add_argument("--width", type=int, default=50)
    parser.add_argument("--steps", type=int, default=5000)
    args = parser.parse_args()
    import jax

    jax.config.update("jax_enable_x64", True)
    splits = range(20) if args.splits == "all" else [int(split) for split in args.splits.split(",")]
    for name in args.sets.split(","):
        folder = args.data / name
        if not (folder / "data.txt").exists():
            print(f"{name}: skipped, there is no {folder / 'data.txt'}; pass --data")
            continue
        figures = {method: [] for method in args.methods.split(",")}
        for split in splits:
            problem, unit = make_problem(folder, split, args)
            for method in figures:
                start = time.perf_counter()
                mean, density = METHODS[method](problem)
                rmse = unit * np.sqrt(np.mean((np.asarray(mean) - problem.y_test) ** 2))
                figures[method].append((rmse, np.mean(density) - np.log(unit), time.perf_counter() - start))
        print(f"{name}, {len(splits)} splits, width {args.width}; published RMSE {PUBLISHED_RMSE.get(name, 'none')}")
        for method, rows in figures.items():
            mean, error = np.mean(rows, axis=0), np.std(rows, axis=0) / max(len(rows) - 1, 1) ** 0.5
            print(
                f"  {method:20s} RMSE {mean[0]:7.3f} +- {error[0]:.3f}, log-lik. {mean[1]:7.3f} +- {error[1]:.3f}, "
                f"{mean[2]:.0f} s a split",
                flush=True,
            )


if __name__ == "__main__":
    main()
