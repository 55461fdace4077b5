"""What a network asks of its tensors' sizes, answered for images of one size: numbers in place of questions."""

import operator

import torch
from torch import fx

from psp.extraction.regroup import asked
from psp.extraction.shapes import Shapes

# The modules of Python whose functions of numbers code computes lengths by.
ARITHMETIC = {operator.add.__module__, "math", "builtins"}


class Numbers(Shapes):
    """Writes what a graph computes besides tensors, such as lengths, into its nodes, too, as meta["number"]."""

    def run_node(self, node):
        node.meta["number"] = result = super().run_node(node)
        return result


def answer_lengths(network, image):
    """Put the lengths of all axes but the batch's, and what is computed of them, where they are read, in place.

    `network` is a torch.fx.GraphModule, `image` 1×C×H×W. Shapes are written into the nodes' meta, for one image as
    "shape" and for two as "larger".
    """
    Shapes(network, "larger").run(torch.cat([image, image]))
    Numbers(network, "shape").run(image)
    fixed = {}
    for node in network.graph.nodes:
        number = node.meta.pop("number")
        if _is_fixed(node, fixed):
            fixed[node] = tuple(number) if isinstance(number, tuple) else number
    for node in network.graph.nodes:
        node.args, node.kwargs = fx.map_arg((node.args, node.kwargs), lambda n: fixed.get(n, n))


def _is_fixed(node, fixed):
    """Whether a node is a length that no batch changes, or is computed of the nodes `fixed` alone."""
    tensor, index = asked(node)
    if tensor is not None:
        return 0 not in index if isinstance(index, range) else bool(index)
    computed = node.op == "call_function" and node.target.__module__ in ARITHMETIC
    return computed and bool(node.all_input_nodes) and all(n in fixed for n in node.all_input_nodes)
