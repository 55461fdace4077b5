"""Where in a map of `pixels.c` the outputs of an operation read, as tables for its kernels.

An output's position is its place in its own layout; `steps` are the rows and columns of the map from the pixel that one
output reads to that of the next. All are distances in units of four bytes from the map's pixel (0, 0).
"""

import torch

from psp.frozen.layout import pixels, positions
from psp.frozen.values import CONV
from psp.frozen.ways import distances


def offsets(layout, o, columns):
    """How far from an output's position each of a convolution's columns is in the map that it reads, of this layout."""
    x = o.reads[0]
    down, right = (x.step[i] * (torch.arange(o.kernel[i]) * o.dilation[i] - o.before[i]) for i in (0, 1))
    row, column = down[columns.taps // o.kernel[1]], right[columns.taps % o.kernel[1]]
    return distances(columns.planes * layout.plane + row * layout.pitch + column)


def same_positions(o, value, steps):
    """Whether output positions are those of the pixels that are read."""
    return steps == (1, 1) and (o.height, o.width) == (value.source.height, value.source.width)


def places(layout, source, o, steps):
    """Of each output position where its pixel is in a map of layout `source`, for `gather`."""
    row, column = torch.arange(positions(layout)) // layout.pitch, torch.arange(positions(layout)) % layout.pitch
    return distances(pixels(layout, o) * (row * steps[0] * source.pitch + column * steps[1]))


def rows(layouts, o, value, steps, lanes):
    """(rows that a vector of outputs is of, at most; `map.row`), or (0, None) if it has to be gathered."""
    layout, source = layouts[o], layouts[value.source]
    vectors = torch.arange(positions(layout)).view(-1, lanes)
    row, real = vectors // layout.pitch, pixels(layout, o).view(-1, lanes)
    first = torch.where(real, row, o.height).amin(1).clamp(max=o.height - 1)
    count = int((torch.where(real, row, 0).amax(1) - first).max()) + 1
    of = (first[:, None] + torch.arange(count)).clamp(max=o.height - 1)
    begin = vectors[:, :1] * steps[1] + of * (steps[0] * source.pitch - layout.pitch * steps[1])
    low, high = reach(source, o, value) if o.kind == CONV and value is o.reads[0] else (0, 0)
    begin = begin * real.any(1, keepdim=True)  # what vectors without a pixel read is no matter
    end = int(begin.max()) + lanes * steps[1] + high
    if steps[1] not in (1, 2) or int(begin.min()) + low < -source.front or source.front + end > source.plane:
        return 0, None
    of_row = (((row[:, None] == of[..., None]) & real[:, None]).int() << torch.arange(lanes)).sum(2)
    return count, torch.stack([begin, of_row], dim=2).int()


def reach(source, o, value):
    """The least and the greatest distance of a tap from an output's position in a map of layout `source`."""
    ends = [[x * o.dilation[i] - o.before[i] for x in (0, o.kernel[i] - 1)] for i in (0, 1)]
    return [value.step[0] * down * source.pitch + value.step[1] * right for down, right in zip(*ends, strict=True)]
