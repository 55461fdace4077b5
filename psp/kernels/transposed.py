"""A transposed convolution that keeps only some columns: products of kept columns, added up where they meet.

A column of a transposed convolution is what one input channel adds, by one tap (r, s) of the kernel, to one pixel of
all output channels. With J columns kept, the weight is K×J; each tap takes its own input channels.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from psp.kernels.columns import nonzero_columns


class ColumnSparseConvTranspose2d(nn.Module):
    """ConvTranspose2d of which only the columns that are not all zero are kept.

    Args:
        weight: K×C×R×S, dense, output channels first.
        bias: K numbers or None.
        stride, padding, output_padding, dilation: as of nn.ConvTranspose2d, one integer for each axis of the kernel;
            output_padding is less than stride.
    """

    made_by_extract = True  # as of psp.kernels.columns
    transposed = True  # as of torch's own

    def __init__(self, weight, bias, stride, padding, output_padding, dilation):
        super().__init__()
        self.out_channels, self.in_channels, *kernel_size = weight.shape
        self.kernel_size, self.stride, self.dilation = tuple(kernel_size), stride, dilation
        self.padding, self.output_padding = padding, output_padding
        kept, channels, taps = nonzero_columns(weight)
        order = taps.argsort(stable=True)
        self.by_tap = taps.bincount(minlength=math.prod(kernel_size)).tolist()  # how many columns each tap has
        self.register_buffer("channels", channels[order])
        self.weight = nn.Parameter(kept[:, order])
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x):
        """N×C×H×W to N×K×H'×W'."""
        weights = self.weight.split(self.by_tap, 1)
        read = x.flatten(2).index_select(1, self.channels).split(self.by_tap, 1)
        products = torch.stack([weight @ pixels for weight, pixels in zip(weights, read, strict=True)], 2)
        out = F.fold(
            products.flatten(1, 2), self.size(x.shape[2:]), self.kernel_size, self.dilation, self.padding, self.stride
        )
        return out if self.bias is None else out + self.bias.view(-1, 1, 1)

    def dense(self):
        """The weight C×K×R×S that nn.ConvTranspose2d would have."""
        taps = torch.arange(len(self.by_tap)).repeat_interleave(torch.tensor(self.by_tap))
        weight = self.weight.new_zeros(self.in_channels, len(self.by_tap), self.out_channels)
        weight = weight.index_put((self.channels, taps.to(weight.device)), self.weight.t())
        return weight.transpose(1, 2).unflatten(2, self.kernel_size)

    def size(self, size):
        """Height and width of the output."""
        settings = zip(
            size, self.kernel_size, self.stride, self.padding, self.output_padding, self.dilation, strict=True
        )
        return [(n - 1) * s - 2 * p + d * (k - 1) + more + 1 for n, k, s, p, more, d in settings]

    def extra_repr(self):
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, columns={len(self.channels)} of "
            f"{self.in_channels * math.prod(self.kernel_size)}, stride={self.stride}, padding={self.padding}, "
            f"output_padding={self.output_padding}, dilation={self.dilation}, bias={self.bias is not None}"
        )


class ColumnSparseConvTranspose1d(ColumnSparseConvTranspose2d):
    """ConvTranspose1d of kept columns, weight K×C×S: a transposed convolution of images of one row."""

    def __init__(self, weight, bias, stride, padding, output_padding, dilation):
        rows = (1, *stride), (0, *padding), (0, *output_padding), (1, *dilation)
        super().__init__(weight.unsqueeze(2), bias, *rows)

    def forward(self, x):
        """N×C×W to N×K×W'."""
        return super().forward(x.unsqueeze(2)).squeeze(2)
