"""Last touches to a smaller network that save memory traffic and change no value."""

import torch
from torch import nn
from torch.nn import functional as F

from psp.extraction.graph import BATCHNORM, CONVOLUTION, TRANSPOSED
from psp.extraction.rewrite import SelectChannels
from psp.extraction.smallest import COLUMNS, TRANSPOSED_COLUMNS
from psp.kernels.columns import ColumnSparseConv2d

NEW_TENSOR_FUNCTIONS = (torch.cat, F.pad, torch.add, torch.sub, torch.mul)
NEW_TENSOR_MODULES = (*CONVOLUTION, *TRANSPOSED, *BATCHNORM, nn.Linear, SelectChannels)
NEW_TENSOR_MODULES += (*COLUMNS.values(), *TRANSPOSED_COLUMNS.values())


def polish(network):
    """Put a ReLU into the column-sparse convolution before it, and let activations write over what only they read."""
    modules, answers = dict(network.named_modules()), {}
    for node in list(network.graph.nodes):
        module = modules[node.target] if node.op == "call_module" else None
        if _is_relu(node, module):
            before = node.all_input_nodes[0]
            alone = _only_reader(node, modules)
            if alone and before.op == "call_module" and isinstance(modules[before.target], ColumnSparseConv2d):
                modules[before.target].relu = True
                node.replace_all_uses_with(before)
                network.graph.erase_node(node)
            else:
                node.op, node.target, node.args, node.kwargs = "call_function", F.relu, (before,), {"inplace": alone}
        elif hasattr(module, "inplace"):
            answers.setdefault(module, []).append(_only_reader(node, modules))
    for module, alone in answers.items():
        module.inplace = all(alone)
    network.delete_all_unused_submodules()
    network.recompile()
    return network


def _is_relu(node, module):
    if node.op == "call_method":
        return node.target == "relu"
    return type(module) is nn.ReLU or (node.op == "call_function" and node.target in (F.relu, torch.relu))


def _only_reader(node, modules):
    """Whether `node` reads a new tensor that nobody else reads, not even the gradient of a convolution with ReLU."""
    before = node.all_input_nodes[0]
    if len(before.users) > 1:
        return False
    if before.op == "call_module":
        module = modules[before.target]
        return type(module) in NEW_TENSOR_MODULES and not getattr(module, "relu", False)
    return before.op == "call_function" and before.target in NEW_TENSOR_FUNCTIONS
