"""Effective sample size under likelihoods that are not Gaussian, against samplers on the standard form.

    python benchmarks/likelihoods.py --problems classes,binary,counts --widths 256,1024,4096 --seconds 40

Three problems on scikit-learn's digits, n = 256: the ten classes; odd or even; and how many pixels of an image's right
half are dark, given its left half. Every figure of one problem and width is of one run, each method with the same time.
"""

import argparse
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # LAPACK's idle threads spin, and slow every method down

import jax
import numpy as np

import bnnwide as bw


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", default="classes,binary,counts")
    parser.add_argument("--widths", default="256,1024,4096")
    parser.add_argument("--methods", default="splithmc-collapsed,splithmc-repriorised,splithmc-standard")
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--n", type=int, default=256)
    parser.add_argument(
        "--readout-scale", type=float, default=1.0, help="w_scale of the readout: how large logits are a priori"
    )
    parser.add_argument("--precision", type=int, choices=(32, 64), default=64)
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", args.precision == 64)
    methods = args.methods.split(",")
    print(
        f"device {jax.devices()[0].device_kind}; float{args.precision}; jax {jax.__version__}; n = {args.n}; "
        f"readout scale {args.readout_scale}",
        flush=True,
    )
    for name in args.problems.split(","):
        likelihood, outputs, x, y, x_test, y_test = problems(args.n)[name]

        def network(width: int, outputs: int = outputs) -> bw.Network:
            return (
                bw.Dense(width, w_scale=2**0.5, b_scale=0.1)
                >> bw.Gelu()
                >> bw.Dense(outputs, w_scale=args.readout_scale, b_scale=0.1)
            )

        for width in map(int, args.widths.split(",")):
            table = bw.ess_by_width(
                network, likelihood, x, y, widths=[width], methods=methods, key=jax.random.key(0), x_test=x_test,
                y_test=y_test, seconds=args.seconds, num_warmup=100, max_draws=2000, progress=False,
            )  # fmt: skip
            print(f"\n{name}, width {width}\n{bw.format_ess_table(table)}", flush=True)
            ours = [method for method in methods if "standard" not in method]
            others = [method for method in methods if "standard" in method]
            if not (ours and others):
                continue
            for figure in ("ess_per_grad_min", "ess_per_second_min", "ess_per_second_median"):
                best = float(table[figure].sel({"method": others}).max())
                ratios = {
                    method: float(table[figure].sel({"method": method, "width": width})) / best for method in ours
                }
                shown = ", ".join(f"{method} {ratio:.2f}" for method, ratio in ratios.items())
                print(f"  {figure} over the best on the standard form: {shown}", flush=True)


if __name__ == "__main__":
    main()
