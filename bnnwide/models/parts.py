"""A wide BNN as one part of a user's own NumPyro model: sites for its weights and for a repriorised readout."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float, Real

from bnnwide.arch import Layer, Params
from bnnwide.arch.network import weight_names
from bnnwide.checks import Data, check_array, check_choice, check_count, is_concrete
from bnnwide.reparam import SitedRepriorisation, Sites
from bnnwide.reparam.readout import SOLVERS


def sample_standard_normal(name: str, shape: tuple[int, ...]) -> Any:
    """Sample a site of independent standard normals of the given shape."""
    return numpyro.sample(name, dist.Normal(0.0, 1.0).expand(shape).to_event(len(shape)))


def sample_params(name: str, net: Layer, input_shape: tuple[int, ...]) -> Params:
    """Sample the weights of an architecture inside a NumPyro model: every site is standard normal.

    Args:
      name: the prefix of the sites, "<name>.<layer>.w" and so on.
      net: the architecture; `net[:-1]` leaves the readout to `sample_readout`.
      input_shape: the shape of one input, without the batch axis.

    Returns:
      Parameters as `net.init` returns them, for `net(params, x)` or `features`.

    Raises:
      TypeError: if `net` is no architecture.
      ValueError: if it cannot take such inputs.
    """
    if not isinstance(net, Layer):
        raise TypeError(f"`sample_params`: net must be an architecture such as Dense(512) >> Gelu(); got {net!r}")
    shapes = net.weight_shapes(tuple(input_shape))
    leaves = [sample_standard_normal(site, leaf.shape) for site, leaf in weight_names(shapes, name).items()]
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def sample_readout(
    name: str,
    psi: Float[Array, "n m"],
    targets: Real[Data, "n k"] | None = None,
    scale: Any = None,
    *,
    outputs: int | None = None,
    sites: Sites | None = None,
    solver: str = "auto",
) -> Float[Array, "m k"]:
    """Sample a readout theta ~ N(0, I) in the coordinates of a repriorisation.

    The law of theta is its prior, whatever is passed: targets and scale say only what the rest of the model is
    expected to say of Psi theta, y = Psi theta + scale noise, and choose coordinates phi that are then close to
    N(0, I). With the model's own noise that is exact; with a rough guess chains mix more slowly and are as correct.
    The rest of the model states its likelihood as usual.

    Sites: "<name>_base" (m, k), standard normal; "<name>", the readout itself; and the factor "<name>_sites",
    log Z - log t(Psi theta), with t the product of the Gaussian sites and Z its integral under the prior.

    Args:
      name: of the sites.
      psi: (n, m) readout features, as `net.features(params, x)` returns them.
      targets: (n, k) what Psi theta is expected to be near: the data less the model's other effects. None, as for
        prior predictions, samples the readout from its prior in its own coordinates.
      scale: how near, in the units of the targets: a number, or an array broadcasting to (n, 1) or (n, k); infinite
        where a target is missing, jnp.where(observed, scale, jnp.inf): the target itself is then not read.
      outputs: k, where there are no targets.
      sites: instead of targets and scale, sites for another likelihood; see `bnnwide.reparam.find_sites`.
      solver: "primal", "dual" or "auto".

    Returns:
      theta (m, k), the bias row last: psi @ theta is the network's output.

    Raises:
      ValueError: for wrong shapes, targets that are not finite, scales that are not positive, or a missing argument.
    """
    check_choice("sample_readout", "solver", solver, SOLVERS)
    check_array("sample_readout", "psi", psi, ("n", "m"))
    if sites is None and targets is None:
        if outputs is None:
            raise ValueError("`sample_readout`: outputs must be given where there are no targets; got None")
        check_count("sample_readout", "outputs", outputs)
        return sample_standard_normal(name, (psi.shape[1], outputs))
    if sites is None:
        sites = gaussian_sites("sample_readout", targets, scale, len(psi))
    elif len(sites.targets) != len(psi):
        raise ValueError(f"`sample_readout`: sites must be of n={len(psi)} inputs, from psi; got {len(sites.targets)}")
    k = sites.targets.shape[1] if sites.contrasts is None else len(sites.contrasts)
    bijection = SitedRepriorisation(psi, sites, solver)
    phi = sample_standard_normal(f"{name}_base", (psi.shape[1], k))
    theta: Any = numpyro.deterministic(name, bijection.forward_and_log_det(phi)[0])
    numpyro.factor(f"{name}_sites", bijection.log_marginal() - sites.log_density(psi @ theta))
    return theta


def gaussian_sites(door: str, targets: Any, scale: Any, n: int) -> Sites:
    """Return the sites of Gaussian noise: precision 1 / scale^2, none where the scale is infinite."""
    if scale is None:
        raise ValueError(f"`{door}`: scale must be given with targets; got None")
    wrong = f"`{door}`: scale must be one number, or broadcast to ({n}, 1) or (n, k) = "
    checked = targets
    if np.ndim(scale) and is_concrete(targets):
        # What is missing need not be finite; a traced scale does not say yet which targets are.
        missing = np.isinf(scale) if is_concrete(scale) else np.ones(np.shape(scale), bool)
        try:
            checked = np.where(np.broadcast_to(missing, np.shape(targets)), 0.0, targets)
        except ValueError:
            raise ValueError(f"{wrong}{np.shape(targets)}; got {np.shape(scale)}") from None
    check_array(door, "targets", checked, (n, "k"), f"n={n} from psi")
    targets = jnp.asarray(targets, jnp.result_type(float))
    # Before JAX sees it: in a traced model even what is done to a number is traced.
    if is_concrete(scale) and not np.all(np.asarray(scale) > 0):
        raise ValueError(f"`{door}`: scale must be positive; got {np.min(np.asarray(scale))}")
    scale = jnp.asarray(scale, targets.dtype)
    shape = targets.shape if scale.ndim and scale.shape[-1] > 1 else (n, 1)
    try:
        precision = jnp.broadcast_to(scale**-2.0, shape)
    except (ValueError, TypeError):
        raise ValueError(f"{wrong}{targets.shape}; got {scale.shape}") from None
    return Sites(jnp.where(precision > 0, targets, 0.0), precision)
