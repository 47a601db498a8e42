"""Whether dense matrices fit into memory."""

import os
from typing import Any

from jaxtyping import Array

from bnnwide.checks import is_concrete
from bnnwide.gp.blocks import num_bytes

# Kernel, sum and factor: what a dense posterior cannot do without. (At its peak it holds about six.)
MATRICES = 3


def check_memory(door: str, x: Array) -> None:
    """Refuse a dense posterior that memory has no room for, before it brings the process down.

    Args:
      door: the public function that was called, for the message.
      x: (n, *input_shape) training inputs.

    Raises:
      ValueError: if three (n, n) matrices are larger than the memory of the device.
    """
    if not is_concrete(x):
        return
    n = len(x)
    needed, there = MATRICES * num_bytes((n, n), x.dtype), total_memory(next(iter(x.devices())))
    if there is not None and needed > there:
        raise ValueError(
            f"`{door}`: n={n} inputs need at least {needed / 1e9:.0f} GB for (n, n) matrices, of {there / 1e9:.0f} GB; "
            "use bw.gp.large, which holds none of them whole"
        )


def total_memory(device: Any) -> int | None:
    """Return the memory of a device, in bytes; None where it is not known."""
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # no such question on this system
        return None
