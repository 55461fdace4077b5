"""Column-sparse convolution: a convolution over the kept columns only, as one PyTorch operator.

A convolution's weight is the matrix K×(C·R·S); column pruning removes whole columns of it, each one input channel at
one kernel position, for all K output channels. J columns are left:

    out[n, k, y, z] = bias[k] + Σ_j weight[k, j] · x[n, channels[j], y·stride − padding + r_j·dilation, …]

with (r_j, s_j) the row and column of kernel position taps[j] = r_j·S + s_j. Three implementations give the same
numbers: `reference` in plain PyTorch, C on the CPU (`psp.kernels.cpu`), Triton on a GPU (`psp.kernels.gpu`).
"""

import math
from functools import cache
from importlib.util import find_spec

import torch
from torch.autograd.forward_ad import unpack_dual
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function_unary
from torch.utils.flop_counter import register_flop_formula

from psp.errors import ConfigError
from psp.kernels import cpu

OPERATOR = "psp::column_conv2d"
GPU_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def column_conv2d(x, weight, channels, taps, bias=None, *, kernel_size, stride=1, padding=0, dilation=1, relu=False):
    """Convolve `x` with the kept columns of a weight; returns N×K×H'×W' in channels-last memory order.

    Fast on the CPU for float32, best with `x` channels-last and `weight.t()` contiguous, and on CUDA for float32,
    float16 and bfloat16; anything else runs the reference. Gradients flow to x, weight and bias, at the cost of a
    dense convolution.

    Args:
        x: N×C×H×W.
        weight: K×J, the J kept columns.
        channels: J integers (int64), the input channel of every column.
        taps: J integers (int64), the kernel position r·S + s of every column.
        bias: K values, for example a folded batch norm's, or None.
        kernel_size: R×S, the size of the kernel that the positions count in; an integer or a pair, as all of these:
        stride, padding, dilation: as in `torch.nn.functional.conv2d`.
        relu: clamp the result at 0.

    Raises:
        ConfigError: shapes that do not fit together; on the CPU also a channel or tap out of range. A GPU would have
            to wait for the CPU to look at these.
    """
    if has_torch_function_unary(x):  # as in torch.nn.functional; torch.fx then writes one call of this function
        options = {"kernel_size": kernel_size, "stride": stride, "padding": padding, "dilation": dilation}
        return handle_torch_function(column_conv2d, (x,), x, weight, channels, taps, bias, **options, relu=relu)
    arguments = (x, weight, channels, taps, bias, *map(pair, (kernel_size, stride, padding, dilation)), relu)
    if any(t is not None and unpack_dual(t).tangent is not None for t in (x, weight, bias)):
        check_columns(x, channels, taps, arguments[5])
        return reference(*arguments)  # which PyTorch differentiates forwards, too
    if torch.onnx.is_in_onnx_export():  # ONNX has no such operator, but a convolution with zeros
        return reference(*arguments)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        return Differentiable.apply(*arguments)
    return torch.ops.psp.column_conv2d.default(*arguments)


def pair(value):
    """[value, value] for an integer; of two integers the list."""
    return [value, value] if isinstance(value, int) else list(value)


