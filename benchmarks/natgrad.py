"""Natural gradient descent as a sampler: the knee in batch size, and a table against exact sampling.

    python benchmarks/natgrad.py --rows knee,table --width 64 --num 64

knee: test loss of ensembles drawn by plain minibatch natural gradient descent (nothing added) on digits, against the
batch size at a fixed learning rate. Smith et al. 2018 (arXiv 1806.09597) find that it falls until B = eps N / 2, where
the temperature is 1, and is flat or rises beyond. The metric is the Fisher matrix at the MAP estimate.

table: one wide network on digits, softmax likelihood. SplitHMC is exact; the distance of each other method is the mean
total variation between its predictive probabilities and those of SplitHMC, beside that of a second SplitHMC run.
"""

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # LAPACK's idle threads spin, and slow every method down


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="knee,table")
    parser.add_argument("--num", type=int, default=64, help="training images")
    parser.add_argument("--width", type=int, default=64, help="of the table's network; the knee's has 8")
    parser.add_argument("--steps", type=int, default=200, help="draws of each chain")
    parser.add_argument("--learning-rate", type=float, default=0.25, help="of the knee")
    parser.add_argument("--out", type=Path, default=None, help="a JSON file for the figures")
    args = parser.parse_args()
    import jax

    jax.config.update("jax_enable_x64", True)
    print(f"{jax.devices()[0].device_kind}; float64; jax {jax.__version__}", flush=True)
    figures = {}
    for row in args.rows.split(","):
        start = time.perf_counter()
        figures[row] = {"knee": knee, "table": table}[row](args)
        print(f"[{row}] {time.perf_counter() - start:.0f} s\n", flush=True)
    if args.out:
        args.out.write_text(json.dumps(figures, indent=1, default=float))


def digits(num: int):
    import numpy as np

    import bnnwide as bw

    data = bw.datasets.load_digits(num_train=num)
    return data.x, np.asarray(data.y).argmax(axis=1), data.x_test[:500], np.asarray(data.labels_test)[:500]


def network(width: int):
    import bnnwide as bw

    return bw.Dense(width, w_scale=2**0.5, b_scale=0.1) >> bw.Tanh() >> bw.Dense(10, w_scale=3.0, b_scale=0.1)


def knee(args) -> list[dict]:
    """Test loss of ensembles against batch size."""
    import jax
    import numpy as np

    import bnnwide as bw

    x, labels, x_test, labels_test = digits(args.num)
    net, likelihood = network(8), bw.Categorical()
    found = bw.natgrad.minimise(net, likelihood, x, labels, net.init(jax.random.key(0), x.shape[1:]), form="dense")
    single = float(likelihood.log_prob(net(found.params, x_test), labels_test).mean())
    metric = bw.natgrad.fisher(net, found.params, x, likelihood, form="dense", damping=1.0)
    eps, rows = args.learning_rate, []
    print(f"N = {args.num}, eps = {eps}: T = 1 at B = {eps * args.num / 2:.1f}; the MAP network loses {-single:.3f}")
    print(f"{'B':>5} {'T':>7} {'measured T':>11} {'test loss':>10} {'accuracy':>9}")
    for batch in (2 ** np.arange(0, 1 + int(np.log2(args.num)))).tolist():
        draws = bw.natgrad.sample(
            net, likelihood, x, labels, key=jax.random.key(1), learning_rate=eps, batch_size=batch, temperature=None,
            correction="none", fisher=metric, params=found.params, num_warmup=100, num_samples=25, thinning=10,
            num_chains=4,
        )  # fmt: skip
        loss = -float(draws.log_score(x_test, labels_test).mean())
        accuracy = float((draws.predict(x_test).probs.argmax(axis=1) == labels_test).mean())
        measured = float(draws.stats["temperature"].mean())
        rows.append({"batch": batch, "temperature": eps * args.num / (2 * batch), "loss": loss, "accuracy": accuracy})
        print(f"{batch:5d} {rows[-1]['temperature']:7.2f} {measured:11.2f} {loss:10.3f} {accuracy:9.3f}", flush=True)
    return rows


