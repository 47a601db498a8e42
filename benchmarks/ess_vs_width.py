"""Effective sample size per second and per gradient against width; every ratio is measured within one run.

    python benchmarks/ess_vs_width.py --rows digits-1024,digits-4096,standard,cifar,gradient,acceptance --precision 64

The baseline is the released algorithm of Hron et al. 2022, as `bnnwide.diagnostics.PaperHMC` runs it. One of its
gradients takes so long at width 4096 that its mixing and its speed are measured apart: its seconds per gradient on the
algorithm itself, and its ESS per gradient on the same Markov chain evaluated cheaply. (Its energy equals
|hidden|^2/2 + |phi|^2/2 - log p(Y | Psi) to rounding, so the law of the chain is the same; a test holds the two chains
against each other draw by draw.) The functions whose ESS is taken, predictions given the hidden weights at 20 test
inputs and 20 projections, are the same for both. The baseline is given the best of its released setting (one leapfrog
step, damping 0.01) and of full trajectories of pi/2, each at step sizes 0.05, 0.1 and 0.2.
"""

import argparse
import itertools
import json
import math
import os
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # LAPACK's idle threads spin, and slow every method down


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", default="1024,4096,16384", help="of the row gradient")
    parser.add_argument("--rows", default="digits-1024,digits-4096,standard,cifar,gradient,acceptance")
    parser.add_argument("--precision", type=int, choices=(32, 64), default=64)
    parser.add_argument("--seconds", type=float, default=60.0, help="sampling time of a cell")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of cifar10_subset.npz")
    parser.add_argument("--out", type=Path, default=None, help="a JSON file for the figures")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    import jax

    jax.config.update("jax_enable_x64", args.precision == 64)
    device = jax.devices()[0]
    print(f"device {device.platform}: {device.device_kind}; float{args.precision}; jax {jax.__version__}", flush=True)
    figures = {}
    for row in args.rows.split(","):
        start = time.perf_counter()
        figures[row] = ROWS[row](args)
        print(f"[{row}] {time.perf_counter() - start:.0f} s\n", flush=True)
        if args.out:
            args.out.write_text(json.dumps(figures, indent=1, default=float))


def network(width: int, outputs: int = 10):
    import bnnwide as bw

    first = bw.Dense(width, w_scale=2**0.5, b_scale=0.1)
    return first >> bw.Gelu() >> bw.Dense(outputs, w_scale=1.0, b_scale=0.1)


def measure(kernel, model, data, *, seconds, num_warmup=200, vectorized=True, max_draws=20000, **options):
    """Run one cell and return its figures; `model` decides how hidden weights are read."""
    import jax

    import bnnwide as bw
    from bnnwide.diagnostics import effective_sample_size
    from bnnwide.diagnostics.cell import over_chains, run_cell
    from bnnwide.diagnostics.functionals import predictions_of, projections_of
    from bnnwide.diagnostics.run import TimedRun

    key = jax.random.key(0)
    run = TimedRun(kernel, key, data.x, data.y, num_chains=4, num_warmup=num_warmup, vectorized=vectorized, **options)
    reader = bw.bnn(model.net, model.likelihood, "collapsed", input_collapse=model.input_collapse)
    predictions = predictions_of(reader, data.x, data.y, data.x_test[:20])
    projections = projections_of(reader, data.x, jax.random.key(7))
    functions = over_chains(lambda z, key: jax.numpy.concatenate([predictions(z, key).ravel(), projections(z)]))
    cell = run_cell(run, functions, key, seconds=seconds, warmup_seconds=max(3 * seconds, 30.0), max_draws=max_draws)
    figures = cell.figures()
    parts = cell.functions[:, :, :-20], cell.functions[:, :, -20:]
    for name, functions in zip(("predictions", "projections"), parts, strict=True):
        figures[f"ess_per_second_min_{name}"] = float(effective_sample_size(functions).min()) / cell.seconds
    return figures | {"ms_per_grad": 1e3 * cell.seconds / figures["num_grads"]}


def show(label: str, f: dict) -> None:
    print(
        f"  {label:44s} accept {f['accept_prob']:.2f}  R-hat {f['rhat']:.2f}  draws {f['num_draws']:6.0f}  "
        f"ESS/grad {f['ess_per_grad_min']:.4f} ({f['ess_per_grad_median']:.4f})  "
        f"ms/grad {f['ms_per_grad']:.2f}  ESS/s {f['ess_per_second_min']:.4g} ({f['ess_per_second_median']:.4g})",
        flush=True,
    )


