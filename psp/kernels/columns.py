"""A convolution that keeps only some columns of its lowered weight matrix.

Lowered, a convolution is the product of the K×(C·R·S) weight matrix and the im2col matrix; a column belongs to one
input channel and one tap (r, s) of the kernel. With J columns kept, the weight is K×J and only J rows take part.
"""

from torch import nn

from psp.kernels import column_conv2d


class ColumnSparseConv2d(nn.Module):
    """Conv2d of which only the columns that are not all zero are kept.

    Args:
        weight: K×C×R×S, dense.
        bias: K numbers or None.
        stride, padding, dilation: as of nn.Conv2d, pairs.
    """

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
        columns = self.in_channels * self.kernel_size[0] * self.kernel_size[1]
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, columns={len(self.taps)} of "
            f"{columns}, stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"bias={self.bias is not None}, relu={self.relu}"
        )


def nonzero_columns(weight):
    """(K×J weight, J channels, J taps) of a weight K×C×R×S: its columns that are not all zero."""
    weight = weight.flatten(2)
    channels, taps = weight.ne(0).any(0).nonzero(as_tuple=True)
    return weight[:, channels, taps], channels, taps
