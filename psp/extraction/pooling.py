"""Pooling and padding, as layers and as functions alike: what they do to pixels, channel by channel."""

from torch import nn
from torch.nn import functional as F

from psp.extraction.axes import along
from psp.extraction.ops import Op, Pad, Unary, ZeroOnly

# A constant channel stays one, of the same value.
KEEPING = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
)  # fmt: skip
KEEPING_FUNCTIONS = (
    F.max_pool1d, F.max_pool2d, F.max_pool3d, F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d,
    F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d,
)  # fmt: skip
AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
AVERAGE_FUNCTIONS = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
ZERO_PADS = (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)


def keeping_pool(node, pooling):
    return Unary(node) if _pools(node, pooling) else Op(node)


def average_pool(node, pooling, padding, count_include_pad, divisor_override):
    if not _pools(node, pooling):
        return Op(node)
    padded = any(padding) if isinstance(padding, (tuple, list)) else padding
    return ZeroOnly(node) if divisor_override or (padded and count_include_pad) else Unary(node)


def pad(node, pads, mode="constant", value=0):
    axes = len(node.meta["shape"])
    if not along(node, 1):
        return Op(node)
    if mode == "constant" and len(pads) <= 2 * (axes - 1):
        return Pad(node, list(pads), value)
    return Unary(node) if len(pads) <= 2 * (axes - 2) else Op(node)


def _pools(node, pooling):
    """Whether a node reads batches for a pooling, whose name ends in 1d, 2d or 3d."""
    return along(node, 1) and len(node.all_input_nodes[0].meta["shape"]) == int(pooling.__name__[-2]) + 2
