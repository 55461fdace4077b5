"""Whether a recorded run comes out again: it is trained from its seed, beside everything, and compared."""

import tempfile

import torch

from psp.data.sets import load
from psp.errors import DataError
from psp.runs.record import record_of
from psp.training.fast import can_build
from psp.training.train import train


def check(profile, run):
    """Train a run that has a record once more, into a folder that is thrown away, and compare the two, in words.

    By the same number of threads and, where this machine has it, the same step, on the same kind of device. Raises,
    before any training, ConfigError where the run has no record and DataError where the images at hand are others.
    """
    recorded = record_of(profile, run)
    config, found = profile.config(run), load(profile.config(run).dataset).summary()
    if found != recorded["data"]:
        raise DataError(f"{run} was trained on {recorded['data']}, and the images at hand are {found}")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(recorded["provenance"]["threads"])
        with tempfile.TemporaryDirectory() as checkpoints:
            again = train(config, checkpoints=checkpoints, **way(recorded["provenance"]))
    finally:
        torch.set_num_threads(before)
    return "\n".join([f"{run}:", *(f"  {line}" for line in compared(recorded, again))])


def way(origin):
    """Device and step of a provenance as arguments of `psp.train`; of a GPU, which this machine may lack, neither."""
    if not origin["device"].endswith("cores"):
        return {}
    here = origin["step"]["kernels"] in ("plain", *can_build())
    return {"device": "cpu", "step": origin["step"] if here else None}


def compared(recorded, again):
    """Lines that compare the record of a run with that of its repetition."""
    yield f"test error {again['test_error_pct']:.2f} %, recorded {recorded['test_error_pct']:.2f} %"
    pruned, before = (100 * record["sparsity"]["structures"] for record in (again, recorded))
    yield f"structures pruned {pruned:.2f} %, recorded {before:.2f} %"
    if "weights_sha256" not in recorded:
        yield "weights: the record, an early one, does not name them"
    elif again["weights_sha256"] == recorded["weights_sha256"]:
        yield "weights: the same bits"
    else:
        yield "weights: other bits"
    yield f"trained here {how(again)}"
    yield f"recorded     {how(recorded)}"


def how(record):
    """How a run was computed, in words: other kernels, threads and libraries round differently."""
    origin = record["provenance"]
    computed = f"by {origin['step']['kernels']} kernels in {origin['step']['precision']}"
    threads = f"{origin['threads']} thread{'s' * (origin['threads'] != 1)}"
    return f"{computed}, {threads}, torch {origin['versions']['torch']}, {origin['device']}"
