"""Layers whose weight is stored without its zero rows and columns, and is spread among zeros where it is read.

For what cannot be smaller in itself: its kernel has to stay dense, or its shape, since code that is not known calls it.
Stored is what is left of the weight; computed with is the dense one, by the layer's own forward.
"""

from functools import cache

import torch
from torch import nn

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)


def spread(layer):
    """`layer`, a convolution or linear layer of any subclass, with the same weight stored as its nonzero part.

    The weight is seen as a matrix of its output channels and all else. Other attributes are shared with `layer`.
    """
    matrix = as_matrix(layer)
    rows, columns = (matrix.ne(0).any(axis).nonzero().flatten() for axis in (1, 0))
    twin = _rebuild(type(layer), {**vars(layer), "_parameters": dict(layer._parameters)})
    twin._buffers, twin.full_shape = dict(layer._buffers), tuple(layer.weight.shape)
    del twin._parameters["weight"]
    twin.left = nn.Parameter(matrix[rows][:, columns])
    twin.register_buffer("rows", rows)
    twin.register_buffer("columns", columns)
    return twin


class Spread:
    """What `spread` puts before the class of a layer."""

    @property
    def weight(self):
        """The dense weight; gradients flow to `left`."""
        first, second, *kernel = self.full_shape
        shape = (second, first, *kernel) if transposed(self) else self.full_shape
        matrix = self.left.new_zeros(shape).flatten(1)
        weight = matrix.index_put((self.rows[:, None], self.columns), self.left).view(shape)
        return weight.transpose(0, 1) if transposed(self) else weight

    def extra_repr(self):
        kept = f"{len(self.rows)}×{len(self.columns)}"
        return f"{super().extra_repr()}, left of {'×'.join(map(str, self.full_shape))} are {kept}"

    def __reduce_ex__(self, protocol):  # its class is made at run time, and pickle could not find it
        return _rebuild, (type(self).__bases__[1], vars(self))


def as_matrix(layer):
    """A layer's weight as the matrix of its output channels, of one group, and all else."""
    weight = layer.weight.detach()
    return (weight.transpose(0, 1) if transposed(layer) else weight).flatten(1)


def transposed(layer):
    """Whether the weight of a layer has its input channels first."""
    return getattr(layer, "transposed", False)


@cache
def _class(kind):
    # torch.fx takes for a leaf what says that it is torch's.
    return type(f"Spread{kind.__name__}", (Spread, kind), {"__module__": kind.__module__})


def _rebuild(kind, state):
    layer = _class(kind).__new__(_class(kind))
    vars(layer).update(state)
    return layer
