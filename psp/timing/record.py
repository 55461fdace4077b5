"""Measure networks on one device and write down all of it: the record that the timing tables and figures read."""

import torch

from psp.cost import cost
from psp.extract import extract, fold_batchnorm
from psp.parameterize import sparsity
from psp.records import provenance, read_record
from psp.timing.measure import alternate
from psp.timing.networks import masks_sha256
from psp.timing.settings import NO_GPU
from psp.timing.variants import make_variant
from psp.timing.work import measure_limits, work

SCHEMA = 1
SIDE = 32  # of the images, in pixels
CHECK_IMAGES = 8


def timing_record(networks, settings, device):
    """The record of timing `networks` on a device.

    Args:
        networks: pairs of a description, a dict for the record, and a masked network in evaluation mode.
        settings: {"batches": […], "backends": […], "precisions": […]}.
        device: a torch device.
    """
    return {
        "schema": SCHEMA,
        "kind": device.type,
        "settings": settings,
        "limits": measure_limits(device)._asdict(),
        "networks": [description | time_network(masked, settings, device) for description, masked in networks],
        "provenance": provenance(device),
    }


def without_gpu(earlier, profile):
    """What a machine without a GPU writes as the GPU's record.

    `earlier` is the record that is there, or None. One measured on a GPU elsewhere stays as long as it is of the same
    settings and masks; otherwise there are no GPU times.
    """
    if earlier and "networks" in earlier and earlier["settings"] == profile.timing.as_dict():
        trained = {n["name"]: n["masks_sha256"] for n in earlier["networks"] if n["masks"] == "trained"}
        if all(masks_sha256(read_record(profile.record_path(run))) == sha for run, sha in trained.items()):
            return earlier
    return {"schema": SCHEMA, "kind": "cuda", "unavailable": NO_GPU}


def time_network(masked, settings, device):
    """One network's entry: sparsity, cost, the largest difference of its outputs, and all times, dense and extracted.

    The dense network is the masked one with its batch normalization folded: zeros take as long as other numbers.
    """
    masked = masked.to(device)
    images = torch.randn(CHECK_IMAGES, 3, SIDE, SIDE, device=device)
    networks = {"dense": fold_batchnorm(masked), "extracted": extract(masked, images)}
    entry = {
        "sparsity": {"structures": sparsity(masked).structures, "weights": sparsity(masked).weights},
        "cost": {name: cost(network, images[:1])._asdict() for name, network in networks.items()},
        "difference": difference(networks["extracted"], masked, images),
        "timings": [],
        "unavailable": [],
    }
    for batch in settings["batches"]:
        timings, reasons = time_batch(networks, settings, torch.randn(batch, 3, SIDE, SIDE, device=device))
        entry["timings"] += timings
        entry["unavailable"] += [reason for reason in reasons if reason not in entry["unavailable"]]
    return entry


def time_batch(networks, settings, images):
    """(times of every network in every variant, taking turns; the variants that there are not here, and why)."""
    calls, reasons = {}, []
    threads = torch.get_num_threads()
    for backend in settings["backends"]:
        for precision in settings["precisions"]:
            for name, network in networks.items():
                call = make_variant(backend, precision, network, images, threads)
                if isinstance(call, str):
                    reasons.append({"backend": backend, "precision": precision, "reason": call})
                else:
                    calls[name, backend, precision] = call
    measured = alternate(calls, images.device, threads)
    done = {name: work(network, images)._asdict() for name, network in networks.items()}
    timings = [
        {"network": key[0], "batch": len(images), "backend": key[1], "precision": key[2]}
        | timing._asdict()
        | done[key[0]]
        for key, timing in measured.items()
    ]
    return timings, reasons


@torch.no_grad()
def difference(ours, theirs, images):
    """Largest |difference| of two networks' outputs, relative to the largest output."""
    expected = theirs(images)
    return ((ours(images) - expected).abs().max() / expected.abs().max()).item()
