"""The smallest layer that has given weights: kernels cut to the taps that are not zero, or columns alone."""

from itertools import product

from torch import nn

from psp.extraction.graph import CONVOLUTION, LATER, TRANSPOSED
from psp.kernels.attention import linear
from psp.kernels.columns import ColumnSparseConv1d, ColumnSparseConv2d, ColumnSparseConv3d
from psp.kernels.transposed import ColumnSparseConvTranspose1d, ColumnSparseConvTranspose2d
from psp.method.structures import is_transposed

# From this share of all-zero columns on, a convolution keeps its other columns only, instead of a dense kernel: in
# float32 on a CPU psp.kernels overtake oneDNN there (benchmarks/column_conv.py).
COLUMN_SPARSE = 0.2
# A transposed convolution does if so many input channels are zero at each tap, on average: adding up the products of
# its columns costs per value as much as about 45 (kernels that do not overlap) to 95 multiplications in oneDNN.
ADDING = 64
COLUMNS = dict(zip(CONVOLUTION, (ColumnSparseConv1d, ColumnSparseConv2d, ColumnSparseConv3d), strict=True))
TRANSPOSED_COLUMNS = dict(zip(TRANSPOSED, (ColumnSparseConvTranspose1d, ColumnSparseConvTranspose2d), strict=False))
ZERO_PAD = (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d)


def pads(module):
    """Padding (before, after) of every axis of a convolution, in pixels."""
    flat = module._reversed_padding_repeated_twice  # (before, after) of the last axis, then of the one before it, …
    return [tuple(flat[2 * axis : 2 * axis + 2]) for axis in reversed(range(len(flat) // 2))]


def column_sparse(module, weight):
    """Whether so many columns of K×C×taps are zero that a convolution of the other ones alone is worth it."""
    padding = pads(module) if type(module) in CONVOLUTION and module.padding_mode == "zeros" else []
    if not padding or any(before != after for before, after in padding):
        return False
    weight, _ = cropped(weight.unflatten(-1, module.kernel_size), padding, module.dilation)
    columns = weight.ne(0).any(0)
    return columns.shape[1:].numel() > 1 and columns.double().mean() <= 1 - COLUMN_SPARSE


def smallest(module, weight, bias, groups):
    """The smallest layer that computes what `module` does with `weight` (K'×C'×taps) and `bias` (K')."""
    bias = bias.clone() if bias.any() else None
    if isinstance(module, nn.Linear):
        return linear(weight.squeeze(-1), bias)
    weight = weight.unflatten(-1, module.kernel_size)
    if is_transposed(module):
        return transposed(module, weight, bias, groups)
    if groups == 1 and column_sparse(module, weight.flatten(2)):
        before = tuple(p for p, _ in pads(module))
        return COLUMNS[type(module)](weight, bias, module.stride, before, module.dilation)
    padding = pads(module)
    if module.padding_mode == "zeros":
        weight, padding = cropped(weight, padding, module.dilation)
    symmetric = all(before == after >= 0 for before, after in padding)
    layer = type(module)(
        weight.shape[1] * groups,
        weight.shape[0],
        weight.shape[2:],
        module.stride,
        module.padding if module.padding_mode != "zeros" else [before for before, _ in padding] if symmetric else 0,
        module.dilation,
        groups,
        bias is not None,
        module.padding_mode,
        device=LATER,
    )
    layer = with_weight(layer, weight, bias)
    if symmetric or module.padding_mode != "zeros":
        return layer
    flat = tuple(p for pair in reversed(padding) for p in pair)
    return nn.Sequential(ZERO_PAD[CONVOLUTION.index(type(module))](flat), layer)


def transposed(module, weight, bias, groups):
    """The smallest transposed convolution of the settings of `module` with `weight` (K'×C'×kernel…) and `bias` (K')."""
    weight, padding, output_padding = cropped_transposed(module, weight)
    if groups == 1 and column_sparse_transposed(module, weight, output_padding):
        kind = TRANSPOSED_COLUMNS[type(module)]
        return kind(weight, bias, module.stride, padding, output_padding, module.dilation)
    weight = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    settings = module.stride, padding, output_padding, groups, bias is not None, module.dilation
    layer = type(module)(len(weight), weight.shape[1] * groups, weight.shape[2:], *settings, device=LATER)
    return with_weight(layer, weight, bias)


def column_sparse_transposed(module, weight, output_padding):
    """Whether so many columns of K×C×kernel… are zero that products of the other ones alone are worth it."""
    zero = weight.eq(0).all(0).double().flatten(1)
    reached = all(more < stride for more, stride in zip(output_padding, module.stride, strict=True))
    return type(module) in TRANSPOSED_COLUMNS and reached and zero.sum(0).mean() >= ADDING


def cropped_transposed(module, weight):
    """(weight, padding, output padding) of the same transposed convolution with fewer taps at the rim of its kernel.

    A tap less in front is `dilation` pixels less of padding there, and at both ends; what is then too much at the end
    is taken out of the output padding. Neither can be negative, and the latter has to be less than stride or dilation.
    """
    alive, paddings, more = weight.ne(0).any(0).any(0), [], []
    settings = zip(module.stride, module.padding, module.output_padding, module.dilation, strict=True)
    for axis, (stride, padding, output_padding, dilation) in enumerate(settings):
        length = alive.shape[axis]
        taps = alive.movedim(axis, 0).reshape(length, -1).any(1).nonzero().flatten().tolist() or [length - 1]
        cuts = product(range(min(taps[0], padding // dilation) + 1), range(length - taps[-1]))
        fitting = [
            (front, back)
            for front, back in cuts
            if 0 <= output_padding + dilation * (back - front) < max(stride, dilation)
        ]
        front, back = max(fitting, key=sum)
        weight = weight.narrow(axis + 2, front, length - front - back)
        paddings.append(padding - dilation * front)
        more.append(output_padding + dilation * (back - front))
    return weight, tuple(paddings), tuple(more)


def with_weight(layer, weight, bias):
    """`layer` with these weights, of their type."""
    layer.weight = nn.Parameter(weight.contiguous())
    layer.bias = None if bias is None else nn.Parameter(bias)
    return layer


def cropped(weight, padding, dilation):
    """(weight, padding) of the same convolution with the kernel cut to the bounding box of its nonzero taps."""
    alive = weight.ne(0).any(0).any(0)
    smaller = []
    for axis, ((before, after), step) in enumerate(zip(padding, dilation, strict=True)):
        length = alive.shape[axis]
        taps = alive.movedim(axis, 0).reshape(length, -1).any(1).nonzero().flatten().tolist()
        if not taps:  # nothing but zeros: the tap that needs the least padding
            taps = [min(length - 1, before // step)]
        first, last = taps[0], taps[-1]
        weight = weight.narrow(axis + 2, first, last - first + 1)
        smaller.append((before - step * first, after - step * (length - 1 - last)))
    return weight, smaller
