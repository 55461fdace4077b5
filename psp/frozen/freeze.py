"""A network frozen for the CPU: planned once, run in whichever way is fastest on this machine."""

import copy
import ctypes
import os
import threading
import weakref
from functools import partial

import torch
from torch import fx
from torch._subclasses import FakeTensor

from psp.errors import ConfigError, ExtractError, KernelError
from psp.extraction.checks import drop_checks
from psp.extraction.compare import distance
from psp.extraction.graph import make_pure
from psp.extraction.preconditions import check_evaluation, check_plain
from psp.extraction.shapes import find_flattens
from psp.extraction.trace import trace
from psp.frozen.lanes import Lanes
from psp.frozen.lengths import answer_lengths
from psp.frozen.measure import shortest
from psp.frozen.pixels import Pixels, library
from psp.frozen.planner import Planner
from psp.frozen.ways import MACROS
from psp.kernels.cpu import parallel, team_size
from psp.method.pruners import parametrizations


def freeze(network, images):
    """A fast function of batches of images that computes what `network` does now, on the CPU, without gradients.

    Lanes of a vector register are images, or neighbouring pixels of one; with AMX, bfloat16 is multiplied by the matrix
    unit. Each way that this processor has is measured once, on one thread, and a call takes the one that is fastest
    for its batch: `way(n)` says which. Whether threads share an image is measured when there first is one to share.
    Images of bfloat16 are computed in float32 where that is faster, or where the processor has no products of bfloat16
    (AVX512-BF16).

    Args:
        network: of `psp.extract`, `psp.extraction.extract.fold_batchnorm` or of your own, in evaluation mode: of the
            modules and functions in `psp.frozen.rules`, as in ResNet, DenseNet, MobileNet, EfficientNet, ConvNeXt or a
            U-Net. It stays as it is, and what is done to it later has no effect.
        images: an example N×C×H×W, float32 or bfloat16. The function is for this type and size, and for any N.

    Raises:
        KernelError: a network in training mode, still parameterized, wrapped, with forward hooks or for other images;
            an operation that is none of these; or a machine without a compiler.
    """
    return Frozen(network, images)


class Frozen:
    """What `freeze` returns."""

    def __init__(self, network, images):
        if not isinstance(images, torch.Tensor):
            raise KernelError(f"images must be a tensor N×C×H×W, got {type(images).__name__}")
        self.dtype, self.shape = images.dtype, images.shape[1:]
        if images.device.type != "cpu" or self.dtype not in MACROS or images.ndim != 4:
            given = f"{images.ndim} axes, {images.dtype}, {images.device}"
            raise KernelError(f"freeze is for images N×C×H×W on the CPU in float32 or bfloat16, not for {given}")
        plan = Planner(prepared(network, self.shape), *self.shape)
        self.flat = plan.result.flat
        self.chosen, self.alone = {}, not (parallel() and team_size())
        self.unlock()
        ALL.add(self)
        self.ways = [make(plan, self.shape, dtype) for make, dtype in available(self.dtype)]
        self.seconds = dict(zip(self.ways, shortest(list(map(self.example, self.ways))), strict=True))

    def __call__(self, x):
        """The outputs of N×C×H×W. Raises ConfigError for images that it was not frozen for."""
        if torch.jit.is_tracing() or isinstance(x, FakeTensor):
            raise ConfigError("a frozen network computes numbers; trace, script or export the network itself")
        if (x.dtype, x.device.type, x.shape[1:]) != (self.dtype, "cpu", self.shape):
            raise ConfigError(
                f"frozen for {self.dtype} images of shape {tuple(self.shape)} on the CPU, got {x.dtype} of shape "
                f"{tuple(x.shape[1:])} on {x.device}; call psp.freeze with such an example"
            )
        if torch.is_grad_enabled() and x.requires_grad:
            raise ConfigError("a frozen network has no gradients; call the network itself, or use torch.no_grad()")
        return self.run(self.way(len(x)), x)

    def way(self, images):
        """How a batch of so many images is run on PyTorch's threads; `str` of it says it in words."""
        case = images, self.threads
        with self.lock:
            if case not in self.chosen:
                self.chosen[case] = min(self.ways, key=lambda way: self.seconds[way] * way.rounds(*case))
        return self.chosen[case]

    def run(self, way, x):
        """The outputs of N×C×H×W, by one of `ways`."""
        with self.lock:
            y = way(x, self.threads).to(self.dtype).permute(0, 3, 1, 2)
        return y.flatten(1) if self.flat else y

    @property
    def threads(self):
        """PyTorch's, or one where another runtime than the one that we know starts them."""
        return 1 if self.alone else torch.get_num_threads()

    def __reduce__(self):
        raise KernelError(
            "a frozen network is code for this process, and can be neither saved nor copied: save the network that it "
            "was made of, and freeze that"
        )

    def unlock(self):
        """Give it a new lock, of what was chosen and of the ways: in a child process the old one may be held always."""
        self.lock = threading.Lock()

    def example(self, way):
        """A call of a way on one thread, with `way.example` images."""
        return partial(way, torch.zeros(way.example, *self.shape, dtype=self.dtype), 1)


ALL = weakref.WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: [frozen.unlock() for frozen in ALL])


def available(dtype):
    """(class or function, type) of all ways to run images of a type here; those of bfloat16 may be in float32.

    With PSP_WITHOUT_AMX in the environment there are none by the matrix unit, to see what another processor would do.
    """
    yield from ((Lanes, torch.float32), (Pixels, torch.float32))
    if dtype == torch.bfloat16 and library(dtype).psp_lanes(ctypes.c_int64(dtype.itemsize)):
        yield from ((Lanes, dtype), (Pixels, dtype))
        if library(dtype).psp_tiles() and not os.environ.get("PSP_WITHOUT_AMX"):
            yield partial(Pixels, tiles=True), dtype


@torch.no_grad()
def prepared(network, shape):
    """A copy of a network, in evaluation mode, as a graph in which nothing writes over its input.

    Raises KernelError, naming the layer where there is one, if it is no plain network or not for images of that shape.
    """
    if parametrizations(network):
        raise KernelError("the network is still parameterized; call psp.extract or psp.fold first")
    try:
        check_plain(network)
        check_evaluation(network)
        network = copy.deepcopy(network)
        image = torch.zeros(1, *shape, dtype=next((p.dtype for p in network.parameters()), torch.float32))
        source = network
        network = network if isinstance(network, fx.GraphModule) else trace(network, (image,))
        check_by_example(network, source, image)
        answer_lengths(network, image)
        make_pure(network)
        drop_checks(network)
        find_flattens(network)  # and without what is not used, such as what a check asked for
    except ExtractError as error:
        raise KernelError(str(error)) from error
    return network


def check_by_example(network, source, image):
    """Raise KernelError where a network traced by one image does other things for several; sizes are fixed anyway."""
    if network is source or not network.meta["fixed"]:
        return
    images = torch.randn(2, *image.shape[1:], generator=torch.Generator().manual_seed(0)).to(image.dtype)
    try:
        ours, theirs = network(images), source(images)
        same = torch.equal(ours, theirs) or (ours.shape == theirs.shape and distance(ours, theirs) < 1e-2)
    except Exception as error:  # whatever its code raises for two
        raise KernelError(f"{type(source).__name__} cannot be run on several images: {error}") from error
    if not same:
        raise KernelError(f"{type(source).__name__} does other things for several images than for one")
