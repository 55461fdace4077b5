"""relu(batch_norm(x) + residual) as one function on the CPU, by the kernels of norm_relu.cpp.

Beside its convolutions a residual network mostly moves memory: batch normalization, addition and ReLU, one after the
other, read and write every activation several times more than they need to. `fuse` finds the three in a network by
torch.fx and puts one function in their place; parameters, buffers and, up to rounding, results stay the network's.
"""

import ctypes
import math
import operator
import platform
from pathlib import Path

import torch
from torch import fx, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from psp.errors import KernelError
from psp.native import load

SOURCE = Path(__file__).with_name("norm_relu.cpp")
# They change no value; without them the compiler makes no vectors of loops with conditions.
VALUES_AS_THEY_ARE = ("-fno-math-errno", "-fno-trapping-math")
WIDE = ("-mprefer-vector-width=512",) if platform.machine() in ("x86_64", "AMD64") else ()  # where there are such
OPTIONS = ("-O3", "-fopenmp", "-std=c++17", *VALUES_AS_THEY_ARE, *WIDE)
BLOCK, BITS = 64, 32  # as in blocks.h
KERNEL_TYPES = {torch.float32: "float", torch.bfloat16: "bfloat16"}
RELUS = (F.relu, torch.relu)
ADDITIONS = (operator.add, torch.add)


def kernels():
    """norm_relu.cpp, compiled and loaded. Raises KernelError, with the reason, where it cannot be built."""
    return load(SOURCE, OPTIONS)


