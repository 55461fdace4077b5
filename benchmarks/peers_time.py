"""How fast what each pruner leaves is, beside the dense network: python benchmarks/peers_time.py OUTPUT RECORD …

Records are of benchmarks/peers.py or of `psp.train`, whose masks are extracted. Only shapes and masks decide the time,
so that numbers are random. All variants of all networks take turns at each batch size.
"""

import argparse
from pathlib import Path

import torch
from peers import narrowed

import psp
from psp.data.images import SIDE
from psp.extraction.extract import fold_batchnorm
from psp.files import read_json, write_json
from psp.runs.provenance import provenance
from psp.runs.record import read_record
from psp.timing.networks import left_by
from psp.timing.record import make_variants, time_batch

BATCHES = (1, 64)
SETTINGS = {
    "backends": ["eager", "compile", "onnxruntime", "openvino", "lanes"],
    "precisions": ["float32", "bfloat16"],
}


def network(path):
    """The network that a record leaves, in evaluation mode, its batch normalization folded."""
    record = read_json(path, "train the run again")
    return fold_batchnorm(narrowed(record)) if "pruner" in record else left_by(read_record(path))


def timed(networks, settings=SETTINGS, batches=BATCHES):
    """The record of timing `networks`, {name: network}: costs, and all times as `psp.timing.record` has them."""
    timings = []
    for batch in batches:
        images = torch.randn(batch, 3, SIDE, SIDE)
        made = {name: make_variants(model, settings, images)[0] for name, model in networks.items()}
        timings += time_batch(networks, made, images)
    image = torch.zeros(1, 3, SIDE, SIDE)
    return {
        "cost": {name: psp.cost(model, image)._asdict() for name, model in networks.items()},
        "timings": timings,
        "provenance": provenance(torch.device("cpu")),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="the JSON file to write")
    parser.add_argument("records", type=Path, nargs="+", help="of the networks; named by their files")
    options = parser.parse_args()
    write_json(timed({path.stem: network(path) for path in options.records}), options.output)


if __name__ == "__main__":
    main()
