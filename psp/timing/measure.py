"""Medians and quartiles of calls that take turns."""

import random
import statistics
import time
from typing import NamedTuple

import torch

ROUNDS = 9
BLOCK_SECONDS = 0.1
REST_SECONDS = 0.02
WARMUP_CALLS = 3


class Timing(NamedTuple):
    """Seconds a call: median, lower and upper quartile over the rounds."""

    median_s: float
    low_s: float
    high_s: float


def alternate(calls, device, threads):
    """{name: `Timing`} of functions without arguments that take turns, `ROUNDS` times, on `threads` CPU threads.

    One turn repeats a call for about `BLOCK_SECONDS`, so that a slow moment of the machine meets all of them alike. The
    order of the turns is another one in each round, and each begins after a rest: the threads of some engines stay busy
    for a while, and disturb who comes next.
    """
    blocks = {}
    for name, call in calls.items():
        block = cuda_block(call) if device.type == "cuda" else cpu_block(call, threads)
        block(WARMUP_CALLS)
        blocks[name] = block, max(1, round(BLOCK_SECONDS / block(1)))
    seconds, order = {name: [] for name in calls}, random.Random(0)
    for _ in range(ROUNDS):
        for name in order.sample(list(blocks), len(blocks)):
            block, number = blocks[name]
            time.sleep(REST_SECONDS)
            seconds[name].append(block(number))
    return {name: quartiles(times) for name, times in seconds.items()}


def quartiles(seconds):
    """`Timing` of at least two measurements."""
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return Timing(median, low, high)


def cpu_block(call, threads):
    """A function of n: seconds a call, over n calls on `threads` threads."""
    from torch.utils import benchmark  # looks for CUDA's compiler when imported, and warns where there is none

    timer = benchmark.Timer("call()", globals={"call": call}, num_threads=threads, timer=time.perf_counter)
    return lambda number: timer.timeit(number).median


def cuda_block(call):
    """A function of n: seconds a call, over n calls between two events of the GPU's own clock."""

    def block(number):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(number):
            call()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1e3 / number

    return block
