"""Our training step against the loop one would write without us: images/s, data and augmentation included.

    python benchmarks/train_speed.py [--networks resnet20 resnet56 densenet40] [--rounds 5] [--batches 12]

The reference: torchvision's CIFAR10 over the same pixels, its transforms on PIL images, a DataLoader with two workers,
float32, eager. Ours: the loop of psp.train, dense and PSP, computed in the way it chooses here. Each has a process
of its own, so that its peak memory is its own; they take turns, and medians and quartiles over the turns are printed.
Beside them what a fused step would take to move its values at the bandwidth of a copy, and to compute its products at
the rate of a large matrix product, both measured in the same run, as shares of the time taken.
"""

import argparse
import multiprocessing
import resource
import statistics
import sys
import time
from contextlib import ExitStack

import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader
from tqdm import tqdm

import psp
from psp.data.sets import load
from psp.runs.config import RunConfig
from psp.runs.provenance import device_name, git_commit
from psp.timing.measure import quartiles
from psp.timing.roofline import Work, roofline_seconds
from psp.timing.work import measure_limits
from psp.training.epoch import train_epoch
from psp.training.fast import deterministic
from psp.training.train import choose, compute_as_chosen, start

BATCH = 128
WARMUP_BATCHES = 4  # as many as the DataLoader's workers have ready beforehand
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
METHODS = {"ours, dense": "baseline", "ours, PSP": "psp_weight_decay"}
VARIANTS = ("reference", *METHODS)
aten = torch.ops.aten


def config(network, method):
    decay = 0.001 if method == "psp_weight_decay" else 0.0
    return RunConfig(dataset="cifar10", model=network, method=method, structure_decay=decay, batch_size=BATCH)


def chosen_step(network):
    """The way psp.train chooses to compute the steps of a network here."""
    settings, data = config(network, "psp_weight_decay"), load("cifar10").to(DEVICE)
    with deterministic():
        return choose(settings, data.train, data, DEVICE)


def our_turn(network, method, choice):
    """A function of a number of batches: seconds that psp.train takes for them."""
    settings, data = config(network, method), load("cifar10").to(DEVICE)
    state = start(settings, data.num_classes, DEVICE)
    state.choice = choice
    compute_as_chosen(state)

    def turn(batches):
        images = data.train.rows(torch.randperm(len(data.train), device=DEVICE)[: batches * BATCH])
        warmup = data.train.rows(slice(0, WARMUP_BATCHES * BATCH))
        train_epoch(state, warmup, data, settings, tqdm(disable=True))
        began = time.perf_counter()
        train_epoch(state, images, data, settings, tqdm(disable=True))
        return time.perf_counter() - began

    return turn


def reference_turn(network):
    """A function of a number of batches: seconds that the usual loop takes for them."""
    from torchvision import datasets, transforms

    data = load("cifar10")
    cifar = datasets.CIFAR10.__new__(datasets.CIFAR10)  # its reader wants the python layout; its items do not
    cifar.data = data.train.pixels.permute(0, 2, 3, 1).contiguous().numpy()
    cifar.targets, cifar.target_transform = data.train.labels.tolist(), None
    mean, std = ([value / 255 for value in values] for values in (data.mean, data.std))
    steps = [transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    cifar.transform = transforms.Compose([*steps, transforms.Normalize(mean, std)])
    loader = DataLoader(cifar, BATCH, shuffle=True, num_workers=2, drop_last=True, pin_memory=DEVICE.type == "cuda")
    model = psp.create_model(network).to(DEVICE).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)

    def turn(batches):
        began, images_left = 0.0, iter(loader)
        for number in range(WARMUP_BATCHES + batches):
            if number == WARMUP_BATCHES:
                began = time.perf_counter()
            images, labels = (t.to(DEVICE, non_blocking=True) for t in next(images_left))
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
        return time.perf_counter() - began

    return turn


def worker(pipe, network, variant, choice):
    """One variant in a process of its own: answers a number of batches by (seconds, peak memory in MiB)."""
    with ExitStack() as stack:
        if variant == "reference":
            turn = reference_turn(network)
        else:
            stack.enter_context(deterministic())
            turn = our_turn(network, METHODS[variant], choice)
        while batches := pipe.recv():
            pipe.send((turn(batches), peak_mib()))


def peak_mib():
    """Peak memory of this process, or what it had on the GPU, without a DataLoader's workers."""
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


