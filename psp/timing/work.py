"""The two sides of a roofline: the bytes and sums of a network, counted, and the speeds of a device, measured."""

from contextlib import contextmanager

import torch
from torch import nn

from psp.extraction.cost import cost, evaluation_mode, hooked, read_by
from psp.method.structures import is_transposed
from psp.timing.measure import cpu_block, cuda_block
from psp.timing.roofline import Limits, Work
from psp.timing.settings import PRECISIONS

COPY_MIB = 256
PRODUCT_SIDE = 2048
REPEATS = 7
CALLS = 20  # of a GPU, one after the other


def work(model, images):
    """`Work` of a network in which everything but convolutions and linear layers is fused into them.

    Every such layer reads its input and its weights once and writes its output once.
    """
    values = []

    def count(layer, args, kwargs, output):
        weights = sum(p.numel() for p in layer.parameters())
        values.append(read_by(args, kwargs).numel() + output.numel() + weights)

    with hooked((m, count) for m in model.modules() if is_layer(m)):
        macs = cost(model, images).macs
    return Work(sum(values), macs)


@torch.no_grad()
def nonzero_macs(model, image):
    """Multiply-accumulates of one image by weights other than 0: what a network needs, whatever a kernel adds to it.

    `psp.extract` keeps zeros where PyTorch's kernels are faster with them, and `psp.cost` counts these.
    """
    needed = []

    def count(layer, args, kwargs, output):
        # A weight takes part once for every pixel that is written, of a transposed convolution that is read.
        tensor, channels = output, layer.weight.shape[0]
        if is_transposed(layer):
            tensor, channels = read_by(args, kwargs), layer.in_channels
        needed.append(int(layer.weight.count_nonzero()) * (tensor.numel() // channels))

    with hooked((m, count) for m in model.modules() if is_layer(m)), evaluation_mode(model):
        model(image)
    return sum(needed)


def is_layer(module):
    """Whether a module is a convolution or a linear layer, in whatever form: it has a matrix of weights of its own."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.ndim > 1 and not isinstance(module, nn.Embedding)


def measure_limits(device):
    """`Limits` of a device, the best of some repeats: a copy larger than any cache, and a large matrix product."""
    source = torch.ones(COPY_MIB * 2**18, device=device)
    target = torch.empty_like(source)
    copied = 2 * source.numel() * source.itemsize
    flops = {}
    with as_convolutions():
        for name in PRECISIONS:
            a, b = (torch.ones(PRODUCT_SIDE, PRODUCT_SIDE, dtype=getattr(torch, name), device=device) for _ in range(2))
            flops[name] = 2 * PRODUCT_SIDE**3 / _best(lambda a=a, b=b: a @ b, device)
    return Limits(copied / _best(lambda: target.copy_(source), device), flops)


@contextmanager
def as_convolutions():
    """A GPU's products of float32 as its convolutions compute them, in TF32 unless the user forbids it."""
    products = torch.backends.cuda.matmul
    before = products.fp32_precision
    products.fp32_precision = torch.backends.cudnn.conv.fp32_precision
    try:
        yield
    finally:
        products.fp32_precision = before


def _best(call, device):
    """Seconds of a call, the best of some; on a GPU by its own clock, since one call is shorter than starting it."""
    block, calls = (cuda_block(call), CALLS) if device.type == "cuda" else (cpu_block(call, torch.get_num_threads()), 1)
    block(calls)
    return min(block(calls) for _ in range(REPEATS))
