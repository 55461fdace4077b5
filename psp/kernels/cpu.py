"""The CPU kernel: `column_conv.c`, compiled for this machine at first use, called through ctypes.

Without a compiler everything works by the reference, and one warning says so.
"""

import ctypes
import warnings
from functools import cache
from pathlib import Path

import torch

from psp.errors import KernelError
from psp.native import load

SOURCE = Path(__file__).with_name("column_conv.c")
# No -ffast-math: linking with it would switch off denormals in the whole process.
FLAGS = ("-std=gnu11", "-O3", "-ffp-contract=fast")
OUT_OF_MEMORY, BAD_INDEX = 1, 2
SHAPE = ("n", "c", "h", "w", "k", "j", "kernel_w", "taps", "stride_h", "stride_w", "pad_h", "pad_w", "dil_h", "dil_w")
SHAPE += ("out_h", "out_w", "relu", "threads")


class Shape(ctypes.Structure):
    """`shape` of column_conv.c."""

    _fields_ = [(name, ctypes.c_int64) for name in SHAPE]


def available():
    """Whether the kernel can run here; compiles it at the first call, and warns once if that is not possible."""
    return _kernel() is not None


def run(out, x, weight, channels, taps, bias, kernel_size, stride, padding, dilation, relu):
    """Write the convolution into `out` (N×K×H'×W', channels-last); False if a column is out of range.

    Arguments as `psp.kernels.column_conv2d`, all float32 and on the CPU, their shapes checked.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    weight, channels, taps = weight.t().contiguous(), channels.long().contiguous(), taps.long().contiguous()
    bias = bias if bias is None else bias.contiguous()
    (n, c, h, w), (j, k), (_, _, out_h, out_w) = x.shape, weight.shape, out.shape
    taps_in_all = kernel_size[0] * kernel_size[1]
    shape = Shape(n, c, h, w, k, j, kernel_size[1], taps_in_all, *stride, *padding, *dilation, out_h, out_w)
    shape.relu, shape.threads = relu, torch.get_num_threads()
    pointers = [None if t is None else t.data_ptr() for t in (x, weight, bias, channels, taps, out)]
    status = _kernel()(ctypes.byref(shape), *pointers, parallel())
    if status == OUT_OF_MEMORY:
        raise MemoryError("no memory left for the tables of a column-sparse convolution")
    return status != BAD_INDEX


@cache
def _kernel():
    """The C function, or None where it can't be had."""
    try:
        function = load(SOURCE, FLAGS).psp_column_conv
    except KernelError as error:
        warnings.warn(f"column-sparse convolutions run as dense ones, without their speed-up: {error}", stacklevel=2)
        return None
    function.argtypes = [ctypes.POINTER(Shape), *[ctypes.c_void_p] * 7]
    return function


def parallel():
    """Entry point of PyTorch's own OpenMP runtime, None if it has another (then the kernel runs on one thread).

    A second runtime would bring a second pool of threads, which compete for the cores while they wait.
    """
    return _of_openmp("GOMP_parallel")


def team_size():
    """The runtime's omp_get_num_threads, by which a thread knows with how many it runs."""
    return _of_openmp("omp_get_num_threads")


@cache
def _of_openmp(name):
    for library in (Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*"):
        try:
            return ctypes.cast(getattr(ctypes.CDLL(str(library)), name), ctypes.c_void_p)
        except (OSError, AttributeError):
            continue
    return None
