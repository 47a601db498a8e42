"""A Gaussian process posterior at large n by conjugate gradients: seconds, iterations, residual and peak memory.

    python benchmarks/large_n.py --n 20000                 # blocks kept from product to product, as far as 2 GiB go
    python benchmarks/large_n.py --n 20000 --memory 0      # every block computed anew at each product
    python benchmarks/large_n.py --n 20000 --precision 32

Inputs are like MNIST in their number (784) and in that their covariance decays: ten prototypes, 64 directions of
decaying size, and pixel noise. The kernel is the NNGP of a depth-3 ReLU network. The dense posterior of the first
`--check` inputs is compared with that of conjugate gradients on the same inputs, in the same run. Compilation is
counted apart.
"""

import argparse
import resource
import time

import numpy as np


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=20_000)
    parser.add_argument("--d", type=int, default=784)
    parser.add_argument("--test", type=int, default=200, help="number of test inputs")
    parser.add_argument("--samples", type=int, default=4, help="number of posterior draws of ten outputs")
    parser.add_argument("--check", type=int, default=3000, help="inputs of the comparison with the dense posterior")
    parser.add_argument("--scale", type=float, default=0.1, help="noise scale")
    parser.add_argument("--rank", type=int, default=256)
    parser.add_argument("--tolerance", type=float, default=None)
    parser.add_argument("--memory", type=float, default=2**31, help="bytes for kernel blocks that are kept")
    parser.add_argument("--block-size", type=int, default=None)
    parser.add_argument("--precision", type=int, choices=(32, 64), default=64)
    parser.add_argument("--progress", action="store_true")
    return parser.parse_args()


def images(rng: np.random.Generator, n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs (n, d) of mean square one, and their classes."""
    shared = np.random.default_rng(0)
    prototypes, directions = shared.normal(size=(10, d)), shared.normal(size=(64, d))
    classes = rng.integers(10, size=n)
    x = prototypes[classes] + rng.normal(size=(n, 64)) / np.sqrt(1 + np.arange(64)) @ directions
    x = x + 0.3 * rng.normal(size=(n, d))
    return x / np.sqrt(np.mean(x**2, axis=1, keepdims=True)), classes


class Clock:
    """Seconds of a block, those of compilation apart."""

    def __init__(self):
        import jax

        self.compiled = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, name: str, seconds: float, **_) -> None:
        if name.startswith("/jax/core/compile"):
            self.compiled += seconds

    def __call__(self, name: str, work):
        import jax

        compiled, start = self.compiled, time.perf_counter()
        result = work()
        jax.block_until_ready(result if not hasattr(result, "solution") else result.solution)
        compiled = self.compiled - compiled
        wall = time.perf_counter() - start - compiled
        print(f"{name:42s} {wall:9.2f} s   compilation {compiled:6.2f} s   peak {peak():5.2f} GB", flush=True)
        return result


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    args = arguments()
    import jax

    jax.config.update("jax_enable_x64", args.precision == 64)
    import bnnwide as bw
    from bnnwide.gp.large import large

    device = jax.devices()[0]
    print(f"{device.platform}: {device.device_kind}; float{args.precision}; jax {jax.__version__}; {vars(args)}")
    hidden = bw.Dense(512, w_scale=2**0.5, b_scale=0.1) >> bw.Relu()
    net = hidden >> hidden >> hidden >> bw.Dense(10)
    rng = np.random.default_rng(1)
    x, classes = images(rng, args.n + args.test, args.d)
    y = np.eye(10)[classes] - 0.1
    x, x_test, y, y_test = x[: args.n], x[args.n :], y[: args.n], y[args.n :]
    noise = bw.Gaussian(args.scale)
    options = {
        "rank": args.rank,
        "tolerance": args.tolerance,
        "memory": args.memory,
        "block_size": args.block_size,
        "progress": args.progress,
    }
    clock = Clock()

    post = clock(f"n = {args.n}: preconditioner, blocks, weights", lambda: large(net, x, y, noise, **options))
    print(f"  {post.operator}")
    print(f"  relative residual {post.residual:.2e} after {post.num_iterations} iterations")
    clock("one product with ten columns", lambda: post.operator @ y)
    mean = clock(f"mean at {args.test} inputs", lambda: post.mean(x_test))
    print(f"  accuracy {np.mean(np.argmax(mean, axis=1) == np.argmax(y_test, axis=1)):.4f}")
    got = clock(f"mean and variance at {args.test} inputs", lambda: post.predict(x_test))
    print(f"  the two means differ by {np.abs(got.mean - mean).max():.1e}; variances up to {got.epistemic.max():.4f}")
    draws = clock(f"{args.samples} pathwise draws", lambda: post.sample(jax.random.key(0), x_test, args.samples))
    z = (draws - got.mean) / np.sqrt(got.epistemic)
    print(f"  mean square of standardised draws {np.mean(z**2):.3f}")
    value = clock("log marginal likelihood, 16 probes", post.log_marginal_likelihood)
    print(f"  {value:.1f}")

    few = min(args.check, args.n)
    dense = clock(f"n = {few}: dense Cholesky", lambda: bw.gp.nngp(net, x[:few], y[:few], noise).predict(x_test))
    post = clock(f"n = {few}: conjugate gradients", lambda: large(net, x[:few], y[:few], noise, **options))
    got = clock("  mean and variance", lambda: post.predict(x_test))
    print(f"  {post.num_iterations} iterations, relative residual {post.residual:.1e}")
    print(f"  means differ by {np.abs(got.mean - dense.mean).max():.1e} of {np.abs(dense.mean).max():.2f},")
    print(f"  variances by {np.abs(got.epistemic - dense.epistemic).max():.1e} of {dense.epistemic.max():.4f}")
    print(f"peak memory of the process {peak():.2f} GB")


if __name__ == "__main__":
    main()
