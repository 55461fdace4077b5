"""One epoch of a run: a plain loop of SGD, the same for all methods, and the state that it changes."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch.nn import functional as F

from psp.data.sets import normalize
from psp.errors import DivergedError
from psp.method.methods import before_step
from psp.method.parameterize import sparsity
from psp.runs.record import alpha_counts
from psp.training.distributed import ALONE, Processes, Statistics, no_exchange

WARMUP = 0.1
# The loss is looked at every so many steps: each look makes a GPU wait for the CPU.
LOOK_EVERY = 20


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

    @property
    def device(self):
        """Where the network is, and so a step computed."""
        return next(self.model.parameters()).device


def train_epoch(state, images, data, config, bar):
    """One pass over `images` in random order (a last, smaller batch is left out); returns its point of the curve."""
    state.model.train()
    device, together = state.device, state.processes
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
    pixels, labels = (tensor.to(state.device, non_blocking=True) for tensor in micro_batch)
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
