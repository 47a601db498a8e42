"""Gradient flow of a linearised network on any loss, by an ODE solver."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.ode import odeint
from jaxtyping import Array, Float, Real

from bnnwide.checks import Data, check_array, check_positive
from bnnwide.gp.schedules import check_momentum


def gradient_flow(
    loss: Callable[[Float[Array, "n k"]], Float[Array, ""]],
    ntk_dd: Real[Data, "n n"],
    *,
    f_train: Real[Data, "n k"],
    time: int | float,
    learning_rate: int | float = 1.0,
    momentum: float = 0.0,
    k_td: Real[Data, "t n"] | None = None,
    f_test: Real[Data, "t k"] | None = None,
    rtol: float = 1e-10,
) -> tuple[Float[Array, "n k"], Float[Array, "t k"] | None]:
    """Return the outputs of a linearised network after gradient flow on a loss, such as a cross-entropy.

    f_train' = -learning_rate K_dd dL/df, f_test' = -learning_rate K_td dL/df; with momentum
    f'' + (1 - momentum) f' = -learning_rate K dL/df. On a mean square error `TrainingDynamics.values` says the same
    in closed form.

    Source: Lee et al. 2019 (arXiv 1902.06720), section 2.2, where the loss is a sum.

    Args:
      loss: a differentiable function of the training outputs (n, k), targets inside, e.g.
        lambda f: -jnp.mean(jax.nn.log_softmax(f) * y).
      ntk_dd: (n, n) tangent kernel of the training inputs.
      f_train: (n, k) outputs at the start, at the training inputs.
      time: how long, in steps of gradient descent with that learning rate (in the limit of small steps).
      learning_rate: positive.
      momentum: from 0 to below 1.
      k_td: (t, n) tangent kernel between test and training inputs; None for no test inputs.
      f_test: (t, k) outputs at the start, at the test inputs; None for zero.
      rtol: relative tolerance of the solver; what float32 resolves bounds it from below.

    Returns:
      Outputs (n, k) at the training inputs, and (t, k) at the test inputs or None.

    Raises:
      ValueError: for wrong shapes, NaN or infinite numbers, or an option out of range.
    """
    door, number = "gradient_flow", jnp.result_type(float)
    check_array(door, "f_train", f_train, ("n", "k"))
    n, k = f_train.shape
    check_array(door, "ntk_dd", ntk_dd, (n, n), f"n={n} from f_train")
    check_positive(door, "time", time)
    check_positive(door, "learning_rate", learning_rate)
    check_momentum(door, momentum)
    start, kernel = jnp.asarray(f_train, number), jnp.asarray(ntk_dd, number)
    rtol = max(rtol, 10 * float(jnp.finfo(number).eps))

    def slope(state: tuple[Array, Array], _: Array) -> tuple[Array, Array]:
        # All that the outputs need is how much of each tangent feature was added, at n inputs however many tests.
        added, speed = state
        force = -learning_rate * jax.grad(loss)(start + kernel @ added)
        return (speed, force - (1 - momentum) * speed) if momentum else (force, jnp.zeros_like(speed))

    rest = jnp.zeros_like(start)
    times = jnp.asarray([0.0, time], number)
    added = jax.jit(lambda: odeint(slope, (rest, rest), times, rtol=rtol, atol=rtol))()[0][-1]
    train = start + kernel @ added
    if k_td is None:
        return train, None
    check_array(door, "k_td", k_td, ("t", n), f"n={n} from f_train")
    test = jnp.asarray(k_td, number) @ added
    if f_test is None:
        return train, test
    check_array(door, "f_test", f_test, (len(test), k), f"t={len(test)} from k_td and k={k} from f_train")
    return train, jnp.asarray(f_test, number) + test
