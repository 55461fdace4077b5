"""What a user would take instead of PSP, on our schedule: python benchmarks/peers.py RECORD --pruner slimming …

A pruner of torch-pruning, through its public interface: for the first epochs it adds its regularizer to the gradients,
then removes channels, least important first over the whole network, until the multiply-accumulates are down by the
factor asked for; the rest of the schedule trains what is left. Images, augmentation, optimizer, rates and the error are
those of psp.train; the optimizer begins anew after the removal, as the tensors it knew are gone.

Only channels within the blocks go. The shortcuts of these networks pad channels with zeros, before and behind, and
torch-pruning takes channel k before such a shortcut for channel k behind it: what it removes along the shortcuts would
misroute those that are left. So what cannot go is not decayed either.
"""

import argparse
import copy
import hashlib
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
import torch_pruning
from torch import nn
from tqdm import tqdm

import psp
from psp.data.images import SIDE
from psp.data.sets import load
from psp.extraction.extract import fold_batchnorm
from psp.files import sealed, write_json
from psp.runs.config import RunConfig
from psp.runs.provenance import provenance
from psp.timing.networks import lively
from psp.training.evaluate import errors_pct
from psp.training.fast import Network, deterministic
from psp.training.train import chosen, make_optimizer, one_epoch, start, steps_per_epoch

STEPS = 200  # in which a pruner goes from nothing to all of the channels; it is stopped on the way
MOST = 0.95  # of the channels of one layer
# What a layer knows of the shape of its weights.
SIZES = {
    nn.Conv2d: ("out_channels", "in_channels"),
    nn.Linear: ("out_features", "in_features"),
    nn.BatchNorm2d: ("num_features",),
}
# Network slimming (Liu et al. 2017): decay by sign on the scales of batch normalization, which rank the channels of all
# layers together; torch-pruning's default divides them by their layer's mean first. Group norm (DepGraph, Fang et al.
# 2023): decay on weights that grows as a group's norm falls, by which groups are ranked, relative to the mean of their
# layer's, as torch-pruning does unless told otherwise, or to the largest, as its authors do on CIFAR.
PRUNERS = {
    "slimming": (
        torch_pruning.pruner.BNScalePruner,
        partial(torch_pruning.importance.BNScaleImportance, normalizer=None),
    ),
    "group_norm": (
        torch_pruning.pruner.GroupNormPruner,
        partial(torch_pruning.importance.GroupMagnitudeImportance, p=2),
    ),
    "group_norm_max": (
        torch_pruning.pruner.GroupNormPruner,
        partial(torch_pruning.importance.GroupMagnitudeImportance, p=2, normalizer="max"),
    ),
}


def make_pruner(name, model, image, regularization):
    """A pruner of torch-pruning for the channels within the blocks of `model`, one of psp.models.resnet."""
    kind, importance = PRUNERS[name]
    blocks = [block for stage in (model.layer1, model.layer2, model.layer3) for block in stage]
    # With the first convolution all stays that is added to its channels.
    kept = [model.conv1, model.bn1, model.fc, *(block.bn2 for block in blocks)]
    options = {"global_pruning": True, "pruning_ratio": 1.0, "max_pruning_ratio": MOST, "iterative_steps": STEPS}
    return kind(model, image, importance(), reg=regularization, ignored_layers=kept, **options)


def remove(pruner, model, image, reduction):
    """Remove channels of `model`, in place, until 1/`reduction` of its multiply-accumulates are left."""
    wanted = psp.cost(model, image).macs / reduction
    for step in range(STEPS + 1):
        if psp.cost(model, image).macs <= wanted:
            return
        if step < STEPS:
            pruner.step()
    raise SystemExit(f"with {MOST:.0%} of each layer's channels gone the costs are not yet down by {reduction}")


