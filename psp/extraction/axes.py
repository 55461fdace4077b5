"""Along which axis the channels of what a node reads are."""

import torch

from psp.extraction.ops import Turn


def along(node, axis):
    """Whether a node reads nothing but tensors with channels along `axis`."""
    return all(n.meta["op"].axis == axis for n in node.all_input_nodes)


def turn(node, axis):
    """Have a node read its tensor with channels along `axis`; if they are along another one, all of them are kept."""
    read = node.args[0]
    if read.meta["op"].axis != axis:
        with node.graph.inserting_before(node):
            turned = node.graph.call_function(torch.positive, (read,))
        turned.meta = {**read.meta, "op": Turn(turned, axis=axis)}
        node.replace_input_with(read, turned)
