"""Axes in another order: where that of the channels goes."""

import torch

from psp.extraction.graph import run
from psp.extraction.ops import Op, Unary

PERMUTATIONS = {torch.permute, torch.movedim, torch.moveaxis, torch.transpose, torch.swapaxes, torch.swapdims}
PERMUTATIONS |= {function.__name__ for function in PERMUTATIONS}


def permutation(node):
    """The rule for one of PERMUTATIONS; an operation that moves the batch is followed no further."""
    read = node.all_input_nodes[0]
    lengths = torch.Size(range(2, 2 + len(read.meta["shape"])))
    tried = torch.empty(lengths, device="meta")
    moved = run(node, lambda _: tried).shape
    axis = moved.index(lengths[read.meta["op"].axis])
    return Unary(node, axis=axis) if moved[0] == lengths[0] else Op(node)