def train(config, pruner_name, regularization, prune_epoch, reduction, checkpoints):
    """Train and prune one network; returns its record, a JSON-ready dict, with the shapes that are left.

    After `prune_epoch` epochs channels are removed until 1/`reduction` of the multiply-accumulates are left.
    """
    device = torch.device("cpu")
    data = load(config.dataset)
    training, validation = data.hold_out(config.holdout)
    image = torch.zeros(1, 3, SIDE, SIDE)
    origin = provenance(device)
    with deterministic():
        state = start(config, data.num_classes, device)
        trial = lively(copy.deepcopy(state.model))  # ends here, before any time is spent, where so much cannot go
        remove(make_pruner(pruner_name, trial, image, regularization), trial, image, reduction)
        state.choice = chosen(config, training, data, device, checkpoints)
        state.network = Network(state.model, state.choice)
        pruner = make_pruner(pruner_name, state.model, image, regularization)
        decay = state.optimizer.register_step_pre_hook(lambda *_: pruner.regularize(state.model))
        before = psp.cost(state.model, image)
        with tqdm(total=config.epochs * steps_per_epoch(config, training), mininterval=10) as bar:
            for epoch in range(config.epochs):
                if epoch == prune_epoch:
                    decay.remove()
                    remove(pruner, state.model, image, reduction)
                    state.optimizer = make_optimizer(state.model, config)
                    state.network = Network(state.model, state.choice)
                one_epoch(state, training, validation, data, config, bar)
        errors = errors_pct(state.model, data.test, data, config)
    after = psp.cost(fold_batchnorm(state.model.eval()), image)  # as what psp.extract leaves
    return {
        "pruner": pruner_name,
        "regularization": regularization,
        "prune_at": prune_epoch / config.epochs,
        "reduction": reduction,
        "config": config.as_dict(),
        "data": data.summary(),
        "test_error_pct": errors.top1,
        "mac_reduction": before.macs / after.macs,
        "parameters": after.params,
        "shapes": {name: list(values.shape) for name, values in state.model.state_dict().items()},
        "curve": state.curve,
        "provenance": {
            **origin,
            "benchmark_sha256": hashlib.sha256(Path(__file__).read_bytes()).hexdigest(),
            "step": state.choice,
            "torch_pruning": version("torch-pruning"),  # the package calls itself by an older one
        },
    }


def narrowed(record):
    """A network of the shapes in a record of `train`, of random numbers, in evaluation mode: as fast as the trained."""
    model = psp.create_model(record["config"]["model"], record["shapes"]["fc.bias"][0])
    for name, shape in record["shapes"].items():
        owner, _, key = name.rpartition(".")
        module = model.get_submodule(owner)
        if shape:  # not the count of batches
            values = torch.randn(shape)
            setattr(module, key, nn.Parameter(values) if key in module._parameters else values)
    for module in model.modules():
        for axis, size in enumerate(SIZES.get(type(module), ())):
            setattr(module, size, module.weight.shape[axis])
    return lively(model)


def new_file(text):
    """The path on a command line of a file to write."""
    path = Path(text)
    if path.exists():
        raise argparse.ArgumentTypeError(f"{path} is there already: move it away, or name another")
    return path


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("record", type=new_file, help="the JSON file to write")
    parser.add_argument("--pruner", choices=PRUNERS, required=True)
    parser.add_argument("--regularization", type=float, default=1e-4)
    parser.add_argument("--prune-at", type=float, default=0.5, help="share of the epochs before the removal, rounded")
    parser.add_argument("--reduction", type=float, required=True, help="of multiply-accumulates")
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=0.2)
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--holdout", type=int, default=0, help="training images held out, for the search of settings")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoints", default="checkpoints", help="folder that remembers how steps are computed")
    options = vars(parser.parse_args(arguments))
    record = options.pop("record")
    prune_epoch = round(options.pop("prune_at") * options["epochs"])
    if not 0 < prune_epoch < options["epochs"]:
        parser.error(
            f"--prune-at leaves {prune_epoch} of {options['epochs']} epochs before the removal: both need some"
        )
    if not options["reduction"] > 1:
        parser.error(f"--reduction is by how much costs are divided, more than 1, got {options['reduction']}")
    pruner, regularization, reduction, checkpoints = (
        options.pop(name) for name in ("pruner", "regularization", "reduction", "checkpoints")
    )
    config = RunConfig(method="baseline", **options)
    write_json(sealed(train(config, pruner, regularization, prune_epoch, reduction, checkpoints)), record)


if __name__ == "__main__":
    main()
