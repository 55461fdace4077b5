"""Convolutions in groups: whole groups go, and of the others as many channels as in the group that has most left.

All groups have to be of one size. A group that has fewer channels left than another keeps some that are of no use.
"""

import torch

from psp.extraction.layers import Weighted, of_constants
from psp.extraction.rewrite import NARROW
from psp.extraction.smallest import smallest


class Grouped(Weighted):
    """A convolution in G > 1 groups; in masks below, G' groups are those with an output that is wanted."""

    def rows(self, known, wanted):
        """(mask of the G' groups, mask G'×K/G of the outputs that are computed)."""
        wanted, constant = wanted.view(self.groups, -1), ~known[self.node].live.view(self.groups, -1)
        groups = wanted.any(1)
        return groups, filled(wanted[groups], constant[groups])

    def needed(self, channels, groups, rows):
        """Mask G'×C/G of the inputs that must be there; the effect of all others is in the bias.

        A constant must be there only if a tap may read the padding instead of it.
        """
        weight = self.weight[groups] * rows[:, :, None, None]
        live, value = (of_channels.view(self.groups, -1)[groups] for of_channels in channels)
        by_tap = of_constants(weight, value)
        border = (by_tap[..., ~self.inside] != 0).flatten(1).any(1)
        return (weight != 0).any(-1).any(1) & (live | border[:, None])

    def inputs(self, channels, groups, rows):
        """Mask of all input channels that must be there."""
        mask = torch.zeros(self.groups, self.weight.shape[2], dtype=torch.bool)
        mask[groups] = self.needed(channels, groups, rows)
        return mask.flatten()

    def backward(self, known, wanted):
        read = self.node.args[0]
        channels = known[read]
        mask = self.inputs(channels, *self.rows(known, wanted[self.node]))
        yield read, channels.at_least_one(mask & channels.live)

    def emit(self, builder, wanted):
        read = self.node.args[0]
        channels, carried = builder.known[read], builder.carried[read].view(self.groups, -1)
        groups, rows = self.rows(builder.known, wanted)
        needed = self.needed(channels, groups, rows)
        inputs = filled(needed, carried[groups])
        if carried[groups].all() and inputs.double().mean() >= 1 - NARROW:
            inputs = torch.ones_like(inputs)
        x = builder.take(read, self.among(groups, inputs))
        weight, bias = self.without(channels, groups, needed)
        weight = weight[rows].unflatten(0, (len(rows), -1)).transpose(1, 2)[inputs]
        weight = weight.unflatten(0, (len(rows), -1)).transpose(1, 2).flatten(0, 1)
        layer = smallest(self.module, weight, bias[rows], len(rows))
        return builder.insert(self.node.target, layer, x), self.among(groups, rows)

    def without(self, channels, groups, needed):
        """(weight G'×K/G×C/G×taps, bias G'×K/G) that read what is `needed` alone, the effect of constants in them."""
        weight, value = self.weight[groups], channels.value.view(self.groups, -1)[groups]
        gone = of_constants(weight, value * ~needed).sum(-1)
        return weight * needed[:, None, :, None], self.bias.view(self.groups, -1)[groups] + gone

    def among(self, groups, mask):
        """A mask G'×n as one of the channels of all groups."""
        placed = torch.zeros(self.groups, mask.shape[1], dtype=torch.bool)
        placed[groups] = mask
        return placed.flatten()


def filled(mask, rather):
    """`mask`, G×n, with as many true in every group as in that with the most, and one at least: `rather` some ones."""
    count = max(int(mask.sum(1).max()), 1)
    order = torch.where(mask, 0, torch.where(rather, 1, 2)).argsort(dim=1, stable=True)
    return torch.zeros_like(mask).scatter(1, order[:, :count], torch.ones_like(mask))
