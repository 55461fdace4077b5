"""Neighbouring pixels as the lanes of vector registers: what `pixels.c` needs of a plan, and its call."""

import ctypes
from functools import partial
from math import prod
from pathlib import Path

import torch
from torch.nn import functional as F

from psp.frozen import structs
from psp.frozen.columns import in_groups, in_taps, in_tiles, in_units, joined, of_its_own, rows_of
from psp.frozen.layout import ALIGNED, Layouts, pixels, rounded
from psp.frozen.measure import shortest
from psp.frozen.reading import offsets, places, rows, same_positions
from psp.frozen.values import CONV
from psp.frozen.ways import MACROS, Way
from psp.kernels.cpu import FLAGS, parallel, team_size
from psp.native import load

SOURCE = Path(__file__).with_name("pixels.c")
# Vectors of pixels that are packed of each column: BLOCK of pixels.h; or for tiles twice four of each pair of columns,
# and what fills their last tile up.
WINDOW = 5
JOINED = 0.9  # of the halves of units: where more are needed, joining them cannot pay
TIMES = 4  # that an operation is computed when it is measured


def library(dtype):
    """pixels.c compiled for a type. Raises KernelError where it cannot be."""
    return load(SOURCE, (*FLAGS, *MACROS[dtype]))


class Pixels(Way):
    """A plan with pixels as lanes, an image at a time on each thread, or on all of them.

    With `tiles` a convolution is by the matrix unit where that is measured to be faster; `tiled` counts them.
    """

    example = 4  # more than one, so that what a call takes besides counts little

    def __init__(self, plan, shape, dtype, tiles=False):
        super().__init__(dtype)
        self.library = library(dtype)
        self.lanes = self.library.psp_lanes(ctypes.c_int64(dtype.itemsize))
        self.parts = 2 if dtype == torch.bfloat16 else 1
        self.kind = "matrix unit" if tiles else "pixels as lanes"
        self.tiles, self.tiled = tiles, 0
        self.layouts = Layouts(plan.operations, plan.result.source, self.parts)
        self.units = rounded(self.layouts.units)
        self.tables, self.shares, self.shape = {}, {1: 1}, shape
        self.program = self.make_program(plan.operations, plan.result.source, shape)
        del self.layouts  # whose operations have the weights once more

    def rounds(self, images, threads):
        """In units of what one thread takes for `example` images, the time of a batch."""
        left = images % threads
        return (images // threads + (min(left * self.share(threads), 1) if left else 0)) / self.example

    def share(self, threads):
        """Of what one thread takes for an image, what all take that share it; measured when it is first asked."""
        if threads not in self.shares:
            x, y = torch.zeros(1, *self.shape, dtype=self.dtype), self.outputs(1)
            alone, together = shortest([partial(self.launch, x, y, threads, n) for n in (1, 0)])
            self.shares[threads] = together / alone
        return self.shares[threads]

    def run(self, x, y, threads):
        left = len(x) % threads
        self.launch(x, y, threads, len(x) - left if left and left * self.share(threads) < 1 else len(x))

    def launch(self, x, y, threads, alone):
        """Compute the first `alone` images by a thread each, and the others by all."""
        program = self.program
        program.images, program.alone = len(x), alone
        program.threads = threads if alone < len(x) else max(1, min(threads, alone))
        program.stride_n, program.stride_c, program.stride_h, program.stride_w = x.stride()
        room = self.room(4 * program.threads * program.memory)
        pointers = [ctypes.c_void_p(address) for address in (x.data_ptr(), y.data_ptr(), room)]
        self.library.psp_run(ctypes.byref(program), *pointers, parallel(), team_size())

    def make_program(self, operations, last, shape):
        first, maps, units = operations[0], self.layouts, self.units
        self.size = last.height, last.width, last.channels
        most = max((prod(o.kernel) * (o.reads[0].source.channels + 1) for o in operations if o.kind == CONV), default=0)
        made = structs.PixelProgram(operations=len(operations) - 1, window=units)
        made.memory = units + most * WINDOW * ALIGNED
        made.x, made.plane, made.pitch = maps.pixel(first), maps[first].plane, maps[first].pitch
        made.channels, made.height, made.width = shape
        made.y, made.y_plane, made.y_pitch = maps.pixel(last), maps[last].plane, maps[last].pitch
        made.y_channels, made.y_height, made.y_width = last.channels, last.height, last.width
        self.memory_size = made.memory
        made.operation = self.array(structs.PixelOperation, map(self.make_operation, operations[1:]))
        made.tiles = self.tiled > 0
        return made

    def make_operation(self, o):
        layout = self.layouts[o]
        made = self.fill(structs.PixelOperation(out=self.layouts.pixel(o), plane=layout.plane), o)
        made.channels, made.height, made.width, made.pitch = o.channels, o.height, o.width, layout.pitch
        made.vectors, made.mask = -(-layout.positions // self.lanes), self.mask(o)
        made.x = self.make_map(o, o.reads[0], o.stride)
        made.other = self.make_map(o, o.reads[1]) if len(o.reads) > 1 else structs.Planes()
        return self.fastest(o, made) if o.kind == CONV else made

    def make_map(self, o, value, stride=(1, 1)):
        source, layout = value.source, self.layouts[value.source]
        steps = value.step[0] * stride[0], value.step[1] * stride[1]
        sizes = layout.plane, layout.pitch, source.height, source.width, *steps
        made = structs.Planes(self.layouts.pixel(source), *sizes, index=self.pointer(value.index.int()))
        if same_positions(o, value, steps):
            return made
        key = o.height, o.width, steps, layout.pitch
        made.place = self.table(key, lambda: places(self.layouts[o], layout, o, steps))
        made.rows, table = rows(self.layouts, o, value, steps, self.lanes) if self.library.psp_steps() else (0, None)
        if made.rows:
            made.row = self.pointer(table)
        return made

    def fastest(self, o, made):
        """The convolution by vectors or by tiles, their columns joined or not, or by tiles of whole taps.

        What is measured to be fastest; what the others point to is given back.
        """
        begin, ways, ends = len(self.kept), [], [len(self.kept)]
        for way in self.ways_of(o, made):
            ways.append(way)
            ends.append(len(self.kept))
        times = self.times(ways) if len(ways) > 1 else [0]
        best = times.index(min(times))
        self.kept[begin:] = self.kept[ends[best] : ends[best + 1]]
        self.tiled += ways[best].tiled
        return ways[best]

    def ways_of(self, o, made):
        """The ways to compute a convolution, one by one."""
        vectors = self.by_vectors(o, made)
        yield vectors
        pays = self.parts == 2 and not o.own and len(o.columns) < JOINED * 2 * vectors.steps
        if pays:
            yield self.by_joined(o, made)
        if self.tiles and o.weight.shape[1] and not o.own:
            yield self.by_tiles(o, made, in_units(o, self.parts))
            yield self.by_taps(o, made)
            if pays:
                yield self.by_tiles(o, made, *joined(o))

    def by_vectors(self, o, made):
        made = structs.PixelOperation.from_buffer_copy(made)
        columns = of_its_own(o, self.parts) if o.own else in_units(o, self.parts)
        made.steps = len(columns.taps)
        made.offset = self.pointer(self.offsets(o, columns))
        made.weight = self.pointer(columns.weight if o.own else in_groups(columns.weight, self.parts))
        return made

    def by_joined(self, o, made):
        made = structs.PixelOperation.from_buffer_copy(made)
        columns, orders = joined(o)
        made.steps, made.order = len(orders), self.pointer(orders)
        made.offset = self.pointer(self.offsets(o, columns))
        made.weight = self.pointer(in_groups(columns.weight, self.parts))
        return made

    def by_tiles(self, o, made, columns, orders=None):
        """By tiles of packed units, or of columns that are joined with these orders."""
        made = structs.PixelOperation.from_buffer_copy(made)
        units = columns.weight.shape[1]
        made.deep = rows_of(units)
        fill = rounded(units, made.deep) - units
        # Filled up, where weights are zero, with offsets there are: what is read must be a number.
        offsets = self.offsets(o, columns)
        offsets = torch.cat([offsets, offsets[-len(offsets) // units :].repeat(fill)])
        if orders is not None:
            made.order = self.pointer(F.pad(orders, (0, fill)))
        return self.tiled_by(o, made, offsets, columns.weight)

    def by_taps(self, o, made):
        """By tiles of whole taps, from the map itself where positions in it are those of the output."""
        made = structs.PixelOperation.from_buffer_copy(made)
        columns, made.deep = in_taps(o, self.parts)
        made.direct = 0 if made.x.place else 4 * self.layouts[o.reads[0].source].plane
        return self.tiled_by(o, made, self.offsets(o, columns), columns.weight)

    def tiled_by(self, o, made, offsets, weight):
        made.tiled, made.steps, made.offset = 1, rounded(weight.shape[1], made.deep), self.pointer(offsets)
        made.high = rounded(rows_of(o.channels), self.parts)
        made.tile = self.pointer(in_tiles(weight, made.high, made.deep))
        made.start = self.pointer(F.pad(o.bias.float(), (0, -o.channels % made.high))[:, None].expand(-1, ALIGNED))
        return made

    def offsets(self, o, columns):
        return offsets(self.layouts[o.reads[0].source], o, columns)

    def times(self, operations):
        """Seconds of one thread for each of some operations, `TIMES` times."""
        room = self.room(4 * self.memory_size)
        window = room + 4 * self.units
        run, addresses = self.library.psp_operation, (ctypes.c_void_p(room), ctypes.c_void_p(window))
        return shortest([partial(run, ctypes.byref(o), *addresses, ctypes.c_int64(TIMES)) for o in operations])

    def mask(self, o):
        """Address of all bits where a position is a pixel, none where it is between rows or behind the last."""
        return self.table(("mask", o.height, o.width), lambda: -pixels(self.layouts[o], o).int())

    def table(self, key, make):
        if key not in self.tables:
            self.tables[key] = self.pointer(make())
        return self.tables[key]
