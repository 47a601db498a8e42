"""How fast finite networks approach their infinite-width limits, and the published accuracies of the limit.

    python benchmarks/limits.py --parts mmd,posterior,training,accuracy --out limits.png

- mmd: squared maximum mean discrepancy between 2,000 networks and the Gaussian process, as in Matthews et al. 2018
  (arXiv 1804.11271, section 5), with a line that says how large it is between two similar Gaussian processes.
- posterior: distance between the predictive posterior of finite networks (collapsed SplitHMC) and of the NNGP.
- training: distance between the mean of trained finite networks and of the NTK ensemble.
- accuracy: NNGP classification of MNIST and CIFAR-10 with 1,000 training images, as in Lee et al. 2018
  (arXiv 1711.00165, table 2). Needs ../shared/data.
"""

import argparse
from pathlib import Path

import numpy as np

WIDTHS = (8, 32, 128, 512)


def network(width, depth=1):
    import bnnwide as bw

    hidden = bw.Dense(width, w_scale=0.8**0.5 * 2**0.5, b_scale=0.2) >> bw.Relu()
    net = hidden
    for _ in range(depth - 1):
        net = net >> hidden
    return net >> bw.Dense(1, w_scale=1.0, b_scale=0.2)


def squared_mmd(a, b, length_scale):
    """Return the unbiased estimate of MMD^2 (Gretton et al. 2012, eq. 3), Gaussian kernel."""

    def gram(u, v):
        squares = (u**2).sum(1)[:, None] + (v**2).sum(1)[None] - 2 * u @ v.T
        return np.exp(-0.5 * squares / length_scale**2)

    off = lambda k: (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))  # noqa: E731
    return off(gram(a, a)) + off(gram(b, b)) - 2 * gram(a, b).mean()


def mmd(args):
    """Ten standard normal inputs in four dimensions; networks of one and three hidden layers."""
    import jax

    x = np.random.default_rng(0).normal(size=(10, 4))
    rng, num = np.random.default_rng(1), 2000

    def draw(kernel):
        return rng.normal(size=(num, len(x))) @ np.linalg.cholesky(kernel + 1e-10 * np.eye(len(x))).T

    def rbf(length):
        return np.exp(-0.5 * ((x[:, None] - x[None]) ** 2).sum(-1) / length**2)

    length = np.sqrt(len(x))
    # Two Gaussian processes with length scales sqrt(2 d) and twice that: alike, but not the same.
    calibration = np.mean([squared_mmd(draw(rbf(8**0.5)), draw(rbf(2 * 8**0.5)), length) for _ in range(5)])
    noise = np.mean([abs(squared_mmd(draw(rbf(8**0.5)), draw(rbf(8**0.5)), length)) for _ in range(5)])
    print(f"  between two similar Gaussian processes {calibration:.2e}; between two samples of one, +-{noise:.1e}")
    lines = {}
    for depth in (1, 3):
        kernel = np.asarray(network(1, depth).kernel(x, ntk=False).nngp)
        lines[depth] = []
        for width in (1, 2, 4, *WIDTHS):
            net = network(width, depth)
            evaluate = jax.jit(lambda k, net=net: net(net.init(k, (4,)), x)[:, 0])
            functions = np.asarray(jax.lax.map(evaluate, jax.random.split(jax.random.key(width), num)))
            lines[depth].append(np.mean([squared_mmd(functions, draw(kernel), length) for _ in range(3)]))
        print(f"  depth {depth}, widths {(1, 2, 4, *WIDTHS)}: " + ", ".join(f"{v:.2e}" for v in lines[depth]))
    return {"widths": (1, 2, 4, *WIDTHS), "lines": lines, "calibration": calibration, "noise": noise}


