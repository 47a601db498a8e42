"""The input collapse: with fewer training inputs than features, a first dense layer is sampled in their span only."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bnnwide.arch import Dense
from bnnwide.checks import is_concrete


@dataclasses.dataclass(frozen=True)
class InputCollapse:
    """The factorisation X = R Q of the scaled inputs of a first dense layer, with orthonormal rows of Q.

    X = [w_scale/sqrt(d) x, b_scale 1] (n, p), p = d + 1 with biases. The layer sees its stacked weights W = [w; b]
    (p, width) only through V = Q W ~ N(0, I), as X W = R V; the part of W orthogonal to the rows of Q keeps its prior
    exactly, posterior included. So V (r, width), r = n, is all that needs sampling, and W = Q^T V + (I - Q^T Q) W0
    with a fresh prior draw W0.

    Args:
      first: the first layer.
      r: (n, r) coordinates of the scaled training inputs.
      q: (r, p) orthonormal rows.
    """

    first: Dense
    r: Float[Array, "n r"]
    q: Float[Array, "r p"]

    def preactivation(self, v: Float[Array, "r width"]) -> Float[Array, "n width"]:
        """Return the first layer's outputs at the training inputs, (n, width)."""
        return self.r @ v

    def weights(self, v: Float[Array, "r width"], key: Array) -> dict[str, Float[Array, "..."]]:
        """Recover the layer's full weights: the span part from `v`, the rest a fresh draw from the prior.

        Args:
          v: (r, width) span weights.
          key: PRNG key of the fresh part.

        Returns:
          The layer's parameters {"w": (d, width), "b": (width,)} ("b" only with biases).
        """
        fresh = jax.random.normal(key, (self.q.shape[1], v.shape[1]), v.dtype)
        full = fresh + self.q.T @ (v - self.q @ fresh)
        return {"w": full} if self.first.b_scale is None else {"w": full[:-1], "b": full[-1]}

    def span(self, params: dict[str, Array]) -> Float[Array, "r width"]:
        """Return V = Q [w; b], the part of full weights that the training inputs see."""
        full = params["w"] if self.first.b_scale is None else jnp.concatenate([params["w"], params["b"][None]])
        return self.q @ full

    def test_inputs(self, x_test: Float[Array, "t d"]) -> tuple[Float[Array, "t r"], Float[Array, "t s"]]:
        """Split test inputs into their coordinates in the span and those of a basis for the rest.

        With (R*, C*) the two parts, the layer's outputs at the test inputs are jointly R* V + C* E with a fresh
        E (s, width) ~ N(0, I), s = min(t, p): exact, since C* C*^T is the Gram matrix of the residuals.

        Args:
          x_test: (t, d) test inputs.

        Returns:
          R* (t, r) and C* (t, s).
        """
        scaled = self.first.features(x_test)
        inside = scaled @ self.q.T
        residual = scaled - inside @ self.q
        if len(residual) < residual.shape[1]:
            residual = jnp.linalg.qr(residual.T, mode="r").T
        return inside, residual


def collapse_inputs(first: Dense, x: Float[Array, "n d"]) -> InputCollapse:
    """Factor the scaled training inputs for the input collapse.

    Concrete inputs are factored at once in float64 on the host, so that the factorisation is a constant of whatever is
    compiled afterwards; traced ones inside the computation.

    Args:
      first: the first dense layer.
      x: (n, d) training inputs, n < p.

    Returns:
      The collapse, with r = n.
    """
    if is_concrete(x) and is_concrete(first.w_scale) and is_concrete(first.b_scale):
        with jax.ensure_compile_time_eval():
            scaled = np.asarray(first.features(jnp.asarray(x)), np.float64)
        basis, coordinates = np.linalg.qr(scaled.T)
        dtype = jnp.result_type(float)
        return InputCollapse(first, jnp.asarray(coordinates.T, dtype), jnp.asarray(basis.T, dtype))
    basis, coordinates = jnp.linalg.qr(first.features(x).T)
    return InputCollapse(first, coordinates.T, basis.T)
