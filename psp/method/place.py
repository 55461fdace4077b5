"""Where the α of a layer stand, by what follows it in the network.

Batch normalization divides each channel by its own standard deviation: an α that multiplies the channel before it
cancels, (α·x − α·m)/(α·s) = (x − m)/s. The loss does not see it, and weight decay shrinks all such α alike. So does
the α of a whole layer before any normalization. Multiplied into γ and β, behind the normalization, it is seen; and
since γ and β decay too, the product γ·α has the penalty of the group lasso again
(notebooks/why_weight_decay_prunes.ipynb).

There it can be hidden again: γ and β of a normalization, all times α, go through ReLU and the next convolution into the
next normalization, which divides by α; and so do those of one channel through a depthwise convolution. So α goes on to
the last normalization that would hide it, which in a branch is the one before the sum or the concatenation. Layers
whose α get the same place, of which none is of use without the others, share them and are pruned together.

A pruned channel is then 0 behind its normalization. Where a ReLU follows, whose gradient at 0 is 0, it gets none and
does not come back; where the channel goes into a sum first, it can.

Where a dense block concatenates a layer's output and each reader normalizes it anew, α stands on γ and β of all
readers.
"""

import warnings

import torch
from torch import nn
from torch.nn import functional as F

from psp.errors import ConfigError
from psp.method.choose import BY_CHANNEL, BY_IMAGE, LAYERS, check_initialized, queries_shape, traced

