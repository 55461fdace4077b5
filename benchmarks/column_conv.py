"""How much time pruned columns save: the column-sparse convolution against PyTorch's dense ones (oneDNN), on the CPU.

    python benchmarks/column_conv.py [--threads 2] [--batch 64] [--rounds 50]

The shapes are those of CIFAR ResNets; columns are pruned at random. All variants alternate in one run: each round times
every one of them once, in an order of its own, so that a machine that slows down slows all of them. "dense" has batch
norm folded into its bias, as the column-sparse one; "conv, bn, relu" are the three layers as they were trained.
"""

import argparse
import random
import time

import pandas as pd
import torch
from torch.nn import functional as F

from psp.kernels import column_conv2d, cpu
from psp.runs.provenance import device_name, git_commit

SHAPES = ((16, 32), (32, 16), (64, 8))  # channels, height and width
SPARSITIES = (0.0, 0.25, 0.5, 0.76, 0.9)
KERNEL, TAPS = 3, 9
WARM_UP = 5


def variants(channels, side, batch):
    """{name: function of no arguments} of one shape, everything channels-last and in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    last = {"memory_format": torch.channels_last}
    x = torch.randn(batch, channels, side, side, generator=generator).contiguous(**last)
    weight = torch.randn(channels, channels, KERNEL, KERNEL, generator=generator).contiguous(**last)
    bias, mean = torch.randn(2, channels, generator=generator)
    var, gamma = torch.rand(2, channels, generator=generator) + 0.5
    half = [t.bfloat16() for t in (x, weight, bias)]
    found = {
        "dense": lambda: F.conv2d(x, weight, bias, padding=1),
        "dense bf16": lambda: F.conv2d(*half, padding=1),
        "dense, relu": lambda: F.conv2d(x, weight, bias, padding=1).relu_(),
        "conv, bn, relu": lambda: F.batch_norm(F.conv2d(x, weight, padding=1), mean, var, gamma, bias).relu_(),
    }
    for sparsity in SPARSITIES:
        order = torch.randperm(channels * TAPS, generator=generator)
        kept = order[: len(order) - round(sparsity * len(order))].sort().values
        columns = (weight.flatten(1)[:, kept].t().contiguous().t(), kept // TAPS, kept % TAPS, bias)
        found[f"column {sparsity}"] = _column(x, columns, relu=False)
        found[f"column, relu {sparsity}"] = _column(x, columns, relu=True)
    return found


def _column(x, columns, relu):
    return lambda: column_conv2d(x, *columns, kernel_size=KERNEL, padding=1, relu=relu)


def measure(functions, rounds):
    """Times of functions that alternate, in µs: one column a function, one row a round."""
    rows = []
    for _ in range(WARM_UP + rounds):
        row = {}
        for name in random.sample(list(functions), len(functions)):
            began = time.perf_counter()
            functions[name]()
            row[name] = 1e6 * (time.perf_counter() - began)
        rows.append(row)
    return pd.DataFrame(rows[WARM_UP:])


def report(times):
    """Markdown of one shape: the dense variants, then the column-sparse ones with their speed-ups."""
    quartiles = times.quantile([0.25, 0.5, 0.75])
    median = quartiles.loc[0.5]
    shown = {name: f"{median[name]:.0f} ({q[0.25]:.0f}–{q[0.75]:.0f})" for name, q in quartiles.items()}
    dense = [name for name in times if not name.startswith("column")]
    rows = []
    for sparsity in SPARSITIES:
        plain, fused = f"column {sparsity}", f"column, relu {sparsity}"
        row = {"columns gone": f"{sparsity:.0%}", "column µs": shown[plain]}
        row |= {f"× {name}": f"{median[name] / median[plain]:.2f}" for name in ("dense", "dense bf16")}
        row |= {"column, relu µs": shown[fused]}
        row |= {f"× {name}": f"{median[name] / median[fused]:.2f}" for name in ("dense, relu", "conv, bn, relu")}
        rows.append(row)
    title = "; ".join(f"{name} {shown[name]} µs" for name in dense)
    return f"{title}\n\n{pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)}\n"


@torch.no_grad()
def main():
    """Print the table of every shape."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=50)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    kernel = "C kernel" if cpu.available() else "reference"
    device = device_name(torch.device("cpu"))
    print(f"{device}; {options.threads} threads; PyTorch {torch.__version__}; {kernel}; batch {options.batch};")
    print(f"median (quartiles) of {options.rounds} alternating rounds; commit {git_commit()}\n")
    for channels, side in SHAPES:
        print(f"{channels}→{channels} channels, {KERNEL}×{KERNEL}, {side}×{side}: ", end="")
        print(report(measure(variants(channels, side, options.batch), options.rounds)))


if __name__ == "__main__":
    main()
