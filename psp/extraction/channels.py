"""What is known of every channel of every tensor in a network, and which of them anybody reads.

A channel is one index of a tensor's channel axis: a feature map of N×C×H×W, a feature of N×C, or of N×…×C where a
linear layer works on the last axis, as in transformers. Which axis it is, each operation knows of its output.

Two dataflow analyses. Going forward through the graph, constant propagation: each channel is either *live*, or
*constant*, one value at every position, for every input. Pruning makes them so: a convolution whose weights for an
output channel are all zero puts out its bias there, which batch normalization and ReLU map to another constant. Going
backward, liveness: a channel is *wanted* if somebody's weights for it are not all zero. What is both live and wanted
has to be computed; everything else can go.
"""

from typing import NamedTuple

import torch


class Channels(NamedTuple):
    """Of C channels: `live`, a boolean mask, and `value`, the constants of those that are not (0 where live)."""

    live: torch.Tensor
    value: torch.Tensor

    @classmethod
    def of(cls, live, value):
        return cls(live, torch.where(live, 0.0, value))

    @classmethod
    def of_parts(cls, live, value):
        """Of R×C, R parts of each channel: live if any part is, and where their constants are not the same."""
        return cls.of(live.any(0) | (value != value[0]).any(0), value[0])

    @classmethod
    def all_live(cls, count):
        return cls(torch.ones(count, dtype=torch.bool), torch.zeros(count, dtype=torch.float64))

    def representative(self, among):
        """Mask of one constant channel that can stand for all by a factor, if possible one of those in `among`.

        Of those that are not small, a factor of up to ten, it is the first: in a dense block all later layers read it.
        """
        size = self.value.abs()
        size = size * among if (size * among).any() else size
        return _one((size >= 0.1 * size.max()).int().argmax(), len(size))

    def at_least_one(self, mask):
        """`mask`, or if it is empty one channel, a constant one if there is any: it brings the tensor's shape along."""
        return mask if mask.any() else _one(self.live.int().argmin(), len(mask))


def _one(index, count):
    return torch.arange(count) == index


def along_axis(value, node):
    """One value for each channel of a node's tensor, in the shape that broadcasts along its channel axis."""
    shape = [1] * len(node.meta["shape"])
    shape[node.meta["op"].axis] = -1
    return value.view(shape)


def follow(graph):
    """{node: its `Channels`, or None if it is no tensor with channels}, from the inputs to the output."""
    known = {}
    for node in graph.nodes:
        known[node] = node.meta["op"].forward(known)
    return known


def ask(graph, known):
    """{node: mask of the channels that are wanted}, from the output to the inputs; of length 1 for what has none."""
    wanted = {node: torch.zeros(_count(known[node]), dtype=torch.bool) for node in graph.nodes}
    for node in reversed(graph.nodes):
        if node.op == "output" or wanted[node].any():
            for read, mask in node.meta["op"].backward(known, wanted):
                wanted[read] |= mask
    return wanted


def _count(channels):
    return 1 if channels is None else len(channels.live)
