"""Sums and products of two tensors, by the three rules of `psp.extraction.ops`."""

import torch

from psp.extraction.channels import Channels
from psp.extraction.ops import Op
from psp.extraction.shapes import same_shape


class Sum(Op):
    """a + b or a − b of tensors of one shape: a residual sum. Live is what is live in either."""

    def __init__(self, node, function):
        super().__init__(node, axis=node.args[0].meta["op"].axis)
        self.function = function

    def forward(self, known):
        a, b = (known[n] for n in self.node.args)
        return Channels.of(a.live | b.live, self.function(a.value, b.value))

    def backward(self, known, wanted):
        """Each gives its live channels, and if it has any, constants too: a layer can put them out by its bias.

        It is asked for all of them if nobody else reads it, otherwise for those that are constant in the sum.
        """
        mask, constant = wanted[self.node], wanted[self.node] & ~known[self.node].live
        asked = [(n, mask & known[n].live) for n in self.node.args]
        if not any(part.any() for _, part in asked):
            return [(self.node.args[0], mask)]
        return [
            (n, mask if n.meta["op"].has_bias and len(n.users) == 1 else part | constant)
            for n, part in asked
            if part.any()
        ]

    def emit(self, builder, wanted):
        reads, asked = self.node.args, dict(self.backward(builder.known, builder.wanted))
        if len(asked) == len(reads) and builder.carried[reads[0]].equal(builder.carried[reads[1]]):
            return builder.call(self.function, *(builder.new[n] for n in reads)), builder.carried[reads[0]]
        if reads[1] not in asked and not builder.known[reads[1]].value[wanted].any():
            return builder.take(reads[0], wanted), wanted
        terms = (builder.take(n, wanted) if n in asked else builder.constant(n, wanted) for n in reads)
        return builder.call(self.function, *terms), wanted


class Product(Op):
    """a · b of N×C×… tensors, as of feature maps and a squeeze-and-excitation gate N×C×1×1. A constant 0 wins."""

    def __init__(self, node):
        super().__init__(node, axis=node.args[0].meta["op"].axis)

    def forward(self, known):
        a, b = (known[n] for n in self.node.args)
        zero = (~a.live & (a.value == 0)) | (~b.live & (b.value == 0))
        return Channels.of((a.live | b.live) & ~zero, torch.where(zero, 0.0, a.value * b.value))

    def backward(self, known, wanted):
        """The live channels; an operand that has none is not needed if the other one has the shape of the product."""
        mask = wanted[self.node]
        asked = [(n, mask & known[n].live) for n in self.node.args]
        for i in (0, 1):
            (other, part), whole = asked[1 - i], asked[1 - i][0].op != "get_attr"  # a parameter is of no batch
            if not asked[i][1].any() and part.any() and whole and same_shape(other, self.node):
                return [(other, part)]
        return [(n, known[n].at_least_one(part)) for n, part in asked]

    def emit(self, builder, wanted):
        asked = dict(self.backward(builder.known, builder.wanted))
        terms = (builder.take(n, wanted) if n in asked else builder.constant(n, wanted) for n in self.node.args)
        return builder.call(torch.mul, *terms), wanted
