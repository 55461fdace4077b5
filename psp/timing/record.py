"""Measure networks on one device and write down all of it: the record that the timing tables and figures read."""

from itertools import product

import torch

from psp.errors import ConfigError, in_short
from psp.extraction.compare import distance
from psp.extraction.cost import cost
from psp.extraction.extract import extract, fold_batchnorm
from psp.files import read_json
from psp.method.parameterize import sparsity
from psp.runs.provenance import provenance
from psp.runs.record import record_of
from psp.timing.measure import alternate
from psp.timing.networks import masks_sha256
from psp.timing.settings import NO_GPU
from psp.timing.variants import make_variant, outputs
from psp.timing.work import measure_limits, nonzero_macs, work

SCHEMA = 2
CHECK_IMAGES = 8
# From the outputs of the network itself, relative to the largest; GPUs round products of float32 to 10 bits.
FARTHEST = {"float32": 1e-2, "bfloat16": 0.1}
SMALL = 1e-3


class DenseNetworks:
    """What the extracted networks are compared with: one of each architecture, made ready (and compiled) only once.

    An architecture is a pair (model name, number of classes). Its network is a masked one with its batch normalization
    folded and other numbers for its zeros, which `psp.freeze` would leave out.
    """

    def __init__(self, settings):
        self.settings = settings
        self.networks = {}
        self.variants = {}

    def network(self, architecture, masked):
        """The network of an architecture, of which `masked` is one."""
        if architecture not in self.networks:
            self.networks[architecture] = without_zeros(fold_batchnorm(masked))
        return self.networks[architecture]

    def calls(self, architecture, images):
        """Its variants for a batch of this size, as `make_variants`."""
        key = architecture, images.shape
        if key not in self.variants:
            self.variants[key] = make_variants(self.networks[architecture], self.settings, images)
        return self.variants[key]


@torch.no_grad()
def without_zeros(network):
    """`network` with a small number in place of every parameter that is 0."""
    for parameter in network.parameters():
        parameter[parameter == 0] = SMALL
    return network


def timing_record(networks, settings, device):
    """The record of timing `networks` on a device.

    Args:
        networks: pairs of a description, a dict for the record, and a masked network in evaluation mode.
            Its "model" and "classes" tell which dense network it is compared with; "batches" and "side" are batch and
            image sizes.
        settings: {"backends": […], "precisions": […]}.
        device: a torch device.
    """
    dense = DenseNetworks(settings)
    return {
        "schema": SCHEMA,
        "kind": device.type,
        "settings": settings,
        "limits": measure_limits(device)._asdict(),
        "networks": [about | time_network(about, masked, dense, device) for about, masked in networks],
        "provenance": provenance(device),
    }


def read_timing(profile, kind):
    """The timing record of a profile on a "cpu" or "cuda".

    Raises ConfigError where there is none, a damaged one, or one of other masks than those of the profile's runs.
    """
    path, remedy = profile.timing_path(kind), f"run: python -m psp.pipeline timing {profile.name}"
    if not path.is_file():
        raise ConfigError(f"no timing record {path}; {remedy}")
    record = read_json(path, remedy)
    if changed := trained_anew(record, profile):
        raise ConfigError(f"{path} has times of earlier masks of {', '.join(changed)}; {remedy}")
    return record


def trained_anew(record, profile):
    """The runs whose masks are others now than when they were timed."""
    timed = {n["name"]: n["masks_sha256"] for n in record.get("networks", ()) if n["masks"] == "trained"}
    return [run for run, sha in timed.items() if masks_sha256(record_of(profile, run)) != sha]


def without_gpu(earlier, profile):
    """What a machine without a GPU writes as the GPU's record.

    `earlier` is the record that is there, or an empty one. One measured on a GPU elsewhere stays as long as it is of
    the same settings and masks; otherwise there are no GPU times.
    """
    timed = "networks" in earlier and earlier["settings"] == profile.timing.as_dict()
    if timed and not trained_anew(earlier, profile):
        return earlier
    return {"schema": SCHEMA, "kind": "cuda", "unavailable": NO_GPU}


def time_network(about, masked, dense, device):
    """One network's entry: sparsity, cost, the largest difference of its outputs, and all its times."""
    masked = masked.to(device)
    side = about["side"]
    images = torch.randn(CHECK_IMAGES, 3, side, side, device=device)
    architecture = about["model"], about["classes"]
    networks = {"dense": dense.network(architecture, masked), "extracted": extract(masked, images)}
    pruned = sparsity(masked)
    entry = {
        "sparsity": {"structures": pruned.structures, "weights": pruned.weights},
        "cost": {name: cost(network, images[:1])._asdict() for name, network in networks.items()},
        "nonzero_macs": nonzero_macs(networks["extracted"], images[:1]),
        "difference": difference(networks["extracted"], masked, images),
        "timings": [],
        "unavailable": [],
        "dense_unavailable": [],
    }
    for batch in about["batches"]:
        images = torch.randn(batch, 3, side, side, device=device)
        calls, missing = make_variants(networks["extracted"], dense.settings, images)
        dense_calls, dense_missing = dense.calls(architecture, images)
        calls, without = with_dense(calls, dense_calls, batch)
        entry["unavailable"] += missing + without
        entry["dense_unavailable"] += dense_missing
        made = {"dense": dense_calls, "extracted": calls}
        entry["timings"] += time_batch(networks, made, images)
    return entry


def with_dense(calls, dense_calls, batch):
    """(the variants among `calls` that the dense network has, too; the others, and why they are left out).

    A variant that only the extracted network has would make its speed-up one over a slower dense network.
    """
    shared = {variant: call for variant, call in calls.items() if variant in dense_calls}
    about = {"batch": batch, "reason": "the dense network is not to be had in it"}
    return shared, [about | {"backend": b, "precision": p} for b, p in calls if (b, p) not in shared]


@torch.no_grad()
def make_variants(network, settings, images):
    """({(backend, precision): function}, [those that there are not here, and why]) of one network and batch."""
    calls, missing, expected = {}, [], network(images)
    for backend, precision in product(settings["backends"], settings["precisions"]):
        call = checked_variant(backend, precision, network, images, expected)
        if isinstance(call, str):
            missing.append({"batch": len(images), "backend": backend, "precision": precision, "reason": call})
        else:
            calls[backend, precision] = call
    return calls, missing


def checked_variant(backend, precision, network, images, expected):
    """As `make_variant`; a text also where it fails, or where its outputs are further than `FARTHEST` from `expected`.

    What is wrong may be as fast as it likes, and what one engine stumbles over is no reason to lose the others' times.
    """
    try:
        call = make_variant(backend, precision, network, images, torch.get_num_threads())
        if isinstance(call, str) or (off := distance(outputs(call()), expected)) <= FARTHEST[precision]:
            return call
    except ConfigError:
        raise
    except Exception as error:
        return in_short(error)
    return f"its outputs are {off:.2g} of the largest one away from the network's"


def time_batch(networks, made, images):
    """The times of all variants of the dense and of the extracted network, which take turns."""
    calls = {(name, *variant): call for name, variants in made.items() for variant, call in variants.items()}
    measured = alternate(calls, images.device, torch.get_num_threads())
    done = {name: work(network, images)._asdict() for name, network in networks.items()}
    return [
        {"network": name, "batch": len(images), "backend": backend, "precision": precision}
        | measured[name, backend, precision]._asdict()
        | done[name]
        for name, backend, precision in calls
    ]


@torch.no_grad()
def difference(ours, theirs, images):
    """Largest |difference| of two networks' outputs, relative to the largest output."""
    return distance(ours(images), theirs(images))
