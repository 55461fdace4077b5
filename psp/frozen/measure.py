"""Short measurements that decide how a network is run here."""

import time

REPEATS = 5


def seconds(call, repeats=REPEATS):
    """The shortest of some calls, after one that is not counted."""
    call()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)
