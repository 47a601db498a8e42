"""K-FAC and EK-FAC: one block per layer, diagonal in the Kronecker product of two small eigenbases."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bnnwide.empirical.structured import Factors, dense_places, factors
from bnnwide.natgrad.curvature import Fisher, Layout, operator, rounding


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """The block of one layer y = psi W: G = (U_in x U_out) diag(spectrum) (U_in x U_out)^T on W (m, w).

    Nothing here is peculiar to Dense layers: W is the leaves `places`, each reshaped to (-1, w) and stacked, which
    also holds a convolution's kernel with its patches as features.

    Args:
      inner: (m, m) eigenvectors of the features' second moment, the constant of the bias included.
      outer: (w, w) eigenvectors of the second moment of back-propagated derivatives.
      spectrum: (m, w) eigenvalues, damping included.
      places: which leaves of the weights, kernel first, bias last.
    """

    inner: Float[Array, "m m"]
    outer: Float[Array, "w w"]
    spectrum: Float[Array, "m w"]
    places: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    def act(self, multiplier: Float[Array, "m w"], v: Float[Array, "m w"]) -> Float[Array, "m w"]:
        """Return U diag(multiplier) U^T v."""
        return self.inner @ (multiplier * (self.inner.T @ v @ self.outer)) @ self.outer.T


@operator
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class KroneckerFisher(Fisher):
    """A block-diagonal G, one `Block` per layer.

    Args:
      blocks: one per layer.
    """

    blocks: tuple[Block, ...]

    def _each(self, v: Array, power: float) -> Array:
        leaves = jax.tree.leaves(self.layout.unravel(v))
        new = list(leaves)
        for block in self.blocks:
            width = block.spectrum.shape[1]
            parts = [leaves[i].reshape(-1, width) for i in block.places]
            done = block.act(block.spectrum**power, jnp.concatenate(parts))
            ends = [sum(len(part) for part in parts[: j + 1]) for j in range(len(parts) - 1)]
            for i, part in zip(block.places, jnp.split(done, ends), strict=True):
                new[i] = part.reshape(leaves[i].shape)
        return jnp.concatenate([leaf.ravel() for leaf in new])

    def _matvec(self, v: Array) -> Array:
        return self._each(v, 1.0)

    def _solve(self, v: Array) -> Array:
        return self._each(v, -1.0)

    def _sqrt_solve(self, z: Array) -> Array:
        return self._each(z, -0.5)

    def _diag(self) -> Array:
        new: list[Any] = [None] * len(self.layout.shapes)
        for block in self.blocks:
            values = block.inner**2 @ block.spectrum @ (block.outer**2).T
            start = 0
            for i in block.places:
                rows = -(-jnp.zeros(self.layout.shapes[i]).size // values.shape[1])
                new[i] = values[start : start + rows].ravel()
                start += rows
        return jnp.concatenate(new)

    def logdet(self) -> Array:  # noqa: D102  # as in the base class
        return sum((jnp.sum(jnp.log(block.spectrum)) for block in self.blocks), start=jnp.zeros((), self.damping.dtype))

    def effective_dimension(self) -> Array:  # noqa: D102  # as in the base class
        each = [jnp.sum(1 - self.damping / block.spectrum) for block in self.blocks]
        return sum(each, start=jnp.zeros((), self.damping.dtype))

    @property
    def margin(self) -> Array:  # noqa: D102  # as in the base class
        # Of every block by itself; the eigenvalues of a singular factor come out as a few units of rounding.
        spectra = [block.spectrum for block in self.blocks]
        return jnp.min(jnp.stack([jnp.min(s) / (jnp.max(s) * 100 * rounding(s)) for s in spectra]))


def layer_factors(net: Any, params: Any, x: Array, s: Float[Array, "n k r"]) -> list[Factors]:
    """Return, per layer, its features and the derivatives of S^T f in its outputs, (n, positions, r, w)."""
    each = factors(net, params, x, jnp.eye(s.shape[1], dtype=s.dtype))
    return [Factors(one.psi, jnp.einsum("npkw,nkr->nprw", one.cotangents, s)) for one in each]


def moments(one: Factors) -> tuple[Float[Array, "m m"], Float[Array, "w w"]]:
    """Return the K-FAC factors A (m, m) and B (w, w) of a layer: its block of F, summed over data, is n A x B.

    A = avg_i sum_p psi_ip psi_ip^T, B = avg_ip sum_r g_ipr g_ipr^T, over inputs i, positions p and columns r of S.

    Sources: Martens & Grosse 2015 (arXiv 1503.05671), the Kronecker factorisation of a layer's block; for several
    positions Grosse & Martens 2016 (arXiv 1602.01407), that of a convolution's block, which is also right for one.
    """
    n, positions = one.psi.shape[:2]
    return (
        jnp.einsum("npa,npb->ab", one.psi, one.psi) / n,
        jnp.einsum("nprv,nprw->vw", one.cotangents, one.cotangents) / (n * positions),
    )


def corrected_spectrum(one: Factors, inner: Array, outer: Array) -> Float[Array, "m w"]:
    """Return the diagonal of the exact block of F in a Kronecker eigenbasis.

    Source: George, Laurent, Bouthillier, Ballas & Vincent 2018 (arXiv 1806.03884), the diagonal that is nearest
    to the block in Frobenius norm.
    """
    psi, g = one.psi @ inner, one.cotangents @ outer
    if psi.shape[1] == 1:
        return (psi[:, 0] ** 2).T @ jnp.sum(g[:, 0] ** 2, axis=1)
    each = lambda item: jnp.sum(jnp.einsum("pm,prw->rmw", *item) ** 2, axis=0)  # noqa: E731
    return jnp.sum(jax.lax.map(each, (psi, g)), axis=0)


def eigenbases(a: Array, b: Array) -> tuple[Array, Array, Array, Array]:
    """Return the eigenvalues and eigenvectors of both factors, with rounding below 0 cut off."""
    (in_values, inner), (out_values, outer) = jnp.linalg.eigh(a), jnp.linalg.eigh(b)
    return jnp.maximum(in_values, 0.0), inner, jnp.maximum(out_values, 0.0), outer


def kronecker_fisher(
    net: Any, params: Any, x: Array, s: Float[Array, "n k r"], damping: Array, *, corrected: bool
) -> KroneckerFisher:
    """Return K-FAC, or EK-FAC if `corrected`.

    The damping is added to the eigenvalues, so that it is exact: G = n A x B + damping I. (The factored damping of
    Martens & Grosse 2015, which approximates this to save the eigenvectors, is in `noisy_vi`.)
    """
    blocks = []
    for one, places in zip(layer_factors(net, params, x, s), dense_places(net, params, x), strict=True):
        in_values, inner, out_values, outer = eigenbases(*moments(one))
        spectrum = corrected_spectrum(one, inner, outer) if corrected else len(x) * jnp.outer(in_values, out_values)
        blocks.append(Block(inner, outer, spectrum + damping, places))
    return KroneckerFisher(Layout.of(params), damping, tuple(blocks))
