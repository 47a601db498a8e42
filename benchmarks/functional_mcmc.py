"""How far the posterior of a functional BNN is from the exact one of the Gaussian process it was asked to be.

    python benchmarks/functional_mcmc.py --widths 32,128,512

Twenty observations of a sine (toy1d/fbnn_sin.txt of the data folder), an RBF prior, Gaussian noise. Two sets of points:
the training inputs ("among"), where the posterior at the points is the process's at any width; and a grid that holds
none of them ("apart"). Printed for every width, in units of the prior's standard deviation: the root mean squared
differences of posterior means and of posterior standard deviations, at the points and at held-out inputs between and
beyond the data. The row "limit" is the wide limit in closed form, "nngp" the network's own prior in it.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

AMPLITUDE, LENGTH, NOISE = 1.5, 0.5, 0.2


class Rbf:
    """AMPLITUDE^2 exp(-(x - x')^2 / (2 LENGTH^2)), mean zero."""

    hyper = {}

    def at(self, values):
        return self

    def mean(self, x):
        return np.zeros(len(x))

    def covariance(self, x1, x2=None):
        import jax.numpy as jnp

        x2 = x1 if x2 is None else x2
        return AMPLITUDE**2 * jnp.exp(-0.5 * jnp.sum((x1[:, None] - x2[None]) ** 2, axis=-1) / LENGTH**2)


def network(width, activation):
    import bnnwide as bw

    return (
        bw.Dense(width, w_scale=1 / LENGTH, b_scale=2.0)
        >> getattr(bw, activation)()
        >> bw.Dense(1, w_scale=AMPLITUDE, b_scale=0.1)
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--widths", default="32,128,512")
    parser.add_argument("--activation", default="Tanh", help="a name of bnnwide, such as Tanh, Erf, Gelu or Cos")
    parser.add_argument("--num_samples", type=int, default=300)
    args = parser.parse_args()
    file = args.data / "toy1d" / "fbnn_sin.txt"
    if not file.exists():
        sys.exit(f"skipped: {file} is not there; say where with --data")

    import jax
    import numpyro

    jax.config.update("jax_enable_x64", True)
    import bnnwide as bw

    x, y = np.loadtxt(file).T[:, :, None]
    low, high = x.min(), x.max()
    grid = np.linspace(low - 0.5, high + 0.5, 12)[:, None]
    held_out = np.linspace(low - 0.5, high + 0.5, 41)[:, None]
    noise, prior = bw.Gaussian(NOISE), Rbf()

    def posterior(covariance, at):
        """Mean and standard deviation at inputs, by exact regression with a kernel."""
        mean, spread = bw.gp.regression(covariance(x, x), y, noise).moments(covariance(at, x), covariance(at, at))
        return np.asarray(mean)[:, 0], np.sqrt(np.maximum(np.diagonal(spread), 0.0))

    def nngp(a, b):
        return network(1, args.activation).kernel(a, b, ntk=False).nngp

    def row(label, points, found):
        """Print differences from the exact posterior at points and held-out inputs."""
        parts = []
        for at in (points, held_out):
            exact = posterior(prior.covariance, at)
            parts += [np.sqrt(np.mean((a - b) ** 2)) / AMPLITUDE for a, b in zip(found(at), exact, strict=True)]
        print(f"{label:>10} | " + " ".join(f"{part:>10.1e}" for part in parts), flush=True)

    for name, points in (("among", x), ("apart", grid)):
        print(f"\npoints {name}: {len(points)}; {args.activation}; {args.num_samples} draws in each of 2 chains")
        print(f"{'':>10} |         at the points              held-out")
        print(f"{'width':>10} | " + " ".join(f"{part:>10}" for part in 2 * ("mean", "sd")))
        row("nngp", points, lambda at: posterior(nngp, at))
        for width in map(int, args.widths.split(",")):
            model = bw.functional_bnn(network(width, args.activation), prior, points, noise)
            mcmc = numpyro.infer.MCMC(
                bw.SplitHMC(model), num_warmup=args.num_samples, num_samples=args.num_samples, num_chains=2,
                chain_method="vectorized", progress_bar=False,
            )  # fmt: skip
            mcmc.run(jax.random.key(0), x, y)
            samples = mcmc.get_samples()

            def found(at, model=model, samples=samples):
                prediction = bw.predict(model, samples, x, y, at)
                return np.asarray(prediction.mean)[:, 0], np.sqrt(np.asarray(prediction.epistemic)[:, 0])

            row(width, points, found)
        limit = bw.functional.wide_limit(network(1, args.activation), prior, points)
        row("limit", points, lambda at, limit=limit: posterior(limit.covariance, at))


if __name__ == "__main__":
    main()
