"""Finite networks against the reference values in shared/oracle; its README states conventions and tolerances."""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnnwide as bw

ORACLE = Path(__file__).parents[3] / "shared" / "oracle"
NAMES = ("fc", "resid", "cnn_gap", "cnn_raw")
PLAIN = {"Relu": bw.Relu(), "Erf": bw.Erf(), "Gelu": bw.Gelu()}
# The index does not define this network; these layers give its stored outputs to the last bit (`test_outputs`).
CNN_RAW = [
    {"op": "Conv", "filter": [3, 3], "strides": [1, 1], "padding": "SAME", "W_std": 2**0.5, "b_std": 0.1},
    {"op": "Gelu"},
    {"op": "Conv", "filter": [3, 3], "strides": [2, 2], "padding": "SAME", "W_std": 1.5, "b_std": 0.2},
]

pytestmark = pytest.mark.skipif(not ORACLE.exists(), reason="no reference values beside this checkout")


class Case:
    """A network of the reference, with its weights and its stored results."""

    def __init__(self, name):
        cases = json.loads((ORACLE / "index.json").read_text())["cases"]
        layers = next((case["layers"] for case in cases if case["id"] == f"{name}/net"), CNN_RAW)
        with np.load(ORACLE / "empirical.npz") as arrays:
            self.arrays = {key.removeprefix(f"{name}/"): arrays[key] for key in arrays if key.startswith(f"{name}/")}
        self.x1, self.x2 = self.arrays["x1"], self.arrays["x2"]
        self.output_shape = self.arrays["f_x1"].shape[1:]
        if name.startswith("cnn"):
            self.f = convolutional(layers)
            self.params, self.delta = self.listed("param"), self.listed("delta")
        else:
            self.f = network_of(layers)
            self.params = as_dense(self.f, self.listed("param"), self.x1)
            self.delta = as_dense(self.f, self.listed("delta"), self.x1)

    def listed(self, name):
        count = sum(key.startswith(name) for key in self.arrays)
        return [jnp.asarray(self.arrays[f"{name}{i}"]) for i in range(count)]


def network_of(specs):
    net = bw.Identity()
    for spec in specs:
        if spec["op"] == "Dense":
            net = net >> bw.Dense(spec["width"], w_scale=spec["W_std"], b_scale=spec["b_std"])
        elif spec["op"] == "Branch":
            assert spec["join"] == "sum" and spec["branches"][1] == []
            net = net >> bw.Residual(network_of(spec["branches"][0]))
        else:
            net = net >> PLAIN[spec["op"]]
    return net


def as_dense(net, listed, x):
    """The listed (W, b) pairs as the weights of our network, which has them in the same order."""
    pairs = iter([{"w": w, "b": b[0]} for w, b in zip(listed[::2], listed[1::2], strict=True)])
    is_dense = lambda part: isinstance(part, dict)  # noqa: E731
    return jax.tree.map(lambda _: next(pairs), net.weight_shapes(x.shape[1:]), is_leaf=is_dense)


def convolutional(specs):
    """A function f(params, x) -> (n, all outputs), with params in a list as the reference has them."""

    def f(params, x):
        params = iter(params)
        for spec in specs:
            if spec["op"] == "Conv":
                w, b = next(params), next(params)
                y = jax.lax.conv_general_dilated(
                    x, w, spec["strides"], spec["padding"], dimension_numbers=("NHWC", "HWIO", "NHWC")
                )
                x = spec["W_std"] / math.sqrt(math.prod(w.shape[:3])) * y + spec["b_std"] * b
            elif spec["op"] == "Dense":
                w, b = next(params), next(params)
                x = spec["W_std"] / math.sqrt(len(w)) * x @ w + spec["b_std"] * b
            elif spec["op"] == "GlobalAvgPool":
                x = x.mean((1, 2))
            else:
                x = PLAIN[spec["op"]].fn(x)
        return x.reshape(len(x), -1)

    return f


def reduced(full, output_shape, traced, diagonal):
    """The kernel of all pairs of outputs, averaged over `traced` axes of one output and without pairs in `diagonal`."""
    axes = range(len(output_shape))
    first = "abc"[: len(output_shape)]
    second = "".join(first[i] if i in (*traced, *diagonal) else first[i].upper() for i in axes)
    kept = "".join("" if i in traced else first[i] + (second[i] if second[i] != first[i] else "") for i in axes)
    split = full.reshape(*full.shape[:2], *output_shape, *output_shape)
    return jnp.einsum(f"ij{first}{second}->ij{kept}", split) / math.prod(output_shape[i] for i in traced)


def axes_of(code, rank):
    """The output axes that "trace-1", "diag12" and the like name, counted without the batch axis."""
    digits = code.removeprefix("trace").removeprefix("diag").replace("none", "")
    return () if not digits else (rank - 1,) if digits == "-1" else tuple(int(digit) - 1 for digit in digits)


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-13)


@pytest.fixture(scope="module", params=NAMES)
def case(request):
    return Case(request.param)


def test_outputs(case):
    for x in ("x1", "x2"):
        got = jax.jit(case.f)(case.params, jnp.asarray(case.arrays[x])).reshape(-1, *case.output_shape)
        close(got, case.arrays[f"f_{x}"])


@pytest.mark.parametrize("kernel", [bw.empirical.ntk, bw.empirical.nngp], ids=["ntk", "nngp"])
def test_kernels(case, kernel):
    compared = 0
    for which, x2 in (("12", case.x2), ("11", None)):
        full = kernel(case.f, case.params, case.x1, x2, outputs="full")
        prefix = f"{kernel.__name__}_{which}/"
        for key, want in case.arrays.items():
            if key.startswith(prefix):
                traced, diagonal = (
                    axes_of(code, len(case.output_shape)) for code in key.removeprefix(prefix).split("_")
                )
                close(reduced(full, case.output_shape, traced, diagonal), want)
                compared += 1
    close(kernel(case.f, case.params, case.x1), jnp.einsum("ijcc->ij", full) / full.shape[-1])
    assert compared >= 4


def test_vector_product(case):
    v = case.arrays["ntkvp_v"].reshape(len(case.x2), -1)
    got = bw.empirical.ntk_vector_product(case.f, case.params, case.x1, case.x2, v)
    if "ntkvp" in case.arrays:
        close(got, case.arrays["ntkvp"])
    full = bw.empirical.ntk(case.f, case.params, case.x1, case.x2, outputs="full")
    close(got, jnp.einsum("ijab,jb->ia", full, v))


@pytest.mark.parametrize("degree", [2, 3])
def test_taylor(case, degree):
    taylor = bw.empirical.taylor_expand(case.f, case.params, degree)
    moved = jax.tree.map(jnp.add, case.params, case.delta)
    got = jax.jit(taylor)(moved, case.x1).reshape(-1, *case.output_shape)
    close(got, case.arrays[f"taylor{degree}"])
