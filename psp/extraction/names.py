"""Names of submodules that a graph cannot call: code, graph, meta and the like, which torch.fx.GraphModule needs for
itself, and keywords of Python, such as the key "in" of an nn.ModuleDict.

In a traced network they have "_" behind their name.
"""

from keyword import iskeyword
from operator import attrgetter

from torch import fx, nn

from psp.errors import ExtractError

TAKEN = set(dir(fx.GraphModule(nn.Module(), fx.Graph()))) - set(dir(nn.Module()))


def free_name(name):
    """What a module of a network, `name` there, is called in its graph: code_.0 for code.0, heads.in_ for heads.in."""
    first, *others = name.split(".")
    others = [f"{part}_" if iskeyword(part) else part for part in others]
    return ".".join([f"{first}_" if first in TAKEN or iskeyword(first) else first, *others])


def check_names(model):
    """Raise ExtractError for a name in `model` that its graph cannot have, or that `free_name` would give twice."""
    tensors = {name for name in model._parameters.keys() | model._buffers.keys() if free_name(name) != name}
    ways = (model.named_modules, model.named_parameters, model.named_buffers)
    names = {name for way in ways for name, _ in way(remove_duplicate=False)}
    twice = {name for name in names if free_name(name) != name and free_name(name) in names}
    for name in sorted(tensors | twice):
        who = "Python" if iskeyword(name.rpartition(".")[2]) else "torch.fx"
        raise ExtractError(f"{who} needs the name {name!r} in {type(model).__name__} for itself: call it otherwise")


def renamed(model, graph):
    """`model`, which has passed `check_names`, as what a GraphModule of `graph` is made of.

    Where names have to be free ones it is all that the nodes need, by these names, which the nodes then have, too.
    """
    nodes = [node for node in graph.nodes if node.op in ("call_module", "get_attr")]
    if all(free_name(node.target) == node.target for node in nodes):
        return model
    held = {free_name(node.target): attrgetter(node.target)(model) for node in nodes}
    for node in nodes:
        node.target = free_name(node.target)
    return held
