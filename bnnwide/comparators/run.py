"""What every comparator returns: draws of a model's sites, and what they cost."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jaxtyping import Array
from numpyro.infer import MCMC
from numpyro.infer.mcmc import MCMCKernel

from bnnwide.checks import check_count


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run: its draws go where those of NumPyro's MCMC go, to `predict` and `to_arviz` among others.

    Args:
      method: the comparator's name.
      model: the NumPyro model.
      data: the model's arguments, (x, y) for a BNN.
      samples: constrained sites, deterministic ones included, with leading axes (chain, draw). Independent draws of an
        approximation, and the members of an ensemble, are one chain.
      stats: figures of the run, by name; those with leading axes (chain, draw) belong to draws.
    """

    method: str
    model: Any
    data: tuple[Any, ...]
    samples: Mapping[str, Array]
    stats: Mapping[str, Any]

    def get_samples(self, group_by_chain: bool = False) -> dict[str, Array]:
        """Return the draws by site, as NumPyro's `MCMC.get_samples` does.

        Args:
          group_by_chain: whether to keep the axes of chains and draws apart.
        """
        if group_by_chain:
            return dict(self.samples)
        return {name: site.reshape(-1, *site.shape[2:]) for name, site in self.samples.items()}

    def __repr__(self) -> str:
        chains, draws = next(iter(self.samples.values())).shape[:2]
        return f"Run(method={self.method!r}, chains={chains}, draws={draws}, sites={sorted(self.samples)})"


def run_chains(
    method: str,
    kernel: MCMCKernel,
    data: Sequence[Any],
    key: Array,
    *,
    num_warmup: int,
    num_samples: int,
    num_chains: int,
    fields: Sequence[str],
) -> Run:
    """Run chains of a kernel, all together, and keep `fields` of its state per draw."""
    check_count(method, "num_warmup", num_warmup, 0)
    check_count(method, "num_samples", num_samples)
    check_count(method, "num_chains", num_chains)
    mcmc = MCMC(
        kernel, num_warmup=num_warmup, num_samples=num_samples, num_chains=num_chains, chain_method="vectorized",
        progress_bar=False,
    )  # fmt: skip
    mcmc.run(key, *data, extra_fields=tuple(fields))
    stats = mcmc.get_extra_fields(group_by_chain=True)
    return Run(method, kernel.model, tuple(data), mcmc.get_samples(group_by_chain=True), stats)
