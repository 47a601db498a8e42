"""Distance of function-space approximations to the exact posterior of a Gaussian process.

    python benchmarks/functional_vi.py --methods factorised,repriorised,laplace,mean_field --widths 50,200

Twenty observations of sin 2x with a gap, noise 0.1, prior GP(0, ExpSquared(0.7)), grid on [-3, 3]. Printed: root mean
squared distances of the function's mean and standard deviation, and the mean KL of the exact marginals of a new
observation to the approximate ones.
"""

import argparse
import time

import numpy as np


def problem():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(-2, -0.5, (10, 1)), rng.uniform(0.5, 2, (10, 1))])
    return x, np.sin(2 * x) + 0.1 * rng.normal(size=x.shape), np.linspace(-3, 3, 61)[:, None]


def network(width):
    import bnnwide as bw

    return bw.Dense(width, w_scale=2.0, b_scale=2.0) >> bw.Tanh() >> bw.Dense(1, w_scale=2.0)


def approximations(prior, noise, x, y, num_steps):
    """Return, by name, functions of (net, grid) to a prediction."""
    import jax

    import bnnwide as bw
    from bnnwide.functional import FunctionalELBO, Measurement, RegularisedELBO, fit, laplace

    measurement, key = Measurement(20, 20, (-3.0, 3.0)), jax.random.key(1)

    def fitted(objective, family):
        def run(net, grid):
            found = fit(net, prior, noise, x, y, key=key, num_steps=num_steps, objective=objective, family=family)
            return found.predict(grid, num_samples=1000)

        return run

    def mode(net, grid):
        return laplace(net, prior, noise, x, y, key=key, num_steps=num_steps, measurement=measurement).predict(grid)

    def mean_field(net, grid):
        model = bw.bnn(net, noise, "standard")
        run = bw.comparators.mean_field(model, x, y, key=key, num_steps=2 * num_steps, num_samples=1000)
        return bw.comparators.predict_plain(model, run.get_samples(), x, grid)

    stein = FunctionalELBO(prior, measurement=measurement)
    gaussian = FunctionalELBO(prior, measurement=measurement, score="gaussian")
    named = {family: fitted(stein, family) for family in ("factorised", "matrix", "repriorised", "mixture")}
    named |= {f"{family}-gaussian": fitted(gaussian, family) for family in ("factorised", "repriorised")}
    linearised = FunctionalELBO(prior, measurement=measurement, score="linearised")
    named |= {"linearised": fitted(linearised, "factorised")}
    named |= {"regularised": fitted(RegularisedELBO(prior, measurement=measurement), "factorised")}
    return named | {"laplace": mode, "mean_field": mean_field}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="all")
    parser.add_argument("--widths", default="50")
    parser.add_argument("--steps", type=int, default=2000)
    args = parser.parse_args()
    import jax
    import tinygp

    import bnnwide as bw

    jax.config.update("jax_enable_x64", True)
    x, y, grid = problem()
    prior, noise = bw.functional.GPPrior(1.0 * tinygp.kernels.ExpSquared(0.7)), bw.Gaussian(0.1)
    exact = prior.posterior(x, y, noise).predict(grid)
    methods = approximations(prior, noise, x, y, args.steps)
    chosen = list(methods) if args.methods == "all" else args.methods.split(",")
    print(f"{'method':24s} width   mean     sd     KL  seconds")
    for width in map(int, args.widths.split(",")):
        for name in chosen:
            start = time.perf_counter()
            pred = methods[name](network(width), grid)
            mean = np.sqrt(np.mean((pred.mean - exact.mean) ** 2))
            sd = np.sqrt(np.mean((np.sqrt(pred.epistemic) - np.sqrt(exact.epistemic)) ** 2))
            gap = exact.variance + (pred.mean - exact.mean) ** 2
            kl = np.mean(0.5 * np.log(pred.variance / exact.variance) + gap / (2 * pred.variance) - 0.5)
            seconds = time.perf_counter() - start
            print(f"{name:24s} {width:5d}  {mean:.3f}  {sd:.3f}  {kl:.3f}  {seconds:.0f}", flush=True)


if __name__ == "__main__":
    main()
