"""What the roofline of a device says of a network: the time to move its bytes and to do its sums, at measured speeds.

Neither is a bound: maps that stay in the cache need not move, and other code may beat the product that was timed.
"""

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


def roofline_seconds(done, limits, precision):
    """Seconds at the speed of a large copy and of a large matrix product: {"memory_s": …, "arithmetic_s": …}."""
    size = getattr(torch, precision).itemsize
    return {
        "memory_s": done.values * size / limits.bytes_per_s,
        "arithmetic_s": 2 * done.macs / limits.flops[precision],
    }
