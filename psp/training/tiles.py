"""3×3 convolutions of bfloat16 images on processors with matrix units, and their gradients, by tiles.cpp.

A residual network on small images is made of such convolutions, and of few channels. PyTorch's gradient of their weight
takes several times as long as their forward pass; here each of the three takes about as long as moving the images.
"""

import ctypes
import operator
from pathlib import Path

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from psp.errors import KernelError
from psp.native import load
from psp.training.fused import NormReLU, fuse, has_hooks, like, pointer

SOURCE = Path(__file__).with_name("tiles.cpp")
OPTIONS = ("-O3", "-fopenmp", "-std=c++17")
CHANNELS = 16  # a multiple of which the kernels take
PARTS = 8  # as in tiles.h
NEEDED = {"kernel_size": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1, "bias": None}


def kernels():
    """tiles.cpp, compiled and loaded. Raises KernelError, with the reason, where it cannot be built or run."""
    asking = (getattr(torch.cpu, name, bool) for name in ("_is_amx_tile_supported", "_init_amx"))
    if not all(ask() for ask in asking):  # a process has to ask the system for tiles, too
        raise KernelError("this processor has no matrix unit of AMX, or PyTorch does not know it")
    return load(SOURCE, OPTIONS)


def tiled(model):
    """`psp.training.fused.fuse(model)`, in which `TiledConv` takes the place of the convolutions that it can compute.

    Raises KernelError where there are no such tiles, or as `fuse` does.
    """
    kernels()
    network = fuse(model)
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Conv2d) and is_tiled(module):
            network.set_submodule(name, TiledConv(module))
    for node in _calls(network, nn.Identity):
        if not has_hooks(network.get_submodule(node.target)):
            node.replace_all_uses_with(node.args[0])
            network.graph.erase_node(node)
    for node in _calls(network, TiledConv):
        _hand_on(node, network)
    network.graph.lint()
    network.recompile()
    return network


def _calls(network, kind):
    """The nodes that call a module of a kind with one argument."""
    calls = [node for node in network.graph.nodes if node.op == "call_module" and len(node.args) == 1]
    return [node for node in calls if isinstance(network.get_submodule(node.target), kind)]


def _hand_on(node, network):
    """Where a convolution's input is also what a later `NormReLU` adds, have the convolution hand it on to that.

    So both gradients of it come to the convolution, which adds them as it writes its own.
    """
    (x,), nodes = node.args, list(network.graph.nodes)
    users = [user for user in x.users if user is not node]
    if len(users) != 1 or sum(other.target == node.target for other in nodes) > 1:
        return
    (adding,) = users
    is_residual = adding.op == "call_module" and adding.args[1:] == (x,) and adding.args[0] is not x
    if not is_residual or not isinstance(network.get_submodule(adding.target), NormReLU):
        return
    if nodes.index(adding) < nodes.index(node):
        return
    network.get_submodule(node.target).hands_on = True
    with network.graph.inserting_after(node):
        beside = network.graph.call_function(operator.getitem, (node, 1))
        y = network.graph.call_function(operator.getitem, (node, 0))
    node.replace_all_uses_with(y, lambda user: user not in (y, beside))
    adding.replace_input_with(x, beside)


def is_tiled(conv):
    """Whether the kernels compute a convolution: 3×3, stride 1, zeros around, channels in multiples of 16, no hooks."""
    if has_hooks(conv):
        return False
    usual = all(getattr(conv, name) == value for name, value in NEEDED.items()) and conv.padding_mode == "zeros"
    return usual and conv.in_channels % CHANNELS == 0 and conv.out_channels % CHANNELS == 0


class TiledConv(nn.Module):
    """A convolution that stays where it is in its network, by tiles where its input is bfloat16.

    With `hands_on` it returns its input, too.
    """

    def __init__(self, conv):
        super().__init__()
        self.conv = conv
        self.hands_on = False

    def forward(self, input):  # called so by nn.Conv2d
        if self.conv.training and _fits(input):
            return _TiledConv.apply(input, self.conv.weight, self.hands_on)
        return (self.conv(input), input) if self.hands_on else self.conv(input)


class _TiledConv(torch.autograd.Function):
    """The training step of `TiledConv`: images N×C×H×W, channels-last bfloat16; weight K×C×3×3, float32."""

    @staticmethod
    def forward(ctx, x, weight, hands_on):
        ctx.save_for_backward(x, weight)
        ctx.set_materialize_grads(False)
        packed = _packed(weight, x.dtype)
        size = (len(x), len(weight), *x.shape[2:])
        y = torch.empty(size, dtype=x.dtype, memory_format=torch.channels_last)
        kernels().forward(*map(pointer, (x, packed, y)), *_sizes(x, len(weight)))
        return (y, x) if hands_on else y

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient, beside=None):
        x, weight = ctx.saved_tensors
        gradient, beside = (None if g is None else like(g, x) for g in (gradient, beside))
        if gradient is None:
            return beside, None, None
        outputs, channels = weight.shape[:2]
        turned = _packed(weight.transpose(0, 1).flip(2, 3), x.dtype)
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        parts = torch.empty(PARTS, 3, 3, outputs, channels)
        kernels().backward(*map(pointer, (x, gradient, turned, beside, dx, parts)), *_sizes(x, outputs))
        return dx, parts.sum(0).permute(2, 3, 0, 1).contiguous(), None


def _packed(weight, dtype):
    """A weight K×C×3×3 as [3][3·C / 2][K][2]: what a row of the kernel meets, its values in pairs."""
    outputs, channels = weight.shape[:2]
    rows = weight.permute(2, 3, 1, 0).reshape(3, 3 * channels // 2, 2, outputs)
    return rows.transpose(2, 3).to(dtype).contiguous()


def _fits(x):
    """Whether the kernels can read images: bfloat16, channels-last, of an even width, at least one for each part."""
    last = x.dtype == torch.bfloat16 and x.is_contiguous(memory_format=torch.channels_last)
    last = last and x.device.type == "cpu" and not x.is_neg()
    return last and x.shape[3] % 2 == 0 and len(x) >= PARTS and x.numel() > 0


def _sizes(x, outputs):
    n, c, h, w = x.shape
    return [ctypes.c_int64(size) for size in (n, h, w, c, outputs)]
