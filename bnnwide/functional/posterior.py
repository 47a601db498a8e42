"""The exact posterior of any Gaussian process prior under Gaussian noise."""

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Float

from bnnwide.checks import is_concrete
from bnnwide.gp.posterior import Posterior
from bnnwide.gp.regression import Regression


@dataclasses.dataclass(frozen=True, repr=False)
class GPPosterior(Posterior):
    """A Gaussian process conditioned on data; built by `GPPrior.posterior`.

    mean = m_t + K_td A^-1 (y - m_d), cov = K_tt - K_td A^-1 K_dt, with A = K_dd + scale^2 I.

    Source: Rasmussen & Williams 2006, eqs. 2.23-2.24 and 2.38.

    Args:
      prior: the `GPPrior`.
      x: (n, d) training inputs.
      variance: the noise variance scale^2, in squared units of y.
      regression: the process less its mean, conditioned on the training targets less theirs.
    """

    prior: Any
    x: Float[Array, "n d"]
    variance: Float[Array, ""]
    regression: Regression

    @property
    def outputs(self) -> int:
        """k, the number of outputs."""
        return self.regression.y.shape[1]

    def moments(  # noqa: D102  # as in the base class
        self, x_test: Float[Array, "t d"]
    ) -> tuple[Float[Array, "t k"], Float[Array, "t t"]]:
        cross, prior = self.prior.covariance(x_test, self.x), self.prior.covariance(x_test)
        mean, covariance = _moments(self.regression, cross, prior)
        return mean + self.prior.mean(x_test)[:, None], covariance

    def marginals(  # noqa: D102  # as in the base class
        self, x_test: Float[Array, "t d"]
    ) -> tuple[Float[Array, "t k"], Float[Array, "t"]]:
        cross = self.prior.covariance(x_test, self.x)
        mean, variance = _marginals(self.regression, cross, self.prior.variance(x_test))
        return mean + self.prior.mean(x_test)[:, None], variance

    def log_marginal_likelihood(self) -> Float[Array, ""]:
        """Return log p(y) of the training targets, all outputs together."""
        return self.regression.log_marginal_likelihood()

    def __repr__(self) -> str:
        shown = f"{float(self.variance) ** 0.5:.3g}" if is_concrete(self.variance) else "traced"
        return f"GPPosterior(n={len(self.x)}, k={self.outputs}, scale={shown}, prior={self.prior})"


_moments, _marginals = jax.jit(Regression.moments), jax.jit(Regression.marginals)
