"""Kernels that make pruned columns save time."""

from psp.kernels.column_conv import column_conv2d

__all__ = ["column_conv2d"]
