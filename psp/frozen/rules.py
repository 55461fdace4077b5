"""What becomes of each module and function of a graph: rules of a plan, the values that it reads, and the rest."""

import operator
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from psp.extraction.rewrite import SelectChannels
from psp.extraction.shapes import check_size
from psp.frozen import convolutions, pointwise, sampling
from psp.frozen.values import HARD_SIGMOID, HARD_SWISH, RELU, RELU6, SIGMOID, SILU
from psp.kernels.columns import ColumnSparseConv2d
from psp.kernels.transposed import ColumnSparseConvTranspose2d

# Of activations without arguments: (module, functions and methods).
ACTIVATIONS = {
    RELU: (nn.ReLU, F.relu, torch.relu, "relu"),
    RELU6: (nn.ReLU6, F.relu6),
    HARD_SIGMOID: (nn.Hardsigmoid, F.hardsigmoid),
    HARD_SWISH: (nn.Hardswish, F.hardswish),
    SIGMOID: (nn.Sigmoid, F.sigmoid, torch.sigmoid, "sigmoid"),
    SILU: (nn.SiLU, F.silu),
}
ACTIVATE = {kind: partial(pointwise.activate, kind=kind) for kind in ACTIVATIONS}

MODULES = {
    **dict.fromkeys((nn.Conv2d, ColumnSparseConv2d), convolutions.convolution),
    nn.Sequential: convolutions.padded_convolution,
    nn.ConvTranspose2d: convolutions.transposed,
    ColumnSparseConvTranspose2d: lambda plan, x, m: convolutions.interleaved(plan, x, m, m.dense()),
    nn.Linear: lambda plan, x, m: convolutions.linear(plan, x, m.weight, m.bias),
    nn.BatchNorm2d: lambda plan, x, m: pointwise.batch_norm(
        plan, x, m.running_mean, m.running_var, m.weight, m.bias, eps=m.eps
    ),
    nn.LayerNorm: lambda plan, x, m: pointwise.layer_norm(plan, x, m.normalized_shape, m.weight, m.bias, m.eps),
    nn.GELU: lambda plan, x, m: pointwise.gelu(plan, x, m.approximate),
    nn.MaxPool2d: lambda plan, x, m: sampling.max_pool(
        plan, x, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices
    ),
    nn.AvgPool2d: sampling.mean_pool,
    nn.AdaptiveAvgPool2d: lambda plan, x, m: sampling.adaptive_pool(plan, x, m.output_size),
    nn.Upsample: sampling.upsample,
    nn.PixelShuffle: lambda plan, x, m: sampling.pixel_shuffle(plan, x, m.upscale_factor),
    nn.Flatten: lambda plan, x, m: pointwise.flatten(plan, x, m.start_dim, m.end_dim),
    SelectChannels: pointwise.select,
    **{module: ACTIVATE[kind] for kind, (module, *_) in ACTIVATIONS.items()},
}
FUNCTIONS = {
    F.linear: convolutions.linear,
    F.gelu: pointwise.gelu,
    **dict.fromkeys((torch.add, operator.add, "add"), pointwise.add),
    **dict.fromkeys((torch.mul, operator.mul, "mul"), pointwise.multiply),
    **dict.fromkeys((torch.sub, operator.sub, "sub"), pointwise.subtract),
    **dict.fromkeys((torch.div, torch.true_divide, operator.truediv, "div"), pointwise.divide),
    **dict.fromkeys((torch.chunk, "chunk"), pointwise.chunk),
    **dict.fromkeys((torch.split, "split"), pointwise.split),
    **dict.fromkeys((torch.flatten, "flatten"), pointwise.flatten),
    **dict.fromkeys((torch.permute, "permute"), pointwise.permute),
    F.layer_norm: pointwise.layer_norm,
    F.batch_norm: pointwise.batch_norm,
    **dict.fromkeys((check_size, "contiguous"), pointwise.same),  # of one size it is anyway
    F.pad: pointwise.pad,
    F.avg_pool2d: sampling.pool,
    F.max_pool2d: sampling.max_pool,
    F.adaptive_avg_pool2d: sampling.adaptive_pool,
    F.interpolate: sampling.resize,
    F.pixel_shuffle: sampling.pixel_shuffle,
    operator.getitem: pointwise.getitem,
    torch.cat: pointwise.cat,
    **dict.fromkeys((torch.mean, "mean"), sampling.mean),
    **{function: ACTIVATE[kind] for kind, (_, *functions) in ACTIVATIONS.items() for function in functions},
}

# Rules for values of several pixels that their readers take as flat, and for those with channels as the last axis.
FLAT = {MODULES[nn.Linear], convolutions.linear, pointwise.same}
CHANNELS_LAST = FLAT | {
    pointwise.add, pointwise.subtract, pointwise.multiply, pointwise.divide, pointwise.permute, pointwise.layer_norm,
    pointwise.gelu, pointwise.select, pointwise.pad, MODULES[nn.LayerNorm], MODULES[nn.GELU], *ACTIVATE.values(),
}  # fmt: skip
