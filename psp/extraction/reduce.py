"""Sums, means and softmax along axes other than that of the channels, by the rules of `psp.extraction.ops`."""

import torch
from torch.nn import functional as F

from psp.extraction.channels import Channels
from psp.extraction.ops import Unary, ZeroOnly

MEANS, SUMS_ALONG, SOFTMAX = (torch.mean, "mean"), (torch.sum, "sum"), (torch.softmax, F.softmax, "softmax")


class AlongOther(Unary):
    """A function along another axis, which makes anything of constants."""

    def forward(self, known):
        return Channels.all_live(len(known[self.read].live))


def reduction(node):
    """The rule for a sum, mean or softmax along axes that are neither the batch nor that of the channels; or None."""
    read, dims, keepdim = node.all_input_nodes[0], *_arguments(node)
    axes, axis = len(read.meta["shape"]), read.meta["op"].axis
    if dims is None or not dims or any(type(d) is not int or d % axes in (0, axis) for d in dims):
        return None
    if node.target in SOFTMAX:
        return AlongOther(node)
    after = axis if keepdim else axis - sum(d % axes < axis for d in dims)
    return Unary(node, axis=after) if node.target in MEANS else ZeroOnly(node, axis=after)


def _arguments(node):
    """(the axes, whether they are kept) that a reduction is told; (None, False) if it is told more."""
    told = dict(zip(("input", "dim", "keepdim"), node.args, strict=False)) | node.kwargs
    told = {name: value for name, value in told.items() if value is not None and name != "_stacklevel"}
    dim = told.get("dim")
    known = not set(told) - {"input", "dim", "keepdim"} and (node.target not in SOFTMAX or "keepdim" not in told)
    return (([dim] if isinstance(dim, int) else dim) if known else None), told.get("keepdim", False)
