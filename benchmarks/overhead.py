"""What structure parameters cost a training step: python benchmarks/overhead.py [--model resnet56] [--steps 12]

Steps of the dense network and of the parameterized one alternate in one process, on the same random images;
printed are the medians, the interquartile ranges and the ratio of the medians.
"""

import argparse
import statistics
import time

import torch
from torch.nn import functional as F

import psp
from psp.method.structures import ALPHA_SHAPE
from psp.runs.provenance import device_name, git_commit

BATCH = 128
WARMUP = 3


def make_step(model, device):
    """A function that trains `model` by one step on random images."""
    model.to(device, memory_format=torch.channels_last).train()
    structure_decay = 1e-4 if psp.structure_parameters(model) else 0.0
    optimizer = torch.optim.SGD(psp.param_groups(model, 5e-4, structure_decay), lr=0.01, momentum=0.9)
    images = torch.randn(BATCH, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (BATCH,), device=device)

    def step():
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def alternate(steps, rounds):
    """{name: seconds of every round after the warm-up}, the steps taking turns."""
    seconds = {name: [] for name in steps}
    for _ in range(WARMUP + rounds):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - began)
    return {name: times[WARMUP:] for name, times in seconds.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet56")
    parser.add_argument("--steps", type=int, default=12, help="timed steps of each network")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    skip = ("conv1", "fc")
    steps = {"dense": make_step(psp.create_model(options.model), device)}
    for structure in [s for s in ALPHA_SHAPE if s != "layer"]:
        model = psp.parameterize(psp.create_model(options.model), structure, skip=skip)
        steps[structure] = make_step(model, device)
    seconds = alternate(steps, options.steps)
    print(
        f"{options.model}, batch {BATCH}, float32, {device_name(device)}, {torch.get_num_threads()} threads;", end=" "
    )
    print(f"commit {git_commit()}")
    dense = statistics.median(seconds["dense"])
    for name, times in seconds.items():
        low, median, high = statistics.quantiles(times, n=4)
        print(f"{name:>8}: {1e3 * median:7.1f} ms ({1e3 * low:.1f}–{1e3 * high:.1f}), {median / dense:.3f} × dense")


if __name__ == "__main__":
    main()
