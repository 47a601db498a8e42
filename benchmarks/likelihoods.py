"""Effective sample size under likelihoods that are not Gaussian, against samplers on the standard form.

    python benchmarks/likelihoods.py --problems classes,binary,counts --widths 256,1024,4096 --seconds 40

Three problems on scikit-learn's digits, n = 256: the ten classes; odd or even; and how many pixels of an image's right
half are dark, given its left half. The readout's w_scale, which says how large outputs are a priori, is the one of 1,
2, 4, 8, 16 with the greatest evidence in the infinite-width limit. Every figure of one problem and width is of one run,
each method with the same time.
"""

import argparse
import os
from functools import partial

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # LAPACK's idle threads spin, and slow every method down

import jax
import jax.numpy as jnp
import numpy as np

import bnnwide as bw
from bnnwide.linalg import cholesky
from bnnwide.reparam import FunctionValues, find_sites

READOUT_SCALES = (1.0, 2.0, 4.0, 8.0, 16.0)


def problems(n: int) -> dict:
    """Return (likelihood, outputs, x, y, x_test, y_test) by name."""
    data = bw.datasets.load_digits(num_train=n)
    x, x_test = np.asarray(data.x), np.asarray(data.x_test)[:200]
    labels, labels_test = np.asarray(data.y).argmax(1), np.asarray(data.labels_test)[:200]
    left, right = np.arange(64) % 8 < 4, np.arange(64) % 8 >= 4
    dark = lambda x: (x[:, right] > np.median(x)).sum(1)  # noqa: E731
    return {
        "classes": (bw.Categorical(), 10, x, labels, x_test, labels_test),
        "binary": (bw.Bernoulli(), 1, x, labels % 2, x_test, labels_test % 2),
        "counts": (bw.Poisson(), 1, x[:, left], dark(x), x_test[:, left], dark(x_test)),
    }


def network(width: int, outputs: int, readout_scale: float) -> bw.Network:
    hidden = bw.Dense(width, w_scale=2**0.5, b_scale=0.1) >> bw.Gelu()
    return hidden >> bw.Dense(outputs, w_scale=readout_scale, b_scale=0.1)


def evidence(likelihood, outputs: int, x, y, readout_scale: float, num_draws: int = 200) -> float:
    """Return the variational lower bound of log p(y) in the infinite-width limit: E_q log p(y | f) - KL(q || prior)."""
    x, y = jnp.asarray(x), jnp.asarray(y)
    kernel = network(1, outputs, readout_scale).kernel(x).nngp
    values = FunctionValues(cholesky(kernel), find_sites(likelihood, y, kernel, outputs)).factor()

    def of_draw(e):
        f = values.forward(e)
        return likelihood.log_prob(f, y).sum() - values.sites.log_density(f)

    draws = jax.random.normal(jax.random.key(0), (num_draws, len(x), outputs), kernel.dtype)
    return float(values.log_marginal() + jax.lax.map(of_draw, draws).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", default="classes,binary,counts")
    parser.add_argument("--widths", default="256,1024,4096")
    parser.add_argument("--methods", default="splithmc-collapsed,splithmc-repriorised,splithmc-standard")
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--warmup", type=int, default=100, help="steps at most, within half as much time")
    parser.add_argument("--n", type=int, default=256)
    parser.add_argument("--readout-scale", type=float, default=None, help="instead of the one of greatest evidence")
    parser.add_argument("--precision", type=int, choices=(32, 64), default=64)
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", args.precision == 64)
    methods = args.methods.split(",")
    print(f"device {jax.devices()[0].device_kind}; float{args.precision}; jax {jax.__version__}; n = {args.n}")
    for name in args.problems.split(","):
        likelihood, outputs, x, y, x_test, y_test = problems(args.n)[name]
        y, y_test = (likelihood.check_targets("likelihoods", z, len(z), outputs) for z in (y, y_test))
        found = {scale: evidence(likelihood, outputs, x, y, scale) for scale in READOUT_SCALES}
        scale = max(found, key=found.__getitem__) if args.readout_scale is None else args.readout_scale
        shown = ", ".join(f"{value:.0f} at {scale:g}" for scale, value in found.items())
        print(f"\n{name}: evidence by readout scale {shown}; taken: {scale:g}", flush=True)
        for width in map(int, args.widths.split(",")):
            net = partial(network, outputs=outputs, readout_scale=scale)
            table = bw.ess_by_width(
                net, likelihood, x, y, widths=[width], methods=methods, key=jax.random.key(0), x_test=x_test,
                y_test=y_test, seconds=args.seconds, num_warmup=args.warmup, max_draws=2000, progress=False,
            )  # fmt: skip
            print(f"\n{name}, width {width}\n{bw.format_ess_table(table)}", flush=True)
            ours = [method for method in methods if "standard" not in method]
            others = [method for method in methods if "standard" in method]
            if not (ours and others):
                continue
            for figure in ("ess_per_grad_min", "ess_per_second_min", "ess_per_second_median"):
                best = table[figure].sel({"method": others, "width": width}).max()
                ratios = table[figure].sel({"method": ours, "width": width}) / best  # infinite over a stuck chain's 0
                shown = ", ".join(f"{method} {float(ratio):.2f}" for method, ratio in zip(ours, ratios, strict=True))
                print(f"  {figure} over the best on the standard form: {shown}", flush=True)


if __name__ == "__main__":
    main()
