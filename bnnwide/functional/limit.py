"""The process that a functional BNN tends to as it grows wide: the prior at the points, the NNGP between them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, Real

from bnnwide.arch import Layer
from bnnwide.checks import Data, check_array, check_inputs
from bnnwide.functional.features import distinct
from bnnwide.functional.process import ProcessPrior, check_moments, check_prior, root_of
from bnnwide.linalg import cho_solve


@dataclasses.dataclass(frozen=True)
class WideLimit:
    """The infinite-width limit of a functional BNN, a Gaussian process prior itself; build it with `wide_limit`.

    Its mean is B(x) m(M), and
    k(x, x') = k^(x, x') - B(x) k^(M, M) B(x')^T + B(x) K_gp B(x')^T with B(x) = k^(x, M) k^(M, M)^-1 and k^ the NNGP
    kernel of the network: its law of f given f_M, with f_M ~ N(m(M), K_gp).

    Args:
      net: the architecture.
      prior: at the points.
      points: (p, d) distinct points M.
    """

    net: Layer
    prior: ProcessPrior
    points: Float[Array, "p d"]

    @property
    def hyper(self) -> Mapping[str, Any]:
        """The hyper-parameters of the prior at the points that have priors."""
        return self.prior.hyper

    def at(self, values: Mapping[str, Any]) -> "WideLimit":
        """Return the limit with numbers in place of the priors of hyper-parameters."""
        return dataclasses.replace(self, prior=self.prior.at(values))

    def mean(self, x: Real[Data, "n d"]) -> Float[Array, " n"]:
        """Return the mean (n,): that of the prior at the points, and what the network makes of it between them.

        Raises:
          ValueError: for wrong shapes, numbers that are not finite, or a network without such a limit.
        """
        x = check_inputs("mean", "x", x, self.points.shape[1:], "points")
        nngp = lambda a, b=None: self.net.kernel(a, b, ntk=False).nngp  # noqa: E731
        values = jnp.asarray(self.prior.mean(self.points), self.points.dtype)
        return interpolated(nngp(x, self.points), nngp(self.points), values)

    def covariance(self, x1: Real[Data, "n1 d"], x2: Real[Data, "n2 d"] | None = None) -> Float[Array, "n1 n2"]:
        """Return the covariance (n1, n2) between inputs, of `x1` with itself without `x2`.

        Raises:
          ValueError: for wrong shapes, numbers that are not finite, or a network without such a limit.
        """
        x1 = check_inputs("covariance", "x1", x1, self.points.shape[1:], "points")
        x2 = None if x2 is None else check_inputs("covariance", "x2", x2, self.points.shape[1:], "points")
        nngp = lambda a, b=None: self.net.kernel(a, b, ntk=False).nngp  # noqa: E731
        covariance = self.prior.covariance(self.points)
        left = nngp(x1, self.points)
        right = left if x2 is None else nngp(x2, self.points)
        return conditioned(nngp(x1, x2), left, right, nngp(self.points), covariance)


def conditioned(
    kernel: Float[Array, "n1 n2"],
    left: Float[Array, "n1 p"],
    right: Float[Array, "n2 p"],
    at_points: Float[Array, "p p"],
    covariance: Float[Array, "p p"],
) -> Float[Array, "n1 n2"]:
    """Return k^(1, 2) - B_1 k^(M, M) B_2^T + B_1 K_gp B_2^T from the blocks of k^, and K_gp."""
    lower = root_of(at_points)
    first, second = (solve_triangular(lower, block.T, lower=True) for block in (left, right))
    matched = solve_triangular(lower, root_of(covariance), lower=True).T
    return kernel - first.T @ second + (matched @ first).T @ (matched @ second)


def interpolated(
    left: Float[Array, "n p"], at_points: Float[Array, "p p"], values: Float[Array, "p"]
) -> Float[Array, "n"]:
    """Return B values, with B = k^(x, M) k^(M, M)^-1 from the blocks of k^."""
    return left @ cho_solve(root_of(at_points), values[:, None])[:, 0]


def wide_limit(net: Layer, prior: ProcessPrior, points: Real[Data, "p d"]) -> WideLimit:
    """Return the Gaussian process that `functional_bnn(net, prior, points, ...)` tends to as widths grow.

    It has the `mean` and `covariance` of a prior: bw.gp.regression(limit.covariance(x), y, noise) conditions on data,
    and .moments(limit.covariance(x_test, x), limit.covariance(x_test)) predicts. With a mean other than zero y stands
    for y - limit.mean(x)[:, None], and limit.mean(x_test) is added to predictions.

    Args:
      net: the architecture, one with a limit (`net.kernel`).
      prior: a Gaussian process prior; see `functional_bnn`.
      points: (p, d) where it holds.

    Raises:
      TypeError: if `net` is no architecture or `prior` no Gaussian process.
      ValueError: for wrong shapes, or numbers that are not finite.
    """
    if not isinstance(net, Layer):
        raise TypeError(
            f"`wide_limit`: net must be an architecture such as Dense(1) >> Gelu() >> Dense(1); got {net!r}"
        )
    check_prior("wide_limit", prior)
    check_array("wide_limit", "points", points, ("p", "d"))
    points = distinct(jnp.asarray(points, jnp.result_type(float)))
    if not prior.hyper:
        check_moments("wide_limit", prior, points)
    return WideLimit(net, prior, points)
