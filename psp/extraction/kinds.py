"""Which rule of ops and layers holds for a node; what is not recognized is an `Op`: kept as it is, all of it live."""

import operator

import torch
from torch import fx, nn
from torch.nn import functional as F

from psp.extraction.graph import CONVOLUTION, TRANSPOSED, calls, dim_of
from psp.extraction.groups import Grouped
from psp.extraction.layers import Weighted, channel_axis
from psp.extraction.norms import NORMS, normalization
from psp.extraction.ops import (
    ByChannel,
    Concatenate,
    Flatten,
    Input,
    Op,
    Pad,
    Pointwise,
    Stack,
    Turn,
    Unary,
    ZeroOnly,
)
from psp.extraction.pairs import Product, Sum
from psp.extraction.parts import gate, is_part, part, sliced
from psp.extraction.permute import PERMUTATIONS, permutation
from psp.extraction.recurrent import RECURRENT, Recurrent
from psp.extraction.reduce import MEANS, SOFTMAX, SUMS_ALONG, reduction
from psp.extraction.regroup import question, regroup
from psp.extraction.resize import Resize, is_resize
from psp.extraction.shapes import has_channels, same_shape
from psp.method.graph import PRODUCTS

ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh,
    nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Softplus, nn.Softsign, nn.LogSigmoid,
)  # fmt: skip
KEEPING = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
)  # fmt: skip
# New pixels are means of old ones, by weights that add up to 1, channel by channel.
UPSAMPLINGS = (nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)
AVERAGE_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
ZERO_PADS = (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)
ACTIVATION_NAMES = {
    "relu", "relu6", "leaky_relu", "elu", "celu", "selu", "gelu", "silu", "mish", "sigmoid", "tanh", "hardswish",
    "hardsigmoid", "hardtanh", "softplus", "softsign", "logsigmoid", "abs", "neg", "exp", "clamp", "square", "sqrt",
    "add", "sub", "mul", "truediv", "div",
}  # fmt: skip
KEEPING_FUNCTIONS = {
    F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, F.max_pool1d, F.max_pool2d, F.max_pool3d,
    F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d,
}  # fmt: skip
# Arguments of functions and methods that have no signature to ask.
ARGUMENTS = {
    "avg_pool": ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    "glu": ("input", "dim"),
    "pad": ("input", "pad", "mode", "value"),
}
SUMS = {operator.add: torch.add, torch.add: torch.add, "add": torch.add}
SUMS |= {operator.sub: torch.sub, torch.sub: torch.sub, "sub": torch.sub}
ACTIVATION_FUNCTIONS = {
    getattr(space, name) for space in (torch, F, operator) for name in ACTIVATION_NAMES if hasattr(space, name)
}


def classify(network):
    """Write its `Op` into every node's meta["op"]; the shapes are known."""
    modules, count = dict(network.named_modules()), calls(network)
    for node in network.graph.nodes:
        if node.op == "placeholder":
            op = Input(node)
        elif node.op == "call_module" and _is_recurrent(node, modules[node.target], count[node.target]):
            _turn(node, len(node.args[0].meta["shape"]) - 1)
            op = Recurrent(node, modules[node.target])
        elif is_resize(node):
            op = Resize(node)
        elif node.op == "call_module" and has_channels(node) and _reads_channels(node):
            op = _module_op(node, modules[node.target], count[node.target])
        elif node.op in ("call_function", "call_method") and has_channels(node) and _reads_channels(node):
            op = _function_op(node)
        elif has_channels(node) and is_part(node):
            op = part(node)
        else:
            op = Op(node)
        if type(op) is Op and node.op in ("call_function", "call_method"):
            op = regroup(node) or question(node) or op
        node.meta["op"] = op


def _is_recurrent(node, module, times):
    """Whether a node is an unprojected recurrent layer with biases, called once, that reads batches of sequences."""
    known = type(module) in RECURRENT and times == 1 and module.bias and not getattr(module, "proj_size", 0)
    return known and node.args and has_channels(node.args[0]) and len(node.args[0].meta["shape"]) == 3


def _reads_channels(node):
    return len(node.all_input_nodes) > 0 and all(has_channels(n) for n in node.all_input_nodes)


def _module_op(node, module, times):
    axes = len(node.all_input_nodes[0].meta["shape"])
    kind = type(module)  # a subclass may do something else
    if kind in (*CONVOLUTION, *TRANSPOSED, nn.Linear):
        # A layer that is called several times has one weight for several sets of channels: it stays whole; so does one
        # that is told the size of its output.
        if times > 1 or (kind is not nn.Linear and axes != module.weight.ndim) or len(node.args) > 1 or node.kwargs:
            return Op(node)
        _turn(node, channel_axis(node, module))
        return (Grouped if getattr(module, "groups", 1) > 1 else Weighted)(node, module)
    if kind in ACTIVATIONS or (kind is nn.PReLU and len(module.weight) == 1):
        return Pointwise(node, module)
    if kind is nn.GLU:
        return gate(node, module.dim) or Op(node)
    if not _along(node, 1):
        return Op(node)
    if kind is nn.PReLU:  # a slope for each channel
        return ByChannel(node, module) if times == 1 else Op(node)
    if kind in NORMS:
        return normalization(node, module) if times == 1 else Op(node)
    if kind in UPSAMPLINGS or (kind in KEEPING and axes == _axes(kind.__name__)):
        return Unary(node)
    if kind in AVERAGE_POOLS and axes == _axes(kind.__name__):
        override = getattr(module, "divisor_override", None)
        return _average_pool(node, module.padding, module.count_include_pad, override)
    if kind in ZERO_PADS:
        return _pad(node, module.padding, "constant", getattr(module, "value", 0))
    return Op(node)


