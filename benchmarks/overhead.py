"""What structure parameters cost a training step: python benchmarks/overhead.py [--model resnet56]

Steps of the dense network and of the parameterized ones take turns in one process, on the same random images; printed
are the medians, the quartiles and the ratio of the medians.
"""

import argparse

import torch
from torch.nn import functional as F

import psp
from psp.method.structures import ALPHA_SHAPE
from psp.runs.provenance import device_name, git_commit
from psp.timing.measure import alternate

BATCH = 128


def make_step(model, images, labels):
    """A function that trains `model` by one step."""
    model.to(images.device, memory_format=torch.channels_last).train()
    structure_decay = 1e-4 if psp.structure_parameters(model) else 0.0
    optimizer = torch.optim.SGD(psp.param_groups(model, 5e-4, structure_decay), lr=0.01, momentum=0.9)

    def step():
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet56")
    options = parser.parse_args(arguments)
    device, threads = torch.device("cuda" if torch.cuda.is_available() else "cpu"), torch.get_num_threads()
    images = torch.randn(BATCH, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (BATCH,), device=device)
    steps = {"dense": make_step(psp.create_model(options.model), images, labels)}
    for structure in [s for s in ALPHA_SHAPE if s != "layer"]:
        model = psp.parameterize(psp.create_model(options.model), structure, skip=("conv1", "fc"))
        steps[structure] = make_step(model, images, labels)
    times = alternate(steps, device, threads)
    print(f"{options.model}, batch {BATCH}, float32, {device_name(device)}, {threads} threads; commit {git_commit()}")
    for name, (median, low, high) in times.items():
        ratio = median / times["dense"].median_s
        print(f"{name:>13}: {1e3 * median:7.1f} ms ({1e3 * low:.1f}–{1e3 * high:.1f}), {ratio:.3f} × dense")


if __name__ == "__main__":
    main()
