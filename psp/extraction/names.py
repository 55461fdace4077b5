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
    modules = dict(model.named_modules())
    twice = {name for name in modules if free_name(name) != name and free_name(name) in modules}
    for name in sorted(tensors | twice):
        raise ExtractError(f"torch.fx needs the name {name!r} of {type(model).__name__} for itself: call it otherwise")


def parts(model, followed, graph):
    """{free name: module or tensor} of all that a graph calls or reads, by the names that its nodes have from here on.

    They are those of `model`, which has passed `check_names`, but for constants that torch.fx has made while it
    followed the code of `followed`, a copy.
    """
    held = {}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            owner = model if hasattr(model, node.target.partition(".")[0]) else followed
            name = free_name(node.target)
            held[name], node.target = attrgetter(node.target)(owner), name
    return held
