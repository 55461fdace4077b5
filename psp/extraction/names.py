"""Names of submodules that a torch.fx.GraphModule needs for itself: code, graph, meta and the like.

A graph cannot have modules that are called so. In a traced network they have "_" behind their name.
"""

import copy

from torch import fx, nn

from psp.errors import ExtractError

TAKEN = set(dir(fx.GraphModule(nn.Module(), fx.Graph()))) - set(dir(nn.Module()))


def free_name(name):
    """What a module of a network, `name` there, is called in its graph: code_.0 for code.0."""
    first, dot, rest = name.partition(".")
    return f"{first}_{dot}{rest}" if first in TAKEN else name


def check_names(model):
    """Raise ExtractError for a name in `model` that its graph cannot have, or that `free_name` would give twice."""
    tensors = model._parameters.keys() | model._buffers.keys()
    twice = {name for name in model._modules if name in TAKEN and hasattr(model, free_name(name))}
    for name in sorted(TAKEN & tensors | twice):
        raise ExtractError(f"torch.fx needs the name {name!r} of {type(model).__name__} for itself: call it otherwise")


def renamed(model, graph):
    """`model`, which has passed `check_names`, with free names; `graph` is made to call its submodules by these."""
    if not TAKEN & model._modules.keys():
        return model
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            node.target = free_name(node.target)
    other = copy.copy(model)  # that of the caller stays as it is; the submodules are shared
    other._modules = {free_name(name): module for name, module in model._modules.items()}
    return other
