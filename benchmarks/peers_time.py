"""How fast what each pruner leaves is, beside the dense one: python benchmarks/peers_time.py OUTPUT NAME=RECORD …

Records are of benchmarks/peers.py or of `psp.train`, whose masks are extracted; that of a network without pruning is
named dense. Only shapes and masks decide the time, so that numbers are random. All variants of all networks take turns
at each batch size.
"""

import argparse
import hashlib
from pathlib import Path

import torch
from peers import narrowed, new_file

import psp
from psp.data.images import SIDE
from psp.extraction.extract import fold_batchnorm
from psp.files import read_json, sealed, write_json
from psp.report.peers import DAMAGED, read_sealed
from psp.runs.provenance import provenance
from psp.runs.record import read_record
from psp.timing.networks import left_by
from psp.timing.record import make_variants, time_batch, with_dense
from psp.timing.work import nonzero_macs

BATCHES = (1, 64)
SETTINGS = {
    "backends": ["eager", "compile", "onnxruntime", "openvino", "lanes"],
    "precisions": ["float32", "bfloat16"],
}


def network(path):
    """The network that a record leaves, in evaluation mode, its batch normalization folded."""
    if "pruner" in read_json(path, DAMAGED):
        return fold_batchnorm(narrowed(read_sealed(path)))
    return left_by(read_record(path))


def timed(networks, settings=SETTINGS, batches=BATCHES):
    """What was measured of `networks`, {name: network}: costs, and all times as `psp.timing.record` has them.

    One of them is named dense; the others are timed in the variants that it has, too.
    """
    timings, unavailable = [], []
    for batch in batches:
        images, made = torch.randn(batch, 3, SIDE, SIDE), {}
        for name in sorted(networks, key="dense".__ne__):  # that one first
            calls, missing = make_variants(networks[name], settings, images)
            made[name], without = with_dense(calls, made.get("dense", calls), batch)
            unavailable += [{"network": name, **variant} for variant in missing + without]
        timings += time_batch(networks, made, images)
    image = torch.zeros(1, 3, SIDE, SIDE)
    return {
        "cost": {name: psp.cost(model, image)._asdict() for name, model in networks.items()},
        "nonzero_macs": {name: nonzero_macs(model, image) for name, model in networks.items()},
        "timings": timings,
        "unavailable": unavailable,
        "provenance": provenance(torch.device("cpu")),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=new_file, help="the JSON file to write")
    parser.add_argument("records", nargs="+", metavar="NAME=RECORD", help="of the networks, one of them named dense")
    options = parser.parse_args()
    pairs = [text.partition("=")[::2] for text in options.records]
    paths = dict(pairs)
    if not all(paths.values()) or "dense" not in paths or len(paths) < len(pairs):
        parser.error("records are given as NAME=RECORD, each name once, one of them dense=…")
    sources = {name: hashlib.sha256(Path(path).read_bytes()).hexdigest() for name, path in paths.items()}
    measured = timed({name: network(Path(path)) for name, path in paths.items()})
    write_json(sealed({"records_sha256": sources, **measured}), options.output)


if __name__ == "__main__":
    main()