def time_of_paper_gradient(width: int, data) -> float:
    """Return the seconds per gradient of the released algorithm itself, the best of a few blocks."""
    import jax

    import bnnwide as bw
    from bnnwide.diagnostics import PaperHMC

    model = bw.bnn(network(width), bw.Gaussian(0.1), "repriorised", solver="primal", input_collapse=False)
    kernel = PaperHMC(model)
    state = kernel.init(jax.random.key(0), 0, None, (data.x, data.y), {})
    step = jax.jit(lambda s: kernel.sample(s, (data.x, data.y), {}))
    state = jax.block_until_ready(step(state))
    best = math.inf
    for _ in range(4 if width > 2048 else 10):
        start = time.perf_counter()
        state = jax.block_until_ready(step(state))
        best = min(best, time.perf_counter() - start)
    return best


def same_chain_cheaply():
    """Return a `PaperHMC` whose energy is evaluated as |hidden|^2/2 + |phi|^2/2 - log p(Y | Psi)."""
    import jax.numpy as jnp

    from bnnwide.diagnostics import PaperHMC
    from bnnwide.linalg import log_marginal
    from bnnwide.samplers.core import dot

    class CheapPaperHMC(PaperHMC):
        def potential(self, x, y):
            features = self.model.feature_map(x)
            scale = jnp.asarray(self.model.likelihood.scale)
            return lambda z: 0.5 * dot(z, z) - log_marginal(features.features(z), y, scale, solver="dual"), features

    return CheapPaperHMC


def best_paper(width: int, data, seconds: float) -> dict:
    """Return the released algorithm's best ESS per second over its settings."""
    import bnnwide as bw

    cheap = same_chain_cheaply()
    per_gradient = time_of_paper_gradient(width, data)
    print(f"  released algorithm: {1e3 * per_gradient:.1f} ms per gradient", flush=True)
    model = bw.bnn(network(width), bw.Gaussian(0.1), "repriorised", solver="primal", input_collapse=False)
    results = []
    for step_size, full in itertools.product((0.05, 0.1, 0.2), (False, True)):
        steps, damping = (round(math.pi / 2 / step_size), 1.0) if full else (1, 0.01)
        kernel = cheap(model, step_size=step_size, num_steps=steps, damping=damping)
        warmup = 100 if full else 1000
        f = measure(kernel, model, data, seconds=seconds, num_warmup=warmup, vectorized=False)
        for which in ("min", "median"):
            f[f"ess_per_second_{which}"] = f[f"ess_per_grad_{which}"] / per_gradient
        f |= {"ms_per_grad": 1e3 * per_gradient, "step_size": step_size, "num_steps": steps, "damping": damping}
        show(f"paper, step {step_size}, {steps} per draw, damping {damping}", f)
        results.append(f)
    released = max((f for f in results if f["num_steps"] == 1), key=lambda f: f["ess_per_second_min"])
    return {"best": max(results, key=lambda f: f["ess_per_second_min"]), "released": released, "all": results}


def best_of_ours(width: int, data, seconds: float) -> dict:
    """Return the function-space samplers' figures, and which is best."""
    import bnnwide as bw

    model = bw.bnn(network(width), bw.Gaussian(0.1), "collapsed")
    results = {}
    for label, kernel in {
        "SplitHMC (adapted)": bw.SplitHMC(model),
        "PCNL (adapted)": bw.PCNL(model),
    }.items():
        results[label] = measure(kernel, model, data, seconds=seconds)
        show(label, results[label])
    best = max(results.values(), key=lambda f: f["ess_per_second_min"])
    count_operations(width, data, best["ms_per_grad"])
    return {"best": best, "all": results}


def count_operations(width: int, data, ms_per_grad: float) -> None:
    """Print time per gradient against the floating-point operations of its matrix products."""
    import jax

    n, rank = len(data.x), min(len(data.x), data.x.shape[1] + 1)
    operations = 4 * n * rank * width + 4 * n * n * width + n**3
    a = jax.random.normal(jax.random.key(0), (1024, 1024))
    multiply = jax.jit(lambda a: jax.lax.fori_loop(0, 20, lambda i, b: (a @ b) * 1e-3, a))
    jax.block_until_ready(multiply(a))
    start = time.perf_counter()
    jax.block_until_ready(multiply(a))
    rate = 20 * 2 * 1024**3 / (time.perf_counter() - start)
    floor = 1e3 * operations / rate
    print(
        f"  {operations / 1e6:.0f} MFLOP per gradient; matrix products run at {rate / 1e9:.0f} GFLOP/s: a floor of "
        f"{floor:.2f} ms; measured {ms_per_grad:.2f} ms per gradient of one chain, all of the sampler included "
        f"({ms_per_grad / floor:.1f} times the floor)",
        flush=True,
    )


