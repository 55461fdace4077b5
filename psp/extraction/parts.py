"""Parts of a tensor along the axis of its channels, by the three rules of `psp.extraction.ops`."""

import operator

import torch
from torch import fx

from psp.extraction.channels import Channels
from psp.extraction.ops import Op

CHUNKS = {torch.chunk, torch.split, "chunk", "split"}


class Part(Op):
    """Some neighbouring channels of a tensor: one of its chunks."""

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
    dim = chunks.kwargs.get("dim", chunks.args[2] if len(chunks.args) > 2 else 0)
    return isinstance(dim, int) and dim % len(read.meta["shape"]) == read.meta["op"].axis


def part(node):
    """The `Part` that a node is."""
    chunks, index = node.args
    read = chunks.all_input_nodes[0]
    tried = torch.empty(read.meta["shape"], device="meta")
    args, kwargs = fx.map_arg((chunks.args, dict(chunks.kwargs)), lambda _: tried)
    function = chunks.target if callable(chunks.target) else getattr(torch.Tensor, chunks.target)
    lengths = [chunk.shape[read.meta["op"].axis] for chunk in function(*args, **kwargs)]
    return Part(node, read, sum(lengths[: index % len(lengths)]))
