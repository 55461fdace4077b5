"""A network frozen for the CPU, with images as the lanes of its vector registers: `lanes.c`, called through ctypes."""

import copy
import ctypes
import threading
from itertools import pairwise, product
from pathlib import Path

import torch
from torch import fx
from torch.nn import functional as F

from psp.errors import ConfigError, ExtractError, KernelError
from psp.extraction.extract import check_evaluation, check_plain
from psp.extraction.graph import make_pure
from psp.extraction.shapes import Shapes
from psp.extraction.trace import trace
from psp.frozen import structs
from psp.frozen.memory import allocate
from psp.frozen.planner import Planner
from psp.frozen.values import COMBINE, CONV
from psp.kernels.cpu import FLAGS, parallel
from psp.method.attach import parametrizations
from psp.native import load

SOURCE = Path(__file__).with_name("lanes.c")
MACROS = {torch.float32: (), torch.bfloat16: ("-DBFLOAT16",)}
GROUP = 8  # as in lanes.c
ALIGNMENT = 64  # bytes, as many as the longest vector has


def freeze(network, images):
    """A fast function of batches of images that computes what `network` does now, on the CPU, without gradients.

    Each lane of a vector register is one image, so that narrow layers are as efficient as wide ones: the way to run
    what `psp.extract` returns. A thread takes 16 images at a time with AVX-512 (32 in bfloat16), 8 with AVX, else 4,
    and takes as long for fewer of them: it is for batches of many images.

    Args:
        network: of `psp.extract`, `psp.extract.fold_batchnorm` or of your own, in evaluation mode; convolutions, linear
            layers, batch normalization, ReLU, pooling, sums and concatenations. It stays as it is, and what is done
            to it later has no effect.
        images: an example N×C×H×W, float32, or bfloat16 where the processor has products of it (AVX512-BF16). The
            function is for this type and size, and for any N.

    Raises:
        KernelError: a network in training mode, still parameterized, wrapped, with forward hooks or for other images;
            an operation that is none of these; or a machine without a compiler or such products.
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
        self.library = load(SOURCE, (*FLAGS, *MACROS[self.dtype]))
        self.lanes = self.library.psp_lanes(ctypes.c_int64(self.dtype.itemsize))
        if not self.lanes:
            raise KernelError("this processor has no products of bfloat16 (AVX512-BF16); freeze for float32")
        plan = Planner(prepared(network, self.shape), *self.shape)
        self.result = plan.result
        self.begins, self.vectors = allocate(plan.operations, plan.result.source)
        self.kept = []  # what pointers point to
        self.lock = threading.Lock()  # of `program` and `memory`
        self.memory = torch.empty(0, dtype=torch.uint8)
        self.program = self.make_program(plan.operations)

    def __call__(self, x):
        """The outputs of N×C×H×W. Raises ConfigError for images that it was not frozen for."""
        if (x.dtype, x.device.type, x.shape[1:]) != (self.dtype, "cpu", self.shape):
            raise ConfigError(
                f"frozen for {self.dtype} images of shape {tuple(self.shape)} on the CPU, got {x.dtype} of shape "
                f"{tuple(x.shape[1:])} on {x.device}; call psp.freeze with such an example"
            )
        if torch.is_grad_enabled() and x.requires_grad:
            raise ConfigError("a frozen network has no gradients; call the network itself, or use torch.no_grad()")
        source, program = self.result.source, self.program
        y = torch.empty(len(x), source.height, source.width, source.channels, dtype=self.dtype)
        with self.lock:
            program.images, program.threads = len(x), max(1, min(torch.get_num_threads(), -(-len(x) // self.lanes)))
            program.stride_n, program.stride_c, program.stride_h, program.stride_w = x.stride()
            pointers = [ctypes.c_void_p(address) for address in (x.data_ptr(), y.data_ptr(), self.room())]
            self.library.psp_run(ctypes.byref(program), *pointers, parallel())
        y = y.permute(0, 3, 1, 2)
        return y.flatten(1) if self.result.flat else y

    def room(self):
        """Address of the threads' memory, which stays from call to call."""
        size = self.program.threads * self.vectors * ALIGNMENT + ALIGNMENT
        if len(self.memory) < size:
            self.memory = torch.empty(size, dtype=torch.uint8)
        return -(-self.memory.data_ptr() // ALIGNMENT) * ALIGNMENT

    def make_program(self, operations):
        first, last = operations[0], self.result.source
        made = structs.Program(operations=len(operations) - 1, memory=self.vectors, outputs=last.size)
        made.channels, made.height, made.width = self.shape
        made.x, made.y = self.begins[first], self.begins[last]
        made.operation = self.array(structs.Operation, map(self.make_operation, operations[1:]))
        return made

    def make_operation(self, o):
        made = structs.Operation(kind=o.kind, relu=o.relu, count_padding=o.count_padding, out=self.begins[o])
        made.out_h, made.out_w, made.out_c = o.height, o.width, o.channels
        (made.kernel_h, made.kernel_w), (made.pad_h, made.pad_w) = o.kernel, o.before
        made.x = self.make_map(o.reads[0], o.stride)
        made.other = self.make_map(o.reads[1]) if len(o.reads) > 1 else structs.Map(begin=-1)
        if o.bias is not None:
            made.bias = self.pointer(o.bias.float())
        if o.kind == COMBINE:
            made.scale = self.pointer(o.reads[0].scale.float())
        if o.kind == CONV:
            regions = list(self.make_regions(o))
            made.regions, made.region = len(regions), self.array(structs.Region, regions)
        return made

    def make_map(self, value, stride=(1, 1)):
        source, (down, right) = value.source, value.step
        sizes = source.height, source.width, source.channels, down * stride[0], right * stride[1]
        return structs.Map(self.begins[source], *sizes, self.pointer(value.index.int()))

    def make_regions(self, o):
        """The output in rectangles of pixels that have the same columns inside the input."""
        x, row, column = o.reads[0], o.taps // o.kernel[1], o.taps % o.kernel[1]
        down, right = (x.step[i] * (torch.arange(o.kernel[i]) * o.dilation[i] - o.before[i]) for i in (0, 1))
        distance = (down[row] * x.source.width + right[column]) * x.source.channels + o.columns
        for (top, bottom, rows), (left, end, columns) in product(stretches(o, 0), stretches(o, 1)):
            inside = rows[row] & columns[column]
            steps, weight = packed(o.weight[:, inside], self.dtype)
            pointers = self.pointer(F.pad(distance[inside], (0, 1)).int()), self.pointer(weight)
            yield structs.Region(top, bottom, left, end, steps, *pointers)

    def pointer(self, tensor):
        """Address of a tensor that lives as long as this."""
        self.kept.append(tensor.contiguous())
        return self.kept[-1].data_ptr()

    def array(self, kind, items):
        """Address of an array of structures that lives as long as this."""
        items = list(items)
        self.kept.append((kind * len(items))(*items))
        return ctypes.addressof(self.kept[-1])


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
        network = network if isinstance(network, fx.GraphModule) else trace(network, 1)
        dtype = next((p.dtype for p in network.parameters()), torch.float32)
        Shapes(network, "shape").run(torch.zeros(1, *shape, dtype=dtype))
        make_pure(network)
    except ExtractError as error:
        raise KernelError(str(error)) from error
    return network


def stretches(o, axis):
    """(first, end, mask of the kernel's taps inside the input) of runs of output rows (axis 0) or columns (1)."""
    size = (o.height, o.width)[axis]
    begin = torch.arange(size)[:, None] * o.stride[axis] - o.before[axis]
    place = begin + torch.arange(o.kernel[axis]) * o.dilation[axis]
    inside = (place >= 0) & (place < o.reads[0].size[axis])
    changes = (inside[1:] != inside[:-1]).any(1).nonzero().flatten() + 1
    return [(first, end, inside[first]) for first, end in pairwise([0, *changes.tolist(), size])]


def packed(weight, dtype):
    """(steps, weights K×J as lanes.c reads them): by groups of outputs, in a group by steps, in bfloat16 of pairs."""
    if dtype == torch.bfloat16:
        weight = F.pad(weight, (0, weight.shape[1] % 2)).bfloat16()
        weight = weight.view(len(weight), weight.shape[1] // 2, 2).view(torch.float32).squeeze(2)
    groups = weight.float().tensor_split(-(-len(weight) // GROUP))
    return weight.shape[1], torch.cat([group.t().flatten() for group in groups])
