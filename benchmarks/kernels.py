"""Wall seconds of infinite-width kernels: k(x, x) of a ReLU network with three hidden layers, d = 784.

    python benchmarks/kernels.py --precision 64

Each figure stands beside two others: what neural-tangents took on a machine of this kind (two cores; figures handed
down with the project, not measured here), and a floor: the floating-point operations of the Gram matrix at the rate of
a matrix product, plus the bytes that must be written at the rate of a copy, both measured in the same run.
"""

import argparse
import time

REFERENCE = {(1000, 64): 0.073, (1000, 32): 0.031, (2000, 64): 0.280, (2000, 32): 0.152}


def seconds(fn, *args, repeats=15):
    """Return the least wall seconds of a few calls, compilation excluded."""
    import jax

    jax.block_until_ready(fn(*args))
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(fn(*args))
        best = min(best, time.perf_counter() - start)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", type=int, choices=(32, 64), default=64)
    parser.add_argument("--sizes", default="1000,2000")
    args = parser.parse_args()
    import jax
    import jax.numpy as jnp

    import bnnwide as bw

    jax.config.update("jax_enable_x64", args.precision == 64)
    device = jax.devices()[0]
    print(f"device {device.platform}: {device.device_kind}; float{args.precision}; jax {jax.__version__}")
    hidden = bw.Dense(512, w_scale=2**0.5, b_scale=0.1) >> bw.Relu()
    net = hidden >> hidden >> hidden >> bw.Dense(1)
    a = jax.random.normal(jax.random.key(1), (1024, 1024))
    rate = 2 * 1024**3 / seconds(jax.jit(lambda a: a @ a), a)
    big = jnp.zeros(2**24)
    bandwidth = 2 * big.nbytes / seconds(jax.jit(lambda a: a + 1), big)
    print(f"matrix products {rate / 1e9:.0f} GFLOP/s, copies {bandwidth / 1e9:.1f} GB/s")
    both = jax.jit(lambda x: net.kernel(x))
    alone = jax.jit(lambda x: net.kernel(x, ntk=False).nngp)
    for n in map(int, args.sizes.split(",")):
        x = jax.random.normal(jax.random.key(0), (n, 784))
        floor = n * (n + 1) * 784 / rate + 2 * n * n * x.dtype.itemsize / bandwidth
        for name, fn in (("NNGP and NTK", both), ("NNGP", alone)):
            spent = seconds(fn, x)
            line = f"n = {n}, {name}: {1e3 * spent:.1f} ms, {spent / floor:.1f} times the floor of {1e3 * floor:.1f} ms"
            if name != "NNGP" and (n, args.precision) in REFERENCE:
                line += f"; {spent / REFERENCE[n, args.precision]:.2f} of the reference's time"
            print(line, flush=True)
        x2 = jax.random.normal(jax.random.key(2), (n, 784))
        print(
            f"n = {n}, k(x1, x2), NNGP and NTK: {1e3 * seconds(jax.jit(lambda a, b: net.kernel(a, b)), x, x2):.1f} ms"
        )


if __name__ == "__main__":
    main()
