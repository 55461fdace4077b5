"""Parts of a tensor along the axis of its channels, by the three rules of `psp.extraction.ops`."""

import operator

import torch

from psp.extraction.channels import Channels
from psp.extraction.graph import dim_of, run
from psp.extraction.ops import Op
from psp.extraction.regroup import is_fixed, of_layer

CHUNKS = {torch.chunk, torch.split, "chunk", "split"}
EVERYTHING = slice(None)


class Part(Op):
    """Some neighbouring channels of a tensor: one of its chunks, or x[:, a:b]."""

    def __init__(self, node, read, start):
        super().__init__(node, axis=read.meta["op"].axis)
        self.read = read
        self.range = slice(start, start + node.meta["shape"][self.axis])

    def forward(self, known):
        live, value = known[self.read]
        return Channels(live[self.range], value[self.range])

    def backward(self, known, wanted):
        yield self.read, self.within(wanted[self.node], wanted[self.read])

    def within(self, mask, whole):
        """A mask of the part as one of the whole tensor."""
        placed = torch.zeros_like(whole)
        placed[self.range] = mask
        return placed

    def emit(self, builder, wanted):
        carried = builder.carried[self.read]
        if (wanted & ~carried[self.range]).any():
            return builder.take(self.read, self.within(wanted, carried)), wanted
        start, length = int(carried[: self.range.start].sum()), int(carried[self.range].sum())
        index = (*[slice(None)] * self.axis, slice(start, start + length))
        return builder.call(operator.getitem, builder.new[self.read], index), carried[self.range]


class Gate(Op):
    """A gated linear unit, F.glu: the first half of the channels times the sigmoid of the second. A constant 0 wins."""

    def __init__(self, node):
        self.read = node.all_input_nodes[0]
        super().__init__(node, axis=self.read.meta["op"].axis)

    def forward(self, known):
        live, opening = (half.view(2, -1) for half in known[self.read])
        gated = opening[0] * opening[1].sigmoid()
        return Channels.of(live.any(0) & (live[0] | (opening[0] != 0)), gated)

    def backward(self, known, wanted):
        channels = known[self.read]
        yield self.read, channels.at_least_one(wanted[self.node].repeat(2) & channels.live)

    def emit(self, builder, wanted):
        return builder.copy(self.node, {self.read: builder.take(self.read, wanted.repeat(2))}), wanted


def gate(node, dim):
    """The `Gate` that a gated linear unit along `dim` is; None where its channels are along another axis."""
    read = node.all_input_nodes[0]
    axis = read.meta["op"].axis
    halves = dim % len(read.meta["shape"]) == axis and of_layer(read) and is_fixed(read, axis)
    return Gate(node) if halves else None


def sliced(node):
    """The `Part` that a node takes by an index, x[:, a:b] or x[..., a:b]; None if it takes something else."""
    read, index = node.args
    axes, axis = len(read.meta["shape"]), read.meta["op"].axis
    index = list(index) if isinstance(index, tuple) else [index]
    if not (all(i is Ellipsis or isinstance(i, slice) for i in index) and of_layer(read) and is_fixed(read, axis)):
        return None
    left = [EVERYTHING] * (axes - sum(i is not Ellipsis for i in index))
    place = next((n for n, i in enumerate(index) if i is Ellipsis), len(index))
    index = [*index[:place], *left, *index[place + 1 :]]
    taken = index.pop(axis)
    if any(i != EVERYTHING for i in index) or not all(type(b) in (int, type(None)) for b in (taken.start, taken.stop)):
        return None
    start, _, step = taken.indices(read.meta["shape"][axis])
    return Part(node, read, start) if step == 1 else None


def is_part(node):
    """Whether a node is one of the chunks of a tensor along the axis of its channels; the shapes are known."""
    if node.target is not operator.getitem or not isinstance(node.args[1], int):
        return False
    chunks = node.args[0]
    if (
        chunks.target not in CHUNKS
        or len(chunks.all_input_nodes) != 1
        or chunks.all_input_nodes[0].meta["shape"] is None
    ):
        return False
    read = chunks.all_input_nodes[0]
    dim = dim_of(chunks, place=2)
    return isinstance(dim, int) and dim % len(read.meta["shape"]) == read.meta["op"].axis


def part(node):
    """The `Part` that a node is."""
    chunks, index = node.args
    read = chunks.all_input_nodes[0]
    tried = torch.empty(read.meta["shape"], device="meta")
    lengths = [chunk.shape[read.meta["op"].axis] for chunk in run(chunks, lambda _: tried)]
    return Part(node, read, sum(lengths[: index % len(lengths)]))
