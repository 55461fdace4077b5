"""What leads around a layer that is to be pruned whole: the input must still get to the output.

Such as the shortcut of a residual block or the concatenation of a dense block.
"""

from torch import nn

from psp.errors import ConfigError
from psp.method.graph import PRODUCTS, queries_shape, traced


def check_bypass(model, names, behind=()):
    """Raise ConfigError, naming the layers at fault, unless input reaches output with all of `names` removed.

    `behind` is as of `without_bypass`.
    """
    blocking = without_bypass(model, names, behind) if names else []
    if blocking:
        raise ConfigError(
            f"structure 'layer' needs a bypass, and nothing leads around {', '.join(blocking)} once the other layers "
            "are pruned; skip these layers or give them another structure"
        )


def without_bypass(model, names, behind=()):
    """The layers of `names`, in the order of execution, whose removal after the others' would cut input from output.

    `behind` has pairs (layer, normalization) of which the second puts out 0, too, once the first is removed.
    """
    graph, calls = traced(model, "structure 'layer' has to see the branches of the network"), {}
    for node in graph.nodes:
        name = _layer_called(model, node)
        if name in names:
            calls.setdefault(name, set()).add(node)
        elif node.op == "get_attr" and node.target.endswith(".weight"):  # a weight that is used without its layer
            name = node.target.removesuffix(".weight")
            if name in names:
                calls.setdefault(name, set()).update(node.users)
    zeros = {node for name, nodes in calls.items() if model.get_submodule(name).bias is None for node in nodes}
    for name, norm in behind:
        nodes = {node for node in graph.nodes if node.op == "call_module" and node.target == norm}
        calls[name], zeros = calls.get(name, set()) | nodes, zeros | nodes
    removed, blocking = set(), []
    for name, nodes in calls.items():
        if _output_is_reached(graph, removed | nodes, zeros & (removed | nodes)):
            removed |= nodes
        else:
            blocking.append(name)
    return blocking


def _layer_called(model, node):
    """The name of the layer whose output a node puts out: that which it calls, of attention its output projection."""
    if node.op != "call_module":
        return None
    attention = isinstance(model.get_submodule(node.target), nn.MultiheadAttention)
    return f"{node.target}.out_proj" if attention else node.target


def _output_is_reached(graph, removed, zeros):
    """Whether input reaches output beside the nodes `removed`, of which `zeros` put out 0, and others constants."""
    reached = set()
    for node in graph.nodes:  # in order of execution: a node's inputs come before it
        if node.target in PRODUCTS and zeros.intersection(node.all_input_nodes):
            zeros = zeros | {node}
            continue
        fed = node.op == "placeholder" or any(source in reached for source in node.all_input_nodes)
        if fed and node not in removed and not queries_shape(node):
            reached.add(node)
    return any(node.op == "output" for node in reached)
