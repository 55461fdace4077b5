"""Functions of weights written as the layers that the rules know: F.conv2d(x, w, b) as an nn.Conv2d, and so on.

Tracing goes into subclasses of torch's layers and finds a function there, whose weight may be computed: standardized,
scaled, normalized. What is computed from parameters alone is the same for every input, so it is computed once.
"""

import operator

import torch
from torch import fx, nn
from torch.nn import functional as F

from psp.extraction.graph import BATCHNORM, CONVOLUTION, LATER, run
from psp.extraction.names import free_name

CONVOLUTIONS = dict(zip((F.conv1d, F.conv2d, F.conv3d), CONVOLUTION, strict=True))
CONVOLUTION_ARGUMENTS = ("stride", "padding", "dilation", "groups")


def use_layers(network):
    """Replace in place functions of constant weights by layers of torch.nn; the shapes are known."""
    for node in list(network.graph.nodes):
        make = MAKERS.get(node.target) if node.op == "call_function" else None
        if make is None or not node.args or not isinstance(node.args[0], fx.Node):
            continue
        sources = _weights(node)
        behind = _behind([n for n in sources if n is not None])
        if not _constant(network, node, behind):
            continue
        values = _values(network, behind)
        layer = make(node, *(values.get(n) for n in sources))
        if layer is not None and not _fills_zeros(layer, values):
            name = _name_of(network, node, values)
            node.op, node.target, node.args, node.kwargs = "call_module", name, node.args[:1], {}
            for read in reversed(values):
                network.graph.erase_node(read)
            network.set_submodule(node.target, layer.eval())
    network.delete_all_unused_submodules()
    network.recompile()


def _convolution(node, weight, bias=None):
    """None where a setting is computed, such as groups=x.shape[1]."""
    given = {**dict(zip(CONVOLUTION_ARGUMENTS, node.args[3:], strict=False)), **node.kwargs}
    settings = {name: given[name] for name in CONVOLUTION_ARGUMENTS if name in given}
    if any(isinstance(value, fx.Node) for value in settings.values()):
        return None
    outputs, inputs, *kernel = weight.shape
    inputs *= settings.get("groups", 1)
    layer = CONVOLUTIONS[node.target](inputs, outputs, kernel, bias=bias is not None, **settings, device=LATER)
    return _filled(layer, weight, bias)


def _linear(node, weight, bias=None):
    """None where the weight is one row without an axis of its own."""
    if weight.ndim != 2:
        return None
    return _filled(nn.Linear(*reversed(weight.shape), bias is not None, device=LATER), weight, bias)


def _batchnorm(node, mean=None, var=None, weight=None, bias=None):
    """None where the statistics are those of the batch."""
    training, _, eps = (*node.args[5:], *(False, 0.1, 1e-5)[len(node.args[5:]) :])
    axes = len(node.meta["shape"])
    if mean is None or node.kwargs.get("training", training) or axes > 5:
        return None
    norm = BATCHNORM[max(axes - 3, 0)](len(mean), eps=node.kwargs.get("eps", eps))
    norm.running_mean, norm.running_var = mean.clone(), var.clone()
    ones = torch.ones_like(mean)
    return _filled(norm, ones if weight is None else weight, ones * 0 if bias is None else bias)


MAKERS = dict.fromkeys(CONVOLUTIONS, _convolution) | {F.linear: _linear, F.batch_norm: _batchnorm}
# The arguments after the first one that are tensors, in the order of the functions above.
TENSORS = dict.fromkeys((*CONVOLUTIONS, F.linear), ("weight", "bias"))
TENSORS[F.batch_norm] = ("running_mean", "running_var", "weight", "bias")


def _filled(layer, weight, bias):
    layer.weight = nn.Parameter(weight.detach().clone())
    layer.bias = None if bias is None else nn.Parameter(bias.detach().clone())
    return layer


def _weights(node):
    """The nodes that a function has its weights from, None for one that is not there."""
    names = TENSORS[node.target]
    given = {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}
    return [given.get(name) for name in names]


def _constant(network, node, behind):
    """Whether no input takes part in the nodes `behind`, and nothing but the function `node` reads them."""
    called = {n.target for n in network.graph.nodes if n.op == "call_module"}
    for read in behind:
        if read.op in ("placeholder", "call_module") or set(read.users) - behind - {node}:
            return False
        if read.op == "get_attr" and any(f"{read.target}.".startswith(f"{name}.") for name in called):
            return False
    return True


def _behind(nodes):
    """All nodes that `nodes` are computed from, themselves included."""
    found, left = set(), list(nodes)
    while left:
        node = left.pop()
        if node not in found:
            found.add(node)
            left.extend(node.all_input_nodes)
    return found


def _fills_zeros(layer, values):
    """Whether a layer's weight has more numbers than are not zero in all parameters that it is computed from.

    Standardized, a zero column is none any more: what was pruned is seen in the parameter alone.
    """
    read = [value for node, value in values.items() if node.op == "get_attr"]
    return int(layer.weight.count_nonzero()) > sum(int(value.count_nonzero()) for value in read)


def _values(network, behind):
    """{node: its tensor} of the nodes `behind`, in the order of execution."""
    values = {}
    for node in (n for n in network.graph.nodes if n in behind):
        own = node.op == "get_attr"
        values[node] = operator.attrgetter(node.target)(network) if own else run(node, values.__getitem__)
    return values


def _name_of(network, node, values):
    """The name of the module whose forward calls the function, if nothing else of it is used, else a new one.

    `values` has the nodes that read what becomes the layer's own.
    """
    inside = [name for name, _ in node.meta.get("nn_module_stack", {}).values() if name]
    if not inside:
        return _unused(network, node.name)
    called = free_name(inside[-1])
    # All that a graph takes along of a module that it does not call are the tensors that it reads.
    left = dict(network.named_modules()).get(called)
    others = (n for n in network.graph.nodes if n.op == "get_attr" and n not in values)
    alone = left is None or (type(left) is nn.Module and not list(left.children()))
    alone = alone and not any(n.target.startswith(f"{called}.") for n in others)
    return called if alone else _unused(network, f"{called}.{node.name}")


def _unused(network, name):
    """`name`, with as many _ behind it as it takes to be nothing's of the network."""
    owner, _, own = name.rpartition(".")
    return name if not hasattr(network.get_submodule(owner), own) else _unused(network, f"{name}_")
