"""3×3 convolutions of bfloat16 images on processors with matrix units, and their gradients, by tiles.cpp.

A residual network on small images is made of such convolutions, and of few channels. PyTorch's gradient of their weight
takes several times as long as their forward pass; here each of the three takes about as long as moving the images.
"""

import ctypes
from pathlib import Path

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from psp.errors import KernelError
from psp.native import load
from psp.training.fused import fuse, like, pointer

SOURCE = Path(__file__).with_name("tiles.cpp")
HEADERS = (SOURCE.with_suffix(".h"),)
OPTIONS = ("-O3", "-fopenmp", "-std=c++17")
CHANNELS = 16  # a multiple of which the kernels take
PARTS = 8  # as in tiles.cpp
NEEDED = {"kernel_size": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1, "bias": None}


def kernels():
    """tiles.cpp, compiled and loaded. Raises KernelError, with the reason, where it cannot be built or run."""
    asking = (getattr(torch.cpu, name, bool) for name in ("_is_amx_tile_supported", "_init_amx"))
    if not all(ask() for ask in asking):  # a process has to ask the system for tiles, too
        raise KernelError("this processor has no matrix unit of AMX, or PyTorch does not know it")
    return load(SOURCE, OPTIONS, HEADERS)


def tiled(model):
    """`psp.training.fused.fuse(model)`, in which `TiledConv` takes the place of the convolutions that it can compute.

    Raises KernelError where there are no such tiles, or as `fuse` does.
    """
    kernels()
    network = fuse(model)
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Conv2d) and is_tiled(module):
            network.set_submodule(name, TiledConv(module))
    return network


def is_tiled(conv):
    """Whether the kernels compute a convolution: 3×3, stride 1, zeros around, channels in multiples of 16, no hooks."""
    if conv._forward_hooks or conv._forward_pre_hooks:
        return False
    usual = all(getattr(conv, name) == value for name, value in NEEDED.items()) and conv.padding_mode == "zeros"
    return usual and conv.in_channels % CHANNELS == 0 and conv.out_channels % CHANNELS == 0


class TiledConv(nn.Module):
    """A convolution that stays where it is in its network, by tiles where its input is bfloat16."""

    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x):
        if not (self.conv.training and _fits(x)):
            return self.conv(x)
        return _TiledConv.apply(x, self.conv.weight)


class _TiledConv(torch.autograd.Function):
    """The training step of `TiledConv`: images N×C×H×W, channels-last bfloat16; weight K×C×3×3, float32."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        packed = _packed(weight, x.dtype)
        size = (len(x), len(weight), *x.shape[2:])
        y = torch.empty(size, dtype=x.dtype, memory_format=torch.channels_last)
        kernels().forward(*map(pointer, (x, packed, y)), *_sizes(x, len(weight)))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        gradient = like(gradient, x)
        outputs, channels = weight.shape[:2]
        turned = _packed(weight.transpose(0, 1).flip(2, 3), x.dtype)
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        parts = torch.empty(PARTS, 3, 3, outputs, channels)
        kernels().backward(*map(pointer, (x, gradient, turned, dx, parts)), *_sizes(x, outputs))
        return dx, parts.sum(0).permute(2, 3, 0, 1).contiguous()


def _packed(weight, dtype):
    """A weight K×C×3×3 as [3][3·C / 2][K][2]: what a row of the kernel meets, its values in pairs."""
    outputs, channels = weight.shape[:2]
    rows = weight.permute(2, 3, 1, 0).reshape(3, 3 * channels // 2, 2, outputs)
    return rows.transpose(2, 3).to(dtype).contiguous()


def _fits(x):
    """Whether the kernels can read images: bfloat16, channels-last, of an even width, at least one for each part."""
    last = x.dtype == torch.bfloat16 and x.is_contiguous(memory_format=torch.channels_last)
    return last and x.shape[3] % 2 == 0 and len(x) >= PARTS and x.numel() > 0


def _sizes(x, outputs):
    n, c, h, w = x.shape
    return [ctypes.c_int64(size) for size in (n, h, w, c, outputs)]
