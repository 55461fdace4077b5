"""What is known of every channel of every tensor in a network, and which of them anybody reads.

A channel is one index of a tensor's axis 1: a feature map of N×C×H×W, a feature of N×C. Going forward through the
graph, each is either *live*, or *constant*: one value at every position, for every input. Pruning makes them so: a
convolution whose weights for an output channel are all zero puts out its bias there, which batch normalization and ReLU
map to another constant. Going backward, a channel is *wanted* if somebody's weights for it are not all zero.
What is both live and wanted has to be computed; everything else can go.
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
    def all_live(cls, count):
        return cls(torch.ones(count, dtype=torch.bool), torch.zeros(count, dtype=torch.float64))

    def representative(self, among):
        """Mask of the one constant channel that can stand for all, by a factor: the largest, of those in `among`.

        If they have no constant other than 0, the largest of all.
        """
        size = self.value.abs()
        return _one((size * among if (size * among).any() else size).argmax(), len(size))

    def at_least_one(self, mask):
        """`mask`, or if it is empty one channel, a constant one if there is any: it brings the tensor's shape along."""
        return mask if mask.any() else _one(self.live.int().argmin(), len(mask))


def _one(index, count):
    return torch.arange(count) == index


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
