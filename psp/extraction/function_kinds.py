"""Which rule holds for a function or a method of a tensor, by the number of tensors that it is given and by itself."""

import operator

import torch
from torch import fx
from torch.nn import functional as F

from psp.extraction.axes import along
from psp.extraction.graph import dim_of
from psp.extraction.ops import Concatenate, Flatten, Op, Pointwise, Stack, Unary
from psp.extraction.pairs import Product, Sum
from psp.extraction.parts import gate, sliced
from psp.extraction.permute import PERMUTATIONS, permutation
from psp.extraction.pooling import AVERAGE_FUNCTIONS, KEEPING_FUNCTIONS, average_pool, keeping_pool, pad
from psp.extraction.reduce import MEANS, SOFTMAX, SUMS_ALONG, reduction
from psp.extraction.shapes import same_shape
from psp.method.graph import PRODUCTS

ACTIVATION_NAMES = {
    "relu", "relu6", "leaky_relu", "elu", "celu", "selu", "gelu", "silu", "mish", "sigmoid", "tanh", "hardswish",
    "hardsigmoid", "hardtanh", "softplus", "softsign", "logsigmoid", "abs", "neg", "exp", "clamp", "square", "sqrt",
    "add", "sub", "mul", "truediv", "div",
}  # fmt: skip
ACTIVATIONS = ACTIVATION_NAMES | {
    getattr(space, name) for space in (torch, F, operator) for name in ACTIVATION_NAMES if hasattr(space, name)
}
SUMS = {operator.add: torch.add, torch.add: torch.add, "add": torch.add}
SUMS |= {operator.sub: torch.sub, torch.sub: torch.sub, "sub": torch.sub}
# Arguments of functions that have no signature to ask.
POOLING = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
GLU, PADDING = ("input", "dim"), ("input", "pad", "mode", "value")
EVERYTHING = slice(None)


def function_op(node):
    """The rule for a node that calls a function or a method; `Op` if its tensors are given by name."""
    reads = [n for n in node.args if isinstance(n, fx.Node)]
    if node.target in OF_LISTS and node.args:
        return OF_LISTS[node.target](node)
    if len(reads) == len(node.args) == 2 and not node.kwargs:
        return _of_two(node)
    if len(reads) != 1 or len(node.all_input_nodes) != 1 or node.target not in OF_ONE:
        return Op(node)
    return OF_ONE[node.target](node)


def _cat(node):
    if not isinstance(node.args[0], (tuple, list)):
        return Op(node)
    axis = node.args[0][0].meta["op"].axis
    return Concatenate(node) if along(node, axis) and dim_of(node) % len(node.meta["shape"]) == axis else Op(node)


def _stack(node):
    """`Stack` of tensors along a new axis between the batch and their channels."""
    if not along(node, 1) or dim_of(node) != 1:
        return Op(node)
    tensors = node.args[0]
    return Stack(node) if len(set(tensors)) == len(tensors) and same_shape(*tensors) else Op(node)


def _of_two(node):
    axis = node.args[0].meta["op"].axis
    if not along(node, axis):
        return Op(node)
    # A parameter that is as long as a batch of one is no batch.
    if node.target in SUMS and same_shape(*node.args) and all(n.op != "get_attr" for n in node.args):
        return Sum(node, SUMS[node.target])
    ends = (_same_ends(*(n.meta[key] for n in node.args), axis) for key in ("shape", "larger"))
    return Product(node) if node.target in PRODUCTS and all(ends) else Op(node)


def _same_ends(first, second, axis):
    """Whether two shapes agree in the batch and the channels."""
    return len(first) == len(second) and (first[0], first[axis]) == (second[0], second[axis])


def _reduction(node):
    return reduction(node) or Op(node)


def _gate(node):
    return gate(node, _arguments(node, GLU).get("dim", -1)) or Op(node)


def _index(node):
    """x[:, a:b] takes channels, x[:, :, …] with slices leaves them and the batch alone."""
    taken = sliced(node)
    if taken or not along(node, 1):
        return taken or Op(node)
    index = node.args[1]
    slices = isinstance(index, tuple) and len(index) >= 2 and all(isinstance(i, slice) for i in index)
    return Unary(node) if slices and index[0] == index[1] == EVERYTHING else Op(node)


def _keeping(node):
    return keeping_pool(node, node.target)


def _average(node):
    told = _arguments(node, POOLING)
    include, override = told.get("count_include_pad", True), told.get("divisor_override")
    return average_pool(node, node.target, told.get("padding", 0), include, override)


def _pad(node):
    told = _arguments(node, PADDING)
    return pad(node, told["pad"], told.get("mode", "constant"), told.get("value") or 0)


def _flatten(node):
    return Flatten(node) if along(node, 1) and node.args[1:] == (1,) else Op(node)


def _arguments(node, names):
    return dict(zip(names, node.args, strict=False)) | node.kwargs


OF_LISTS = {torch.cat: _cat, torch.stack: _stack}
OF_ONE = {
    **dict.fromkeys(ACTIVATIONS, Pointwise),
    **dict.fromkeys(PERMUTATIONS, permutation),
    "contiguous": Unary,
    **dict.fromkeys((*MEANS, *SUMS_ALONG, *SOFTMAX), _reduction),
    F.glu: _gate,
    operator.getitem: _index,
    **dict.fromkeys(KEEPING_FUNCTIONS, _keeping),
    **dict.fromkeys(AVERAGE_FUNCTIONS, _average),
    F.pad: _pad,
    torch.flatten: _flatten,
}
