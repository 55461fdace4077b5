"""What is done to each pixel by itself, or only moves channels and pixels about."""

from functools import partial, reduce

import torch
from torch.nn import functional as F

from psp.frozen.values import (
    CONV,
    GELU,
    GELU_TANH,
    HARD_SIGMOID,
    HARD_SWISH,
    MULTIPLY,
    NONE,
    NORM,
    POINTWISE,
    POOL_MAX,
    POOL_MEAN,
    RELU,
    RELU6,
    SIGMOID,
    SILU,
    Value,
    require,
)  # fmt: skip

FUNCTIONS = {
    RELU: F.relu, RELU6: F.relu6, HARD_SIGMOID: F.hardsigmoid, HARD_SWISH: F.hardswish, SIGMOID: torch.sigmoid,
    SILU: F.silu, GELU: F.gelu, GELU_TANH: partial(F.gelu, approximate="tanh"),
}  # fmt: skip
# What an operation can do to its outputs before they are written.
FUSED = {CONV: (RELU, RELU6), POOL_MAX: (RELU, RELU6), POOL_MEAN: (RELU, RELU6), **dict.fromkeys(POINTWISE, FUNCTIONS)}


def activate(plan, x, *_, kind, inplace=False):
    """An activation by the operation before it where that can do it, else by an operation of its own."""
    source = x.source
    free = x.alone and x.unchanged and source.activation == NONE and kind in FUSED.get(source.kind, ())
    x = x if free else plan.combine(x)
    x.source.activation = kind
    return x._replace(constant=torch.where(x.index < 0, FUNCTIONS[kind](x.constant), x.constant))


def gelu(plan, x, approximate="none"):
    return activate(plan, x, kind=GELU_TANH if approximate == "tanh" else GELU)


def add(plan, x, y):
    x, y = (x, y) if isinstance(x, Value) else (y, x)
    if not isinstance(y, Value):
        return x._replace(constant=x.constant + by_channel(x, y))
    require(x.size == y.size and len(x.index) == len(y.index) and x.last == y.last)
    for branch, shortcut in ((x, y), (y, x)):
        if can_add(plan, branch, shortcut):
            branch.source.reads.append(shortcut)
            branch.source.bias = branch.source.bias + branch.constant + shortcut.constant
            return Value.of(branch.source)._replace(flat=branch.flat, last=branch.last)
    x, y = (x, y) if y.unscaled else (y, x)
    return plan.combine(x, y if y.unscaled else plan.plain(y))


def can_add(plan, branch, shortcut):
    """Whether the convolution `branch` can add `shortcut`, which has to be there before it, to its own output."""
    source, order = branch.source, plan.operations.index
    free = source.kind == CONV and len(source.reads) == 1 and branch.alone and source.activation == NONE
    whole = branch.whole and branch.unscaled and shortcut.unscaled
    return free and whole and order(shortcut.source) < order(source)


def multiply(plan, x, y):
    """By a constant of each channel, or by a value of the same size or of one pixel."""
    x, y = (x, y) if isinstance(x, Value) else (y, x)
    if not isinstance(y, Value):
        scale = by_channel(x, y)
        return x._replace(scale=x.scale * scale, constant=x.constant * scale)
    x, y = (x, y) if y.size in (x.size, (1, 1)) else (y, x)
    require(y.size in (x.size, (1, 1)) and len(x.index) == len(y.index) and x.last == y.last and x.flat == y.flat)
    x, y = plan.plain(x), plan.plain(y)
    if y.size != x.size:
        y = y._replace(height=x.height, width=x.width, step=(0, 0))
    made = plan.add_operation(MULTIPLY, *x.size, len(x.index), reads=[x, y])
    return made._replace(flat=x.flat, last=x.last)


def subtract(plan, x, y):
    return add(plan, x, multiply(plan, y, -1.0) if isinstance(y, Value) else -torch.as_tensor(y).double())


def divide(plan, x, y):
    """By a constant of each channel."""
    require(isinstance(x, Value) and not isinstance(y, Value))
    return multiply(plan, x, 1 / torch.as_tensor(y).double())


