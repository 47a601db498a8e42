"""Every prediction of the reference values: GP inference, training dynamics, ensembles, learning rates."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnnwide as bw

ORACLE = Path(__file__).parents[2] / "../shared/oracle"
FILE = ORACLE / "predict.npz"
if not FILE.exists():
    pytest.skip(f"no reference values at {ORACLE}", allow_module_level=True)
CASES = [case for case in json.loads((ORACLE / "index.json").read_text())["cases"] if case["file"] == FILE.name]
ARRAYS = dict(np.load(FILE))
Y = ARRAYS["y_train"]


def kernel(case, blocks, name):
    return ARRAYS[f"{case['kernels']}/{blocks}_{name}"]


def ridge(case):
    return bw.gp.Ridge(case["diag_reg"], relative=not case["diag_reg_absolute_scale"])


def start(case):
    if case["fx_train_0"] == "zeros":
        return {}
    return {"f_train": ARRAYS[case["fx_train_0"]], "f_test": ARRAYS[case["fx_test_0"]]}


def gp_inference(case):
    if case["get"] == "ntk":
        return gradient_descent_mse_ensemble(case | {"t": None, "learning_rate": 1.0})
    name = {"nngp": "nngp", "ntkgp": "ntk"}[case["get"]]
    process = bw.gp.regression(kernel(case, "k_dd", name), Y, None, ridge=ridge(case))
    return process.moments(kernel(case, "k_td", name), kernel(case, "k_tt", name))


def gradient_descent_mse_ensemble(case):
    at_train = case.get("x_test", "x_test") is None
    test, both = ("k_dd", "k_dd") if at_train else ("k_td", "k_tt")
    initial = kernel(case, "k_dd", "nngp")
    dynamics = bw.gp.training_dynamics(kernel(case, "k_dd", case["get"]), Y, ridge=ridge(case))
    # Where only readouts are trained, the reference counts the ridge as noise that each network's targets have.
    noisy = float(ridge(case).amount(jnp.asarray(initial))) if case["get"] == "nngp" else 0.0

    def moments(time):
        return dynamics.ensemble(
            bw.gp.Flow(time, case["learning_rate"]),
            k_dd=initial,
            k_td=kernel(case, test, "nngp"),
            k_tt=kernel(case, both, "nngp"),
            ntk_td=kernel(case, test, case["get"]),
            target_variance=noisy,
        )

    if not isinstance(case["t"], str):
        return moments(case["t"])
    parts = [moments(float(time)) for time in ARRAYS[case["t"]]]
    return tuple(np.stack(part) for part in zip(*parts, strict=True))


def gradient_descent_mse(case):
    dynamics = bw.gp.training_dynamics(kernel(case, "k_dd", case["kernel"]), Y, ridge=ridge(case))
    schedule = bw.gp.Flow(case["t"], case["learning_rate"])
    return dynamics.values(schedule, k_td=kernel(case, "k_td", case["kernel"]), **start(case))


def gradient_descent(case):
    k_dd, k_td = (kernel(case, blocks, "ntk") for blocks in ("k_dd", "k_td"))
    if case["loss"] == "0.5*mean((f-y)**2)":
        schedule = bw.gp.Flow(case["t"], case["learning_rate"], case["momentum"])
        return bw.gp.training_dynamics(k_dd, Y).values(schedule, k_td=k_td, **start(case))
    targets = ARRAYS[case["y"]]
    loss = lambda f: -jnp.mean(jax.nn.log_softmax(f) * targets)  # noqa: E731
    return bw.gp.gradient_flow(
        loss, k_dd, time=case["t"], learning_rate=case["learning_rate"], k_td=k_td, **start(case)
    )


def max_learning_rate(case):
    return (bw.gp.max_learning_rate(kernel(case, "k_dd", "ntk"), case["y_train_size"], momentum=case["momentum"]),)


OURS = {
    fn.__name__: fn
    for fn in (
        gp_inference,
        gradient_descent_mse_ensemble,
        gradient_descent_mse,
        gradient_descent,
        max_learning_rate,
    )
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_agrees(case):
    keys = [f"{case['id']}/{key}" for key in case["keys"]] if "keys" in case else [case["id"]]
    # The reference's own ODE solver is good to 1e-5 or so, as its index says; at the training inputs after a long time
    # the covariance is rounding, of the order of 1e-16.
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if case["fn"] == "gradient_descent" else {"rtol": 1e-10, "atol": 1e-14}
    for key, value in zip(keys, OURS[case["fn"]](case), strict=True):
        np.testing.assert_allclose(value, ARRAYS[key], err_msg=key, **tolerance)


def test_there_are_68_cases():
    assert len(CASES) == 68 and {case["fn"] for case in CASES} == set(OURS)
