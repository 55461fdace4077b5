"""The smaller graph, written node by node from what is known and wanted.

Every tensor of the new graph carries some of the channels of the old one, in their old order. Who needs just those
takes it as it is; who needs others gets a selection with the missing constants put in.
"""

from collections import Counter

import torch
from torch import fx, nn
from torch.nn import functional as F

from psp.extraction.channels import along_axis

# A reader that needs fewer channels than there are selects them if more than this share of them is of no use to it.
NARROW = 0.2


class SelectChannels(nn.Module):
    """N×C×… to N×C'×…, or N×…×C to N×…×C': the channels `index` of an axis, in which C and above are `constants`."""

    made_by_extract = True  # as of psp.kernels.columns

    def __init__(self, index, constants=None, axis=1):
        super().__init__()
        self.axis = axis
        self.register_buffer("index", index)
        self.register_buffer("constants", constants)

    def forward(self, x):
        shape = [-1 if axis == self.axis else length for axis, length in enumerate(x.shape)]
        constants = None if self.constants is None else self.constants.expand(shape)
        channels_last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        if channels_last and self.axis == 1:
            # Stay in channels-last, N×H×W×C in memory; everything else would bring the tensor into the other order.
            x = x.movedim(1, 3)
            if constants is not None:
                x = torch.cat([x, constants.movedim(1, 3)], 3)
            return x.gather(3, self.index.expand(*x.shape[:3], -1)).movedim(3, 1)
        if constants is not None:
            x = torch.cat([x, constants], self.axis)
        return x.index_select(self.axis, self.index)

    def extra_repr(self):
        return f"{len(self.index)}, constants={0 if self.constants is None else self.constants.numel()}"


class Builder:
    """Writes the smaller graph; `new` and `carried` give the node and the channel mask that stand for an old node."""

    def __init__(self, network, known, wanted):
        self.network, self.known, self.wanted = network, known, wanted
        self.graph = fx.Graph()
        self.new, self.carried, self.taken = {}, {}, {}
        self.names = Counter()

    def build(self):
        """The network with its graph replaced by the smaller one, and without the modules that it does not call."""
        for node in self.network.graph.nodes:
            if node.op in ("output", "placeholder") or self.wanted[node].any():
                self.new[node], self.carried[node] = node.meta["op"].emit(self, self.wanted[node])
        return fx.GraphModule(self.network, self.graph)

    def copy(self, node, arguments):
        """The same operation on other arguments, a dict old node → new node."""
        return self.graph.node_copy(node, arguments.__getitem__)

    def call(self, function, *args):
        return self.graph.call_function(function, args)

    def insert(self, name, module, *args):
        """A call of `module`, which takes the place `name`."""
        self.network.set_submodule(name, module)
        return self.graph.call_module(name, args)

    def take(self, node, want):
        """The channels `want` of `node` and no others."""
        carried, key = self.carried[node], (node, want.numpy().tobytes())
        if want.equal(carried):
            return self.new[node]
        if key not in self.taken:
            self.taken[key] = self.selection(node, want)
        return self.taken[key]

    def selection(self, node, want):
        """A new node with the channels `want` of `node`: a selection, or padding if only zeros around are missing.

        What `node` carries may be of no use but for its shape.
        """
        carried, axis = self.carried[node], node.meta["op"].axis
        constants = self.known[node].value[want & ~carried]
        present = carried[want].nonzero().flatten().tolist()
        if present and int(carried.sum()) == present[-1] - present[0] + 1 == len(present) and not constants.any():
            around = (present[0], int(want.sum()) - 1 - present[-1])
            return self.call(F.pad, self.new[node], (0, 0) * (len(node.meta["shape"]) - 1 - axis) + around)
        source = torch.empty(len(want), dtype=torch.long)
        source[carried] = torch.arange(int(carried.sum()))
        source[want & ~carried] = torch.arange(len(constants)) + int(carried.sum())
        constants = along_axis(constants, node) if len(constants) else None
        return self.insert(self.name(node, "channels"), SelectChannels(source[want], constants, axis), self.new[node])

    def about(self, node, want, narrow=True):
        """(new node, mask of the channels that it carries): of `node` at least the channels `want`.

        The tensor as it is while at most a share NARROW of its channels is of no use, or if not `narrow`; otherwise a
        selection of just `want`.
        """
        carried = self.carried[node]
        useless = int((carried & ~want).sum())
        if (want & ~carried).any() or (narrow and useless > NARROW * int(carried.sum())):
            return self.take(node, want), want
        return self.new[node], carried

    def whole(self, node):
        """All channels of `node`, or the node itself if it has none."""
        return self.new[node] if self.known[node] is None else self.take(node, torch.ones_like(self.wanted[node]))

    def constant(self, node, want):
        """A buffer 1×C'×1×… with the constants of the channels `want`."""
        value = along_axis(self.known[node].value[want], node)
        name = self.name(node, "constants")
        self.network.register_buffer(name, value)
        return self.graph.get_attr(name)

    def name(self, node, what):
        """A new name for something that is made for a node; an extraction before this one may have made others."""
        self.names[node, what] += 1
        name = f"{node.name}_{what}_{self.names[node, what]}"
        return self.name(node, what) if hasattr(self.network, name) else name
