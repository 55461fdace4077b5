"""Convolutions and linear layers: which outputs are constant, which inputs are read, and with which weights.

A linear layer is a convolution of one tap on maps of one pixel. A constant channel adds the same to every output
pixel, and so goes into the bias, except where a tap reads the zero padding instead of it. A convolution that has such
taps keeps one constant channel, the representative: its weights stand for all constant channels of the input,
w_representative = Σ_c value_c · w_c / value_representative, which is exact at the border too.
A transposed convolution, where each tap reaches other pixels, is all border.
"""

from itertools import product

import torch
from torch import nn

from psp.extraction.channels import Channels
from psp.extraction.ops import Op
from psp.extraction.smallest import column_sparse, pads, smallest
from psp.method.structures import is_transposed

# A convolution may as well put out constant channels, by its bias, if that costs less than putting them in later.
# As measured on AVX-512 with oneDNN, output channels cost by full vectors of 16, and a selection costs per value as
# much as 35 to 46 multiplications.
VECTOR = 16
SELECTION = 40


class Weighted(Op):
    """A convolution or linear layer; its weight is read as G groups × K/G outputs × C/G inputs × taps."""

    has_bias = True

    def __init__(self, node, module):
        super().__init__(node, module, axis=channel_axis(node, module))
        self.groups = getattr(module, "groups", 1)
        self.weight = by_groups(module, self.groups)
        self.nonzero = self.weight != 0
        outputs = self.weight.shape[:2].numel()
        self.bias = torch.zeros(outputs, dtype=torch.float64) if module.bias is None else module.bias.detach()
        self.inside = inside(module)

    def forward(self, known):
        live, value = known[self.node.args[0]]
        reads_live = (self.nonzero.any(-1) & live.view(self.groups, 1, -1)).any(-1).flatten()
        by_tap = of_constants(self.weight, value.view(self.groups, -1)).flatten(0, 1)
        reads_border = (by_tap[:, ~self.inside] != 0).any(-1)
        return Channels.of(reads_live | reads_border, self.bias + by_tap.sum(-1))

    def inputs(self, channels, wanted, read):
        """Mask of the input channels that must be there for the outputs `wanted`; `read` are wanted anyway."""
        mask = self.nonzero[0, wanted].any(-1).any(0) & channels.live
        constant = channels.value.nonzero().flatten()
        weight = self.weight[0, wanted.nonzero(), constant]
        if not self.inside.all() and of_constants(weight, channels.value[constant])[:, ~self.inside].any():
            mask = mask | channels.representative(read)
        return channels.at_least_one(mask)

    def backward(self, known, wanted):
        read = self.node.args[0]
        yield read, self.inputs(known[read], wanted[self.node], wanted[read])

    def emit(self, builder, wanted):
        read = self.node.args[0]
        channels = builder.known[read]
        inputs = self.inputs(channels, wanted, builder.wanted[read])
        live = wanted & builder.known[self.node].live
        if live.any() and self.cost(live, inputs) + SELECTION * int(wanted.sum()) < self.cost(wanted, inputs):
            wanted = live
        sparse = column_sparse(self.module, self.weight[0][wanted][:, inputs])
        x, carried = builder.about(read, inputs, narrow=not sparse)  # a column-sparse one gathers by itself
        weight, bias = self.without(channels, carried, wanted)
        return builder.insert(self.node.target, smallest(self.module, weight, bias, 1), x), wanted

    def cost(self, rows, inputs):
        """Multiplications per output pixel, with the outputs `rows` in full vectors."""
        return -(-int(rows.sum()) // VECTOR) * VECTOR * int(inputs.sum()) * self.weight.shape[-1]

    def without(self, channels, carried, rows):
        """(weight K'×C'×taps, bias K') for the input channels `carried` alone, the effect of all others in them."""
        weight, bias = self.weight[0][rows], self.bias[rows]
        gone = of_constants(weight[:, ~carried], channels.value[~carried])
        if not gone[:, ~self.inside].any():
            return weight[:, carried], bias + gone.sum(-1)
        one = channels.representative(carried)
        weight = weight.clone()
        weight[:, one] += (gone / channels.value[one]).unsqueeze(1)
        return weight[:, carried], bias


def of_constants(weight, value):
    """What constants …×C add at each tap to each output, …×K×taps, by a weight …×K×C×taps."""
    if not value.any():
        return weight.new_zeros(*weight.shape[:-2], weight.shape[-1])
    return torch.einsum("...kct,...c->...kt", weight, value)


def channel_axis(node, module):
    """The axis of the channels of what a convolution or linear layer reads and puts out."""
    return len(node.meta["shape"]) - 1 if isinstance(module, nn.Linear) else 1


def by_groups(module, groups):
    """The weight of a layer as groups × K/groups × C/groups × taps."""
    weight = module.weight.detach()
    grouped = weight.view(groups, len(weight) // groups, weight.shape[1], -1)
    return grouped.transpose(1, 2) if is_transposed(module) else grouped


def inside(module):
    """Mask of the taps, flattened, that never read padding, whatever the size of the image.

    In a transposed convolution not even all inner pixels are reached by the same taps: there it is empty.
    """
    if isinstance(module, nn.Linear):
        return torch.ones(1, dtype=torch.bool)
    if is_transposed(module):
        return torch.zeros(module.weight.shape[2:].numel(), dtype=torch.bool)
    axes = []
    for length, dilation, (before, after) in zip(module.kernel_size, module.dilation, pads(module), strict=True):
        tap = torch.arange(length) * dilation
        axes.append((tap >= before) & (tap.flip(0) >= after))
    if module.padding_mode != "zeros":  # a constant goes on in its padding
        axes = [torch.ones_like(axis) for axis in axes]
    return torch.tensor([all(taps) for taps in product(*(axis.tolist() for axis in axes))])
