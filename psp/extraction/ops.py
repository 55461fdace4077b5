"""The operations of a network, each as three rules: what it makes of known channels, what it wants, how it shrinks.

`forward(known)` gives the output's `Channels` from those of its inputs; `backward(known, wanted)` the channels that it
reads, given what others want of its output and, so far, of its inputs; `emit(builder, wanted)` writes the operation
into the smaller graph, for the channels `wanted`. `Op` itself is the rule for anything that is not known better: it
reads all, and all that it puts out is live.
"""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from psp.extraction.channels import Channels, along_axis
from psp.extraction.graph import run
from psp.extraction.shapes import has_channels


class Op:
    """An operation about which nothing is assumed; `axis` is the channel axis of what it puts out."""

    has_bias = False

    def __init__(self, node, module=None, axis=1):
        self.node = node
        self.module = module
        self.axis = axis

    @property
    def shape(self):
        return self.node.meta["shape"]

    def forward(self, known):
        return Channels.all_live(self.shape[self.axis]) if has_channels(self.node) else None

    def backward(self, known, wanted):
        """Pairs (node that is read, mask of its channels)."""
        for read in self.node.all_input_nodes:
            channels = known[read]
            yield read, torch.ones(1, dtype=torch.bool) if channels is None else channels.at_least_one(channels.live)

    def emit(self, builder, wanted):
        """Write into the new graph; returns (new node, mask of the channels that it carries ⊇ `wanted`)."""
        arguments = {read: builder.whole(read) for read in self.node.all_input_nodes}
        return builder.copy(self.node, arguments), torch.ones_like(wanted)


class Turn(Op):
    """Counts the channels of a tensor along another axis, and computes nothing.

    What was known of the old ones is lost, and all of them are kept.
    """

    def emit(self, builder, wanted):
        return builder.whole(self.node.args[0]), torch.ones_like(wanted)


class Unary(Op):
    """Maps each channel to the channel of the same index; a constant stays one, of the same value."""

    def __init__(self, node, module=None, axis=None):
        super().__init__(node, module, node.all_input_nodes[0].meta["op"].axis if axis is None else axis)

    @property
    def read(self):
        return self.node.all_input_nodes[0]

    def forward(self, known):
        return known[self.read]

    def backward(self, known, wanted):
        yield self.read, wanted[self.node]

    def emit(self, builder, wanted):
        x, carried = builder.about(self.read, wanted)
        return builder.copy(self.node, {self.read: x}), carried


class Pointwise(Unary):
    """The same function of every value: it maps a constant to what it makes of it."""

    def forward(self, known):
        live, value = known[self.read]
        value = self.of_constants(along_axis(value, self.read))
        return Channels.of(live | ~value.isfinite(), value)

    def of_constants(self, x):
        """The function of a tensor of constants, in float64."""
        return (self.module(x) if self.node.op == "call_module" else run(self.node, lambda _: x)).flatten()


class ByChannel(Pointwise):
    """A module whose tensors have an entry for each channel, such as γ, a running mean or the slopes of nn.PReLU."""

    def emit(self, builder, wanted):
        x, carried = builder.about(self.read, wanted)
        smaller, left = copy.deepcopy(self.module), int(carried.sum())
        for size in ("num_features", "num_channels", "num_groups", "num_parameters"):
            if hasattr(smaller, size):
                setattr(smaller, size, left)
        for name, parameter in self.module.named_parameters():
            setattr(smaller, name, nn.Parameter(parameter.detach()[carried], parameter.requires_grad))
        for name, buffer in self.module.named_buffers():
            setattr(smaller, name, buffer[carried] if buffer.ndim else buffer.clone())
        return builder.insert(self.node.target, smaller.eval(), x), carried


class ZeroOnly(Unary):
    """A window that may reach over the border, as an average that counts padding does: only 0 is sure to stay."""

    def forward(self, known):
        live, value = known[self.read]
        return Channels.of(live | (value != 0), value)


