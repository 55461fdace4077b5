"""Does decoding keep training waiting? Images/s of the loader alone, of the step alone, and of both together.

    python benchmarks/loader.py [--networks resnet18 resnet50 densenet121] [--rounds 4] [--batches 12]

The images are JPEGs of ILSVRC2012's usual size, drawn here, cropped to 224×224 as the paper profile does. `files` reads
and decodes them for every crop, in a DataLoader's workers, as a set that does not fit in memory; `memory` has them
decoded. The step alone is that of psp.train on crops that are ready, computed in the way it chooses here. They take
turns; medians and quartiles over the turns are printed, and the speed of the whole relative to the step alone: 1.00
where decoding costs nothing. On a CPU all share the cores, so that it must cost something.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from psp.data.folders import MEAN, STD, Files
from psp.data.limits import cores_of_one
from psp.data.sets import Dataset
from psp.pipeline.plan import loader_speed
from psp.runs.config import RunConfig
from psp.runs.provenance import device_name, git_commit
from psp.timing.measure import quartiles
from psp.training.epoch import train_epoch
from psp.training.fast import deterministic
from psp.training.train import choose, compute_as_chosen, start

BATCH = 32
SIZE = (500, 375)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def draw(folder, count):
    """`count` JPEGs of coarse noise under fine noise, which compress about as photographs do, as `Files`."""
    rng, names = np.random.default_rng(0), []
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize(SIZE, Image.BICUBIC)
        pixels = np.asarray(coarse) + rng.normal(0, 8, (SIZE[1], SIZE[0], 1))
        name = f"{number}.jpg"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name, quality=92)
        names.append(name.encode())
    return Files(folder, np.array(names), torch.arange(count) % 1000)


def trainer(config, data):
    """(a function that trains on images and gives images/s, how a step is computed here)."""
    state = start(config, data.num_classes, DEVICE)
    state.choice = choose(config, data.train, data, DEVICE)
    compute_as_chosen(state)

    def speed(images):
        began = time.perf_counter()
        train_epoch(state, images, data, config, tqdm(disable=True))
        return len(images) / (time.perf_counter() - began)

    return speed, f"{state.choice['precision']}, {state.choice['kernels']}"


def in_turns(measured, rounds):
    """{name: images/s of each turn} of functions by name."""
    speeds = {name: [] for name in measured}
    for turn in range(1 + rounds):  # the first is not counted
        for name, function in measured.items():
            value = function()
            if turn:
                speeds[name].append(value)
    return speeds


def report(speeds, alone):
    """Print medians and quartiles, and how they compare with the step alone."""
    whole = statistics.median(speeds[alone])
    for name, values in speeds.items():
        median, low, high = quartiles(values)
        print(f"{name:28} {median:9.1f} {f'{low:.1f}–{high:.1f}':>15} {median / whole:8.2f}", flush=True)


def measure(network, files, rounds):
    """Print the table of one network."""
    memory = files.in_memory()
    data = Dataset("drawn", 1000, memory, memory, MEAN, STD, "")
    config = RunConfig(
        dataset="ilsvrc2012", model=network, method="psp_weight_decay", structure_decay=1e-5, batch_size=BATCH,
        sides=(224, 224, 224), learning_rate=1e-3,
    )  # fmt: skip
    ready = memory.cropped(config)
    with deterministic():
        speed, how = trainer(config, data)
        print(f"\n{network + ', ' + how:28} {'images/s':>9} {'quartiles':>15} {'relative':>8}")
        measured = {
            "step alone": lambda: speed(ready),
            "step, fed from memory": lambda: speed(memory),
            "step, fed from files": lambda: speed(files),
            "loader alone, memory": lambda: loader_speed(config, data),
            "loader alone, files": lambda: loader_speed(config, replace(data, train=files)),
        }
        report(in_turns(measured, rounds), "step alone")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["resnet18", "resnet50", "densenet121"])
    parser.add_argument("--rounds", type=int, default=4, help="turns of each")
    parser.add_argument("--batches", type=int, default=12, help="timed batches of a turn")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = draw(Path(folder), options.batches * BATCH)
        size = statistics.mean(path.stat().st_size for path in Path(folder).iterdir()) / 1000
        print(
            f"{device_name(DEVICE)}, {torch.get_num_threads()} threads, {cores_of_one()} workers, "
            f"PyTorch {torch.__version__}, batch {BATCH}; commit {git_commit()}"
        )
        print(f"JPEGs of {'×'.join(map(str, SIZE))}, {size:.0f} kB each; {options.rounds} turns of", end=" ")
        print(f"{options.batches} batches")
        for network in options.networks:
            measure(network, files, options.rounds)


if __name__ == "__main__":
    main()
