"""Evidence lower bounds of Gaussian approximations of a network's weights, and whether they predict test errors.

    python benchmarks/elbo.py --data PATH/TO/uci --sets wine,yacht --splits 0,1

One hidden layer of 50 rectifiers on a split of `uci.py`, with the last tenth of the training rows for test rows, under
one prior and at one noise scale (that of noisy K-FAC after two rounds), so that the bounds are comparable: mean field,
which fits its variances by gradients of the bound, and the families of noisy natural gradient.
"""

import argparse
from pathlib import Path

import numpy as np
from uci import make_problem
from uci_methods import relu_network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/uci"))
    parser.add_argument("--sets", default="wine,yacht")
    parser.add_argument("--splits", default="0,1")
    parser.add_argument("--steps", type=int, default=3000, help="of noisy natural gradient; mean field takes twice")
    args = parser.parse_args()
    args.validate = True
    import jax

    jax.config.update("jax_enable_x64", True)
    print("| set | split | method | ELBO, nats | RMSE |\n|---|---|---|---|---|")
    for name in args.sets.split(","):
        for split in map(int, args.splits.split(",")):
            for row in compare(*make_problem(args.data / name, split, args), args.steps):
                print(f"| {name} | {split} | {' | '.join(row)} |", flush=True)


def compare(problem, unit: float, steps: int):
    import bnnwide as bw

    net, x, y, key = relu_network(50), problem.x, problem.y, problem.key
    options = {"key": key, "learning_rate": 0.1, "decay": 0.05, "max_kl": 3, "batch_size": 50}
    noise = 0.3
    for _ in range(2):
        seen = bw.natgrad.noisy_vi(net, bw.Gaussian(noise), x, y, num_steps=800, **options).predict(x)
        noise = float(np.sqrt(np.mean((y - seen.mean) ** 2 + seen.epistemic)))

    def row(method, bound, mean):
        rmse = unit * np.sqrt(np.mean((np.asarray(mean) - problem.y_test) ** 2))
        return method, f"{float(bound):.1f}", f"{rmse:.4f}"

    model = bw.bnn(net, bw.Gaussian(noise), "standard")
    run = bw.comparators.mean_field(model, x, y, key=key, num_steps=2 * steps, learning_rate=0.01, num_samples=500)
    mean, _ = bw.predict_draws(model, run.get_samples(), x, y, problem.x_test)
    yield row("mean field", run.stats["elbo"], np.asarray(mean).mean(0))
    for family in ("diag", "kfac", "ekfac"):
        post = bw.natgrad.noisy_vi(net, bw.Gaussian(noise), x, y, family=family, num_steps=steps, **options)
        yield row(f"noisy {family}", post.elbo(x, y, key=key)[0], post.sample(key, 500).predict(problem.x_test).mean)


if __name__ == "__main__":
    main()
