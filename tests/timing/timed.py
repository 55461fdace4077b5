"""What the tests of timing share: settings, a small network, a record of a machine."""

import torch
from torch import nn

CPU = torch.device("cpu")
SETTINGS = {
    "batches": [1, 4],
    "backends": ["eager"],
    "precisions": ["float32"],
    "runs": [],
    "model": "resnet20",
    "skip": ["conv1", "fc"],
    "structures": ["channel"],
    "sparsities": [0.5],
    "random_batch": 4,
}


def small_net():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(144, 5))
    return net.eval()


def timing(network, batch, backend, precision, seconds, macs):
    return {
        "network": network,
        "batch": batch,
        "backend": backend,
        "precision": precision,
        "median_s": seconds,
        "low_s": 0.9 * seconds,
        "high_s": 1.2 * seconds,
        "values": 1000,
        "macs": macs,
    }


def record():
    """One network at a quarter of the MACs; dense is fastest compiled in bf16, the extracted one eager in float32."""
    timings = [
        timing("dense", 64, "eager", "float32", 0.008, 400),
        timing("dense", 64, "onnxruntime", "float32", 0.006, 400),
        timing("dense", 64, "compile", "bfloat16", 0.004, 400),
        timing("extracted", 64, "eager", "float32", 0.002, 100),
        timing("extracted", 64, "compile", "bfloat16", 0.0025, 100),
    ]
    network = {
        "name": "n",
        "model": "resnet20",
        "structure": "channel",
        "masks": "random",
        "batches": [64],
        "sparsity": {"structures": 0.5, "weights": 0.5},
        "cost": {"dense": {"params": 40, "macs": 400}, "extracted": {"params": 10, "macs": 120}},
        "nonzero_macs": 100,
        "timings": timings,
        "unavailable": [],
        "difference": 1e-7,
    }
    limits = {"bytes_per_s": 4e6, "flops": {"float32": 1e6, "bfloat16": 4e6}}
    settings = SETTINGS | {"precisions": ["float32", "bfloat16"]}
    return {"kind": "cpu", "limits": limits, "networks": [network], "settings": settings}


def on(device, seconds=0.002):
    """The record as a machine made it, with the time of its fastest extracted variant."""
    made = record() | {"provenance": {"device": device}}
    made["networks"][0]["timings"][3]["median_s"] = seconds
    return made