class NormReLU(nn.Module):
    """relu(norm(x) + residual) of a BatchNorm2d that stays where it is in its network; N×C×H×W in and out."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x, residual=None):
        norm = self.norm
        added = residual is None or (residual.shape == x.shape and residual.dtype == x.dtype)
        if not (norm.training and norm.weight.dtype == torch.float32 and added and _fits(x)):
            y = norm(x)
            return F.relu(y if residual is None else y + residual)
        norm.num_batches_tracked.add_(1)
        running = norm.running_mean, norm.running_var, norm.momentum, norm.eps
        return _NormReLU.apply(x, residual, norm.weight, norm.bias, *running)


class _NormReLU(torch.autograd.Function):
    """The training step of `NormReLU`: batch statistics, running statistics updated in place."""

    @staticmethod
    def forward(ctx, x, residual, weight, bias, running_mean, running_var, momentum, eps):
        z, mean, scale = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
        passing = torch.empty(x.numel() // BITS, dtype=torch.int32)
        if residual is not None:
            residual = like(residual, x)
        numbers = ctypes.c_float(momentum), ctypes.c_float(eps)
        statistics = pointer(running_mean), pointer(running_var)
        affine = pointer(weight), pointer(bias)
        results = map(pointer, (mean, scale, passing))
        _kernel("forward", x)(*map(pointer, (x, residual, z)), *_size(x), *affine, *statistics, *numbers, *results)
        ctx.save_for_backward(x, passing, weight, mean, scale)
        ctx.added = residual is not None
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx, dz):
        x, passing, weight, mean, scale = ctx.saved_tensors
        dz, dx, dweight, dbias = like(dz, x), torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
        dresidual = torch.empty_like(x) if ctx.added else None
        results = pointer(dweight), pointer(dbias)
        _kernel("backward", x)(
            *map(pointer, (dz, passing, x, dx, dresidual)), *_size(x), *map(pointer, (weight, mean, scale)), *results
        )
        return dx, dresidual, dweight, dbias, None, None, None, None


def fuse(model):
    """`model` as a function of images in which `NormReLU` takes the place of batch norm(, addition) and ReLU.

    It works on the very parameters and buffers of `model`, which stays as it is. What `+=` writes into must have no
    other reader, as in the networks of psp.models: torch.fx takes it for a sum. Raises KernelError where the kernels
    cannot be built or torch.fx cannot follow the network.
    """
    kernels()
    try:
        graph_module = fx.symbolic_trace(model)
    except Exception as error:  # whatever Python in a forward method the tracer cannot follow
        raise KernelError(f"torch.fx cannot follow {type(model).__name__}: {error}") from error
    for relu in [node for node in graph_module.graph.nodes if _is_relu(node, graph_module)]:
        _replace(relu, graph_module)
    for node in graph_module.graph.nodes:
        stride = _subsampling(node)
        if stride:
            node.target, node.args = every, (node.args[0], stride)
    graph_module.graph.lint()
    graph_module.recompile()
    return graph_module


def _replace(relu, graph_module):
    """Put `NormReLU` in the place of the ReLU at a node, if that takes a batch norm, or its sum with something."""
    before = relu.args[0]
    norm, residual = before, None
    if before.op == "call_function" and before.target in ADDITIONS and len(before.users) == 1 and not before.kwargs:
        first, second = before.args
        norm, residual = (second, first) if _is_norm(second, graph_module) else (first, second)
    if not (_is_norm(norm, graph_module) and (residual is None or isinstance(residual, fx.Node))):
        return
    name = f"{norm.target}.relu".replace(".", "_")
    graph_module.add_submodule(name, NormReLU(graph_module.get_submodule(norm.target)))
    with graph_module.graph.inserting_before(relu):
        fused = graph_module.graph.call_module(name, (norm.args[0],) if residual is None else (norm.args[0], residual))
    relu.replace_all_uses_with(fused)
    for node in (relu, before, norm) if residual is not None else (relu, norm):
        graph_module.graph.erase_node(node)


def every(x, stride):
    """x[:, :, ::stride, ::stride], of images as pooling of one pixel, whose gradient is written row by row.

    PyTorch writes that of a slice pixel by pixel, in a layout of its own.
    """
    pooled = x.ndim == 4 and x.is_floating_point()
    return F.avg_pool2d(x, 1, stride) if pooled else x[:, :, ::stride, ::stride]


def _subsampling(node):
    """The stride s of a node that takes every s-th pixel, x[:, :, ::s, ::s], only to be padded; None for any other.

    A slice shares memory with x, which pooling does not: where something might write into it, it stays a slice.
    """
    if node.target is not operator.getitem or not isinstance(node.args[1], tuple) or len(node.args[1]) != 4:
        return None
    *whole, down, right = node.args[1]
    stride = down.step if isinstance(down, slice) else None
    taken = all(index == slice(None) for index in whole) and down == right == slice(None, None, stride)
    padded = all(user.target is F.pad for user in node.users)
    return stride if taken and padded and isinstance(stride, int) and stride > 1 else None


def _is_relu(node, graph_module):
    if node.op == "call_module":
        relu = graph_module.get_submodule(node.target)
        return isinstance(relu, nn.ReLU) and not has_hooks(relu)
    return node.op == "call_function" and node.target in RELUS


def _is_norm(node, graph_module):
    """Whether a node is a batch norm of the usual kind whose result nothing but its one user reads."""
    if not (isinstance(node, fx.Node) and node.op == "call_module" and len(node.users) == 1):
        return False
    norm = graph_module.get_submodule(node.target)
    usual = isinstance(norm, nn.BatchNorm2d) and norm.affine and norm.track_running_stats
    return usual and norm.momentum is not None and not has_hooks(norm)


def has_hooks(module):
    """Whether a module does more, when it is called or differentiated, than its class says."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)


def _fits(x):
    """Whether the kernels can work on x: its type, its memory, whole periods of their blocks, and values to average."""
    whole = x.numel() % math.lcm(x.shape[1], BLOCK) == 0 and x.numel() > x.shape[1]
    plain = x.is_contiguous(memory_format=torch.channels_last) and not x.is_neg()
    return whole and plain and x.dtype in KERNEL_TYPES and x.device.type == "cpu"


def like(tensor, x):
    """A tensor in the type and memory layout of x, copied only where it has another."""
    return tensor.to(x.dtype).contiguous(memory_format=torch.channels_last).resolve_neg()


def _kernel(name, x):
    return getattr(kernels(), f"{name}_{KERNEL_TYPES[x.dtype]}")


def _size(x):
    """(rows, channels) of the matrix that a channels-last tensor is."""
    return ctypes.c_int64(x.numel() // x.shape[1]), ctypes.c_int64(x.shape[1])


def pointer(tensor):
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