def table(args) -> list[dict]:
    """Distance from SplitHMC's predictions, log score, calibration and seconds of each method."""
    import jax
    import numpy as np
    import numpyro

    import bnnwide as bw

    x, labels, x_test, labels_test = digits(args.num)
    net, likelihood = network(args.width), bw.Categorical()
    model = bw.bnn(net, likelihood)

    def exact(seed):
        mcmc = numpyro.infer.MCMC(
            bw.SplitHMC(model), num_warmup=args.steps, num_samples=args.steps, num_chains=4, progress_bar=False,
            chain_method="vectorized",
        )  # fmt: skip
        mcmc.run(jax.random.key(seed), x, labels)
        return bw.predict(model, mcmc.get_samples(), x, labels, x_test)

    mode = bw.natgrad.minimise(net, likelihood, x, labels, net.init(jax.random.key(2), x.shape[1:])).params

    def descent():
        metric = bw.natgrad.fisher(net, mode, x, likelihood, form="dual", damping=1.0)
        return bw.natgrad.sample(
            net, likelihood, x, labels, key=jax.random.key(3), learning_rate=0.1, batch_size=args.num // 8,
            fisher=metric, params=mode, num_warmup=args.steps, num_samples=args.steps // 2, thinning=4, num_chains=4,
        ).predict(x_test)  # fmt: skip

    def noisy(family):
        post = bw.natgrad.noisy_vi(
            net, likelihood, x, labels, key=jax.random.key(4), family=family, num_steps=args.steps, params=mode
        )
        return post.sample(jax.random.key(5), 200).predict(x_test)

    def laplace(form):
        return bw.natgrad.laplace(net, likelihood, x, labels, form=form, params=mode).predict(x_test)

    methods = {
        "SplitHMC": lambda: exact(0), "SplitHMC again": lambda: exact(1), "NGD, T = 1": descent,
        "noisy Adam": lambda: noisy("diag"), "noisy K-FAC": lambda: noisy("kfac"),
        "noisy EK-FAC": lambda: noisy("ekfac"), "Laplace, exact F": lambda: laplace("dual"),
        "Laplace, K-FAC": lambda: laplace("kfac"), "Laplace, last layer": lambda: laplace("last_layer"),
    }  # fmt: skip
    reference, rows = None, []
    print(f"{'method':20} {'total variation':>15} {'log score':>10} {'accuracy':>9} {'calibration error':>18} {'s':>6}")
    for name, run in methods.items():
        start = time.perf_counter()
        probs = np.asarray(run().probs)
        seconds = time.perf_counter() - start
        reference = probs if reference is None else reference
        row = {
            "method": name,
            "distance": 0.5 * np.abs(probs - reference).sum(axis=1).mean(),
            "log_score": np.log(probs[np.arange(len(probs)), labels_test]).mean(),
            "accuracy": (probs.argmax(axis=1) == labels_test).mean(),
            "calibration": calibration_error(probs, labels_test),
            "seconds": seconds,
        }
        rows.append(row)
        print(f"{name:20} {row['distance']:15.3f} {row['log_score']:10.3f} {row['accuracy']:9.3f} "
              f"{row['calibration']:18.3f} {seconds:6.1f}", flush=True)  # fmt: skip
    return rows


def calibration_error(probs, labels, num_bins: int = 8) -> float:
    import numpy as np

    confidence, correct = probs.max(axis=1), probs.argmax(axis=1) == labels
    bins = np.array_split(np.argsort(confidence), num_bins)
    gaps = [abs(confidence[rows].mean() - correct[rows].mean()) for rows in bins]
    return float(np.average(gaps, weights=[len(rows) for rows in bins]))


if __name__ == "__main__":
    main()
