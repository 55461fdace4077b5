"""Images as the lanes of vector registers: what `lanes.c` needs of a plan, and its call."""

import ctypes
from itertools import pairwise, product
from pathlib import Path

import torch
from torch.nn import functional as F

from psp.frozen import structs
from psp.frozen.memory import allocate
from psp.frozen.values import CONV
from psp.frozen.ways import MACROS, Way, distances
from psp.kernels.cpu import FLAGS, parallel
from psp.native import load

SOURCE = Path(__file__).with_name("lanes.c")
GROUP = 8  # as in registers.h


def library(dtype):
    """lanes.c compiled for a type. Raises KernelError where it cannot be."""
    return load(SOURCE, (*FLAGS, *MACROS[dtype]))


class Lanes(Way):
    """A plan with images as lanes: `lanes` of them at a time on each thread, and as long for fewer."""

    kind = "images as lanes"

    def __init__(self, plan, shape, dtype):
        super().__init__(dtype)
        self.library = library(dtype)
        self.lanes = self.library.psp_lanes(ctypes.c_int64(dtype.itemsize))
        self.step = 2 if dtype == torch.bfloat16 else 1  # columns that are multiplied at once
        self.begins, self.vectors = allocate(plan.operations, plan.result.source)
        self.program = self.make_program(plan.operations, plan.result.source, shape)
        del self.begins  # whose operations have the weights once more

    def rounds(self, images, threads):
        """In units of what one thread takes for `example` images, the time of a batch."""
        return -(-images // (self.lanes * threads))

    @property
    def example(self):
        return self.lanes

    def run(self, x, y, threads):
        program = self.program
        program.images, program.threads = len(x), max(1, min(threads, -(-len(x) // self.lanes)))
        program.stride_n, program.stride_c, program.stride_h, program.stride_w = x.stride()
        room = self.room(program.threads * self.vectors * structs.ALIGNMENT)
        pointers = [ctypes.c_void_p(address) for address in (x.data_ptr(), y.data_ptr(), room)]
        self.library.psp_run(ctypes.byref(program), *pointers, parallel())

    def make_program(self, operations, last, shape):
        first, self.size = operations[0], (last.height, last.width, last.channels)
        made = structs.Program(operations=len(operations) - 1, memory=self.vectors, outputs=last.size)
        made.channels, made.height, made.width = shape
        made.x, made.y = self.begins[first], self.begins[last]
        made.operation = self.array(structs.Operation, map(self.make_operation, operations[1:]))
        return made

    def make_operation(self, o):
        made = self.fill(structs.Operation(out=self.begins[o]), o)
        made.out_h, made.out_w, made.out_c = o.height, o.width, o.channels
        made.x = self.make_map(o.reads[0], o.stride)
        made.other = self.make_map(o.reads[1]) if len(o.reads) > 1 else structs.Map(begin=-1)
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
        distance = (down[row] * x.source.width + right[column]) * x.source.channels + o.columns  # J, or K×J
        for (top, bottom, rows), (left, end, columns) in product(stretches(o, 0), stretches(o, 1)):
            inside = rows[row] & columns[column]
            steps, weight = packed(o.weight[:, inside], self.dtype, 1 if o.own else GROUP)
            offsets = distance[..., inside]
            # Filled up, where the weight is zero, with an offset there is: what is read must be inside, and a number.
            offsets = torch.cat([offsets, offsets[..., -1:]], -1) if offsets.shape[-1] % self.step else offsets
            pointers = self.pointer(distances(offsets)), self.pointer(weight)
            yield structs.Region(top, bottom, left, end, steps, *pointers)


def stretches(o, axis):
    """(first, end, mask of the kernel's taps inside the input) of runs of output rows (axis 0) or columns (1)."""
    size = (o.height, o.width)[axis]
    begin = torch.arange(size)[:, None] * o.stride[axis] - o.before[axis]
    place = begin + torch.arange(o.kernel[axis]) * o.dilation[axis]
    inside = (place >= 0) & (place < o.reads[0].size[axis])
    changes = (inside[1:] != inside[:-1]).any(1).nonzero().flatten() + 1
    return [(first, end, inside[first]) for first, end in pairwise([0, *changes.tolist(), size])]


def packed(weight, dtype, most):
    """(steps, weights K×J as lanes.c reads them): by groups of at most `most` outputs, in a group by steps, in bfloat16
    of pairs.
    """
    if dtype == torch.bfloat16:
        weight = F.pad(weight, (0, weight.shape[1] % 2)).bfloat16()
        weight = weight.view(len(weight), weight.shape[1] // 2, 2).view(torch.float32).squeeze(2)
    groups = weight.float().tensor_split(-(-len(weight) // most))
    return weight.shape[1], torch.cat([group.t().flatten() for group in groups])
