"""Natural gradient descent as a sampler: the knee in batch size, and a table against exact sampling.

    python benchmarks/natgrad.py --rows knee --picture docs/img/natgrad_knee.png
    python benchmarks/natgrad.py --rows table --width 512 --num 128

knee: test loss of ensembles drawn by plain minibatch natural gradient descent (nothing added) on digits, against the
batch size. Smith et al. 2018 (arXiv 1806.09597) find that it falls until B = eps N / 2, where the temperature is 1, and
is flat or rises slowly beyond. The metric is the Fisher matrix of all data at the weights of the moment.

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
    parser.add_argument("--num", type=int, default=128, help="training images of the table")
    parser.add_argument("--width", type=int, default=512, help="of the table's network")
    parser.add_argument("--steps", type=int, default=60, help="draws of each of the table's two chains")
    parser.add_argument("--picture", type=Path, default=None, help="a file for the knee's picture")
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


def knee(args) -> dict:
    """Test loss of ensembles against batch size at three learning rates, and the batch size at which it turns."""
    import jax
    import numpy as np

    import bnnwide as bw

    n = 500
    x, labels, x_test, labels_test = components(n, 4)
    likelihood = bw.Categorical()
    net = bw.Dense(6, w_scale=4.0, b_scale=1.0) >> bw.Tanh() >> bw.Dense(10, w_scale=5.0, b_scale=1.0)
    start = net.init(jax.random.key(0), x.shape[1:])
    mode = bw.natgrad.minimise(net, likelihood, x, labels, start, form="dense", num_steps=200).params
    single = -float(likelihood.log_prob(net(mode, x_test), labels_test).mean())
    print(f"N = {n}, 100 weights; the MAP network alone loses {single:.3f}")

    def ensemble(eps, batch, temperature):
        draws = bw.natgrad.sample(
            net, likelihood, x, labels, key=jax.random.key(1), learning_rate=eps, batch_size=batch,
            temperature=temperature, correction="none", fisher="dense", params=mode, num_warmup=int(5 / eps),
            num_samples=20, thinning=int(1 / eps), num_chains=4,
        )  # fmt: skip
        row = {
            "eps": eps, "batch": batch, "temperature": temperature or eps * n / (2 * batch),
            "loss": -float(draws.log_score(x_test, labels_test).mean()),
            "measured": float(np.median(draws.stats["temperature"])), "noise": noise_ratio(draws, x, labels),
        }  # fmt: skip
        print(f"{eps:5.2f} {batch or 'all':>5} {row['temperature']:6.2f} {row['measured']:10.2f} {row['noise']:10.2f} "
              f"{row['loss']:10.3f}", flush=True)  # fmt: skip
        return row

    print(f"{'eps':>5} {'B':>5} {'T':>6} {'measured T':>10} {'noise / F':>10} {'test loss':>10}")
    rows, knees = [], []
    temperatures = 4 * 2 ** (-0.5 * np.arange(9))
    for eps in (0.05, 0.1, 0.2):
        some = [ensemble(eps, round(eps * n / (2 * t)), None) for t in temperatures]
        batches, predicted = [row["batch"] for row in some], eps * n / 2
        at = turn(batches, [row["loss"] for row in some])
        noise = np.interp(at, batches, [row["noise"] for row in some])
        knees.append({"eps": eps, "batch": at, "predicted": predicted, "noise": noise})
        print(f"eps = {eps}: turns at B = {at:.1f}; predicted {predicted:.1f}, and {noise * predicted:.1f} with the "
              f"noise measured there", flush=True)  # fmt: skip
        rows += some
    exact = [ensemble(0.1, None, float(t)) for t in temperatures[1:-1:2]]
    if args.picture:
        draw_knee(args.picture, rows, knees, exact, single)
    return {"rows": rows, "knees": knees, "exact": exact, "map": single}


def draw_knee(out, rows, knees, exact, single) -> None:
    """Two panels: test loss against batch size, and against the temperature that the law gives."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    for color, knee in zip(("C0", "C1", "C2"), knees, strict=True):
        some = [row for row in rows if row["eps"] == knee["eps"]]
        losses = [row["loss"] for row in some]
        label = f"learning rate {knee['eps']}"
        axes[0].plot([row["batch"] for row in some], losses, "o-", ms=4, color=color, label=label)
        axes[0].axvline(knee["predicted"], color=color, ls="--", lw=1)
        axes[0].axvline(knee["predicted"] * knee["noise"], color=color, ls=":", lw=1)
        axes[1].plot([row["temperature"] for row in some], losses, "o-", ms=4, color=color, label=label)
    axes[1].plot([row["temperature"] for row in exact], [row["loss"] for row in exact], "k^-", ms=5, lw=1,
                 label="exact gradients, noise added")  # fmt: skip
    axes[1].axvline(1, color="k", ls="--", lw=1)
    for axis in axes:
        axis.axhline(single, color="0.6", lw=1)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
    axes[0].set(xlabel="batch size", ylabel="test loss of the ensemble")
    axes[0].set_title("dashed: eps N / 2;  dotted: times measured noise / F", fontsize=9)
    axes[1].set(xlabel="temperature, eps N / (2 B)")
    axes[1].set_title("grey: the MAP network alone", fontsize=9)
    for axis in axes:
        axis.legend(frameon=False, fontsize=8)
    figure.savefig(out, dpi=150)


