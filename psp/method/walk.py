"""From a layer forward through the network's graph, up to the normalizations in which its α cancels."""

import torch
from torch import nn
from torch.nn import functional as F

from psp.method.choose import check_initialized
from psp.method.graph import BY_CHANNEL, LAYERS, NORMALIZATIONS, queries_shape
from psp.method.tried import is_silenced_by_zeros

# Functions with f(α·x) = α·f(x) for α > 0, channel by channel: what is multiplied before them is so behind them.
DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)  # what puts zeros in; nn.AlphaDropout does not
PASSING_MODULES = (nn.Identity, *DROPOUT)
PASSING_MODULES += (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.Upsample, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d)
PASSING_MODULES += (nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d)
PASSING_MODULES += (nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d)
PASSING_MODULES += (nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d)
PASSING_MODULES += (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)
PASSING_MODULES += (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
PASSING_MODULES += (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
PASSING_CALLS = (F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_", F.leaky_relu, F.prelu, F.rrelu)
DROPOUT_CALLS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)
PASSING_CALLS += (*DROPOUT_CALLS, F.interpolate, "contiguous")
PASSING_CALLS += (F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
PASSING_CALLS += (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
# Of a package that is imported late, or not there.
STOCHASTIC_DEPTH = ("torchvision.ops.stochastic_depth.stochastic_depth",)
# Activations that keep 0, but not every factor: behind them a normalization hides α the more the smaller it is.
BENDING_MODULES = (nn.ReLU6, nn.Hardtanh, nn.SiLU, nn.GELU, nn.ELU, nn.SELU, nn.CELU, nn.Hardswish, nn.Mish, nn.Tanh)
BENDING_CALLS = (F.relu6, F.hardtanh, F.silu, F.gelu, F.elu, F.selu, F.celu, F.hardswish, F.mish, torch.tanh, "tanh")
# Of N×C, features by themselves.
BY_FEATURE = (nn.BatchNorm1d, nn.SyncBatchNorm)
# Normalizations that have no place for α: their γ, if there is one, is anybody's.
BY_CHANNEL_CALLS = (F.batch_norm, F.instance_norm)
BY_IMAGE_CALLS = (F.group_norm, F.layer_norm, F.rms_norm)
# What only moves a layer's values about.
MOVING_CALLS = (torch.permute, torch.transpose, "permute", "transpose")
CONCATENATIONS = (torch.cat, torch.concat)
# What brings a layer's values into another form, in which a normalization of each channel still hides their α.
RESHAPING_MODULES = (nn.Flatten,)
RESHAPING_CALLS = (torch.flatten, "flatten", F.pad)
MEANS = (torch.mean, "mean")
VIEWS = (torch.reshape, "view", "reshape", torch.squeeze, "squeeze")  # in which the α of a whole layer are


def output_channels(layer):
    """How many channels a convolution or features a linear layer puts out."""
    return layer.out_channels if hasattr(layer, "out_channels") else layer.out_features


def is_depthwise(layer):
    """Whether channel k of a layer's output is made of channel k of its input alone."""
    return 1 < getattr(layer, "groups", 1) == layer.in_channels == layer.out_channels


def by_channel(norm):
    """Whether a module normalizes each channel by itself."""
    one_each = isinstance(norm, nn.GroupNorm) and norm.num_groups == norm.num_channels
    return one_each or isinstance(norm, BY_CHANNEL)


def is_call(node, functions, names=()):
    """Whether a node calls one of some functions, methods, or functions that have these names."""
    target = node.target
    if node.op != "call_module" and target in functions:
        return True
    return node.op == "call_function" and f"{target.__module__}.{getattr(target, '__qualname__', '')}" in names


def is_called_again(node):
    """Whether another node of the graph calls the same module."""
    return any(other.target == node.target for other in node.graph.nodes if other is not node)


def _parts(concatenation):
    """What a node concatenates."""
    return concatenation.args[0] if concatenation.args else concatenation.kwargs["tensors"]


def _axes_of(node):
    """The axes that a mean or a concatenation is along, the first one where it names none."""
    axes = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
    return tuple(axes) if isinstance(axes, (tuple, list)) else (axes,)


class Walk:
    """Follows one layer's output through the graph to the normalizations in which its α would cancel.

    `whole`: the layer has a single α, which cancels in any normalization; otherwise one for each output channel, which
    cancels only where channels are normalized one by one.
    """

    def __init__(self, model, whole, layer):
        self.model = model
        self.whole = whole
        self.count = output_channels(layer)
        self.linear = isinstance(layer, nn.Linear)  # its features may lie on another axis than others look at
        self.axes = layer.weight.ndim  # of what it puts out

    def targets(self, layer):
        """(node, first, count) of each normalization that can hide the α of `layer`, a node, from the loss.

        What one of them has times α the next can hide again: on to the last one that does.
        """
        found = self._ends(layer, self.count)
        while len(found) == 1 and self._is_all(*found[0]):
            beyond = self._ends(*found[0][::2])
            if not beyond or any(is_called_again(norm) for norm, _, _ in beyond):  # there it would be others' α, too
                break
            found = beyond
        return found

    def is_hidden(self, node, joined=False):
        """Whether all that reads a node is a normalization, with γ or without, or hands it on to such.

        What is `joined` with others' values, in a concatenation, only a normalization of each channel hides.
        """
        users = [user for user in node.users if not queries_shape(user)]
        return bool(users) and all(
            self._hides(user, joined)
            or (self._carries(user) and self.is_hidden(user, joined or is_call(user, CONCATENATIONS)))
            for user in users
        )

    def _carries(self, node):
        """Whether a layer's values come out of a node as a normalization would hide their α, in whatever form."""
        if isinstance(self._module(node), RESHAPING_MODULES) or is_call(node, RESHAPING_CALLS):
            return True
        if is_call(node, MEANS):
            return self.whole or not {0, 1, -self.axes, 1 - self.axes}.intersection(_axes_of(node))
        if is_call(node, CONCATENATIONS):
            return _axes_of(node)[0] in (1, 1 - self.axes)
        moved = is_call(node, MOVING_CALLS) and (self.whole or self.linear)
        return moved or (self.whole and is_call(node, VIEWS)) or self._passes(node, None)

    def _hides(self, node, joined):
        if joined:
            return by_channel(self._module(node)) or is_call(node, BY_CHANNEL_CALLS)
        calls = BY_CHANNEL_CALLS + BY_IMAGE_CALLS if self.whole else () if self.linear else BY_CHANNEL_CALLS
        return self._hides_alpha(self._module(node)) or is_call(node, calls)

    def _hides_alpha(self, norm):
        """Whether α cancels in a module: in a normalization of each channel by itself, that of a whole layer in any."""
        if self.whole:
            return isinstance(norm, NORMALIZATIONS)
        if self.linear:
            return isinstance(norm, BY_FEATURE) and norm.num_features == self.count
        return by_channel(norm)

    def _is_all(self, norm, first, count):
        return (first, count) == (0, len(self.model.get_submodule(norm.target).weight))

    def _ends(self, node, count, first=None):
        """(node, first, count) of each normalization that every way from `node` leads to, depth first.

        Empty as soon as one way leads to anything else that sees its values.

        `count` is that of the channels that α multiplies, `first` of those that stand before them; None where nothing
        was concatenated.
        """
        found = []
        for user in node.users:
            if queries_shape(user):
                continue
            if self._normalizes(user, first):
                whole = len(self.model.get_submodule(user.target).weight)
                ends = [(user, 0, whole) if first is None else (user, first, count)]
            elif user.target in CONCATENATIONS and (before := self._channels_before(user, node)) is not None:
                ends = self._ends(user, count, (first or 0) + before)
            else:
                ends = self._ends(user, self._count(user, count), first) if self._passes(user, first) else []
            if not ends:
                return []
            found += ends
        return found

    def _module(self, node):
        return self.model.get_submodule(node.target) if node.op == "call_module" else None

    def _normalizes(self, node, first):
        """Whether a node is a normalization with γ; what is concatenated is of the others' mean over an image, too."""
        norm = self._module(node)
        if isinstance(norm, NORMALIZATIONS) and norm.weight is not None:
            check_initialized(self.model, [node.target])
        hides = by_channel(norm) if self.whole and first is not None else self._hides_alpha(norm)
        return hides and norm.weight is not None and norm.weight.ndim == 1 and is_silenced_by_zeros(norm)

    def _count(self, node, count):
        """How many channels α multiplies behind a node that passes it on, of `count` before it."""
        module = self._module(node)
        mixes = isinstance(module, LAYERS) and not is_depthwise(module)
        return output_channels(module) if mixes else count

    def _passes(self, node, first):
        module = self._module(node)
        if isinstance(module, LAYERS):  # one that mixes channels passes α on where it is that of all of them
            passed = is_depthwise(module) or (self.whole and first is None)
            return passed and (module.bias is None or self._removes_constants(node))
        calls = PASSING_CALLS + BENDING_CALLS + (MOVING_CALLS if self.whole else ())
        return isinstance(module, PASSING_MODULES + BENDING_MODULES) or is_call(node, calls, STOCHASTIC_DEPTH)

    def _removes_constants(self, node):
        """Whether all that reads a node takes the mean from each channel, and so a layer's bias."""
        return all(by_channel(self._module(user)) for user in node.users)

    def _channels_before(self, concatenation, node):
        """How many channels stand before those of `node` in a concatenation along axis 1; None if unclear."""
        parts = _parts(concatenation)
        axis = concatenation.args[1:] or (concatenation.kwargs.get("dim", 0),)
        if self.linear or axis != (1,) or not isinstance(parts, (list, tuple)) or parts.count(node) != 1:
            return None
        counts = [self._channels(part) for part in parts[: parts.index(node)]]
        return None if None in counts else sum(counts)

    def _channels(self, node):
        """How many channels a node has; None where that is unclear."""
        module = self._module(node)
        for attribute in ("out_channels", "num_features"):
            if hasattr(module, attribute):
                return getattr(module, attribute)
        if node.target in CONCATENATIONS:
            counts = [self._channels(part) for part in _parts(node)]
            return None if None in counts else sum(counts)
        return self._channels(node.args[0]) if self._passes(node, None) and node.args else None