def _function_op(node):
    if not node.args:  # all by their names
        return Op(node)
    target, reads = node.target, [n for n in node.args if isinstance(n, fx.Node)]
    if target is torch.cat:
        return _cat(node)
    if target is torch.stack and _along(node, 1) and _stacks(node):
        return Stack(node)
    if len(reads) == len(node.args) == 2 and not node.kwargs:
        return _two(node, target)
    if len(reads) != 1 or len(node.all_input_nodes) != 1:
        return Op(node)
    axes = len(reads[0].meta["shape"])
    if target in ACTIVATION_FUNCTIONS or (node.op == "call_method" and target in ACTIVATION_NAMES):
        return Pointwise(node)
    if target in PERMUTATIONS:
        return permutation(node)
    if target == "contiguous":
        return Unary(node)
    if target in (*MEANS, *SUMS_ALONG, *SOFTMAX):
        return reduction(node) or Op(node)
    if target is F.glu:
        return gate(node, _arguments(node, "glu").get("dim", -1)) or Op(node)
    if target is operator.getitem and (taken := sliced(node)):
        return taken
    if not _along(node, 1):
        return Op(node)
    if target in KEEPING_FUNCTIONS and axes == _axes(target.__name__):
        return Unary(node)
    if target in (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d) and axes == _axes(target.__name__):
        named = _arguments(node, "avg_pool")
        include, override = named.get("count_include_pad", True), named.get("divisor_override")
        return _average_pool(node, named.get("padding", 0), include, override)
    if target is F.pad:
        named = _arguments(node, "pad")
        return _pad(node, named["pad"], named.get("mode", "constant"), named.get("value") or 0)
    if target is operator.getitem:
        return Unary(node) if _slices_space(node.args[1]) else Op(node)
    return Flatten(node) if target is torch.flatten and node.args[1:] == (1,) else Op(node)


def _along(node, axis):
    """Whether a node reads nothing but tensors with channels along `axis`."""
    return all(n.meta["op"].axis == axis for n in node.all_input_nodes)


def _turn(node, axis):
    """Have a node read its tensor with channels along `axis`; if they are along another one, all of them are kept."""
    read = node.args[0]
    if read.meta["op"].axis != axis:
        with node.graph.inserting_before(node):
            turned = node.graph.call_function(torch.positive, (read,))
        turned.meta = {**read.meta, "op": Turn(turned, axis=axis)}
        node.replace_input_with(read, turned)


def _axes(name):
    """Axes of a batch for a pooling by its name, which ends in 1d, 2d or 3d."""
    return int(name[-2]) + 2


def _arguments(node, kind):
    return dict(zip(ARGUMENTS[kind], node.args, strict=False)) | node.kwargs


def _average_pool(node, padding, count_include_pad, divisor_override):
    padded = any(padding) if isinstance(padding, (tuple, list)) else padding
    return ZeroOnly(node) if divisor_override or (padded and count_include_pad) else Unary(node)


def _pad(node, pads, mode, value):
    axes = len(node.meta["shape"])
    if mode == "constant" and len(pads) <= 2 * (axes - 1):
        return Pad(node, list(pads), value)
    return Unary(node) if len(pads) <= 2 * (axes - 2) else Op(node)


def _cat(node):
    if not isinstance(node.args[0], (tuple, list)):
        return Op(node)
    axis = node.args[0][0].meta["op"].axis
    return Concatenate(node) if _along(node, axis) and dim_of(node) % len(node.meta["shape"]) == axis else Op(node)


def _stacks(node):
    """Whether a node stacks its tensors along a new axis between the batch and their channels."""
    return dim_of(node) == 1 and len(set(node.args[0])) == len(node.args[0]) and same_shape(*node.args[0])


def _two(node, target):
    axis = node.args[0].meta["op"].axis
    if not _along(node, axis):
        return Op(node)
    # A parameter that is as long as a batch of one is no batch.
    if target in SUMS and same_shape(*node.args) and all(n.op != "get_attr" for n in node.args):
        return Sum(node, SUMS[target])
    if target in PRODUCTS and all(_same_ends(*(n.meta[key] for n in node.args), axis) for key in ("shape", "larger")):
        return Product(node)
    return Op(node)


def _same_ends(first, second, axis):
    """Whether two shapes agree in the batch and the channels."""
    return len(first) == len(second) and (first[0], first[axis]) == (second[0], second[axis])


def _slices_space(index):
    """Whether an index leaves batch and channels alone: x[:, :, …] with slices in space only."""
    if not isinstance(index, tuple) or len(index) < 2 or not all(isinstance(i, slice) for i in index):
        return False
    return index[0] == index[1] == slice(None)