def output_shape(x, weight, channels, taps, bias, kernel_size, stride, padding, dilation):
    """[N, K, H', W']. Raises ConfigError for shapes that do not fit together."""
    if x.ndim != 4:
        raise ConfigError(f"x must be N×C×H×W, got shape {tuple(x.shape)}")
    if weight.ndim != 2 or not weight.shape[1:] == channels.shape == taps.shape:
        shapes = ", ".join(str(tuple(t.shape)) for t in (weight, channels, taps))
        raise ConfigError(f"weight must be K×J with J channels and J taps, got shapes {shapes}")
    if channels.is_floating_point() or taps.is_floating_point():
        raise ConfigError(f"channels and taps are whole numbers, got {channels.dtype} and {taps.dtype}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ConfigError(f"bias must hold one value for each row of weight, got {tuple(bias.shape)}")
    if min(*kernel_size, *stride, *dilation) < 1 or min(padding) < 0:
        given = f"{kernel_size}, {stride}, {dilation} and {padding}"
        raise ConfigError(f"kernel_size, stride and dilation must be at least 1 and padding at least 0, got {given}")
    shape = [x.shape[0], weight.shape[0]]
    for axis in (0, 1):
        span = dilation[axis] * (kernel_size[axis] - 1) + 1
        free = x.shape[2 + axis] + 2 * padding[axis] - span
        if free < 0:
            raise ConfigError(f"the kernel spans {span} pixels, more than the padded input of {tuple(x.shape)} has")
        shape.append(free // stride[axis] + 1)
    return shape


def reference(x, weight, channels, taps, bias, kernel_size, stride, padding, dilation, relu):
    """The operator in plain PyTorch: a dense convolution with zeros for the pruned columns."""
    output_shape(x, weight, channels, taps, bias, kernel_size, stride, padding, dilation)
    out = F.conv2d(x, dense(weight, channels, taps, x.shape[1], kernel_size), bias, stride, padding, dilation)
    return (out.relu() if relu else out).contiguous(memory_format=torch.channels_last)


def dense(weight, channels, taps, in_channels, kernel_size):
    """The K×C×R×S weight, with zeros for the pruned columns."""
    zeros = weight.new_zeros(in_channels, kernel_size[0] * kernel_size[1], weight.shape[0])
    try:
        filled = zeros.index_put((channels, taps), weight.t(), accumulate=True)
    except IndexError as error:
        raise out_of_range(in_channels, kernel_size) from error
    return filled.permute(2, 0, 1).reshape(weight.shape[0], in_channels, *kernel_size)


def check_columns(x, channels, taps, kernel_size):
    """Raise ConfigError for negative numbers, which PyTorch would count from the end; a GPU is not waited for."""
    if channels.device.type == "cpu" and channels.numel() and min(channels.min(), taps.min()) < 0:
        raise out_of_range(x.shape[1], kernel_size)


def out_of_range(channels, kernel_size):
    """The ConfigError for a column that the input does not have."""
    return ConfigError(f"a column lies outside the {channels} input channels or the kernel positions of {kernel_size}")


def on_cpu(x, weight, channels, taps, bias, kernel_size, stride, padding, dilation, relu):
    """The operator in C where that can run, else the reference."""
    arguments = (x, weight, channels, taps, bias, kernel_size, stride, padding, dilation)
    if not same_dtype((torch.float32,), x, weight, bias) or not cpu.available():
        check_columns(x, channels, taps, kernel_size)
        return reference(*arguments, relu)
    out = fake(*arguments, relu)
    if not cpu.run(out, *arguments, relu):
        raise out_of_range(x.shape[1], kernel_size)
    return out


def on_cuda(x, weight, channels, taps, bias, kernel_size, stride, padding, dilation, relu):
    """The operator in Triton where that can run, else the reference."""
    arguments = (x, weight, channels, taps, bias, kernel_size, stride, padding, dilation)
    if not same_dtype(GPU_DTYPES, x, weight, bias) or not has_triton():
        return reference(*arguments, relu)
    from psp.kernels import gpu  # imports Triton, which takes time and is not there on every platform

    out = fake(*arguments, relu)
    with torch.cuda.device(x.device):
        gpu.run(out, *arguments, relu)
    return out


def fake(x, weight, channels, taps, bias, kernel_size, stride, padding, dilation, relu):
    """The operator's result without its numbers; all that PyTorch's compiler needs to know."""
    shape = output_shape(x, weight, channels, taps, bias, kernel_size, stride, padding, dilation)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def flops(x_shape, weight_shape, *settings, out_shape=None, **options):
    """Two for every multiply-accumulate, for torch.utils.flop_counter: J of them for each output value."""
    return 2 * weight_shape[1] * math.prod(out_shape)


def same_dtype(allowed, *tensors):
    """Whether all tensors that are not None have one dtype, and an allowed one."""
    return tensors[0].dtype in allowed and all(t is None or t.dtype == tensors[0].dtype for t in tensors)


@cache
def has_triton():
    """Whether Triton is installed, as it is with PyTorch's CUDA wheels."""
    return find_spec("triton") is not None


# Defined by hand rather than by torch.library.custom_op, whose wrappers cost twice as many microseconds a call.
torch.library.define(
    OPERATOR,
    "(Tensor x, Tensor weight, Tensor channels, Tensor taps, Tensor? bias, "
    "int[2] kernel_size, int[2] stride, int[2] padding, int[2] dilation, bool relu) -> Tensor",
)
torch.library.impl(OPERATOR, "default", reference)
torch.library.impl(OPERATOR, "cpu", on_cpu)
torch.library.impl(OPERATOR, "cuda", on_cuda)
torch.library.register_fake(OPERATOR, fake)
register_flop_formula(torch.ops.psp.column_conv2d)(flops)


class Differentiable(torch.autograd.Function):
    """The operator with the gradient of the dense convolution, as far as its columns are kept."""

    @staticmethod
    def forward(ctx, *arguments):
        out = torch.ops.psp.column_conv2d.default(*arguments)
        ctx.save_for_backward(*arguments[:4], out if arguments[-1] else None)
        ctx.settings = arguments[5:]
        return out

    @staticmethod
    def backward(ctx, gradient):
        x, weight, channels, taps, out = ctx.saved_tensors
        kernel_size, stride, padding, dilation, relu = ctx.settings
        gradient = gradient.masked_fill(out <= 0, 0) if relu else gradient
        filters = dense(weight, channels, taps, x.shape[1], kernel_size)
        wanted = [ctx.needs_input_grad[i] for i in (0, 1, 4)]
        of_x, of_filters, of_bias = torch.ops.aten.convolution_backward(
            gradient, x, filters, weight.shape[:1], stride, padding, dilation, False, [0, 0], 1, wanted
        )
        of_weight = of_filters.flatten(2)[:, channels, taps] if wanted[1] else None
        return of_x, of_weight, None, None, of_bias, *[None] * len(ctx.settings)