class Flatten(Unary):
    """N×C×H×W to N×(C·H·W)."""

    def size(self):
        return self.read.meta["shape"][2:].numel()

    def forward(self, known):
        live, value = known[self.read]
        return Channels(live.repeat_interleave(self.size()), value.repeat_interleave(self.size()))

    def backward(self, known, wanted):
        yield self.read, wanted[self.node].view(-1, self.size()).any(1)

    def emit(self, builder, wanted):
        x, carried = builder.about(self.read, wanted.view(-1, self.size()).any(1))
        return builder.copy(self.node, {self.read: x}), carried.repeat_interleave(self.size())


class Pad(Op):
    """Constant padding in space and on the channel axis, where the new channels are constants."""

    def __init__(self, node, pads, fill):
        super().__init__(node)
        axes = len(node.meta["shape"])
        self.space, channels = pads[: 2 * (axes - 2)], [*pads[2 * (axes - 2) :], 0, 0][:2]
        self.front, self.back = channels
        self.fill = fill

    def forward(self, known):
        live, value = known[self.node.args[0]]
        if any(self.space):
            live = live | (value != self.fill)
        live, value = F.pad(live, (self.front, self.back)), F.pad(value, (self.front, self.back), value=self.fill)
        return Channels.of(live, value)

    def backward(self, known, wanted):
        mask = F.pad(wanted[self.node], (-self.front, -self.back))
        yield self.node.args[0], known[self.node.args[0]].at_least_one(mask)

    def emit(self, builder, wanted):
        read = self.node.args[0]
        x, carried = builder.new[read], builder.carried[read]
        if self.front < 0 or self.back < 0:  # channels are cut off
            carried = carried & F.pad(torch.ones_like(wanted), (-self.front, -self.back))
            x = builder.take(read, carried)
        if any(self.space):
            x = builder.call(F.pad, x, tuple(self.space), "constant", self.fill)
        return x, F.pad(carried, (self.front, self.back))


class Concatenate(Op):
    """torch.cat along the axis of the channels."""

    def __init__(self, node):
        super().__init__(node, axis=node.args[0][0].meta["op"].axis)

    def parts(self, mask):
        """(node, its part of `mask`) of every tensor."""
        nodes = self.node.args[0]
        return list(zip(nodes, mask.split([n.meta["shape"][self.axis] for n in nodes]), strict=True))

    def forward(self, known):
        known = [known[n] for n in self.node.args[0]]
        return Channels(torch.cat([k.live for k in known]), torch.cat([k.value for k in known]))

    def backward(self, known, wanted):
        return self.parts(wanted[self.node])

    def emit(self, builder, wanted):
        """A part comes with all that it carries: one selection behind it is cheaper than one in each part."""
        parts, masks = [], []
        for read, mask in self.parts(wanted):
            if mask.any():
                parts.append(builder.new[read])
                masks.append(builder.carried[read])
            else:
                masks.append(mask)
        return builder.call(torch.cat, tuple(parts), self.axis) if len(parts) > 1 else parts[0], torch.cat(masks)


class Stack(Op):
    """torch.stack of N×C×… to N×R×C×…: a channel is live if it is in any of them, or another constant in each."""

    def __init__(self, node):
        super().__init__(node, axis=2)

    def forward(self, known):
        return Channels.of_parts(*map(torch.stack, zip(*(known[n] for n in self.node.args[0]), strict=True)))

    def backward(self, known, wanted):
        for read in self.node.args[0]:
            yield read, known[read].at_least_one(wanted[self.node] & known[read].live)

    def emit(self, builder, wanted):
        return builder.call(torch.stack, tuple(builder.take(n, wanted) for n in self.node.args[0]), 1), wanted


class Input(Op):
    """A placeholder: all its channels are live, and come as they are."""

    def emit(self, builder, wanted):
        return builder.copy(self.node, {}), torch.ones_like(wanted)
