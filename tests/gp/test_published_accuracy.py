"""NNGP classification of real images with 1,000 training images has the accuracy that Lee et al. 2018 published."""

from pathlib import Path

import numpy as np
import pytest

import bnnwide as bw

DATA = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.mark.parametrize(
    ("name", "depth", "w_variance", "b_variance", "published"),
    [("mnist_subset", 20, 1.45, 0.28, 0.9279), ("cifar10_subset", 7, 1.28, 0.0, 0.3608)],
)
def test_accuracy_is_within_two_standard_errors(name, depth, w_variance, b_variance, published):
    path = DATA / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"no {path.name}: real images are not part of the repository")
    with np.load(path) as z:
        images, labels = (np.concatenate([z[f"{v}_train"], z[f"{v}_test"]]) for v in "xy")
    x = images.reshape(len(images), -1) / 255.0
    x = x / np.sqrt((x**2).mean(1, keepdims=True))  # of one norm each, as the paper asks for
    dense = {"w_scale": w_variance**0.5, "b_scale": b_variance**0.5}
    net = bw.Dense(1, **dense) >> bw.Relu()
    for _ in range(depth - 1):
        net = net >> bw.Dense(1, **dense) >> bw.Relu()
    post = bw.gp.nngp(net >> bw.Dense(10, **dense), x[:1000], np.eye(10)[labels[:1000]] - 0.1, bw.Gaussian(1e-5))
    # All images that were not trained on: the test subset, and what is left of the training subset.
    right = (np.asarray(post.predict(x[1000:]).mean).argmax(1) == labels[1000:]).mean()
    error = np.sqrt(right * (1 - right) / len(x[1000:]) + published * (1 - published) / 10_000)
    assert abs(right - published) < 2 * error