def by_channel(x, constant):
    """What is added to or multiplies a value, a tensor or a number, as a number for each channel."""
    constant = torch.as_tensor(constant)
    count, axis = len(x.index), -1 if x.last or x.flat else -3
    require(constant.numel() == 1 or (constant.ndim >= -axis and constant.shape[axis] == constant.numel() == count))
    return constant.detach().double().flatten().expand(count)


def same(plan, x, *_, **__):
    return x


def batch_norm(plan, x, mean, var, weight=None, bias=None, training=False, momentum=None, eps=1e-5):
    require(not training)
    scale = (var.double() + eps).rsqrt() * (1 if weight is None else weight)
    shift = (0 if bias is None else bias) - mean * scale
    return x._replace(scale=(x.scale * scale).detach(), constant=(x.constant * scale + shift).detach())


def layer_norm(plan, x, normalized_shape, weight=None, bias=None, eps=1e-5):
    """Over a pixel's channels."""
    x = plan.plain(x)
    require((x.last or (x.flat and x.size == (1, 1))) and tuple(normalized_shape) == (len(x.index),))
    ones = torch.ones(len(x.index), dtype=torch.float64)
    scale = torch.cat([ones if weight is None else weight.detach().double(), torch.tensor([eps]).double()])
    shift = 0 * ones if bias is None else bias.detach().double()
    made = plan.add_operation(NORM, *x.size, len(x.index), reads=[x], bias=shift, scale=scale)
    return made._replace(flat=x.flat, last=x.last)


def permute(plan, x, *dims):
    """Channels behind the pixels, or back."""
    dims = tuple(dims[0]) if isinstance(dims[0], (tuple, list)) else dims
    dims = tuple(dim % 4 for dim in dims)
    require(not x.flat and dims == ((0, 3, 1, 2) if x.last else (0, 2, 3, 1)))
    return x._replace(last=not x.last)


def select(plan, x, module):
    require(module.axis % 4 == (3 if x.last else 1))
    constants = x.constant[:0] if module.constants is None else module.constants.flatten()
    return x.extended(0, constants).selected(module.index)


def pad(plan, x, pads, mode="constant", value=None):
    *space, front, back = pads
    require(mode == "constant" and not value and not any(space) and min(front, back) >= 0)
    require(len(space) == (0 if x.flat or x.last else 4))
    return x.extended(front, torch.zeros(back))


def getitem(plan, x, index):
    """Some channels, or every so many rows and columns."""
    if not isinstance(x, Value):  # of several values
        return x[index]
    _, channels, rows, columns = (*index, *[slice(None)] * (4 - len(index)))
    require(index[0] == slice(None) and isinstance(channels, slice) and not x.flat)
    require(all(not i.start and i.stop is None for i in (rows, columns)))
    steps = rows.step or 1, columns.step or 1
    height, width = (-(-length // step) for length, step in zip(x.size, steps, strict=True))
    x = x._replace(height=height, width=width, step=tuple(a * b for a, b in zip(x.step, steps, strict=True)))
    return x if channels == slice(None) else x.selected(torch.arange(len(x.index))[channels])


def chunk(plan, x, chunks, dim=0):
    return split(plan, x, -(-len(x.index) // chunks), dim)


def split(plan, x, size, dim=0):
    """Channels as several values, which share a source."""
    require(dim == 1 and not x.flat)
    parts = torch.arange(len(x.index)).split(size)
    return tuple(x.selected(part)._replace(alone=False) for part in parts)


def cat(plan, values, dim=0):
    require(dim == 1 and not any(v.flat or v.last for v in values))
    counts = [len(v.index) for v in values]
    placed = [v.extended(sum(counts[:i]), torch.zeros(sum(counts[i + 1 :]))) for i, v in enumerate(values)]
    return reduce(partial(add, plan), placed)


def flatten(plan, x, start_dim=0, end_dim=-1):
    require(start_dim == 1 and end_dim in (-1, 3))
    return x._replace(flat=True)
