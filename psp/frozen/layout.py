"""Where the maps of `pixels.c` lie: planes of rows with zeros between and around them.

Maps of one size have one layout, so that a convolution that keeps the size reads its input at the positions of its
output. Only maps of one size share memory: what is zero in one is zero in the other.
"""

from collections import defaultdict
from dataclasses import dataclass

import torch

from psp.frozen.values import CONV

ALIGNED = 16  # units, as many as the longest vector has
PAGE = 1024  # units: planes a page apart would share lines of the cache


@dataclass(frozen=True)
class Layout:
    """A plane in units of four bytes: pixel (y, x) is at front + y · pitch + x; `positions` of them are computed."""

    height: int
    width: int
    front: int
    pitch: int
    positions: int
    plane: int


class Layouts:
    """The layouts of a plan's maps, by operation, and where they lie: `begins`; `units` is all that they take."""

    def __init__(self, operations, output, parts):
        self.parts = parts
        margins = defaultdict(lambda: [0, 0, 0, 0])  # above, below, left, right of the maps of a size
        for o in operations:
            margins[o.height, o.width]  # of a map that nobody reads beyond
            for value in o.reads[:1] if o.kind == CONV else ():
                size = value.source.height, value.source.width
                margins[size] = [max(pair) for pair in zip(margins[size], margin(o, value), strict=True)]
        pitches = defaultdict(int)
        for (_, width), (_, _, left, right) in margins.items():
            pitches[width] = max(pitches[width], width + max(left, right))
        made = {size: layout(*size, pitches[size[1]], *around) for size, around in margins.items()}
        self.layouts = {o: made[o.height, o.width] for o in operations}
        self.begins, self.units = self.allocate(operations, output)

    def __getitem__(self, operation):
        return self.layouts[operation]

    def pixel(self, operation):
        """Where pixel (0, 0) of an operation's first plane is."""
        return self.begins[operation] + self[operation].front

    def allocate(self, operations, output):
        last = {value.source: i for i, o in enumerate(operations) for value in o.reads}
        last[output] = len(operations)
        begins, free, ending, units = {}, defaultdict(list), defaultdict(list), 0
        for i, o in enumerate(operations):
            key = self[o], -(-o.channels // self.parts)
            if not free[key]:
                free[key], units = [units], units + key[0].plane * key[1]
            begins[o] = free[key].pop()
            ending[last.get(o, i)].append(o)
            for done in ending.pop(i, ()):
                free[self[done], -(-done.channels // self.parts)].append(begins[done])
        return begins, units


def margin(o, value):
    """Pixels that a convolution reads above, below, left and right of the map that it reads as `value`."""
    around = []
    for axis, size in enumerate((value.source.height, value.source.width)):
        last = (
            ((o.height, o.width)[axis] - 1) * o.stride[axis] - o.before[axis] + (o.kernel[axis] - 1) * o.dilation[axis]
        )
        around += [max(0, o.before[axis] * value.step[axis]), max(0, last * value.step[axis] - size + 1)]
    return around


def layout(height, width, pitch, above, below, left, right):
    front = rounded(above * pitch + left)
    positions = height * pitch
    plane = front + rounded(positions, 2 * ALIGNED) + rounded(below * pitch + right) + 2 * ALIGNED
    return Layout(height, width, front, pitch, positions, plane if plane % PAGE else plane + ALIGNED)


def positions(layout):
    """All that are computed, in whole vectors and an even number of them."""
    return rounded(layout.positions, 2 * ALIGNED)


def pixels(layout, o):
    """Whether each position is a pixel."""
    place = torch.arange(positions(layout))
    return (place % layout.pitch < o.width) & (place // layout.pitch < o.height)


def rounded(units, multiple=ALIGNED):
    return -(-units // multiple) * multiple
