"""The columns of a convolution as `pixels.c` reads them: in units, which are single columns or pairs of channels."""

from typing import NamedTuple

import torch
from torch.nn import functional as F

GROUP = 8  # as in registers.h
ROWS = 16  # of a tile


class Columns(NamedTuple):
    """Units of a convolution's window: planes and taps, and their weights K×U float32, a pair of bfloat16 as one."""

    planes: torch.Tensor
    taps: torch.Tensor
    weight: torch.Tensor


def in_units(o, parts, whole):
    """The `Columns` of a convolution that are needed; with `whole`, all channels of each tap that is."""
    count = -(-o.reads[0].source.channels // parts)
    unit = o.taps * count + o.columns // parts
    wanted = (o.taps.unique()[:, None] * count + torch.arange(count)).flatten() if whole else unit.unique()
    place = torch.searchsorted(wanted, unit) * parts + o.columns % parts
    weight = torch.zeros(len(o.weight), len(wanted) * parts, dtype=torch.float64)
    weight.index_add_(1, place, o.weight.double())
    if parts == 2 and len(wanted):
        weight = weight.bfloat16().view(torch.float32)
    return Columns(wanted % count, wanted // count, weight.float())


def joined(o):
    """(`Columns`, orders) of a convolution of bfloat16 whose columns are joined in pairs, whatever their channels.

    Columns come two for each weight, whose order says which halves of their units these are (`halves` of vectors.h).
    """
    odd = len(o.columns) % 2
    columns, taps = (torch.cat([t, t[-1:]]) if odd else t for t in (o.columns, o.taps))
    weight = F.pad(o.weight.float(), (0, odd)).bfloat16().contiguous().view(torch.float32)
    half = (columns % 2).view(-1, 2).int()
    return Columns(columns // 2, taps, weight), half[:, 0] + (half[:, 1] << 16)


def of_its_own(o, parts):
    """The `Columns` of a convolution whose outputs have their own: planes and weights K×J, K in whole units."""
    planes, weight = o.columns // parts, o.weight.float()
    if parts == 2:
        pairs = F.one_hot(o.columns % 2, 2) * weight[..., None]
        weight = pairs.bfloat16().view(torch.float32).squeeze(-1)
    rows = (0, 0, 0, -len(weight) % parts)
    return Columns(F.pad(planes, rows), o.taps, F.pad(weight, rows))


def in_groups(weight, parts):
    """Weights K×U by groups of outputs, in a group by units."""
    weight = F.pad(weight, (0, 0, 0, -len(weight) % parts))
    return torch.cat([group.t().flatten() for group in weight.split(GROUP)])


def in_tiles(weight):
    """Weights K×U as tiles of 16 outputs × 16 units."""
    weight = F.pad(weight, (0, -weight.shape[1] % ROWS, 0, -len(weight) % ROWS))
    return weight.view(len(weight) // ROWS, ROWS, -1, ROWS).transpose(1, 2)


def direct(offsets):
    """Of every tile's offsets (in units): their distance in bytes if it is always the same, else 0."""
    steps = offsets.view(-1, ROWS).diff(dim=1)
    return torch.where((steps == steps[:, :1]).all(1) & (steps[:, 0] > 0), 4 * steps[:, 0], 0)
