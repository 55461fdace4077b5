"""Several processes that train one network, as `torchrun` starts them; alone otherwise.

A step's batch is cut into `micro_batches`, whatever computes them: one process one after the other, or several
processes their share each (gradient accumulation, each part with batch statistics of its own, as in ghost batch
normalization). Gradients are averaged over them (by DistributedDataParallel between processes), and so are
the running statistics of batch normalization. So the numbers of a run do not depend, up to rounding, on how many
devices did it.
"""

import os
import warnings
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from psp.errors import CheckpointError, ConfigError, in_short

# Others wait while the first process decodes a large set or tries out how to compute a step.
PATIENCE = timedelta(hours=2)


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this is."""

    rank: int = 0
    count: int = 1

    def sum(self, tensor):
        """The sum of a tensor over all processes, in place."""
        if self.count > 1:
            distributed.all_reduce(tensor)
        return tensor

    def share(self, value):
        """The first process's value, in all of them."""
        values = [value]
        if self.count > 1:
            distributed.broadcast_object_list(values)
        return values[0]

    def agree(self, epoch):
        """Raise CheckpointError unless all processes go on from the same epoch, None being the start."""
        epochs = [epoch] * self.count
        if self.count > 1:
            distributed.all_gather_object(epochs, epoch)
        if len(set(epochs)) > 1:
            found = ", ".join(f"process {rank} {epoch or 'none'}" for rank, epoch in enumerate(epochs))
            raise CheckpointError(
                f"last epoch in checkpoints/: {found}; all processes must see one and the same folder"
            )

    def first(self, function):
        """What a function gives, called in the first process before all others, which find what it leaves on disk."""
        if self.rank:
            self.share(None)
        value = function()
        if not self.rank:
            self.share(None)
        return value

    def parallel(self, module):
        """`module` with its gradients averaged over the processes in every backward pass."""
        if self.count == 1:
            return module
        # Of α in channels-last and of 1×1 kernels PyTorch says so without cause: the layouts only look different, as
        # strides along axes of length 1 (pytorch/pytorch issue 157862).
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
        return DistributedDataParallel(module, forward_sync_buffers=False)

    def parts(self, micro_batches):
        """The numbers of this process's micro-batches. Raises ConfigError unless all get the same number of them."""
        if micro_batches % self.count:
            raise ConfigError(
                f"micro_batches {micro_batches} cannot be shared by {self.count} processes; set a multiple of that"
            )
        own = micro_batches // self.count
        return range(self.rank * own, (self.rank + 1) * own)


ALONE = Processes()


@contextmanager
def processes(device):
    """The `Processes` that torchrun started, connected for as long as the context lasts; `ALONE` without it."""
    if not distributed.is_torchelastic_launched():
        yield ALONE
        return
    store, rank, count = next(distributed.rendezvous("env://"))
    # Without a prefix processes that torchrun starts again find what the dead ones left, and wait for these.
    store = distributed.PrefixStore(os.environ["TORCHELASTIC_RESTART_COUNT"], store)
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=PATIENCE)
    yield Processes(distributed.get_rank(), distributed.get_world_size())
    # Not after an error: it waits for the others, which wait for this process until torchrun sees it end.
    distributed.destroy_process_group()


def own_device(device=None):
    """This process's device: of the GPUs its own, if `device` names no other; without any, and unasked, the CPU.

    Raises ConfigError for what names no device, and for one that torch does not find or that holds no numbers.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"unknown device {device!r}; name it as torch does, 'cpu' or 'cuda:0'") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {str(device)!r} is not here: torch finds no GPU; leave `device` out for the CPU")
    if device.type not in ("cpu", "cuda"):
        try:
            torch.ones(1, device=device).item()
        except Exception as error:  # each kind of device raises its own
            raise ConfigError(f"device {str(device)!r} is not here: {in_short(error)}") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {str(device)!r} is not here: torch finds {torch.cuda.device_count()} GPUs")
    if device.type == "cuda" and device.index is None and distributed.is_torchelastic_launched():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    return device


def no_exchange(module):
    """A context in which gradients of `parallel` modules stay in their process: for all but a step's last part."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


class Statistics:
    """Batch normalization's running statistics, each step's update averaged over its micro-batches."""

    def __init__(self, model, micro_batches):
        norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        # With a single micro-batch there is nothing to average.
        self.buffers = [b for m in norms for b in (m.running_mean, m.running_var)] if micro_batches > 1 else []
        self.micro_batches = micro_batches

    @torch.no_grad()
    def begin(self):
        """Before a step."""
        self.before = [b.clone() for b in self.buffers]
        self.total = [torch.zeros_like(b) for b in self.buffers]

    @torch.no_grad()
    def part_done(self):
        """After a micro-batch: the next one starts from where this one did."""
        for buffer, before, total in zip(self.buffers, self.before, self.total, strict=True):
            total += buffer
            buffer.copy_(before)

    @torch.no_grad()
    def end(self, processes):
        """After a step's last micro-batch."""
        if self.buffers:
            means = processes.sum(torch.cat(self.total)) / self.micro_batches
            for buffer, mean in zip(self.buffers, means.split([len(b) for b in self.buffers]), strict=True):
                buffer.copy_(mean)
