"""Checks in a network's code that hold for every input: how many axes a tensor has.

They read the tensor, and keep normalization from being folded into the layer before it.
"""

import operator

import torch
from torch import fx


def drop_checks(network):
    """Write numbers of axes into the graph, in place, and drop asserts that hold then; the shapes are known."""
    for node in list(network.graph.nodes):
        if _asks_axes(node):
            _substitute(node, len(node.args[0].meta["shape"]))
        elif node.target is operator.eq and all(type(value) is int for value in node.args):
            _substitute(node, operator.eq(*node.args))
        elif node.target is torch._assert and node.args[0] is True:
            network.graph.erase_node(node)
    network.recompile()


def _asks_axes(node):
    if not node.args or not isinstance(node.args[0], fx.Node) or node.args[0].meta["shape"] is None:
        return False
    attribute = node.target is getattr and node.args[1] == "ndim"
    return attribute or (node.op == "call_method" and node.target in ("dim", "ndimension"))


def _substitute(node, value):
    for user in list(node.users):
        user.args, user.kwargs = fx.map_arg((user.args, dict(user.kwargs)), lambda n: value if n is node else n)
    node.graph.erase_node(node)
