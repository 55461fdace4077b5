"""The pruned networks that are timed: with the masks of a trained run, or with random ones of a given sparsity."""

import hashlib
import json
from itertools import product
from typing import NamedTuple

import torch
from torch import nn

from psp.data.sets import classes_of
from psp.extraction.cost import cost
from psp.extraction.extract import extract, fold_batchnorm
from psp.method.baselines import fix_sparsity
from psp.method.masks import apply_masks
from psp.method.methods import build_model
from psp.method.parameterize import parameterize, structure_parameters
from psp.method.pruners import originals
from psp.models import create_model
from psp.runs.config import RunConfig
from psp.runs.record import record_of
from psp.timing.work import nonzero_macs

SEED = 0


def networks(profile, config):
    """Pairs of a description, a dict for the record, and a masked network: those that a `TimingConfig` names.

    Images have the side of a run's test images; for random masks, of the profile's first run. These have as many
    classes as the runs, 10 where no run is timed.
    """
    for structure in config.structures:  # before any time is spent: a structure that the network cannot have
        parameterize(create_model(config.model), structure, skip=config.skip)
    records = {run: record_of(profile, run) for run in config.runs}
    for run, record in records.items():
        settings, classes = profile.config(run), classes_of(record["data"])
        about = {"name": run, "model": settings.model, "structure": settings.structure, "masks": "trained"}
        about |= {"masks_sha256": masks_sha256(record), "batches": list(config.batches), "side": settings.test_side}
        about |= {"classes": classes}
        yield about, trained_masks(settings, classes, record)
    classes = next((classes_of(record["data"]) for record in records.values()), 10)
    side = next(iter(profile.runs.values())).test_side
    for structure, sparsity in product(config.structures, config.sparsities):
        name = f"{config.model}-{structure}-{round(100 * sparsity)}"
        about = {"name": name, "model": config.model, "structure": structure, "masks": "random"}
        about |= {"batches": [config.random_batch], "side": side, "classes": classes}
        yield about, random_masks(config.model, structure, sparsity, config.skip, classes)


def masks_sha256(record):
    """By which a timing knows whether it still is that of the run's masks."""
    return hashlib.sha256(json.dumps(record["masks"], sort_keys=True).encode()).hexdigest()


def trained_masks(config, classes, record):
    """The network of a run in evaluation mode, with the run's last masks and random weights."""
    torch.manual_seed(SEED)
    return lively(apply_masks(build_model(config, classes), record))


def left_by(record):
    """The network that a run's record leaves, extracted, of a dense run the dense one; in evaluation mode.

    Its batch normalization is folded, its weights are random: what a network costs and how fast it is, masks decide.
    """
    config = RunConfig.of(record["config"])
    network = trained_masks(config, classes_of(record["data"]), record)
    if config.method == "baseline":
        return fold_batchnorm(network)
    return extract(network, torch.randn(1, 3, config.test_side, config.test_side))


class CostLeft(NamedTuple):
    """Parameters of an extracted network, and multiply-accumulates of the dense one over its own by weights not 0."""

    params: int
    mac_reduction: float


def cost_left(record):
    """`CostLeft` of what a run's record leaves, for one test image."""
    side = RunConfig.of(record["config"]).test_side
    image, left = torch.zeros(1, 3, side, side), left_by(record)
    dense = create_model(record["config"]["model"], classes_of(record["data"]))
    return CostLeft(cost(left, image).params, cost(dense, image).macs / nonzero_macs(left, image))


def random_masks(name, structure, sparsity, skip, classes=10):
    """A network in evaluation mode of which the share `sparsity` of the structures of every layer is pruned at random.

    With structure "layer" it is the share of the layers, each by itself.
    """
    torch.manual_seed(SEED)
    model = create_model(name, classes)
    if structure == "layer":
        parameterize(model, structure, skip=skip, place="weight")
        alphas = list(structure_parameters(model).values())
        for i in torch.randperm(len(alphas))[: round(sparsity * len(alphas))]:
            alphas[i].data.zero_()
    else:
        fix_sparsity(model, structure, sparsity, skip=skip)
        for alpha in structure_parameters(model).values():
            alpha.data.uniform_(0.5, 1.5)
    return lively(model)


def lively(model):
    """Give every batch normalization the statistics and parameters of a trained one, at random; in evaluation mode.

    In a fresh network they are 0 and 1, and what is pruned would leave no constant behind: smaller than real ones.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(*originals(module), 0.5, 1.5)
            nn.init.normal_(*originals(module, "bias"), std=0.3)
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()
