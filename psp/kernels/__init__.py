"""The convolution of kept columns, one operator with gradients, compiled at first use for CPUs and by Triton for GPUs;
and the module that holds it in an extracted network.

May use: no other room.
"""

from psp.kernels.column_conv import column_conv2d

__all__ = ["column_conv2d"]
