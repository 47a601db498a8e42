"""UCI regression with the standard splits: test RMSE and log-likelihood of methods, beside published figures.

    python benchmarks/uci.py --data PATH/TO/uci --sets yacht,boston --splits 0,1,2 --methods gp,functional --out FILE
    python benchmarks/uci.py --out FILE --table

Each set is a folder with data.txt, index_features.txt, index_target.txt and index_train_<k>.txt, index_test_<k>.txt
(the splits of Hernandez-Lobato & Adams 2015, as Gal & Ghahramani 2016 published them). A set that is not there is
skipped, with the reason. Inputs and targets are standardised by the training rows; figures are in the target's units.
Every figure goes to FILE as a line of JSON, and what FILE has is not run again; --table prints means over splits.

With --validate the last tenth of the shuffled training rows stands in for the test rows, which nothing reads then:
settings were chosen so.

Another method is one more entry of METHODS: from a `Problem`, in standardised units, to the predictive mean (t, 1) and
the log density (t,) of the test targets.
"""

import argparse
import dataclasses
import functools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

# A re-run of functional variational BNNs in the literature, mean over splits and its error.
PUBLISHED_RMSE = {
    "boston": "4.17 +- 1.27",
    "concrete": "5.21 +- 0.52",
    "energy": "0.51 +- 0.05",
    "yacht": "0.23 +- 0.06",
    "wine": "0.65 +- 0.04",
}
MAX_PRIOR_FIT = 600  # rows that hyper-parameters are fitted to; Sun et al. 2019 take up to 1000
SMOOTH_ONLY = ("wine",)  # a rough part learns the repeated rows of this set by heart, with noise 0


@dataclasses.dataclass
class Problem:
    """A split in standardised units; what methods share is fitted when it is first asked for."""

    name: str
    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    key: Any
    args: Any

    @functools.cached_property
    def smooth(self):
        """A squared-exponential process with a length scale per feature, and the noise, by marginal likelihood."""
        import bnnwide as bw

        d = self.x.shape[1]
        start = {"smooth": 1.0} | {f"smooth_length{i}": d**0.5 for i in range(d)}
        few, _ = bw.functional.GPPrior(smooth_kernel, hyper=start).fit(
            *self._rows(300), noise_prior(), num_steps=30, tolerance=1e-4
        )
        return self._refine(few, 20)

    @functools.cached_property
    def process(self):
        """The same with a rough part, a product of Matern 3/2 kernels with length scales of its own."""
        import bnnwide as bw

        if self.name in SMOOTH_ONLY:
            return self.smooth
        prior, _ = self.smooth
        d, lengths = self.x.shape[1], prior.numbers
        start = (
            lengths | {"rough": 0.3} | {f"rough_length{i}": min(lengths[f"smooth_length{i}"], 10.0) for i in range(d)}
        )
        return self._refine(bw.functional.GPPrior(full_kernel, hyper=start), 40)

    def _refine(self, prior, num_steps):
        return prior.fit(*self._rows(MAX_PRIOR_FIT), noise_prior(), num_steps=num_steps, tolerance=1e-4)

    def _rows(self, number):
        """Return training rows for hyper-parameters; one that is repeated, target and all, counts once.

        An eighth of the wines are there twice. Counted twice, they say that there is no noise, and short length scales.
        """
        _, first = np.unique(np.concatenate([self.x, self.y], axis=1), axis=0, return_index=True)
        rows = np.sort(first)[:number]
        return self.x[rows], self.y[rows]


def noise_prior():
    """A weak prior of the noise, which keeps its scale from falling to 0 where a rough process explains everything."""
    import numpyro.distributions as dist

    import bnnwide as bw

    return bw.Gaussian(dist.LogNormal(np.log(0.1), 1.0))


def lengths_of(numbers, part):
    import jax.numpy as jnp

    return jnp.stack([numbers[f"{part}_length{i}"] for i in range(sum(f"{part}_length" in name for name in numbers))])


def smooth_kernel(**numbers):
    """smooth^2 exp(-|a - b|^2 / 2), inputs in units of their length scales."""
    import tinygp

    lengths = lengths_of(numbers, "smooth")
    return lambda a, b: numbers["smooth"] ** 2 * tinygp.kernels.ExpSquared()(a / lengths, b / lengths)


