"""Training: one run from its seed, or its last checkpoint, to its record; it can be killed at any moment."""

import os
import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from psp.data.sets import load
from psp.errors import CheckpointError, ConfigError, KernelError
from psp.method.methods import build_model, groups
from psp.runs.config import RunConfig, code_sha256
from psp.runs.provenance import device_name, provenance
from psp.runs.record import make_record
from psp.training.checkpoint import Checkpoint, file_sha256, weights_file
from psp.training.distributed import own_device, processes
from psp.training.epoch import State, check_finite, train_epoch
from psp.training.evaluate import errors_pct
from psp.training.fast import Network, can_build, check_way, deterministic, fastest, remembered, ways
from psp.training.memory import keep_memory

# Steps of one trial when the way to compute them is chosen: on a GPU many, of which the first record its CUDA graphs.
TRIAL_STEPS, TRIAL_STEPS_ON_CPU = 10, 1


def train(config, *, checkpoints="checkpoints", device=None, progress=True, step=None):
    """Train one run to its end, from its last checkpoint if there is one; returns its record, a JSON-ready dict.

    A run that is finished already is not trained again: its record is returned as it is. Under `torchrun` its
    processes train it together, from a folder of checkpoints that all of them see. On a CPU the process keeps the
    memory of its activations, up to 2 GiB, until it ends (`psp.training.memory`).

    Args:
        config: a `RunConfig` or a mapping of its fields.
        checkpoints: folder in which the run keeps its state after every epoch and its final weights.
        device: a torch device; by default the GPU if there is one.
        progress: show a progress bar with loss, error, sparsity and time left.
        step: how a step is computed, "precision" and "kernels" as in a record's provenance, to repeat its run; chosen
            by a short measurement otherwise (`psp.training.fast`).

    Raises:
        ConfigError, DataError, CheckpointError: before training, for settings, images, a checkpoint that do not fit,
            such as one begun by another step than `step`, a run that another process is training, or a device that is
            not here.
        DivergedError: the loss became NaN or infinite; the checkpoint of the last good epoch stays.
    """
    config = RunConfig.of(config)
    if not isinstance(checkpoints, str | os.PathLike):
        raise ConfigError(f"checkpoints is the path of a folder, got {checkpoints!r}")
    device = own_device(device)
    if step is not None:
        step = check_way(step, device)
    with processes(device) as together:
        return train_together(config, checkpoints, device, progress, step, together)


def train_together(config, checkpoints, device, progress, step, together):
    """What `train` does in each of the processes `together`."""
    together.parts(config.micro_batches)
    with torch.device("meta"):
        build_model(config, num_classes=10)  # raises ConfigError for what no such network has, before images are read
    data = together.first(lambda: load(config.dataset)).to(device)
    training, validation = data.hold_out(config.holdout)
    steps = steps_per_epoch(config, training)
    checkpoint = Checkpoint(checkpoints, config, data.sha256)
    origin = provenance(device)  # of the code as it is now, whatever is edited while the run goes on
    with nullcontext() if together.rank else checkpoint.alone(), deterministic():
        finished = together.share(checkpoint.finished_record())
        if finished:  # before: the test set is not read a second time
            return finished
        state = start(config, data.num_classes, device)
        restored = checkpoint.restore(state, step)
        together.agree(state.epoch if restored else None)
        if not restored:
            own = shared_by(config, together)
            choose_first = partial(chosen, own, training, data, device, checkpoints)
            state.choice = step or together.share(None if together.rank else choose_first())
        state.processes = together
        compute_as_chosen(state)
        origin |= {"step": state.choice, "processes": together.count, "threads": torch.get_num_threads()}
        hidden = not progress or together.rank > 0
        with tqdm(total=config.epochs * steps, initial=state.epoch * steps, disable=hidden, mininterval=1) as bar:
            while state.epoch < config.epochs:
                one_epoch(state, training, validation, data, config, bar)
                if not together.rank:
                    checkpoint.save(state)
        errors = errors_pct(state.model, data.test, data, config, together)
        weights = weights_file(state.model)
        record = make_record(config, data, state, errors, file_sha256(weights), origin)
        if not together.rank:
            checkpoint.finish(weights, record)
    return record


def one_epoch(state, training, validation, data, config, bar):
    """Train over `training` once, look at `validation`, if there is any, and add the point to the state's curve."""
    began = time.perf_counter()
    point = train_epoch(state, training, data, config, bar)
    if len(validation):
        point["validation_error_pct"] = errors_pct(state.model, validation, data, config, state.processes).top1
    check_finite(state, config)
    state.epoch += 1
    state.curve.append(point)
    state.seconds += time.perf_counter() - began


def steps_per_epoch(config, images):
    """Full batches in one pass over `images`. Raises ConfigError if there is not even one."""
    steps = len(images) // config.batch_size
    if steps == 0:
        raise ConfigError(f"batch_size {config.batch_size} exceeds the {len(images)} images of {config.dataset}")
    return steps


def start(config, num_classes, device):
    """A run's state before its first step; everything random in it follows from the seed."""
    if device.type == "cpu":
        keep_memory()
    torch.manual_seed(config.seed)
    model = build_model(config, num_classes).to(device, memory_format=torch.channels_last)
    return State(model, make_optimizer(model, config), torch.Generator().manual_seed(config.seed))


def make_optimizer(model, config):
    return torch.optim.SGD(groups(model, config), config.learning_rate, config.momentum, fused=True)


def shared_by(config, together):
    """The settings of a run of which each step is what one of the processes `together` does of a step of `config`."""
    own = len(together.parts(config.micro_batches))
    return replace(config, batch_size=config.batch_size // together.count, micro_batches=own)


def chosen(config, images, data, device, checkpoints):
    """The way to compute a step of this run, measured once for all runs of its kind that keep their checkpoints there.

    So the runs of a sweep are computed alike, whatever else the machine was doing when one of them began.
    """
    kind = [config.dataset, config.model, config.batch_size, config.micro_batches, config.sides]
    kind += [config.method == "baseline", device_name(device), torch.get_num_threads(), code_sha256()]
    kind.append(can_build() if device.type == "cpu" else [])
    return remembered(Path(checkpoints) / "ways.json", kind, lambda: choose(config, images, data, device))


def choose(config, images, data, device):
    """The fastest way to compute a step of this run here, by trying all on a few of its images."""
    steps = TRIAL_STEPS_ON_CPU if device.type == "cpu" else TRIAL_STEPS
    few = images.rows(slice(0, steps * config.batch_size)).cropped(config)  # steps are tried, not disks
    still = replace(config, learning_rate=1e-9)  # so that no trial can diverge

    def ready(choice):
        state = start(still, data.num_classes, device)
        state.choice = choice
        state.network = Network(state.model, choice)
        return lambda: train_epoch(state, few, data, still, tqdm(disable=True))

    return fastest([(choice, partial(ready, choice)) for choice in ways(device)], len(few))


def compute_as_chosen(state):
    """Make ready what the state's choice needs. Raises CheckpointError where this machine cannot resume it."""
    try:
        state.network = Network(state.model, state.choice, state.processes.parallel)
    except KernelError as error:
        raise CheckpointError(
            f"the run was begun with {state.choice['kernels']} kernels, which this machine lacks ({error}); "
            "go on where it began, or delete its checkpoint to start anew"
        ) from error
