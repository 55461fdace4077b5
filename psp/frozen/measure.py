"""Short measurements that decide how a network is run here."""

import time

REPEATS = 5


def seconds(call, repeats=REPEATS):
    """The shortest of some calls, after one that is not counted."""
    return shortest([call], repeats)[0]


def shortest(calls, repeats=REPEATS):
    """`seconds` of each of `calls`, which take turns, so that what disturbs one for a while disturbs all."""
    for call in calls:
        call()
    times = [[] for _ in calls]
    for _ in range(repeats):
        for call, taken in zip(calls, times, strict=True):
            began = time.perf_counter()
            call()
            taken.append(time.perf_counter() - began)
    return [min(taken) for taken in times]
