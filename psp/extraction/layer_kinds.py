"""Which rule holds for a call of a layer, by the layer's type."""

from torch import nn

from psp.extraction.axes import along, turn
from psp.extraction.graph import CONVOLUTION, TRANSPOSED
from psp.extraction.groups import Grouped
from psp.extraction.layers import Weighted, channel_axis
from psp.extraction.norms import NORMS, normalization
from psp.extraction.ops import ByChannel, Op, Pointwise, Unary
from psp.extraction.parts import gate
from psp.extraction.pooling import AVERAGES, KEEPING, ZERO_PADS, average_pool, keeping_pool, pad

ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh,
    nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Softplus, nn.Softsign, nn.LogSigmoid,
)  # fmt: skip
# New pixels are means of old ones, by weights that add up to 1, channel by channel.
UPSAMPLINGS = (nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)


def layer_op(node, layer, times):
    """The rule for a node that calls a layer, which is called `times` times; a subclass may do something else."""
    rule = RULES.get(type(layer))
    return rule(node, layer, times) if rule else Op(node)


def _weighted(node, layer, times):
    """The layer; or `Op` if it is called several times, with one weight for several sets of channels."""
    batch = isinstance(layer, nn.Linear) or len(node.all_input_nodes[0].meta["shape"]) == layer.weight.ndim
    told = len(node.args) > 1 or node.kwargs  # the size of its output
    if times > 1 or not batch or told:
        return Op(node)
    turn(node, channel_axis(node, layer))
    return (Grouped if getattr(layer, "groups", 1) > 1 else Weighted)(node, layer)


def _pointwise(node, layer, times):
    return Pointwise(node, layer)


def _slopes(node, layer, times):
    if len(layer.weight) == 1:
        return Pointwise(node, layer)
    return ByChannel(node, layer) if times == 1 and along(node, 1) else Op(node)


def _gate(node, layer, times):
    return gate(node, layer.dim) or Op(node)


def _normalization(node, layer, times):
    return normalization(node, layer) if times == 1 and along(node, 1) else Op(node)


def _upsampling(node, layer, times):
    return Unary(node) if along(node, 1) else Op(node)


def _keeping(node, layer, times):
    return keeping_pool(node, type(layer))


def _average(node, layer, times):
    override = getattr(layer, "divisor_override", None)
    return average_pool(node, type(layer), layer.padding, layer.count_include_pad, override)


def _pad(node, layer, times):
    return pad(node, layer.padding, value=getattr(layer, "value", 0))


RULES = {
    **dict.fromkeys((*CONVOLUTION, *TRANSPOSED, nn.Linear), _weighted),
    **dict.fromkeys(ACTIVATIONS, _pointwise),
    nn.PReLU: _slopes,
    nn.GLU: _gate,
    **dict.fromkeys(NORMS, _normalization),
    **dict.fromkeys(UPSAMPLINGS, _upsampling),
    **dict.fromkeys(KEEPING, _keeping),
    **dict.fromkeys(AVERAGES, _average),
    **dict.fromkeys(ZERO_PADS, _pad),
}