def one_dimension(width):
    """Return a network whose kernels fit the data well, and the data.

    Where a kernel has tiny eigenvalues along the targets, as that of `network` has, weights have to travel far, and
    networks of these widths are nowhere near their limits.
    """
    import bnnwide as bw

    net = bw.Dense(width, w_scale=1.5, b_scale=0.5) >> bw.Erf() >> bw.Dense(1, w_scale=1.0, b_scale=0.2)
    x = np.array([-2.4, -1.1, -0.2, 0.9, 2.3])[:, None]
    return net, x, np.sin(2 * x) + 0.3 * x, np.linspace(-3, 3, 41)[:, None]


def posterior(args):
    """Root mean squared distance of the posterior mean and variance to the NNGP's, over a grid."""
    import jax
    import numpyro

    import bnnwide as bw

    net, x, y, grid = one_dimension(1)
    noise = bw.Gaussian(0.2)
    limit = bw.gp.nngp(net, x, y, noise).predict(grid)
    means, variances = [], []
    for width in WIDTHS:
        model = bw.bnn(one_dimension(width)[0], noise)
        mcmc = numpyro.infer.MCMC(
            bw.SplitHMC(model), num_warmup=500, num_samples=20_000, num_chains=4, chain_method="vectorized",
            progress_bar=False,
        )  # fmt: skip
        mcmc.run(jax.random.key(0), x, y)
        found = bw.predict(model, mcmc.get_samples(), x, y, grid)
        means.append(float(np.sqrt(np.mean((found.mean - limit.mean) ** 2))))
        variances.append(float(np.sqrt(np.mean((found.epistemic - limit.epistemic) ** 2))))
        print(f"  width {width}: distance of means {means[-1]:.4f}, of variances {variances[-1]:.4f}", flush=True)
    print(f"  distance of means falls as width^{slope(means):.2f}, of variances as width^{slope(variances):.2f}")
    return {"means": means, "variances": variances}


def slope(distances) -> float:
    return np.polyfit(np.log(WIDTHS), np.log(distances), 1)[0]


def training(args):
    """Root mean squared distance of trained networks' mean to the NTK ensemble's, full-batch gradient descent."""
    import jax
    import jax.numpy as jnp

    import bnnwide as bw

    net, x, y, grid = one_dimension(1)
    steps, rate, num = 300, 0.5, 400
    limit = bw.gp.ntk(net, x, y, None, num_steps=steps, learning_rate=rate).predict(grid).mean[:, 0]
    distances, errors = [], []
    for width in WIDTHS:
        net = one_dimension(width)[0]

        def train(key, net=net):
            loss = lambda p: 0.5 * jnp.mean((net(p, jnp.asarray(x)) - y) ** 2)  # noqa: E731
            descend = lambda _, p: jax.tree.map(lambda a, g: a - rate * g, p, jax.grad(loss)(p))  # noqa: E731
            return net(jax.lax.fori_loop(0, steps, descend, net.init(key, (1,))), grid)[:, 0]

        trained = jax.jit(lambda keys, train=train: jax.lax.map(train, keys))(jax.random.split(jax.random.key(1), num))
        errors.append(float(np.sqrt(np.mean(np.var(trained, axis=0)) / num)))
        distances.append(float(np.sqrt(np.mean((trained.mean(0) - limit) ** 2))))
        print(
            f"  width {width}: distance of the mean {distances[-1]:.4f} (Monte-Carlo error {errors[-1]:.4f})",
            flush=True,
        )
    return {"distances": distances, "errors": errors}