def against_paper(width: int, data, seconds: float) -> dict:
    ours, paper = best_of_ours(width, data, seconds), best_paper(width, data, seconds)
    ratio = {}
    for name in ("best", "released"):
        for which in ("min", "median"):
            figure = f"ess_per_second_{which}"
            ratio[f"{name}_{which}"] = ours["best"][figure] / paper[name][figure]
    print(
        f"  width {width}: min ESS/s over the paper's: {ratio['released_min']:.0f} (its released setting), "
        f"{ratio['best_min']:.0f} (its best with full trajectories); medians {ratio['released_median']:.0f}, "
        f"{ratio['best_median']:.0f}",
        flush=True,
    )
    return {"ours": ours, "paper": paper, "ratio": ratio}


def digits(n: int = 128):
    from bnnwide import datasets

    return as_arrays(datasets.load_digits(n))


def as_arrays(data):
    import jax.numpy as jnp

    return data._replace(**{name: jnp.asarray(getattr(data, name), float) for name in ("x", "y", "x_test")})


def digits_1024(args):
    return against_paper(1024, digits(), args.seconds)


def digits_4096(args):
    return against_paper(4096, digits(), args.seconds)


def standard(args):
    """The best of NumPyro's NUTS and HMC on the standard form at width 1024."""
    from numpyro.infer import HMC, NUTS
    from numpyro.infer.initialization import init_to_sample

    import bnnwide as bw

    data = digits()
    ours = best_of_ours(1024, data, args.seconds)["best"]
    model = bw.bnn(network(1024), bw.Gaussian(0.1), "standard")
    options = {"init_strategy": init_to_sample}
    results = {}
    for label, kernel in {
        "NUTS, standard form": NUTS(model, **options),
        "HMC, standard form, trajectory pi/4": HMC(model, trajectory_length=math.pi / 4, **options),
    }.items():
        results[label] = measure(
            kernel, model, data, seconds=3 * args.seconds, num_warmup=60, vectorized=False, max_draws=2000, max_block=1
        )
        show(label, results[label])
    best = max(f["ess_per_second_min"] for f in results.values())
    # The most that the standard form could do at its speed: every draw independent.
    ceiling = max(f["num_draws"] / f["sampling_seconds"] for f in results.values())
    by_part = {
        part: ours[f"ess_per_second_min_{part}"] / max(f[f"ess_per_second_min_{part}"] for f in results.values())
        for part in ("predictions", "projections")
    }
    print(
        f"  min ESS/s over the best on the standard form: {ours['ess_per_second_min'] / best:.1f}; {by_part}; "
        f"were all its draws independent, still {ours['ess_per_second_min'] / ceiling:.1f}",
        flush=True,
    )
    return {"ours": ours, "standard": results, "ratio": ours["ess_per_second_min"] / best, "by_part": by_part}


def cifar(args):
    from bnnwide import datasets

    path = args.data / "cifar10_subset.npz"
    if not path.exists():
        print(f"  skipped: no {path}")
        return None
    return against_paper(1024, as_arrays(datasets.load_npz(path, num_train=256)), args.seconds)


def gradient(args):
    """ESS per gradient of SplitHMC, collapsed, n = 64."""
    import bnnwide as bw

    data, results = digits(64), {}
    for width in map(int, args.widths.split(",")):
        model = bw.bnn(network(width), bw.Gaussian(0.1), "collapsed")
        results[width] = measure(
            bw.SplitHMC(model), model, data, seconds=4 * args.seconds, num_warmup=150, max_draws=1500
        )
        show(f"SplitHMC collapsed, n = 64, width {width}", results[width])
    return results


def acceptance(args):
    """Acceptance at fixed steps rises with width."""
    import jax
    import numpy as np

    import bnnwide as bw
    from bnnwide.diagnostics.run import TimedRun

    data, results = digits(64), {}
    for label, make in {
        "PCN, beta = 0.3": lambda m: bw.PCN(m, beta=0.3),
        "SplitHMC, step pi/4": lambda m: bw.SplitHMC(m, step_size=math.pi / 4),
    }.items():
        rates = []
        for width in (256, 1024, 4096, 16384):
            model = bw.bnn(network(width), bw.Gaussian(0.1), "collapsed")
            run = TimedRun(make(model), jax.random.key(1), data.x, data.y, num_chains=8, num_warmup=60, vectorized=True)
            run.warm_up(math.inf, lambda seconds: None)
            rates.append(float(np.mean(np.concatenate([b.stats["accept_prob"] for b in run.blocks(math.inf, 100)]))))
        rising = all(a < b for a, b in itertools.pairwise(rates))
        print(f"  {label}: {[round(r, 3) for r in rates]}, {'rising' if rising else 'NOT rising'}", flush=True)
        results[label] = rates
    return results


ROWS = {
    "digits-1024": digits_1024,
    "digits-4096": digits_4096,
    "standard": standard,
    "cifar": cifar,
    "gradient": gradient,
    "acceptance": acceptance,
}

if __name__ == "__main__":
    main()
