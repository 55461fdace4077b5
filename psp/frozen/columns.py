"""The columns of a convolution as `pixels.c` reads them: in units, which are single columns or pairs of channels."""

from typing import NamedTuple

import torch
from torch.nn import functional as F

GROUP = 8  # as in registers.h
ROWS = 16  # that a tile has at most


class Columns(NamedTuple):
    """Units of a convolution's window: planes and taps, and their weights K×U float32, a pair of bfloat16 as one."""

    planes: torch.Tensor
    taps: torch.Tensor
    weight: torch.Tensor


def in_units(o, parts):
    """The `Columns` of a convolution that are needed."""
    planes, units = planes_of(o, parts), units_of(o, parts)
    wanted = units.unique()
    return Columns(wanted % planes, wanted // planes, placed(o, parts, torch.searchsorted(wanted, units), len(wanted)))


def in_taps(o, parts):
    """(`Columns`, rows of a tile) of a convolution with all planes of each tap that is needed, by tiles.

    A tap's last tile ends with its last plane: where it overlaps the one before, its weights are zero.
    """
    planes, units = planes_of(o, parts), units_of(o, parts)
    rows, taps = rows_of(planes), o.taps.unique()
    tiles = -(-planes // rows)
    begins = (torch.arange(tiles) * rows).clamp(max=planes - rows)
    plane = torch.arange(planes)
    place = plane + (plane // rows * rows - begins[plane // rows])  # of a plane, among the rows of a tap's tiles
    found = torch.searchsorted(taps, o.taps) * tiles * rows + place[units % planes]
    covered = (begins[:, None] + torch.arange(rows)).flatten()
    weight = placed(o, parts, found, len(taps) * tiles * rows)
    return Columns(covered.repeat(len(taps)), taps.repeat_interleave(tiles * rows), weight), rows


def units_of(o, parts):
    """Of each column its unit: its tap's planes come one after the other."""
    return o.taps * planes_of(o, parts) + o.columns // parts


def planes_of(o, parts):
    """Planes of the map that a convolution reads."""
    return -(-o.reads[0].source.channels // parts)


def placed(o, parts, place, count):
    """Weights K×`count` of a convolution whose columns' units are at these places, a pair of bfloat16 as one."""
    weight = torch.zeros(len(o.weight), count * parts, dtype=torch.float64)
    weight.index_add_(1, place * parts + o.columns % parts, o.weight.double())
    if parts == 2 and count:
        weight = weight.bfloat16().view(torch.float32)
    return weight.float()


def rows_of(units):
    """Rows of a tile: so many that as few tiles as there can be are filled evenly."""
    return -(-units // -(-units // ROWS))


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


def in_tiles(weight, high, deep):
    """Weights K×U as tiles of `high` outputs × `deep` units."""
    weight = F.pad(weight, (0, -weight.shape[1] % deep, 0, -len(weight) % high))
    return weight.view(len(weight) // high, high, -1, deep).transpose(1, 2)
