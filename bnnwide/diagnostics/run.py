"""Run any MCMC kernel within a time budget, keeping functions of the draws and not the draws."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro.infer.mcmc import MCMCKernel
from threadpoolctl import threadpool_limits

BLOCK_BYTES = 2**28  # of positions held before they are reduced
BLOCK_SECONDS = 1.0
MIN_WARMUP = 30
STATS = ("accept_prob", "diverging", "num_grads", "num_evals", "num_steps")


@dataclasses.dataclass(frozen=True)
class Block:
    """A stretch of draws and the seconds they took.

    Args:
      positions: (capacity, chains, ...) of which the first `count` are this block's, until the next one is made.
      stats: (count, chains) statistics.
      count: number of draws per chain.
      seconds: wall time.
    """

    positions: dict[str, Array]
    stats: dict[str, np.ndarray]
    count: int
    seconds: float


class TimedRun:
    """Chains of one kernel, advanced in blocks that are timed without compilation.

    Args:
      kernel: any MCMC kernel with a `sample_field` of "z".
      key: PRNG key.
      x: (n, d) inputs.
      y: (n, k) targets.
      num_chains: number of chains.
      num_warmup: warm-up steps the kernel is told of.
      vectorized: whether the kernel steps all chains at once; otherwise one chain runs after the other.
      max_block: draws per block at most; 1 for kernels whose steps differ too much in length to be predicted.
    """

    def __init__(
        self,
        kernel: MCMCKernel,
        key: Array,
        x: Array,
        y: Array,
        *,
        num_chains: int,
        num_warmup: int,
        vectorized: bool,
        max_block: int = 512,
    ) -> None:
        keys = jax.random.split(key, num_chains)
        init = lambda k: kernel.init(k, num_warmup, None, (x, y), {})  # noqa: E731
        # Compiled as one: op by op, initialising takes as long as a short run.
        self.state: Any = jax.jit(init if vectorized else jax.vmap(init))(keys)
        one = lambda state: kernel.sample(state, (x, y), {})  # noqa: E731
        step = one if vectorized else lambda state: jax.lax.map(one, state)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(self.state.z))
        self._capacity = int(max(1, min(max_block, BLOCK_BYTES // size)))
        self._num_warmup, self._stats = num_warmup, [name for name in STATS if hasattr(self.state, name)]

        def keep(state: Any) -> Any:
            return state.z, {name: getattr(state, name) for name in self._stats}

        def block(state: Any, buffer: Any, count: Array) -> Any:
            def body(i: Array, carry: Any) -> Any:
                state, buffer = carry
                state = step(state)
                write = lambda b, v: jax.lax.dynamic_update_index_in_dim(b, v, i, 0)  # noqa: E731
                return state, jax.tree.map(write, buffer, keep(state))

            return jax.lax.fori_loop(0, count, body, (state, buffer))

        # One buffer serves all blocks (donated, not copied): filling a fresh one would cost more than a short block.
        make = lambda leaf: jnp.zeros((self._capacity, *leaf.shape), leaf.dtype)  # noqa: E731
        self._buffer = jax.tree.map(make, jax.eval_shape(keep, self.state))
        start = time.perf_counter()
        lowered = jax.jit(block, donate_argnums=1).lower(self.state, self._buffer, jnp.int32(1))
        self._block = lowered.compile()
        self.compile_seconds = time.perf_counter() - start
        self.step_seconds = 0.0

    def _advance(self, count: int) -> Block:
        start = time.perf_counter()
        # LAPACK's threads keep spinning after a call and take cores from XLA's: one is faster for every method here.
        with threadpool_limits(1, user_api="blas"):
            self.state, self._buffer = jax.block_until_ready(self._block(self.state, self._buffer, jnp.int32(count)))
        seconds = time.perf_counter() - start
        self.step_seconds = seconds / count
        positions, stats = self._buffer
        return Block(
            positions, {name: np.asarray(values)[:count].copy() for name, values in stats.items()}, count, seconds
        )

    def blocks(self, seconds: int | float, max_draws: int) -> Iterator[Block]:
        """Yield blocks of draws until about `seconds` of stepping or `max_draws` draws per chain are spent."""
        spent, drawn, count = 0.0, 0, 1
        while spent < seconds and drawn < max_draws:
            fits = min(BLOCK_SECONDS, seconds - spent) / self.step_seconds if self.step_seconds else 1
            count = int(np.clip(fits, 1, min(self._capacity, max_draws - drawn, 2 * count)))
            block = self._advance(count)
            spent, drawn = spent + block.seconds, drawn + count
            yield block

    def warm_up(self, seconds: int | float, progress: Callable[[float], Any]) -> bool:
        """Run the warm-up, cut short after `seconds`; return whether enough of it was run to have tuned the kernel."""
        for block in self.blocks(seconds, self._num_warmup - 1):
            progress(block.seconds)
        # By the kernel's own count: MCLMC tunes in one step that counts for all.
        if np.min(self.state.i) < min(MIN_WARMUP, self._num_warmup - 1):
            return False
        # On its last warm-up step a kernel settles what it adapted; that step is taken even where time ran out.
        self.state = self.state._replace(i=jnp.full_like(self.state.i, self._num_warmup - 1))
        self._advance(1)
        return True
