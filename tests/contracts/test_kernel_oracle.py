"""Kernels of architectures against the reference values in shared/oracle; its README states the conventions."""

import json
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import bnnwide as bw

ORACLE = Path(__file__).parents[3] / "shared" / "oracle"
DENSE_FILES = ("fc_linear", "fc_relu", "fc_erf", "fc_gelu", "fc_sin", "fc_hermite", "fc_edge", "residual", "layernorm")
JOINS = {"sum": bw.Sum, "prod": bw.Product, "concat": bw.Concatenate}
PLAIN = {"Relu": bw.Relu, "Erf": bw.Erf, "Gelu": bw.Gelu, "Sin": bw.Sin}
NUMERIC = {"tanh": bw.Elementwise(jnp.tanh), "silu": bw.Elementwise(lambda u: u / (1 + jnp.exp(-u)))}
WAITING = {"Conv", "GlobalAvgPool", "AvgPool", "GlobalSelfAttention"}


def layer_of(spec):
    op = spec["op"]
    if op == "Dense":
        return bw.Dense(spec.get("width", 8), w_scale=spec["W_std"], b_scale=spec["b_std"])
    if op == "Branch":
        return JOINS[spec["join"]](tuple(network_of(branch) for branch in spec["branches"]))
    if op == "Rescale":
        return bw.Rescale(spec["c"])
    if op == "LayerNorm":
        return bw.LayerNorm(spec.get("eps", 1e-12))
    if op == "LeakyRelu":
        return bw.LeakyRelu(spec["alpha"])
    if op == "Hermite":
        return bw.Hermite(spec["degree"])
    return NUMERIC[spec["fn"]] if op == "ElementwiseNumerical" else PLAIN[op]()


def network_of(specs):
    net = bw.Identity()
    for spec in specs:
        net = net >> layer_of(spec)
    return net


def cases(*files):
    if not ORACLE.exists():
        return []
    known = json.loads((ORACLE / "index.json").read_text())["cases"]
    chosen = [case for case in known if case["file"].removesuffix(".npz") in files]
    return [case for case in chosen if not WAITING & set(json.dumps(case["layers"]).split('"'))]


def compare(case, *, tolerance):
    with np.load(ORACLE / case["file"]) as arrays:
        x1, x2 = (arrays[case[name]] for name in ("x1", "x2"))
        wanted = {name: arrays[f"{case['id']}/{name}"] for name in case["outputs"]}
    net = network_of(case["layers"])
    for which, kernels in (("12", net.kernel(x1, x2)), ("11", net.kernel(x1))):
        close = partial(np.testing.assert_allclose, rtol=tolerance, atol=1e-14 * np.abs(wanted["nngp_11"]).max())
        close(kernels.nngp, wanted[f"nngp_{which}"])
        # The reference itself carries 1e-8 at coincident points of kinked activations.
        apart = ~np.eye(len(x1), dtype=bool) if which == "11" else np.ones((len(x1), len(x2)), bool)
        # In the degenerate cases it is so in absolute terms as well: -4e-8 where the value is 0.
        rounding = (1e-14 if tolerance < 1e-9 else 1e-7) * np.abs(wanted["ntk_11"]).max()
        close(kernels.ntk[apart], wanted[f"ntk_{which}"][apart], atol=rounding)
        close(kernels.ntk, wanted[f"ntk_{which}"], rtol=max(1e-7, tolerance), atol=rounding)


@pytest.mark.skipif(not ORACLE.exists(), reason="shared/oracle is not beside the checkout")
def test_the_oracle_is_read_whole():
    assert len(cases(*DENSE_FILES)) == 60 + 2 + 4 + 27 + 10
    assert len(cases("truth_quad")) == 16


@pytest.mark.parametrize("case", cases(*DENSE_FILES), ids=lambda case: case["id"])
def test_reference_kernels(case):
    compare(case, tolerance=1e-6 if case["file"] == "fc_edge.npz" else 1e-10)


@pytest.mark.parametrize("case", cases("truth_quad"), ids=lambda case: case["id"])
def test_quadrature_of_any_function(case):
    compare(case, tolerance=1e-10)
