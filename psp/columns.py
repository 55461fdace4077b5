"""A convolution that keeps only some columns of its lowered weight matrix.

Lowered, a convolution is the product of the K×(C·R·S) weight matrix and the im2col matrix; a column belongs to one
input channel and one tap (r, s) of the kernel. With J columns kept, the weight is K×J and only J rows take part.
"""

from torch import nn
from torch.nn import functional as F


def column_conv2d(x, weight, channels, taps, bias=None, *, kernel_size, stride=1, padding=0, dilation=1, relu=False):
    """Convolve `x` with the kept columns of a weight, by the definition: rows of im2col. N×C×H×W to N×K×H'×W'.

    Args:
        x: N×C×H×W.
        weight: K×J, the J kept columns.
        channels: J integers, the input channel of every column.
        taps: J integers, the kernel position r·S + s of every column.
        bias: K values or None.
        kernel_size: (R, S) of the dense kernel.
        stride, padding, dilation: as of nn.Conv2d, integers or pairs.
        relu: apply ReLU to the result.
    """
    stride, padding, dilation = (v if isinstance(v, tuple) else (v, v) for v in (stride, padding, dilation))
    lowered = F.unfold(x, kernel_size, dilation, padding, stride)  # N×(C·R·S)×(H'·W')
    out = weight @ lowered[:, channels * (kernel_size[0] * kernel_size[1]) + taps]
    span = dilation[0] * (kernel_size[0] - 1) + 1
    out = out.unflatten(2, ((x.shape[2] + 2 * padding[0] - span) // stride[0] + 1, -1))
    if bias is not None:
        out = out + bias.view(-1, 1, 1)
    return F.relu(out) if relu else out


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
        channels, taps = weight.flatten(2).ne(0).any(0).nonzero(as_tuple=True)
        self.register_buffer("channels", channels)
        self.register_buffer("taps", taps)
        self.weight = nn.Parameter(weight.flatten(2)[:, channels, taps].contiguous())
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
