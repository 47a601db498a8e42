"""The bias of stochastic-gradient MCMC against an exact chain, and what a step costs.

    python benchmarks/minibatch.py

Digits, n = 512, softmax, one hidden layer of width 256, in float64. Reference: SplitHMC on the collapsed form. Every
run is as long in units of its own relaxation, 1/step_size steps, so that what differs is bias and cost. Printed:

- mean: average over test inputs and classes of |difference of the predictive probability|.
- sd: ratio of the posterior standard deviations of the probabilities, averages over test inputs and classes.
- temperature: the run's own figure, 1 without bias.
"""

import argparse
import time


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--num-train", type=int, default=512)
    parser.add_argument("--num-anchors", type=int, default=256)
    parser.add_argument("--relaxations", type=int, default=150, help="length of a run of one chain, in 1/step_size")
    parser.add_argument("--reference", type=int, default=400, help="draws per chain of the reference")
    args = parser.parse_args()

    import jax
    import numpy as np
    from numpyro.infer import MCMC
    from threadpoolctl import threadpool_limits

    import bnnwide as bw

    jax.config.update("jax_enable_x64", True)
    data = bw.datasets.load_digits(num_train=args.num_train)
    x, y, x_test = data.x, np.argmax(np.asarray(data.y), axis=1), data.x_test[:100]
    net = bw.Dense(args.width, w_scale=2**0.5, b_scale=0.1) >> bw.Gelu() >> bw.Dense(10, w_scale=2.0, b_scale=0.1)
    collapsed, model = (bw.bnn(net, bw.Categorical(), form) for form in ("collapsed", "repriorised"))

    def moments(model, samples):
        prediction = bw.predict(model, samples, x, y, x_test)
        return np.asarray(prediction.probs), np.sqrt(np.asarray(prediction.epistemic))

    def report(name, found, exact, rest=""):
        mean, sd = np.abs(found[0] - exact[0]).mean(), found[1].mean() / exact[1].mean()
        print(f"{name:44} mean {mean:.4f}  sd {sd:.3f}{rest}", flush=True)

    with threadpool_limits(1, user_api="blas"):
        start = time.perf_counter()
        mcmc = MCMC(
            bw.SplitHMC(collapsed), num_warmup=150, num_samples=args.reference, num_chains=2,
            chain_method="vectorized", progress_bar=False,
        )  # fmt: skip
        mcmc.run(jax.random.key(0), x, y, extra_fields=("num_grads",))
        exact = moments(collapsed, mcmc.get_samples())
        apart = mcmc.get_samples(group_by_chain=True)
        halves = [moments(collapsed, {name: site[i] for name, site in apart.items()}) for i in range(2)]
        print(f"JAX {jax.__version__}, mean probability of the most likely class {exact[0].max(1).mean():.2f}, "
              f"mean sd {exact[1].mean():.4f}")  # fmt: skip
        report("reference, one chain against the other", *halves, f"  {time.perf_counter() - start:.0f} s")

        runs = [("sgld", dict(step_size=e, batch_size=b)) for e in (0.1, 0.03) for b in (32, 128)]
        runs += [("sghmc", dict(step_size=0.1, batch_size=b)) for b in (32, 128)]
        for name, options in runs:
            length = round(args.relaxations / options["step_size"])
            grads = 20 if name == "sghmc" else 1
            thinning = 1 if name == "sghmc" else round(1 / options["step_size"])
            draws = length // (grads * thinning)
            start = time.perf_counter()
            run = getattr(bw.comparators, name)(
                model, x, y, key=jax.random.key(1), num_warmup=length // grads // 5, num_samples=draws, num_chains=2,
                thinning=thinning, num_anchors=args.num_anchors, **options,
            )  # fmt: skip
            ms = (time.perf_counter() - start) * 1e3 / (2 * 1.2 * length)
            shown = ", ".join(f"{key}={value}" for key, value in options.items())
            rest = f"  temperature {float(run.stats['temperature'].mean()):.3f}  {ms:.1f} ms per gradient and chain"
            report(f"{name}({shown})", moments(model, run.get_samples()), exact, rest)


if __name__ == "__main__":
    main()
