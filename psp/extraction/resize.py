"""Resizing by a function: the decoders of U-Nets and of feature pyramids bring a map to the size of another one."""

import torch
from torch.nn import functional as F

from psp.extraction.ops import Unary
from psp.extraction.shapes import has_channels


class Resize(Unary):
    """F.interpolate, to a size that may be computed: new pixels are means of old ones, channel by channel."""

    def backward(self, known, wanted):
        yield self.read, wanted[self.node]
        yield from ((size, torch.ones(1, dtype=torch.bool)) for size in self.node.all_input_nodes[1:])

    def emit(self, builder, wanted):
        x, carried = builder.about(self.read, wanted)
        sizes = {size: builder.new[size] for size in self.node.all_input_nodes[1:]}
        return builder.copy(self.node, {self.read: x, **sizes}), carried


def is_resize(node):
    """Whether a node is F.interpolate of a batch of images, whose new size may be computed from shapes."""
    if node.target is not F.interpolate or not node.args or not has_channels(node):
        return False
    read, *sizes = node.all_input_nodes
    return has_channels(read) and read.meta["op"].axis == 1 and not any(n.meta["shape"] for n in sizes)
