"""Which layers' output channels meet in sums, such as the branches of a residual stage: they can only leave together.

As long as one branch writes channel k of a sum, all that read the sum read channel k. Coupled, channel k of all
branches is one structure with one α, and a residual network gets thinner rather than only its blocks.
"""

import operator
from collections import defaultdict

import torch

from psp.method.graph import BY_CHANNEL, BY_IMAGE, LAYERS, PRODUCTS, traced
from psp.method.walk import (
    BENDING_CALLS,
    BENDING_MODULES,
    PASSING_CALLS,
    PASSING_MODULES,
    STOCHASTIC_DEPTH,
    is_call,
    is_depthwise,
)

# Sums and differences.
ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
ADDITIONS += (operator.sub, operator.isub, torch.sub, "sub", "sub_")
# What changes the values of a channel, but not which channel it is.
KEEPING_MODULES = (*PASSING_MODULES, *BENDING_MODULES, *BY_CHANNEL, *BY_IMAGE)
KEEPING_CALLS = (*PASSING_CALLS, *BENDING_CALLS)


def meeting(model, names):
    """Lists of those of the layers `names`, in the order of execution, whose output channels meet in sums.

    By union-find over the graph: a sum joins the sets of what it adds. Raises ConfigError where torch.fx cannot trace
    the network.
    """
    graph, roots = traced(model), {}

    def root(node):
        while node in roots:
            node = roots[node]
        return node

    streams = _led_to(graph, model)
    for node in graph.nodes:
        for source in _of_its_channels(node, model, streams):
            if root(source) is not root(node):
                roots[root(source)] = root(node)
    groups = defaultdict(dict)
    for node in graph.nodes:
        if node.op == "call_module" and node.target in names:
            groups[root(node)][node.target] = None
    return [list(group) for group in groups.values() if len(group) > 1]


def _of_its_channels(node, model, streams):
    """The inputs of a node whose channel k its own channel k is made of; of a product those that are no gates.

    `streams` are the nodes that a layer leads to: a product's factors that are none, such as masks and layer scales,
    and sizes or slopes that a call is given, are no streams of channels.
    """
    if is_call(node, PRODUCTS):
        factors = [source for source in node.all_input_nodes if source in streams]
        return [source for source in factors if not _is_computed_from(source, set(factors) - {source})]
    if is_call(node, ADDITIONS):
        return [source for source in node.all_input_nodes if source in streams or source.op == "placeholder"]
    return node.all_input_nodes[:1] if _keeps_channels(node, model) else ()


def _is_computed_from(node, others):
    """Whether any of some other nodes leads to a node, as a map to the gate that is computed from it."""
    seen, ahead = set(), [node]
    while ahead:
        node = ahead.pop()
        if node in others:
            return True
        if node not in seen:
            seen.add(node)
            ahead += node.all_input_nodes
    return False


def _keeps_channels(node, model):
    """Whether channel k of a node is made of channel k of what it reads first."""
    module = model.get_submodule(node.target) if node.op == "call_module" else None
    if isinstance(module, LAYERS):
        return is_depthwise(module)
    return isinstance(module, KEEPING_MODULES) or is_call(node, KEEPING_CALLS, STOCHASTIC_DEPTH)


def _led_to(graph, model):
    """All nodes downstream of some layer, the layers among them: only these carry channels that can meet in a sum."""
    found = set()
    for node in graph.nodes:
        layer = node.op == "call_module" and isinstance(model.get_submodule(node.target), LAYERS)
        if layer or not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found
