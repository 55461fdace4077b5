"""A traced network as a graph of pure operations, the form that `psp.extract` reasons about.

The graph is a list of nodes: inputs, calls of submodules, functions and tensor methods, the output. Two things are made
plain: operations that write into their argument become ones that return a new tensor, and batch normalization goes into
the convolution before it.
"""

import copy
import inspect
import operator
from collections import Counter

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from psp.errors import ExtractError
from psp.method.walk import DROPOUT, DROPOUT_CALLS, STOCHASTIC_DEPTH, is_call

BATCHNORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
CONVOLUTION = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NOTHING_IN_EVALUATION = (nn.Identity, *DROPOUT, nn.AlphaDropout, nn.FeatureAlphaDropout)
LATER = "meta"  # the device of a layer that is given its weights later: no time goes into random ones
PURE = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    torch.relu_: torch.relu,
    F.relu_: F.relu,
}


def make_pure(network):
    """Replace in place operations by ones that return a new tensor, and drop what does nothing in evaluation.

    Raises ExtractError for a write into a tensor that has no such counterpart.
    """
    order = {node: i for i, node in enumerate(network.graph.nodes)}
    writers = {name: module for name, module in network.named_modules() if getattr(module, "inplace", False) is True}
    for node in list(network.graph.nodes):
        if _writes(node, writers):
            _use_pure(node)
            written = node.all_input_nodes[0]
            written.replace_all_uses_with(node, lambda user, node=node: order[user] > order[node])
        if _is_identity(node, network):
            node.replace_all_uses_with(node.args[0])
            network.graph.erase_node(node)
    for module in writers.values():
        module.inplace = False


def _writes(node, writers):
    if node.op == "call_module":
        return node.target in writers
    if node.op == "call_method":
        return node.target.endswith("_") and not node.target.endswith("__")
    if node.op == "call_function":
        return node.target in PURE or node.target is operator.setitem or _given(node, "out") or _inplace(node)
    return False


def _inplace(node):
    """Whether a function was called with inplace=True."""
    return _given(node, "inplace") is True


def _given(node, name):
    """What a function was called with for its argument `name`, by name or position; None if with nothing."""
    if name in node.kwargs:
        return node.kwargs[name]
    try:
        return inspect.signature(node.target).bind(*node.args, **node.kwargs).arguments.get(name)
    except (TypeError, ValueError):  # a builtin without a signature has no such argument
        return None


def _use_pure(node):
    if node.op == "call_method" and callable(getattr(torch.Tensor, node.target[:-1], None)):
        node.target = node.target[:-1]
    elif node.op == "call_function" and node.target in PURE:
        node.target = PURE[node.target]
    elif node.op == "call_function" and _inplace(node):
        arguments = inspect.signature(node.target).bind(*node.args, **node.kwargs).arguments
        first, *rest = ((k, v) for k, v in arguments.items() if k != "inplace")
        node.args, node.kwargs = (first[1],), dict(rest)
    elif node.op != "call_module":
        raise ExtractError(
            f"{describe(node)} writes into a tensor that others may read, which cannot be followed exactly; "
            "write it as an operation that returns a new tensor"
        )


def _is_identity(node, network):
    if node.op == "call_module":
        return type(network.get_submodule(node.target)) in NOTHING_IN_EVALUATION
    drops = is_call(node, DROPOUT_CALLS, STOCHASTIC_DEPTH)  # all of them in training unless they are told otherwise
    return drops and (_given(node, "training") is False or _given(node, "p") == 0)


def calls(network):
    """How often each submodule is called, by name; reading one of its tensors without it counts as a call.

    So does a call of a module that it is in: nobody sees what that one does.
    """
    called = [node.target for node in network.graph.nodes if node.op == "call_module"]
    count = Counter(called)
    for name in called:
        inside = network.get_submodule(name).named_modules(prefix=name)
        count.update(inner for inner, _ in inside if inner != name)
    count.update(node.target.rpartition(".")[0] for node in network.graph.nodes if node.op == "get_attr")
    return count


def fold_batchnorm_(network):
    """Fold every evaluation-mode batch normalization into the convolution or linear layer right before it, in place."""
    modules, count = dict(network.named_modules()), calls(network)
    for node in list(network.graph.nodes):
        if node.op != "call_module" or type(modules[node.target]) not in BATCHNORM:
            continue
        before = node.args[0]
        if before.op != "call_module" or len(before.users) > 1 or count[before.target] + count[node.target] > 2:
            continue
        layer, norm = modules[before.target], modules[node.target]
        if norm.running_mean is None or type(layer) not in (*CONVOLUTION, *TRANSPOSED, nn.Linear):
            continue
        transposed = type(layer) in TRANSPOSED
        if transposed and layer.groups > 1:  # torch folds only those of one group
            continue
        # After N×tokens×features a BatchNorm1d is one of tokens.
        if isinstance(layer, nn.Linear) and len(node.meta.get("shape", ())) != 2:
            continue
        # Into what comes of it a second one may be folded.
        if isinstance(layer, nn.Linear):
            modules[before.target] = fuse_linear_bn_eval(layer, _with_affine(norm))
        else:
            modules[before.target] = fuse_conv_bn_eval(layer, norm, transposed)
        network.set_submodule(before.target, modules[before.target])
        node.replace_all_uses_with(before)
        network.graph.erase_node(node)
    network.delete_all_unused_submodules()
    network.recompile()


def _with_affine(norm):
    """A normalization with γ and β, which torch's function for linear layers needs; 1 and 0 where it has none."""
    if norm.affine:
        return norm
    norm = copy.copy(norm)
    norm._parameters = {"weight": nn.Parameter(torch.ones_like(norm.running_mean))}
    norm._parameters["bias"] = nn.Parameter(torch.zeros_like(norm.running_mean))
    return norm


def run(node, values):
    """What a function or method node makes of other values: `values(read)` for each node that it reads."""
    args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), values)
    if node.op == "call_method":
        return getattr(args[0], node.target)(*args[1:], **kwargs)
    return node.target(*args, **kwargs)


def dim_of(node, place=1):
    """The `dim` that a function or method was called with, by its name or as that argument; 0 if with none."""
    return node.kwargs.get("dim", node.args[place] if len(node.args) > place else 0)


def describe(node):
    """A node as a user knows it: by layer name where it has one."""
    if node.op == "call_module":
        return f"layer {node.target!r}"
    inside = [name for name, _ in node.meta.get("nn_module_stack", {}).values() if name]
    return f"operation {getattr(node.target, '__name__', node.target)!r}" + (f" in {inside[-1]!r}" if inside else "")