def full_kernel(**numbers):
    """`smooth_kernel` plus rough^2 prod_i (1 + r_i) exp(-r_i), r_i = sqrt(3) |a_i - b_i| in units of its length."""
    import jax.numpy as jnp

    smooth, lengths = smooth_kernel(**numbers), lengths_of(numbers, "rough")

    def kernel(a, b):
        r = 3**0.5 * jnp.abs((a / lengths)[:, None] - (b / lengths)[None])
        return smooth(a, b) + numbers["rough"] ** 2 * jnp.exp(jnp.sum(jnp.log1p(r) - r, axis=-1))

    return kernel


def log_density(y, mean, sd):
    """log N(y; mean, sd^2), averaged as a density over a leading axis of draws, (s, t, 1) to (t,)."""
    from scipy.special import logsumexp

    each = -0.5 * ((y - mean) / sd) ** 2 - np.log(sd) - 0.5 * np.log(2 * np.pi)
    return logsumexp(each[..., 0], axis=0) - np.log(len(each))


def of_prediction(problem, pred):
    mean = np.asarray(pred.mean)
    return mean, log_density(problem.y_test, mean[None], np.sqrt(np.asarray(pred.variance))[None])


def gp(problem, which="process"):
    """The exact posterior of the process itself."""
    prior, noise = getattr(problem, which)
    return of_prediction(problem, prior.posterior(problem.x, problem.y, noise).predict(problem.x_test))


def tanh_network(width):
    import bnnwide as bw

    return bw.Dense(width, w_scale=2.0, b_scale=1.0) >> bw.Tanh() >> bw.Dense(1, w_scale=2.0, b_scale=1.0)


def relu_network(width):
    """Weights N(0, 1 / fan_in), as in published work on weight-space inference."""
    import bnnwide as bw

    return bw.Dense(width, b_scale=1.0) >> bw.Relu() >> bw.Dense(1, b_scale=1.0)


def functional(problem, num_points=50, num_steps=None, learning_rate=0.03):
    """Function-space variational inference, factorised Gaussian weights, the smooth process as prior."""
    import jax

    from bnnwide.functional import Factorised, FunctionalELBO, Measurement, fit

    prior, noise = problem.smooth
    points = min(num_points, len(problem.x))
    # A KL at a part of the training inputs is below that at all of them: weighted up by their ratio.
    objective = FunctionalELBO(
        prior, measurement=Measurement(points, 0), score="linearised", num_samples=4, noise=0.03,
        weight=len(problem.x) / points,
    )  # fmt: skip
    net = tanh_network(problem.args.width)
    found = fit(
        net, prior, noise, problem.x, problem.y, key=problem.key, objective=objective, batch_size=50,
        family=Factorised(net, problem.x.shape[1:], init_scale=0.02), learning_rate=learning_rate,
        num_steps=num_steps or problem.args.steps,
    )  # fmt: skip
    draws = np.asarray(found.draws(jax.random.fold_in(problem.key, 1), problem.x_test, 500))
    return draws.mean(0), log_density(problem.y_test, draws, float(noise.scale))


