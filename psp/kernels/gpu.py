"""The GPU kernel, in Triton: implicit matrix product over the kept columns.

A program computes BLOCK_P output pixels × BLOCK_K output channels. It walks through the columns in blocks: the table of
channels and kernel positions gives the place of every value, which is gathered straight from `x` (0 in the
padding), so that the lowered matrix never exists; matrix units multiply. Sums are float32.
"""

import torch
import triton
from triton import language as tl

BLOCK_P, BLOCK_J = 64, 32


def run(out, x, weight, channels, taps, bias, kernel_size, stride, padding, dilation, relu):
    """Write the convolution into `out` (N×K×H'×W', channels-last).

    Arguments as `psp.kernels.column_conv2d`, of one dtype, their shapes checked; any memory order of `x` and `weight`.
    """
    channels, taps, bias = (t if t is None else t.contiguous() for t in (channels, taps, bias))
    (n, _, height, width), (k, j), (_, _, out_h, out_w) = x.shape, weight.shape, out.shape
    pixels = n * out_h * out_w
    if pixels == 0 or k == 0:
        return
    block_k = max(16, min(64, triton.next_power_of_2(k)))
    _column_conv[triton.cdiv(pixels, BLOCK_P), triton.cdiv(k, block_k)](
        out, x, weight, channels, taps, bias, pixels, k, j, height, width, out_h, out_w,
        *x.stride(), *weight.stride(), *stride, *padding, *dilation, kernel_size[1],
        # As PyTorch's own convolutions: on matrix units in TF32 if the user lets them, otherwise exactly.
        precision="tf32" if torch.backends.cudnn.allow_tf32 else "ieee",
        has_bias=bias is not None, relu=relu, block_p=BLOCK_P, block_k=block_k, block_j=BLOCK_J,
    )  # fmt: skip


@triton.jit
def _column_conv(
    out, x, weight, channels, taps, bias, pixels, k_count, j_count, height, width, out_h, out_w,
    x_n, x_c, x_h, x_w, weight_k, weight_j, stride_h, stride_w, pad_h, pad_w, dil_h, dil_w, kernel_w,
    precision: tl.constexpr, has_bias: tl.constexpr, relu: tl.constexpr,
    block_p: tl.constexpr, block_k: tl.constexpr, block_j: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0) * block_p + tl.arange(0, block_p)
    k = tl.program_id(1) * block_k + tl.arange(0, block_k)
    image = (pixel // (out_h * out_w)).to(tl.int64)  # a batch can hold more than 2³¹ values
    top = pixel // out_w % out_h * stride_h - pad_h
    left = pixel % out_w * stride_w - pad_w
    total = tl.zeros((block_p, block_k), tl.float32)
    for first in range(0, j_count, block_j):
        j = first + tl.arange(0, block_j)
        tap = tl.load(taps + j, mask=j < j_count, other=0)
        channel = tl.load(channels + j, mask=j < j_count, other=0)
        h = top[:, None] + (tap // kernel_w * dil_h)[None, :]
        w = left[:, None] + (tap % kernel_w * dil_w)[None, :]
        inside = (h >= 0) & (h < height) & (w >= 0) & (w < width)
        wanted = inside & (pixel < pixels)[:, None] & (j < j_count)[None, :]
        place = (image * x_n)[:, None] + (channel * x_c)[None, :] + h * x_h + w * x_w
        values = tl.load(x + place, mask=wanted, other=0.0)
        place = j[:, None] * weight_j + k[None, :] * weight_k
        weights = tl.load(weight + place, mask=(j < j_count)[:, None] & (k < k_count)[None, :], other=0.0)
        total = tl.dot(values, weights, total, input_precision=precision)
    if has_bias:
        total += tl.load(bias + k, mask=k < k_count, other=0.0)[None, :].to(tl.float32)
    if relu:
        total = tl.where(total < 0, 0.0, total)  # a NaN is not below 0 and stays
    place = pixel.to(tl.int64)[:, None] * k_count + k[None, :]
    tl.store(out + place, total, mask=(pixel < pixels)[:, None] & (k < k_count)[None, :])
