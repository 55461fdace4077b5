"""A convolution that keeps only some columns of its lowered weight matrix.

Lowered, a convolution is the product of the K×(C·R·S) weight matrix and the im2col matrix; a column belongs to one
input channel and one tap (r, s) of the kernel. With J columns kept, the weight is K×J and only J rows take part.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from psp.kernels import column_conv2d


class ColumnSparseConv2d(nn.Module):
    """Conv2d of which only the columns that are not all zero are kept.

    Args:
        weight: K×C×R×S, dense.
        bias: K numbers or None.
        stride, padding, dilation: as of nn.Conv2d, one integer for each axis of the kernel.
    """

    made_by_extract = True  # torch.fx does not follow its code, and nothing in it is left to be pruned

    def __init__(self, weight, bias, stride, padding, dilation):
        super().__init__()
        self.out_channels, self.in_channels, *kernel_size = weight.shape
        self.kernel_size = tuple(kernel_size)
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.relu = False  # psp.extract sets it where a ReLU follows
        kept, channels, taps = nonzero_columns(weight)
        self.register_buffer("channels", channels)
        self.register_buffer("taps", taps)
        # K×J, in memory J×K: the order in which the kernels read it.
        self.weight = nn.Parameter(kept.t().contiguous().t())
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x):
        settings = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "relu": self.relu}
        return column_conv2d(
            x, self.weight, self.channels, self.taps, self.bias, kernel_size=self.kernel_size, **settings
        )

    def extra_repr(self):
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, columns={len(self.taps)} of "
            f"{self.in_channels * math.prod(self.kernel_size)}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}, bias={self.bias is not None}, relu={self.relu}"
        )


class ColumnSparseConv1d(ColumnSparseConv2d):
    """Conv1d of kept columns, weight K×C×S: a convolution of images of one row."""

    def forward(self, x):
        settings = {
            "kernel_size": (1, *self.kernel_size),
            "stride": (1, *self.stride),
            "padding": (0, *self.padding),
            "dilation": (1, *self.dilation),
        }
        rows = x.unsqueeze(2)
        return column_conv2d(
            rows, self.weight, self.channels, self.taps, self.bias, **settings, relu=self.relu
        ).squeeze(2)


class ColumnSparseConv3d(ColumnSparseConv2d):
    """Conv3d of kept columns, weight K×C×T×R×S: a convolution of images with T channels for each of a clip's."""

    def __init__(self, weight, bias, stride, padding, dilation):
        super().__init__(weight, bias, stride, padding, dilation)
        depth, *plane = self.kernel_size
        self.channels = self.channels * depth + self.taps // math.prod(plane)
        self.taps = self.taps % math.prod(plane)

    def forward(self, x):
        settings = {
            "kernel_size": self.kernel_size[1:],
            "stride": self.stride[1:],
            "padding": self.padding[1:],
            "dilation": self.dilation[1:],
        }
        images = self.images(x)
        out = column_conv2d(images, self.weight, self.channels, self.taps, self.bias, **settings, relu=self.relu)
        return out.unflatten(0, (x.shape[0], -1)).movedim(1, 2)

    def images(self, x):
        """N×C×D×H×W to (N·D')×(C·T)×H×W: for each output frame the T frames that the kernel meets there."""
        (depth, *_), (stride, *_), (dilation, *_) = self.kernel_size, self.stride, self.dilation
        x = F.pad(x, (0, 0, 0, 0, self.padding[0], self.padding[0]))
        last = x.shape[2] - dilation * (depth - 1)
        met = torch.stack([x[:, :, t * dilation : t * dilation + last : stride] for t in range(depth)], 2)
        return met.movedim(3, 1).flatten(2, 3).flatten(0, 1)


def nonzero_columns(weight):
    """(K×J weight, J channels, J taps) of a weight K×C×R×S: its columns that are not all zero."""
    weight = weight.flatten(2)
    channels, taps = weight.ne(0).any(0).nonzero(as_tuple=True)
    return weight[:, channels, taps], channels, taps