def wave_network(numbers, width, num_points):
    """A wide layer of waves, sqrt(2) sin(w x + pi/4), whose limit is the process: w normal, and Student-t.

    To these come short, faint ones, half as many again as points, which tell all points apart: where the others do not,
    their covariance there would be singular to rounding, and the prior not the process' own.
    """
    import jax.numpy as jnp

    import bnnwide as bw

    lengths = {part: np.asarray(lengths_of(numbers, part)) for part in ("smooth", "rough") if part in numbers}
    counts = {part: width // len(lengths) for part in lengths} | {"short": 3 * num_points // 2}
    sizes = {part: numbers[part] for part in lengths} | {"short": 0.003 * numbers["smooth"]}
    d, total = len(lengths["smooth"]), sum(counts.values())
    lengths["short"] = np.full(d, 0.25)

    def waves(part, w, x):
        # Student-t directions: three more normals divide the first d.
        directions = w[:d] if part == "smooth" else w[:d] * (3 / jnp.sum(w[d:] ** 2, axis=0)) ** 0.5
        return sizes[part] * (2 * total / counts[part]) ** 0.5 * jnp.sin(x / lengths[part] @ directions + jnp.pi / 4)

    start = {part: np.zeros((d + 3 * (part != "smooth"), count)) for part, count in counts.items()}
    return bw.from_features(
        lambda w, x: jnp.concatenate([waves(part, w[part], x) for part in counts], axis=1), start, 1
    )


def wide(problem, at_test=False):
    """A wide network with the process' prior, exact at points, by SplitHMC; between points it interpolates."""
    import jax
    import numpyro

    import bnnwide as bw

    prior, noise = problem.process
    points = np.concatenate([problem.x, problem.x_test]) if at_test else problem.x
    net = wave_network(prior.numbers, problem.args.wide, len(points))
    model = bw.functional_bnn(net, prior, points, noise, input_collapse=False)
    # One chain; its draws of the hidden weights are independent, as the likelihood says nothing of these.
    draws = 2 if at_test else problem.args.draws
    mcmc = numpyro.infer.MCMC(bw.SplitHMC(model), num_warmup=2, num_samples=draws, progress_bar=False)
    mcmc.run(problem.key, problem.x, problem.y, extra_fields=("accept_prob",))
    print(f"  accept {float(np.mean(mcmc.get_extra_fields()['accept_prob'])):.4f}", flush=True)
    pred = bw.predict(model, mcmc.get_samples(), problem.x, problem.y, problem.x_test, key=jax.random.key(0))
    return of_prediction(problem, pred)


def laplace(problem):
    """Laplace in function space, with the smooth process and its noise."""
    from bnnwide.functional import Measurement, laplace

    prior, noise = problem.smooth
    found = laplace(
        tanh_network(problem.args.width), prior, noise, problem.x, problem.y, key=problem.key,
        num_steps=problem.args.steps, measurement=Measurement(50, 50), learning_rate=0.01,
    )  # fmt: skip
    return of_prediction(problem, found.predict(problem.x_test))


def mean_field(problem):
    """Mean-field variational inference on the weights, under their own prior; the noise learned."""
    import numpyro.distributions as dist

    import bnnwide as bw

    model = bw.bnn(relu_network(problem.args.width), bw.Gaussian(dist.LogNormal(np.log(0.3), 1.0)), "standard")
    run = bw.comparators.mean_field(
        model, problem.x, problem.y, key=problem.key, num_steps=6000, learning_rate=0.01, num_samples=500,
    )  # fmt: skip
    draws = run.get_samples()
    mean, _ = bw.predict_draws(model, draws, problem.x, problem.y, problem.x_test)
    mean, scale = np.asarray(mean), np.asarray(draws["noise_scale"])[:, None, None]
    return mean.mean(0), log_density(problem.y_test, mean, scale)


def noisy(problem, family):
    """Noisy natural gradient on the weights, under their own prior; the noise by steps of expectation maximisation."""
    import bnnwide as bw

    noise, params = 0.3, None
    for _ in range(8):
        post = bw.natgrad.noisy_vi(
            relu_network(problem.args.width), bw.Gaussian(noise), problem.x, problem.y, key=problem.key, family=family,
            num_steps=800, learning_rate=0.1, decay=0.05, max_kl=3, params=params, batch_size=50,
        )  # fmt: skip
        seen, params = post.predict(problem.x), post.mean
        noise = float(np.sqrt(np.mean((problem.y - seen.mean) ** 2 + seen.epistemic)))
    pred = post.sample(problem.key, 500).predict(problem.x_test)
    return of_prediction(problem, dataclasses.replace(pred, aleatoric=np.full_like(pred.mean, noise**2)))


METHODS = {
    "gp": gp,
    "gp-smooth": functools.partial(gp, which="smooth"),
    "wide": functools.partial(wide, at_test=True),
    "wide-between": wide,
    "functional": functional,
    "functional-slow": functools.partial(functional, num_steps=12_000, learning_rate=0.01),
    "laplace": laplace,
    "mean-field": mean_field,
    "noisy-kfac": functools.partial(noisy, family="kfac"),
    "noisy-ekfac": functools.partial(noisy, family="ekfac"),
    "noisy-diag": functools.partial(noisy, family="diag"),
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
