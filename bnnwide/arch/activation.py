"""What every activation is: a function of one entry, and its dual, a function of second moments."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bnnwide.arch import duals
from bnnwide.arch.kernel import KernelState
from bnnwide.arch.layer import Params, layer
from bnnwide.arch.scaling import Weightless


class Activation(Weightless):
    """A function applied entry by entry: no weights, same shape out as in.

    A subclass writes `fn` for one entry; and `dual` where it is known in closed form, from which the derivative
    follows. Without it both come from quadrature.
    """

    fn: Callable[[Array], Array]

    def apply(self, params: Params, x: Float[Array, "n ..."]) -> Float[Array, "n ..."]:  # noqa: D102
        return self.fn(x)

    def dual(self, q11: Array, q12: Array, q22: Array) -> Array:
        """Return E[phi(u) phi(v)] for (u, v) ~ N(0, [[q11, q12], [q12, q22]]); the arguments broadcast."""
        return duals.dual(self.fn, q11, q12, q22)

    def dual_and_derivative(self, q11: Array, q12: Array, q22: Array) -> tuple[Array, Array]:
        """Return E[phi(u) phi(v)] and E[phi'(u) phi'(v)], the derivative of the former in q12 (Price's theorem)."""
        if not self._in_closed_form:
            return duals.dual_and_derivative(self.fn, q11, q12, q22)
        q11, q12, q22 = jnp.broadcast_arrays(q11, q12, q22)
        return jax.jvp(lambda q: self.dual(q11, q, q22), (q12,), (jnp.ones_like(q12),))

    def dual_diag(self, q: Array) -> Array:
        """Return E[phi(u)^2] for u ~ N(0, q)."""
        return self.dual(q, q, q) if self._in_closed_form else duals.dual_diag(self.fn, q)

    def dual_mean(self, q: Array) -> Array:
        """Return E[phi(u)] for u ~ N(0, q)."""
        return duals.dual_mean(self.fn, q)

    @property
    def _in_closed_form(self) -> bool:
        return type(self).dual is not Activation.dual

    def propagate(self, state: KernelState) -> KernelState:  # noqa: D102
        # K -> E[phi(u) phi(v)] and T -> T E[phi'(u) phi'(v)].
        if not state.gaussian:
            raise ValueError(
                f"`{type(self).__name__}`: the kernel of an activation needs Gaussian inputs, as Dense gives them; put "
                "a Dense layer before it (one whose w_prior is not normal only after a hidden layer, whose many units "
                "it sums, and with normal biases)"
            )
        q11, q22 = state.spread(state.var1, state.var2)
        if state.ntk is None:
            cov, ntk = self.dual(q11, state.cov, q22), None
        else:
            cov, derivative = self.dual_and_derivative(q11, state.cov, q22)
            ntk = state.ntk * derivative
        same = state.var2 is state.var1
        var1, mean1 = self.dual_diag(state.var1), self.dual_mean(state.var1)
        var2, mean2 = (var1, mean1) if same else (self.dual_diag(state.var2), self.dual_mean(state.var2))
        # Layers are compiled apart: fused, a deep network would take minutes to compile, and repeat work. (Means are
        # left out: few architectures use them, and what nothing uses is not computed.)
        cov, ntk, var1, var2 = jax.lax.optimization_barrier((cov, ntk, var1, var2))
        return dataclasses.replace(
            state, cov=cov, ntk=ntk, var1=var1, var2=var1 if same else var2, mean1=mean1, mean2=mean2, gaussian=False
        )


@layer(meta=("fn",))
@dataclasses.dataclass(frozen=True)
class Elementwise(Activation):
    """Any function of one entry as an activation.

    Its kernels are by quadrature: the function must be continuous, and smooth except for a kink at 0.

    Args:
      fn: a function of an array that acts entry by entry, built from `jax.numpy`.

    Raises:
      TypeError: if `fn` cannot be called.
    """

    fn: Callable[[Array], Array]

    def __post_init__(self) -> None:
        if not callable(self.fn):
            raise TypeError(f"`Elementwise`: fn must be a function of an array; got {self.fn!r}")
