"""Training: one plain loop of SGD, the same for all methods, that can be killed at any moment."""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch.nn import functional as F
from tqdm import tqdm

from psp.data.sets import load, normalize
from psp.errors import CheckpointError, ConfigError, DivergedError, KernelError
from psp.method.methods import before_step, build_model, groups
from psp.method.parameterize import sparsity
from psp.runs.config import RunConfig
from psp.runs.provenance import provenance
from psp.runs.record import alpha_counts, make_record
from psp.training.checkpoint import Checkpoint, file_sha256, weights_file
from psp.training.distributed import ALONE, Processes, Statistics, no_exchange, own_device, processes
from psp.training.evaluate import errors_pct
from psp.training.fast import Network, deterministic, fastest, ways

WARMUP = 0.1
# The loss is looked at every so many steps: each look makes a GPU wait for the CPU.
LOOK_EVERY = 20
# Steps of one trial when the way to compute them is chosen: on a GPU many, of which the first record its CUDA graphs.
TRIAL_STEPS, TRIAL_STEPS_ON_CPU = 10, 1


@dataclass
class State:
    """All that training changes, and how it is computed: the choice of `fast` and the network computed that way."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    processes: Processes = ALONE
    choice: dict | None = None
    network: Callable | None = None
    epoch: int = 0
    curve: list = field(default_factory=list)
    seconds: float = 0.0


def train(config, *, checkpoints="checkpoints", device=None, progress=True):
    """Train one run to its end, from its last checkpoint if there is one; returns its record, a JSON-ready dict.

    A run that is finished already is not trained again: its record is returned as it is. Under `torchrun` its
    processes train it together, from a folder of checkpoints that all of them see.

    Args:
        config: a `RunConfig` or a mapping of its fields.
        checkpoints: folder in which the run keeps its state after every epoch and its final weights.
        device: a torch device; by default the GPU if there is one.
        progress: show a progress bar with loss, error, sparsity and time left.

    Raises:
        ConfigError, DataError, CheckpointError: before training, for settings, images or a checkpoint that do not fit.
        DivergedError: the loss became NaN or infinite; the checkpoint of the last good epoch stays.
    """
    config = RunConfig.of(config)
    device = own_device(device)
    with processes(device) as together:
        return train_together(config, checkpoints, device, progress, together)


def train_together(config, checkpoints, device, progress, together):
    """What `train` does in each of the processes `together`."""
    together.parts(config.micro_batches)
    data = together.first(lambda: load(config.dataset)).to(device)
    training, validation = data.hold_out(config.holdout)
    steps = steps_per_epoch(config, training)
    checkpoint = Checkpoint(checkpoints, config, data.sha256)
    finished = together.share(checkpoint.finished_record())
    if finished:  # before: the test set is not read a second time
        return finished
    origin = provenance(device)  # of the code as it is now, whatever is edited while the run goes on
    with deterministic():
        state = start(config, data.num_classes, device)
        restored = checkpoint.restore(state)
        together.agree(state.epoch if restored else None)
        if not restored:
            own = shared_by(config, together)
            state.choice = together.share(None if together.rank else choose(own, training, data, device))
        state.processes = together
        compute_as_chosen(state)
        origin |= {"step": state.choice, "processes": together.count}
        hidden = not progress or together.rank > 0
        with tqdm(total=config.epochs * steps, initial=state.epoch * steps, disable=hidden, mininterval=1) as bar:
            while state.epoch < config.epochs:
                began = time.perf_counter()
                point = train_epoch(state, training, data, config, bar)
                if len(validation):
                    errors = errors_pct(state.model, validation, data, config, together)
                    point["validation_error_pct"] = errors.top1
                check_finite(state, config)
                state.epoch += 1
                state.curve.append(point)
                state.seconds += time.perf_counter() - began
                if not together.rank:
                    checkpoint.save(state)
        errors = errors_pct(state.model, data.test, data, config, together)
        weights = weights_file(state.model)
        record = make_record(config, data, state, errors, file_sha256(weights), origin)
    if not together.rank:
        checkpoint.finish(weights, record)
    return record


def steps_per_epoch(config, images):
    """Full batches in one pass over `images`. Raises ConfigError if there is not even one."""
    steps = len(images) // config.batch_size
    if steps == 0:
        raise ConfigError(f"batch_size {config.batch_size} exceeds the {len(images)} images of {config.dataset}")
    return steps


def start(config, num_classes, device):
    """A run's state before its first step; everything random in it follows from the seed."""
    torch.manual_seed(config.seed)
    model = build_model(config, num_classes).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(groups(model, config), config.learning_rate, config.momentum, fused=True)
    return State(model, optimizer, torch.Generator().manual_seed(config.seed))


