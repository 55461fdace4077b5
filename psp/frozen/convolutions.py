"""Convolutions and linear layers as operations, by the columns of their weights."""

from types import SimpleNamespace

import torch
from torch import nn

from psp.extraction.smallest import pads
from psp.frozen.sampling import shuffled
from psp.frozen.values import CONV, RELU, pair, require
from psp.kernels.columns import ColumnSparseConv2d, nonzero_columns
from psp.kernels.spread import kind_of


def convolution(plan, x, module):
    if isinstance(module, ColumnSparseConv2d):
        around = [(p, p) for p in module.padding]
        return columns(plan, x, module, module.weight, module.channels, module.taps, around, module.relu)
    require(module.padding_mode == "zeros")
    return dense(plan, x, module, pads(module))


def padded_convolution(plan, x, module):
    """A kernel whose center is elsewhere, as psp.extract writes it."""
    pad, conv = module
    require(type(pad) is nn.ZeroPad2d and kind_of(conv) is nn.Conv2d and not any(conv.padding))
    left, right, top, bottom = pad.padding
    return dense(plan, x, conv, [(top, bottom), (left, right)])


def dense(plan, x, conv, around):
    """A convolution of torch; `around`: padding of both axes."""
    if conv.groups > 1:
        return grouped(plan, x, conv, around)
    return columns(plan, x, conv, *nonzero_columns(conv.weight), around)


def linear(plan, x, weight, bias=None):
    """Of all that an image has, or of each pixel's channels."""
    require(x.flat or x.last)
    size = (1, 1) if x.last else x.size
    layer = SimpleNamespace(kernel_size=size, stride=(1, 1), dilation=(1, 1), bias=bias)
    made = columns(plan, x, layer, *nonzero_columns(weight.view(len(weight), -1, *size)), [(0, 0), (0, 0)])
    return made._replace(flat=x.flat, last=x.last)


def columns(plan, x, layer, weight, channels, taps, around, relu=False):
    """A convolution by its columns; outputs without weights are constants."""
    x = readable(plan, x, channels)
    weight = weight.detach().double()
    bias = bias_of(layer, weight)
    rows, read = weight.ne(0).any(1), x.index[channels] >= 0
    rows[0] |= not rows.any()  # there are no maps without channels
    made = plan.add_operation(
        CONV, *output_size(x, layer, around), int(rows.sum()), reads=[x], bias=bias[rows], activation=RELU * relu,
        weight=weight[rows][:, read], columns=x.index[channels[read]], taps=taps[read], **geometry(layer, around),
    )  # fmt: skip
    places = torch.where(rows, rows.cumsum(0), len(made.index) + (~rows).cumsum(0)) - 1
    constants = bias[~rows].clamp(min=0) if relu else bias[~rows]
    return made.extended(0, constants).selected(places)


def grouped(plan, x, layer, around):
    """A convolution in groups, depthwise or not: every output has the columns of its group."""
    weight = layer.weight.detach().double()
    outputs, members = weight.shape[:2]
    taps = torch.arange(weight[0, 0].numel())
    first = torch.arange(outputs) // (outputs // layer.groups) * members
    channels = (first[:, None] + torch.arange(members)).repeat_interleave(len(taps), 1)
    x = readable(plan, x, channels)
    weight, places = weight.flatten(1), x.index[channels]
    weight = weight * (places >= 0)
    used = weight.ne(0).any(0)
    return plan.add_operation(
        CONV, *output_size(x, layer, around), outputs, reads=[x], bias=bias_of(layer, weight), weight=weight[:, used],
        columns=places.clamp(min=0)[:, used], taps=taps.repeat(members)[used], **geometry(layer, around),
    )  # fmt: skip


def transposed(plan, x, module):
    require(module.groups == 1 and module.padding_mode == "zeros")
    return interleaved(plan, x, module, module.weight)


def interleaved(plan, x, module, weight):
    """A transposed convolution of stride s, with this weight, C×K×R×S: one of stride 1 that makes s·s channels of each,
    one for each place that an output pixel can have between two input pixels, and a shuffle of these into pixels.
    """
    require(pair(module.dilation) == (1, 1))
    stride, weight, around = module.stride, weight.detach(), []
    size = [
        (x.size[i] - 1) * stride[i] - 2 * module.padding[i] + module.kernel_size[i] + module.output_padding[i]
        for i in (0, 1)
    ]
    steps = [-(-module.kernel_size[i] // stride[i]) for i in (0, 1)]
    for i in (0, 1):
        skipped = module.padding[i] // stride[i]
        rows = (size[i] - 1 + module.padding[i]) // stride[i] - skipped + 1
        before = steps[i] - 1 - skipped
        around.append((before, rows + steps[i] - 1 - x.size[i] - before))
    short = [steps[i] * stride[i] - module.kernel_size[i] for i in (0, 1)]
    weight = nn.functional.pad(weight, (0, short[1], 0, short[0]))  # C×K×(T·s)×(T·s)
    parts = weight.unflatten(3, (steps[1], stride[1])).unflatten(2, (steps[0], stride[0]))
    parts = parts.flip(2, 4).permute(1, 3, 5, 0, 2, 4).flatten(0, 2)  # (K·s·s)×C×T×T, the last tap first
    bias = None if module.bias is None else module.bias.repeat_interleave(stride[0] * stride[1])
    layer = SimpleNamespace(kernel_size=tuple(steps), stride=(1, 1), dilation=(1, 1), bias=bias)
    made = columns(plan, x, layer, *nonzero_columns(parts), around)
    return shuffled(plan, made, stride, [module.padding[i] % stride[i] for i in (0, 1)], size)


def readable(plan, x, channels):
    """`x` as an operation reads it whose window goes over these channels: unscaled, and 0 where it has no source."""
    return x if x.unscaled and not x.constant[channels].any() else plan.combine(x)


def bias_of(layer, weight):
    return weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().double()


def geometry(layer, around):
    before = [first for first, _ in around]
    return {"kernel": layer.kernel_size, "stride": layer.stride, "dilation": layer.dilation, "before": before}


def output_size(x, layer, around):
    return [
        (length + sum(pad) - step * (taps - 1) - 1) // stride + 1
        for length, pad, step, taps, stride in zip(
            x.size, around, layer.dilation, layer.kernel_size, layer.stride, strict=True
        )
    ]
