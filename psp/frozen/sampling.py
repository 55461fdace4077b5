"""Pooling, interpolation and shuffling of pixels as operations."""

import torch
from torch.nn import functional as F

from psp.frozen.values import POOL_MAX, POOL_MEAN, RESIZE, SHUFFLE, pair, require


def pool(plan, x, kernel, stride=None, padding=0, *, kind=POOL_MEAN, count_padding=True, ceil=False):
    require(not x.flat)
    kernel, before, x = pair(kernel), pair(padding), plan.plain(x)
    stride = pair(stride or kernel)
    size = [windows(*axis, ceil) for axis in zip(x.size, kernel, stride, before, strict=True)]
    options = {"kernel": kernel, "stride": stride, "before": before, "count_padding": count_padding}
    return plan.add_operation(kind, *size, len(x.index), reads=[x], **options)


def windows(length, kernel, stride, before, ceil):
    """How many windows an axis has; with `ceil` one more where pixels are left over and it begins inside."""
    over = length + 2 * before - kernel
    count = over // stride + 1
    return count + (ceil and over % stride > 0 and count * stride < length + before)


def mean_pool(plan, x, module):
    require(not module.ceil_mode and module.divisor_override is None)
    options = module.kernel_size, module.stride, module.padding
    return pool(plan, x, *options, count_padding=module.count_include_pad)


def max_pool(plan, x, kernel, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    require(pair(dilation) == (1, 1) and not return_indices)
    return pool(plan, x, kernel, stride, padding, kind=POOL_MAX, ceil=ceil_mode)


def adaptive_pool(plan, x, size):
    """To a size that divides that of the maps, so that windows are alike; None stands for theirs."""
    size = [wanted or length for wanted, length in zip(pair(size), x.size, strict=True)]
    require(all(length % wanted == 0 for wanted, length in zip(size, x.size, strict=True)))
    return pool(plan, x, tuple(length // wanted for wanted, length in zip(size, x.size, strict=True)))


def mean(plan, x, dim, keepdim=False):
    require(sorted(d % 4 for d in dim) == [2, 3])
    return pool(plan, x, x.size)._replace(flat=not keepdim)


def resize(plan, x, size=None, scale_factor=None, mode="nearest", align_corners=None, **others):
    """F.interpolate, "nearest", "nearest-exact" or "bilinear": what it makes of the numbers of rows and of columns."""
    require(mode in ("nearest", "nearest-exact", "bilinear") and not any(others.values()) and not x.flat)
    x, tables, shares = plan.plain(x), [], []
    for axis, length in enumerate(x.size):
        places = torch.arange(length, dtype=torch.float64).view(1, 1, *((-1, 1) if axis == 0 else (1, -1)))
        sizes = [1, 1]
        if size is None:
            options = {"scale_factor": [1.0, 1.0]}
            options["scale_factor"][axis] = float(factor(scale_factor, axis))
        else:
            sizes[axis] = pair(size)[axis]
            options = {"size": sizes}
        found = F.interpolate(places, mode=mode, align_corners=align_corners, **options).flatten()
        first = (found + 1e-6).floor().clamp(max=length - 1)
        tables.append(torch.stack([first, (first + 1).clamp(max=length - 1)], 1))
        shares.append((found - first).clamp(min=0))
    rows, columns = (len(share) for share in shares)
    return plan.add_operation(
        RESIZE, rows, columns, len(x.index), reads=[x], scale=torch.cat(shares), table=torch.cat(tables)
    )


def factor(scale_factor, axis):
    return scale_factor[axis] if isinstance(scale_factor, (tuple, list)) else scale_factor


def upsample(plan, x, module):
    require(not module.recompute_scale_factor)
    return resize(plan, x, module.size, module.scale_factor, module.mode, module.align_corners)


def pixel_shuffle(plan, x, factor):
    return shuffled(plan, x, (factor, factor), (0, 0), [length * factor for length in x.size])


def shuffled(plan, x, factors, before, size):
    """Channels K·s·s as pixels, s rows and columns for each; without the first `before` rows and columns of these."""
    x = plan.plain(x)
    count = len(x.index) // (factors[0] * factors[1])
    return plan.add_operation(SHUFFLE, *size, count, reads=[x], kernel=factors, before=before)