def shared_by(config, together):
    """The settings of a run of which each step is what one of the processes `together` does of a step of `config`."""
    own = len(together.parts(config.micro_batches))
    return replace(config, batch_size=config.batch_size // together.count, micro_batches=own)


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


def train_epoch(state, images, data, config, bar):
    """One pass over `images` in random order (a last, smaller batch is left out); returns its point of the curve."""
    state.model.train()
    device, together = next(state.model.parameters()).device, state.processes
    order = torch.randperm(len(images), generator=state.generator).to(images.labels.device)
    batches = [b for b in order.split(config.batch_size) if len(b) == config.batch_size]
    fed = images.feed(own_parts(images, batches, config, state), config, state.epoch)
    own = len(together.parts(config.micro_batches))
    statistics = Statistics(state.model, config.micro_batches)
    first, steps = state.epoch * len(batches), config.epochs * len(batches)
    losses = torch.zeros(len(batches), device=device)
    wrong = torch.zeros((), device=device, dtype=torch.long)
    for step in range(len(batches)):
        before_step(state.model, config, first + step, steps)
        rate = learning_rate(first + step, steps, config.learning_rate)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        state.optimizer.zero_grad()
        statistics.begin()
        for part in range(own):
            with no_exchange(state.network.module) if part + 1 < own else nullcontext():
                loss, logits, labels = backward(state, next(fed), data, own)
            statistics.part_done()
            losses[step] += loss
            wrong += (logits.argmax(1) != labels).sum()
        statistics.end(together)
        state.optimizer.step()
        bar.update()
        if (step + 1) % LOOK_EVERY == 0 or step + 1 == len(batches):
            look(state, together.sum(losses[: step + 1] / together.count), wrong, config, bar)
    losses, wrong = together.sum(losses) / together.count, together.sum(wrong)
    return {
        "epoch": state.epoch + 1,
        "loss": losses.mean().item(),
        "train_error_pct": 100 * wrong.item() / (len(batches) * config.batch_size),
        "sparsity": sparsity(state.model).structures,
        "log10_alpha_counts": alpha_counts(state.model),
    }


def backward(state, micro_batch, data, parts):
    """Gradients of the loss over a micro-batch, one of `parts`; returns its share of the loss, logits and labels."""
    device = next(state.model.parameters()).device
    pixels, labels = (tensor.to(device, non_blocking=True) for tensor in micro_batch)
    logits = state.network(normalize(pixels, data.mean, data.std))
    loss = F.cross_entropy(logits, labels) / parts
    loss.backward()
    return loss.detach(), logits.detach(), labels


def own_parts(images, batches, config, state):
    """(index, draws) of this process's micro-batches; every process draws for whole batches, so that all agree."""
    size = config.batch_size // config.micro_batches
    for batch in batches:
        draws = images.draws(len(batch), state.generator)
        for part in state.processes.parts(config.micro_batches):
            yield batch[part * size :][:size], draws[part * size :][:size]


def look(state, losses, wrong, config, bar):
    """Show the progress; raise DivergedError, naming the step, if any loss so far is not finite."""
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        raise diverged(f"the loss became {losses[bad[0, 0]].item()}", state, int(bad[0, 0]) + 1, config)
    error = 100 * wrong.item() * state.processes.count / (len(losses) * config.batch_size)
    pruned = f"{100 * sparsity(state.model).structures:.1f}%"
    bar.set_postfix(loss=f"{losses[-1].item():.3f}", error=f"{error:.1f}%", sparsity=pruned, refresh=False)


def check_finite(state, config):
    """Raise DivergedError if an epoch's last step left NaN or infinite weights, before they are saved."""
    if not all(tensor.isfinite().all() for tensor in state.model.state_dict().values()):
        raise diverged("the weights became NaN or infinite", state, "last", config)


def diverged(what, state, step, config):
    """The DivergedError that says what happened where, what is kept and what to do."""
    kept = f"the checkpoint of epoch {state.epoch} is kept" if state.epoch else "there is no checkpoint yet"
    return DivergedError(
        f"{what} at epoch {state.epoch + 1}, step {step}; {kept}. "
        f"Lower the learning rate (now {config.learning_rate}) or the decay and start again"
    )


def learning_rate(step, steps, peak):
    """Rate of step `step` out of `steps`: linear to `peak` over the first tenth, then half a cosine down to zero."""
    warmup = WARMUP * steps
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