def components(num: int, number: int):
    """Digits by their first principal components: classes overlap, so that there is a law of labels to be learned."""
    import numpy as np

    x, labels, x_test, labels_test = digits(num)
    center = x.mean(axis=0)
    _, scales, directions = np.linalg.svd(x - center, full_matrices=False)
    projected = [(part - center) @ directions[:number].T * len(x) ** 0.5 / scales[0] for part in (x, x_test)]
    return projected[0], labels, projected[1], labels_test


def noise_ratio(draws, x, labels) -> float:
    """Return the covariance of gradients of single data in units of F: tr(G^-1 E) / tr(G^-1 F), median over draws."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import bnnwide as bw

    def ratio(chain):
        params = jax.tree.map(lambda leaf: leaf[chain, -1], draws.params)
        e, g = (bw.natgrad.fisher(draws.net, params, x, draws.likelihood, form="dense", damping=1.0, y=y)
                for y in (labels, None))  # fmt: skip
        less = lambda f: f.dense() - jnp.eye(f.layout.size)  # noqa: E731
        return jnp.trace(jnp.linalg.solve(g.dense(), less(e))) / jnp.trace(jnp.linalg.solve(g.dense(), less(g)))

    return float(np.median([ratio(chain) for chain in range(4)]))


def turn(batches, losses) -> float:
    """Return the batch size at which two straight lines in log B, fitted by least squares, meet."""
    import numpy as np

    u = np.log(batches)

    def misfit(at):
        basis = np.stack([np.ones_like(u), u, np.maximum(at - u, 0)], axis=1)
        return np.linalg.norm(basis @ np.linalg.lstsq(basis, losses, rcond=None)[0] - losses)

    candidates = np.linspace(u.min(), u.max(), 400)[1:-1]
    return float(np.exp(min(candidates, key=misfit)))


def table(args) -> list[dict]:
    """Distance from SplitHMC's predictions, log score, calibration and cost of each method on one wide network."""
    import jax
    import numpy as np
    import numpyro

    import bnnwide as bw

    x, labels, x_test, labels_test = digits(args.num)
    x_test, labels_test = x_test[:200], labels_test[:200]
    net, likelihood = network(args.width), bw.Categorical()
    start = net.init(jax.random.key(2), x.shape[1:])
    mode = bw.natgrad.minimise(net, likelihood, x, labels, start).params
    metric = bw.natgrad.fisher(net, mode, x, likelihood, form="dual", damping=1.0)

    # Each returns probabilities, logits (chains, draws, functions) at 20 test inputs, and core-seconds of drawing.
    def exact(form):
        model = bw.bnn(net, likelihood, form)
        mcmc = numpyro.infer.MCMC(
            bw.SplitHMC(model), num_warmup=40, num_samples=args.steps, num_chains=2, progress_bar=False,
            chain_method="vectorized",
        )  # fmt: skip
        mcmc.warmup(jax.random.key(0), x, labels)
        begin = time.process_time()
        mcmc.run(jax.random.key(0), x, labels)
        seconds = time.process_time() - begin
        draws = mcmc.get_samples()
        halves = [jax.tree.map(lambda leaf, i=i: leaf[i::2], draws) for i in range(2)]
        first, second = (bw.predict(model, half, x, labels, x_test).probs for half in halves)
        print(f"    total variation between halves of the draws {0.5 * np.abs(first - second).sum(axis=1).mean():.3f}")
        logits = bw.predict_draws(model, draws, x, labels, x_test[:20])[0]
        return (first + second) / 2, logits.reshape(2, -1, 20, 10), seconds

    def descent(learning_rate, batch_size, temperature=1.0):
        begin = time.process_time()
        draws = bw.natgrad.sample(
            net, likelihood, x, labels, key=jax.random.key(3), learning_rate=learning_rate, batch_size=batch_size,
            temperature=temperature, fisher=metric, params=mode, num_warmup=int(5 / learning_rate),
            num_samples=args.steps, thinning=max(1, int(0.4 / learning_rate)), num_chains=2,
        )  # fmt: skip
        seconds = time.process_time() - begin
        print(f"    measured temperature {float(draws.stats['temperature'].mean()):.2f}")
        logits = jax.lax.map(lambda one: net(one, x_test[:20]), draws.flat())
        return draws.predict(x_test).probs, logits.reshape(2, -1, 20, 10), seconds

    def gaussian(post, linearised):
        begin = time.process_time()
        draws = jax.block_until_ready(post.sample(jax.random.key(5), 200))
        seconds = time.process_time() - begin
        # Draws are independent: as many effective ones as there are.
        return (post if linearised else draws).predict(x_test).probs, None, seconds

    def noisy(family):
        options = dict(key=jax.random.key(4), family=family, num_steps=100, params=mode)
        return gaussian(bw.natgrad.noisy_vi(net, likelihood, x, labels, **options), linearised=False)

    def laplace(form, linearised=True):
        return gaussian(bw.natgrad.laplace(net, likelihood, x, labels, form=form, params=mode), linearised)

    alone = round(0.1 * args.num / 2)
    methods = {
        "SplitHMC": lambda: exact("collapsed"), "SplitHMC, repriorised": lambda: exact("repriorised"),
        "NGD, exact, eps 0.1": lambda: descent(0.1, None), "NGD, exact, eps 0.025": lambda: descent(0.025, None),
        "NGD, B = 16, eps 0.1": lambda: descent(0.1, 16),
        f"NGD, B = {alone}, no noise": lambda: descent(0.1, alone, None),
        "noisy Adam": lambda: noisy("diag"), "noisy K-FAC": lambda: noisy("kfac"),
        "noisy EK-FAC": lambda: noisy("ekfac"), "Laplace, exact F": lambda: laplace("dual"),
        "Laplace, K-FAC": lambda: laplace("kfac"), "Laplace, last layer": lambda: laplace("last_layer"),
        "Laplace, weights": lambda: laplace("dual", linearised=False),
    }  # fmt: skip
    reference, rows = None, []
    print(f"{'method':22} {'total variation':>15} {'log score':>10} {'accuracy':>9} {'calibration':>11} "
          f"{'ESS':>6} {"s per eff. draw":>15} {"s":>6}")  # fmt: skip
    for name, run in methods.items():
        begin = time.process_time()
        probs, logits, drawing = run()
        probs = np.asarray(probs)
        reference = probs if reference is None else reference
        ess = 200.0 if logits is None else median_ess(logits)
        row = {
            "method": name,
            "distance": 0.5 * np.abs(probs - reference).sum(axis=1).mean(),
            "log_score": np.log(probs[np.arange(len(probs)), labels_test]).mean(),
            "accuracy": (probs.argmax(axis=1) == labels_test).mean(),
            "calibration": calibration_error(probs, labels_test),
            "ess": ess,
            "seconds_per_draw": drawing / ess,
            "seconds": time.process_time() - begin,
        }
        rows.append(row)
        print(f"{name:22} {row['distance']:15.3f} {row['log_score']:10.3f} {row['accuracy']:9.3f} "
              f"{row['calibration']:11.3f} {ess:6.0f} {row['seconds_per_draw']:15.3g} {row['seconds']:6.1f}",
              flush=True)  # fmt: skip
    return rows


def median_ess(logits) -> float:
    """Return the median bulk ESS of logits, less their mean over classes, of (chains, draws, inputs, classes)."""
    import numpy as np

    from bnnwide.diagnostics import effective_sample_size

    centred = np.asarray(logits - logits.mean(axis=-1, keepdims=True))
    return float(np.median(effective_sample_size(centred.reshape(*centred.shape[:2], -1))))


def calibration_error(probs, labels, num_bins: int = 8) -> float:
    import numpy as np

    confidence, correct = probs.max(axis=1), probs.argmax(axis=1) == labels
    bins = np.array_split(np.argsort(confidence), num_bins)
    gaps = [abs(confidence[rows].mean() - correct[rows].mean()) for rows in bins]
    return float(np.average(gaps, weights=[len(rows) for rows in bins]))


if __name__ == "__main__":
    main()