def accuracy(args):
    """Lee et al. 2018, table 2: the best ReLU networks for 1,000 training images.

    Images are scaled to one norm, as the paper asks for, or to mean 0 and variance 1 each, as the authors' code does.
    The published figures are of 10,000 test images; the error of a difference counts both.
    """
    for name, depth, w2, b2, published in (
        ("mnist_subset", 20, 1.45, 0.28, 0.9279),
        ("cifar10_subset", 7, 1.28, 0.0, 0.3608),
    ):
        path = args.data / f"{name}.npz"
        if not path.exists():
            print(f"  skipped: no {path}")
            continue
        with np.load(path) as z:
            images, labels = (np.concatenate([z[f"{v}_train"], z[f"{v}_test"]]) for v in "xy")
            num_train = len(z["y_train"])
        images = images.reshape(len(images), -1) / 255.0
        centred = images - images.mean(1, keepdims=True)
        held_out = {
            "test subset": np.arange(num_train, len(labels)),
            "unused training images": np.arange(1000, num_train),
        }
        for scaled, x in (("one norm", images), ("mean 0, variance 1", centred)):
            x = x / np.sqrt((x**2).mean(1, keepdims=True))
            for what, chosen in held_out.items():
                right = classified(deep_relu(depth, w2, b2), x, labels, np.arange(1000), chosen)
                error = np.sqrt(right * (1 - right) / len(chosen) + published * (1 - published) / 10_000)
                off = (right - published) / error
                print(f"  {name}, {scaled}, {what}: {right:.4f}, published {published}: {off:+.2f} standard errors")


def deep_relu(depth, w2, b2):
    import bnnwide as bw

    net = hidden = bw.Dense(1, w_scale=w2**0.5, b_scale=b2**0.5) >> bw.Relu()
    for _ in range(depth - 1):
        net = net >> hidden
    return net >> bw.Dense(10, w_scale=w2**0.5, b_scale=b2**0.5)


def classified(net, x, labels, train, held_out) -> float:
    """Return the accuracy of regression on centred one-hot targets."""
    import bnnwide as bw

    post = bw.gp.nngp(net, x[train], np.eye(10)[labels[train]] - 0.1, bw.Gaussian(1e-5))
    return float((np.asarray(post.predict(x[held_out]).mean).argmax(1) == labels[held_out]).mean())


def one_over_width(distances):
    """Return the line through the last distance."""
    return distances[-1] * WIDTHS[-1] / np.array(WIDTHS)


def plot(found: dict, out: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    axes = figure.subplots(1, 3)
    if "mmd" in found:
        for depth, values in found["mmd"]["lines"].items():
            values = np.array(values)
            axes[0].plot(found["mmd"]["widths"], np.where(values > 0, values, np.nan), "o-", label=f"depth {depth}")
        axes[0].axhline(found["mmd"]["calibration"], color="k", ls="--", label="two similar Gaussian processes")
        axes[0].axhline(found["mmd"]["noise"], color="k", ls=":", label="two samples of one process")
        axes[0].set(title="MMD² of prior functions")
    if "posterior" in found:
        axes[1].plot(WIDTHS, found["posterior"]["means"], "o-", label="mean")
        axes[1].plot(WIDTHS, found["posterior"]["variances"], "o-", label="variance")
        axes[1].plot(WIDTHS, one_over_width(found["posterior"]["means"]), "k--", label="1/width")
        axes[1].set(title="posterior to NNGP posterior, RMS")
    if "training" in found:
        axes[2].plot(WIDTHS, found["training"]["distances"], "o-", label="mean of 400 networks")
        axes[2].plot(WIDTHS, found["training"]["errors"], "k:", label="its Monte-Carlo error")
        axes[2].plot(WIDTHS, one_over_width(found["training"]["distances"]), "k--", label="1/width")
        axes[2].set(title="trained networks to NTK mean, RMS")
    for axis in axes:
        axis.set(xscale="log", yscale="log", xlabel="width")
        if axis.lines:
            axis.legend(fontsize=8)
    figure.savefig(out, dpi=150)


PARTS = {"mmd": mmd, "posterior": posterior, "training": training, "accuracy": accuracy}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=None, help="a picture to write")
    args = parser.parse_args()
    import jax

    jax.config.update("jax_enable_x64", True)
    found = {}
    for part in args.parts.split(","):
        print(part, flush=True)
        found[part] = PARTS[part](args)
    if args.out:
        plot(found, args.out)


if __name__ == "__main__":
    main()
