"""How a training step is computed: chosen for each run by a short measurement, unseen in the loop of `psp.train`.

    precision   float32, or bfloat16 for convolutions and matrix products (autocast); parameters, α among them,
                optimizer and statistics are float32 in either case
    kernels     plain; fused: psp.training.fused, on a CPU with a C++ compiler; tiled: psp.training.tiles, besides, on
                one with matrix units; compiled: torch.compile, on a GPU

Each of these wins on some machine and loses on another. Their results differ by rounding, so that a run keeps its
choice in its checkpoint and in its record. torch.compile is no choice on a CPU: its code for batch normalization
computes 1/√(var + ε) anew for every 16 values and comes out no faster than plain PyTorch, after a minute of compiling.
"""

import json
import math
import os
import time
from collections.abc import Mapping
from contextlib import contextmanager

import torch

from psp.errors import ConfigError, KernelError, in_short
from psp.files import locked, write_json
from psp.training import fused, tiles

ROUNDS = 5
# A way that takes longer than the fastest by this factor is not timed again.
CLOSE = 1.4


class Network:
    """A network computed the way of a choice: float32 images in, float32 logits out.

    `parallel` is what is made of its module where several processes train it together.
    """

    def __init__(self, model, choice, parallel=lambda module: module):
        self.module = parallel(KERNELS[choice["kernels"]](model))
        self.precision = getattr(torch, choice["precision"])
        self.device_type = next(model.parameters()).device.type

    def __call__(self, images):
        with torch.autocast(self.device_type, self.precision, enabled=self.precision != torch.float32):
            return self.module(images).float()


def compiled(model):
    """`model` by torch.compile, with CUDA graphs: a small network keeps a GPU waiting for its CPU otherwise."""
    import torch._inductor.config as inductor  # takes seconds

    inductor.deterministic = True  # no kernel is chosen by timing: the same bits in every process
    return torch.compile(model, mode="reduce-overhead", dynamic=False)


KERNELS = {"plain": lambda model: model, "fused": fused.fuse, "tiled": tiles.tiled, "compiled": compiled}


def ways(device):
    """All choices there are for a kind of device, as dicts of "precision" and "kernels"."""
    if device.type == "cuda":
        pairs = [("float32", "plain"), ("bfloat16", "plain"), ("bfloat16", "compiled")]
    elif device.type == "cpu":
        pairs = [(precision, kernels) for kernels in ("plain", "fused") for precision in ("float32", "bfloat16")]
        pairs += [("bfloat16", "tiled")]
    else:  # such as "mps", which we never saw: what PyTorch itself promises everywhere
        pairs = [("float32", "plain")]
    return [{"precision": precision, "kernels": kernels} for precision, kernels in pairs]


def check_way(step, device):
    """The choice that `step`, such as a record's, names. Raises ConfigError unless it is one of `ways(device)`."""
    way = {name: step.get(name) for name in ("precision", "kernels")} if isinstance(step, Mapping) else step
    if way not in ways(device):
        raise ConfigError(f"a step on {device.type} is one of {ways(device)}, not {way}")
    return way


def can_build():
    """Which kernels of ours this machine can build and run, by their names in a choice."""
    return [name for name, build in (("fused", fused.kernels), ("tiled", tiles.kernels)) if _builds(build)]


def _builds(build):
    try:
        build()
    except KernelError:
        return False
    return True


def fastest(trials, images):
    """The fastest of `trials`, with what was measured: a JSON-ready dict.

    Args:
        trials: pairs of a choice and a function that makes ready to train and returns the function to be timed.
        images: how many images one call of it trains on.

    Returns the choice with "images_per_second" of all, and "left_out": why those that failed did, by their names.
    """
    ready, left_out = [], {}
    for choice, prepare in trials:
        try:
            run = prepare()
            run()  # not counted: allocations, compilation
            ready.append((choice, run))
        except Exception as error:
            # Whatever a compiler stumbles over is no reason not to train; what is wrong with a run itself is.
            if choice["kernels"] == "plain":
                raise
            left_out[_name(choice)] = in_short(error)
    seconds = [math.inf] * len(ready)
    for _ in range(ROUNDS):  # in turns, and the best of each, so that other work on the machine decides nothing
        for k, (_, run) in enumerate(ready):
            if seconds[k] == math.inf or seconds[k] < CLOSE * min(seconds):
                began = time.perf_counter()
                run()
                seconds[k] = min(seconds[k], time.perf_counter() - began)
    best = ready[seconds.index(min(seconds))][0]
    speeds = {_name(choice): round(images / s, 1) for (choice, _), s in zip(ready, seconds, strict=True)}
    return {**best, "images_per_second": speeds, "left_out": left_out}


def remembered(path, kind, measure):
    """What `measure()` chose for the same `kind` (a JSON-ready list) before, by the file at `path`, or chooses now.

    Of several processes that ask at once one measures, undisturbed, while the others wait for it.
    """
    with locked(path):
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = None
        known = known if isinstance(known, dict) else {}  # none yet, or no use: measuring again costs seconds
        name = json.dumps(kind)
        if name not in known:
            known[name] = measure()
            write_json(known, path)
        return known[name]


def _name(choice):
    return f"{choice['kernels']} {choice['precision']}"


@contextmanager
def deterministic():
    """Only algorithms that give the same bits every time, for as long as the context lasts.

    So long, too, lasts the number of threads that a checkpoint brings: sums depend on it.
    """
    enabled, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled, threads = torch.utils.deterministic.fill_uninitialized_memory, torch.get_num_threads()
    convolutions = torch.backends.cudnn.conv
    short = convolutions.fp32_precision
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it; read when CUDA starts
    torch.use_deterministic_algorithms(True)
    # Otherwise every new tensor is filled with NaN first, a tenth of a step's time. Nothing here reads such memory.
    torch.utils.deterministic.fill_uninitialized_memory = False
    convolutions.fp32_precision = "ieee"  # float32 is no shorter number on a GPU, either
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn)
        torch.utils.deterministic.fill_uninitialized_memory = filled
        convolutions.fp32_precision = short
        torch.set_num_threads(threads)
