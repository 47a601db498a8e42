"""Distance of function-space approximations to the exact posterior of a Gaussian process, over widths.

    python benchmarks/functional_vi.py
    python benchmarks/functional_vi.py --methods all --widths 50 --steps 2000

Twenty observations of sin 2x with a gap, noise 0.1, prior GP(0, ExpSquared(0.7)). Printed: root mean squared distances
of the function's mean and standard deviation at measurement points (the training inputs, which every method measures
at) and at 61 held-out inputs on [-3, 3], and there the mean KL of the exact marginals of a new observation to the
approximate ones. Mean field on the weights takes twice the steps. "functional_mcmc" has the training inputs and eleven
more as points, where it is exact.
"""

import argparse
import time

import numpy as np

METHODS = ("factorised", "repriorised", "repriorised-gaussian", "functional_mcmc", "laplace", "mean_field")


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
    import numpyro

    import bnnwide as bw
    from bnnwide.functional import FunctionalELBO, Measurement, RegularisedELBO, fit, laplace

    measurement, key, num_samples = Measurement(20, 20, (-3.0, 3.0)), jax.random.key(1), 32

    def fitted(objective, family):
        def run(net, grid):
            found = fit(net, prior, noise, x, y, key=key, num_steps=num_steps, objective=objective, family=family)
            return found.predict(grid, num_samples=1000)

        return run

    def mode(net, grid):
        return laplace(net, prior, noise, x, y, key=key, num_steps=num_steps, measurement=measurement).predict(grid)

    def functional_mcmc(net, grid):
        points = np.concatenate([x, np.linspace(-3, 3, 11)[:, None]])
        model = bw.functional_bnn(net, prior, points, noise)
        mcmc = numpyro.infer.MCMC(bw.SplitHMC(model), num_warmup=200, num_samples=200, progress_bar=False)
        mcmc.run(key, x, y)
        return bw.predict(model, mcmc.get_samples(), x, y, grid)

    def mean_field(net, grid):
        model = bw.bnn(net, noise, "standard")
        run = bw.comparators.mean_field(model, x, y, key=key, num_steps=2 * num_steps, num_samples=1000)
        return bw.comparators.predict_plain(model, run.get_samples(), x, grid)

    stein = FunctionalELBO(prior, measurement=measurement, num_samples=num_samples)
    gaussian = FunctionalELBO(prior, measurement=measurement, score="gaussian", num_samples=num_samples)
    named = {family: fitted(stein, family) for family in ("factorised", "matrix", "repriorised", "mixture")}
    named |= {f"{family}-gaussian": fitted(gaussian, family) for family in ("factorised", "repriorised")}
    linearised = FunctionalELBO(prior, measurement=measurement, score="linearised", num_samples=num_samples)
    named |= {"linearised": fitted(linearised, "factorised")}
    named |= {"regularised": fitted(RegularisedELBO(prior, measurement=measurement), "factorised")}
    return named | {"functional_mcmc": functional_mcmc, "laplace": mode, "mean_field": mean_field}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS), help="names with commas between them, or all")
    parser.add_argument("--widths", default="50,200")
    parser.add_argument("--steps", type=int, default=800)
    args = parser.parse_args()
    import jax
    import tinygp

    import bnnwide as bw

    jax.config.update("jax_enable_x64", True)
    x, y, grid = problem()
    prior, noise = bw.functional.GPPrior(1.0 * tinygp.kernels.ExpSquared(0.7)), bw.Gaussian(0.1)
    at = np.concatenate([x, grid])
    points, held_out = slice(len(x)), slice(len(x), None)
    exact = prior.posterior(x, y, noise).predict(at)
    methods = approximations(prior, noise, x, y, args.steps)
    chosen = list(methods) if args.methods == "all" else args.methods.split(",")
    print(f"{'':24s} {'':5s}  at the points  held out")
    print(f"{'method':24s} width   mean     sd   mean     sd     KL  seconds")
    for width in map(int, args.widths.split(",")):
        for name in chosen:
            start = time.perf_counter()
            pred = methods[name](network(width), at)
            seconds = time.perf_counter() - start
            off = (pred.mean - exact.mean) ** 2, (np.sqrt(pred.epistemic) - np.sqrt(exact.epistemic)) ** 2
            parts = [np.sqrt(np.mean(part[rows])) for rows in (points, held_out) for part in off]
            kl = 0.5 * np.log(pred.variance / exact.variance) + (exact.variance + off[0]) / (2 * pred.variance) - 0.5
            columns = " ".join(f"{part:6.1e}" if part < 1e-3 else f"{part:6.3f}" for part in parts)
            print(f"{name:24s} {width:5d} {columns} {np.mean(kl[held_out]):6.3f}  {seconds:.0f}", flush=True)


if __name__ == "__main__":
    main()
