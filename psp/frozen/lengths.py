"""What a network asks of its tensors' sizes, answered for images of one size: numbers in place of questions."""

import torch
from torch import fx

from psp.extraction.shapes import Shapes, find_flattens


class Numbers(Shapes):
    """Writes the numbers, and tuples of numbers, that a graph computes into its nodes, too, as meta["numbers"]."""

    def run_node(self, node):
        result = super().run_node(node)
        numbers = result if isinstance(result, tuple) else (result,)
        known = all(isinstance(number, (int, float)) for number in numbers)
        node.meta.setdefault("numbers", []).append(result if known else None)
        return result


def answer_lengths(network, image):
    """Put numbers where they are read that are the same for one image and for two, and torch.flatten(x, 1) for what is.

    `network` is a torch.fx.GraphModule, changed in place; `image` is 1×C×H×W.
    """
    Numbers(network, "shape").run(image)
    Numbers(network, "larger").run(torch.cat([image, image]))
    for node in network.graph.nodes:
        one, two = node.meta.pop("numbers")
        if one is None or one != two:
            continue
        number = tuple(one) if isinstance(one, tuple) else one
        for user in list(node.users):
            given = user.args, user.kwargs
            user.args, user.kwargs = fx.map_arg(given, lambda n, node=node, number=number: number if n is node else n)
    find_flattens(network)