# Functions with f(α·x) = α·f(x) for α > 0, channel by channel: what is multiplied before them is so behind them.
PASSING_MODULES = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.ReLU, nn.LeakyReLU)
PASSING_MODULES += (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
PASSING_MODULES += (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
PASSING_CALLS = (F.relu, torch.relu, F.leaky_relu, F.dropout, F.dropout2d, "relu", "contiguous")
PASSING_CALLS += (F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
PASSING_CALLS += (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
# Activations that keep 0, but not every factor: behind them a normalization hides α the more the smaller it is.
BENDING_MODULES = (nn.ReLU6, nn.SiLU, nn.GELU, nn.ELU, nn.Hardswish, nn.Mish)
BENDING_CALLS = (F.relu6, F.silu, F.gelu, F.elu, F.hardswish, F.mish)
# Normalizations that have no place for α: their γ, if there is one, is anybody's.
BY_CHANNEL_CALLS = (F.batch_norm, F.instance_norm)
BY_IMAGE_CALLS = (F.group_norm, F.layer_norm, F.rms_norm)
# What only moves a layer's values about.
MOVING_CALLS = (torch.permute, torch.transpose, "permute", "transpose")
CONCATENATIONS = (torch.cat, torch.concat)


def normalizations(model, structures, warn=True):
    """{layer name: [(normalization's name, first, count)]} of the layers whose α would cancel: `count` entries of γ.

    `structures` is {layer name: structure}. A layer is listed if structure is "channel" or "layer" and all that its
    output goes to, concatenated or not, are normalizations with γ in which its α cancels. A linear layer has its
    channels along the last axis and BatchNorm1d along the second; whether that is the same shows only in the input, and
    the α of its channels stay on the weight. Nor is a normalization listed that other layers' output goes to, too. Of
    layers whose α are hidden all the same it warns.
    """
    wanted = {name for name, structure in structures.items() if structure in ("channel", "layer")}
    if not wanted:
        return {}
    try:
        graph = traced(model)
    except ConfigError as error:
        warnings.warn(f"{error}: the α of channels stand on weights, where a normalization hides them", stacklevel=4)
        return {}
    found, hidden = {}, []
    for name in sorted(wanted):
        whole, layer = structures[name] == "layer", model.get_submodule(name)
        if isinstance(layer, nn.Linear) and not whole:
            continue
        walk = _Walk(model, whole, layer)
        nodes = [node for node in graph.nodes if node.op == "call_module" and node.target == name]
        targets = [walk.targets(node) for node in nodes]
        if targets and all(targets) and not _are_others(norm for one in targets for norm, _, _ in one):
            found[name] = list(dict.fromkeys((norm.target, *span) for one in targets for norm, *span in one))
        elif nodes and all(walk.is_hidden(node) for node in nodes):
            hidden.append(name)
    if hidden and warn:
        warnings.warn(
            f"the α of {', '.join(hidden)} stand on weights, where the normalization that follows hides them: it has "
            "no γ that could take them, one entry a channel (affine=True) and no other layer's",
            stacklevel=4,
        )
    return found


def sharing(places, structures):
    """{layer name: the first one's} of layers of one structure, of `structures`, with the same place, of `places`.

    `places` is what `normalizations` found. The first of those that share one is not listed.
    """
    first, followers = {}, {}
    for name in structures:
        if name in places:
            leader = first.setdefault((structures[name], *places[name]), name)
            if leader != name:
                followers[name] = leader
    return followers


def output_channels(layer):
    """How many channels a convolution or features a linear layer puts out."""
    return layer.out_channels if hasattr(layer, "out_channels") else layer.out_features


def is_depthwise(layer):
    """Whether channel k of a layer's output is made of channel k of its input alone."""
    return 1 < getattr(layer, "groups", 1) == layer.in_channels == layer.out_channels


def is_called_again(node):
    """Whether another node of the graph calls the same module."""
    return any(other.target == node.target for other in node.graph.nodes if other is not node)


def _are_others(norms):
    """Whether one of the normalizations that a layer's output goes to, nodes, is called elsewhere, too."""
    reached = set(norms)
    return any(node not in reached for norm in reached for node in norm.graph.nodes if node.target == norm.target)


def _parts(concatenation):
    """What a node concatenates."""
    return concatenation.args[0] if concatenation.args else concatenation.kwargs["tensors"]


class _Walk:
    """Forward through the graph from a layer, up to the normalizations in which its α cancels."""

    def __init__(self, model, whole, layer):
        self.model = model
        self.whole = whole
        self.count = output_channels(layer)
        self.joins = not isinstance(layer, nn.Linear)  # its features may lie on another axis than they are joined on

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

    def is_hidden(self, node):
        """Whether all that reads a node is a normalization, with γ or without, or hands it on to such."""
        users = [user for user in node.users if not queries_shape(user)]
        return bool(users) and all(
            self._hides(user) or (self._passes(user, None) and self.is_hidden(user)) for user in users
        )

    def _hides(self, node):
        kinds, calls = BY_CHANNEL, BY_CHANNEL_CALLS
        if self.whole:
            kinds, calls = kinds + BY_IMAGE, calls + BY_IMAGE_CALLS
        return isinstance(self._module(node), kinds) or (node.op == "call_function" and node.target in calls)

    def _is_all(self, norm, first, count):
        return (first, count) == (0, len(self.model.get_submodule(norm.target).weight))

    def _ends(self, node, count, first=None):
        """(node, first, count) of each normalization that `node` ends in; empty if anything else sees its values.

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
        kinds = BY_CHANNEL + BY_IMAGE if self.whole and first is None else BY_CHANNEL
        if isinstance(norm, kinds) and norm.weight is not None:
            check_initialized(self.model, [node.target])
        return isinstance(norm, kinds) and norm.weight is not None and norm.weight.ndim == 1

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
        return isinstance(module, PASSING_MODULES + BENDING_MODULES) or (
            node.op != "call_module" and node.target in calls
        )

    def _removes_constants(self, node):
        """Whether all that reads a node takes the mean from each channel, and so a layer's bias."""
        return all(isinstance(self._module(user), BY_CHANNEL) for user in node.users)

    def _channels_before(self, concatenation, node):
        """How many channels stand before those of `node` in a concatenation along axis 1; None if unclear."""
        parts = _parts(concatenation)
        axis = concatenation.args[1:] or (concatenation.kwargs.get("dim", 0),)
        if not self.joins or axis != (1,) or not isinstance(parts, (list, tuple)) or parts.count(node) != 1:
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
