"""Reshapes that split the axis of channels in two, or join another one to it, and the lengths that code reshapes by.

N×(R·C)×… seen as N×R×C×…, as split attention does, has C channels, each of R parts: one is live if any part is, and
constant if all parts are one constant.
"""

import operator
from math import prod

import torch
from torch import fx

from psp.extraction.channels import Channels
from psp.extraction.ops import Op, Turn
from psp.extraction.shapes import has_channels

RESHAPES = ("view", "reshape", torch.reshape)
REGROUPS = (*RESHAPES, torch.flatten, "flatten")


class Regroup(Op):
    """A reshape; what it reads has `split` parts for each of its own channels, or it has `joined` for each it reads."""

    def __init__(self, node, axis, split, joined):
        super().__init__(node, axis=axis)
        self.read, self.split, self.joined = node.args[0], split, joined

    def forward(self, known):
        one = Channels.of_parts(*(of_channels.view(self.split, -1) for of_channels in known[self.read]))
        return Channels(*(of_channels.repeat(self.joined) for of_channels in one))

    def mask(self, wanted):
        """A mask of its channels as one of those that it reads."""
        return wanted.view(self.joined, -1).any(0).repeat(self.split)

    def backward(self, known, wanted):
        channels = known[self.read]
        yield self.read, channels.at_least_one(self.mask(wanted[self.node]) & channels.live)
        yield from ((n, torch.ones(1, dtype=torch.bool)) for n in self.lengths())

    def lengths(self):
        """The nodes of the lengths that it is told, but for that of its channels."""
        return [n for i, n in enumerate(_sizes(self.node) or ()) if i != self.axis and isinstance(n, fx.Node)]

    def emit(self, builder, wanted):
        mask = self.mask(wanted)
        x, carried = (builder.take(self.read, mask), mask) if self.split > 1 else builder.about(self.read, mask)
        carried = carried.view(self.split, -1)[0].repeat(self.joined)
        sizes = _sizes(self.node)
        if sizes is None:
            return builder.copy(self.node, {self.read: x}), carried
        new = {n: builder.new[n] for n in self.lengths()}
        sizes = [int(carried.sum()) if i == self.axis else new.get(n, n) for i, n in enumerate(sizes)]
        return builder.call(torch.reshape, x, tuple(sizes)), carried


class Question(Op):
    """The shape of a tensor, or a length of it: what is asked of the smaller one is not the number of channels."""

    def backward(self, known, wanted):
        (read,) = self.node.all_input_nodes
        yield read, known[read].at_least_one(wanted[read])

    def emit(self, builder, wanted):
        (read,) = self.node.all_input_nodes
        return builder.copy(self.node, {read: builder.new[read]}), wanted


class Count(Op):
    """The number of a tensor's channels, which is the same for every input: a number in the smaller graph."""

    def __init__(self, node, count):
        super().__init__(node)
        self.count = count

    def backward(self, known, wanted):
        return ()

    def emit(self, builder, wanted):
        return self.count, wanted


def question(node):
    """The rule for a node that asks for a tensor's shape or for a length in it; or None."""
    tensor, index = asked(node)
    if tensor is None or not has_channels(tensor):
        return None
    axis = tensor.meta["op"].axis
    known = of_layer(tensor) and is_fixed(tensor, axis)
    if isinstance(index, range):
        return None if axis in index else Op(node)
    if index == axis:
        return Count(node, tensor.meta["shape"][axis]) if known else None
    if index is not None:
        return Question(node) if node.op == "call_method" else Op(node)
    return Question(node) if all(_leaves_out(asked(user)[1], axis, known) for user in node.users) else None


def regroup(node):
    """The rule for a node that moves its channels to another axis by a reshape; or None."""
    read = node.args[0] if node.args else None
    if node.target not in REGROUPS or not isinstance(read, fx.Node):
        return None
    if not (has_channels(read) and has_channels(node)) or not of_layer(read):
        return None
    if node.target in RESHAPES and (_sizes(node) is None or len(_sizes(node)) != len(node.meta["shape"])):
        return None
    before, after = ([n.meta[key] for key in ("shape", "larger")] for n in (read, node))
    for axis in range(1, len(after[0])):  # behind the first one that fits there are only axes of length 1
        factors = _factors(before, after, read.meta["op"].axis, axis)
        if factors is not None and is_fixed(read, read.meta["op"].axis) and is_fixed(node, axis):
            return Regroup(node, axis, *factors)
    return None


def _factors(before, after, axis, new):
    """(split, joined) if the channels of `axis` are along the axis `new` in every one of several shapes; or None."""
    found = set()
    for old, shape in zip(before, after, strict=True):
        ahead, moved = prod(old[:axis]), prod(shape[:new])
        if len(old) <= axis or len(shape) <= new or old[0] != shape[0] or prod(old) != prod(shape):
            return None
        if prod(old[axis + 1 :]) != prod(shape[new + 1 :]) or (moved % ahead and ahead % moved):
            return None
        found.add((max(moved // ahead, 1), max(ahead // moved, 1)))
    return found.pop() if len(found) == 1 else None


def of_layer(node):
    """Whether channels are those of a layer or an input: of an unknown operation, they may be pixels."""
    while type(node.meta["op"]) not in (Op, Turn):
        if node.meta["op"].has_bias or not node.all_input_nodes:
            return True
        node = getattr(node.meta["op"], "read", node.all_input_nodes[0])
    return False


def is_fixed(node, axis):
    """Whether an axis is as long for other sizes of images."""
    return node.meta["shape"][axis] == node.meta["larger"][axis]


def _sizes(node):
    """The lengths that a reshape is told, a list; None if it is told none or in another form."""
    if node.target not in RESHAPES or node.kwargs:
        return None
    sizes = node.args[1] if len(node.args) == 2 and isinstance(node.args[1], (tuple, list)) else node.args[1:]
    return list(sizes) if all(isinstance(n, (int, fx.Node)) for n in sizes) else None


def _leaves_out(index, axis, known):
    """Whether what is asked of a shape, as of `asked`, is not the length of `axis`, or a single one that is known."""
    if isinstance(index, range):
        return axis not in index
    return index is not None and (known or index != axis)


def asked(node):
    """(the tensor whose shape a node asks for, which axis's length of it, or those of a range, or None for all).

    (None, None) for any other node.
    """
    if node.op == "call_method" and node.target == "size" and not node.kwargs:
        index = node.args[1] if len(node.args) == 2 else None
        return node.args[0], _axis(node.args[0], index)
    if node.target is getattr and node.args[1] == "shape":
        return node.args[0], None
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        tensor, index = asked(node.args[0])
        if tensor is not None and index is None:
            return tensor, _axis(tensor, node.args[1])
    return None, None


def _axis(node, index):
    """The axis, or the range of axes, of a tensor that an index of its shape names; None if it is of other nodes."""
    shape = node.meta["shape"]
    if shape and type(index) is int:
        return index % len(shape)
    whole = isinstance(index, slice) and not any(isinstance(i, fx.Node) for i in (index.start, index.stop, index.step))
    return range(len(shape))[index] if shape and whole else None
