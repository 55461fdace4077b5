"""Random convolutions for the tests of the kernels, that of a GPU in its interpreter among them."""

import torch
from torch.nn import functional as F


def case(n, c, k, size, kernel, stride, padding, dilation, share, seed, bias=True):
    """A random convolution: its input, its kept columns as `column_conv2d` takes them, its true output (float64)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, c, *size, generator=generator)
    taps = kernel[0] * kernel[1]
    kept = (torch.rand(c * taps, generator=generator) < share).nonzero()[:, 0]
    kept = kept[torch.randperm(len(kept), generator=generator)]  # the order of columns is free
    weight = torch.randn(k, len(kept), generator=generator)
    b = torch.randn(k, generator=generator) if bias else None
    dense = torch.zeros(k, c * taps, dtype=torch.float64)
    dense[:, kept] = weight.double()
    dense = dense.view(k, c, *kernel)
    expected = F.conv2d(x.double(), dense, b if b is None else b.double(), stride, padding, dilation)
    settings = {"kernel_size": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    return x, (weight, kept // taps, kept % taps, b), settings, expected