class MovedValues(TorchDispatchMode):
    """Counts the values that a fused training step reads and writes, from the operations of a forward pass.

    A convolution reads x and writes y; its gradient reads dy and x and writes dx. Batch norm with ReLU reads y and
    writes z; its gradient reads dz, z and y and writes dy. An addition is part of it: the residual is read, its
    gradient written. Pooling reads and writes both ways. Everything is read and written once: nothing is cached.
    """

    def __init__(self):
        super().__init__()
        self.values = 0

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        output = operation(*arguments, **(keywords or {}))
        if operation is aten.convolution.default:
            x, images = arguments[0].numel(), arguments[0].shape[1] == 3
            self.values += 2 * output.numel() + (2 if images else 3) * x
        elif operation is aten.native_batch_norm.default:
            self.values += 6 * arguments[0].numel()
        elif operation is aten.add.Tensor and arguments[0].ndim == 4:
            self.values += 2 * output.numel()
        elif operation is aten.avg_pool2d.default:
            self.values += 2 * (arguments[0].numel() + output.numel())
        return output


def at_roof(network, precision, limits):
    """Seconds of a batch's training step by `psp.timing.roofline`, of its bytes and of its sums."""
    model, batch = psp.create_model(network).train(), torch.zeros(BATCH, 3, 32, 32)
    with MovedValues() as moved:
        model(batch)
    macs = BATCH * psp.cost(model, batch[:1]).macs
    return roofline_seconds(Work(moved.values, 3 * macs), limits, precision).values()


def measure(network, choice, rounds, batches):
    """{variant: ([images/s of every turn], peak memory in MiB)} of all variants, taking turns."""
    spawn = multiprocessing.get_context("spawn")
    ends = {}
    for variant in VARIANTS:
        ours, theirs = spawn.Pipe()
        spawn.Process(target=worker, args=(theirs, network, variant, choice)).start()
        theirs.close()  # so that a worker that fails ends the run, instead of leaving it to wait
        ends[variant] = ours
    results = {variant: ([], 0.0) for variant in VARIANTS}
    for turn in range(1 + rounds):  # the first is not counted
        for variant, end in ends.items():
            end.send(batches)
            seconds, peak = end.recv()
            speeds = [*results[variant][0], batches * BATCH / seconds] if turn else []
            results[variant] = speeds, peak
    for end in ends.values():
        end.send(0)
    return results


def report(network, choice, results, limits):
    """Print a table of one network."""
    print(f"\n{network}, ours in {choice['precision']} with {choice['kernels']} kernels")
    print(
        f"{'':12} {'images/s':>9} {'quartiles':>13} {'ratio':>6} {'peak MiB':>9} {'at copy speed':>15} {'products':>9}"
    )
    usual = statistics.median(results["reference"][0])
    at_roofs = {precision: at_roof(network, precision, limits) for precision in {"float32", choice["precision"]}}
    for variant, (speeds, peak) in results.items():
        median, low, high = quartiles(speeds)
        precision = "float32" if variant == "reference" else choice["precision"]
        memory, products = (median / BATCH * seconds for seconds in at_roofs[precision])
        spread, ratio = f"{low:.0f}–{high:.0f}", median / usual
        print(
            f"{variant:12} {median:9.0f} {spread:>13} {ratio:6.2f} {peak:9.0f} {memory:15.0%} {products:9.0%}",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["resnet20", "resnet56", "densenet40"])
    parser.add_argument("--rounds", type=int, default=5, help="turns of each variant")
    parser.add_argument("--batches", type=int, default=12, help="timed batches of a turn")
    options = parser.parse_args()
    limits = measure_limits(DEVICE)
    rates = ", ".join(f"{name} {rate / 1e12:.2f}" for name, rate in limits.flops.items())
    print(
        f"{device_name(DEVICE)}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}, batch {BATCH};",
        end=" ",
    )
    print(f"commit {git_commit()}; {options.rounds} turns of {options.batches} batches")
    print(f"copy {limits.bytes_per_s / 1e9:.0f} GB/s read and written; matrix product TFLOP/s: {rates}")
    for network in options.networks:
        with multiprocessing.get_context("spawn").Pool(1) as pool:  # a process of its own: it tries many ways
            choice = pool.apply(chosen_step, (network,))
        report(network, choice, measure(network, choice, options.rounds, options.batches), limits)


if __name__ == "__main__":
    main()
