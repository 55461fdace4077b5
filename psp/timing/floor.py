"""The time below which a network cannot run on a device: the bytes it must move and the sums it must do."""

from typing import NamedTuple

import torch


class Work(NamedTuple):
    """Values that a forward pass must read and write, and its multiply-accumulates."""

    values: int
    macs: int


class Limits(NamedTuple):
    """What a device was measured to do: bytes/s copied (read and written), FLOP/s of a matrix product by precision."""

    bytes_per_s: float
    flops: dict


def floors(done, limits, precision):
    """Seconds that memory and arithmetic allow: {"memory_s": …, "arithmetic_s": …}."""
    size = getattr(torch, precision).itemsize
    return {
        "memory_s": done.values * size / limits.bytes_per_s,
        "arithmetic_s": 2 * done.macs / limits.flops[precision],
    }
