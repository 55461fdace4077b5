"""Weights that are stored without their zero rows and columns, and spread among zeros where they are read.

For what cannot be smaller in itself: its kernel has to stay dense, or its shape, since code that is not known reads it.
Stored is what is left of the weight; computed with is the dense one.
"""

from functools import cache

from torch import nn


class SpreadWeight(nn.Module):
    """A matrix, or a tensor seen as one of its first axis and all others, of which the nonzero part is stored."""

    def __init__(self, weight):
        super().__init__()
        matrix = weight.detach().flatten(1)
        rows, columns = (matrix.ne(0).any(axis).nonzero().flatten() for axis in (1, 0))
        self.shape = tuple(weight.shape)
        self.left = nn.Parameter(matrix[rows][:, columns])
        self.register_buffer("rows", rows)
        self.register_buffer("columns", columns)

    def forward(self):
        """The dense tensor; gradients flow to `left`."""
        matrix = self.left.new_zeros(self.shape).flatten(1)
        return matrix.index_put((self.rows[:, None], self.columns), self.left).view(self.shape)

    def extra_repr(self):
        return f"{len(self.rows)}×{len(self.columns)} of {'×'.join(map(str, self.shape))}"


class Spread:
    """What `spread` puts before the class of a layer, whose own forward reads `weight`."""

    @property
    def weight(self):
        return self.outputs_first().transpose(0, 1) if _transposed(self) else self.outputs_first()

    def __reduce_ex__(self, protocol):  # its class is made at run time, and pickle could not find it
        return _rebuild, (type(self).__bases__[1], vars(self))


def spread(layer):
    """`layer`, a convolution or linear layer of any subclass, with the same weight stored as its nonzero part.

    The weight is seen as a matrix of its output channels and all else. Other attributes are shared with `layer`.
    """
    twin = _rebuild(type(layer), {**vars(layer), "_parameters": dict(layer._parameters)})
    twin._modules = {**layer._modules, "outputs_first": SpreadWeight(outputs_first(layer))}
    del twin._parameters["weight"]
    return twin


def outputs_first(layer):
    """A layer's weight with the axis of its output channels, of one group, before that of its input channels."""
    return layer.weight.transpose(0, 1) if _transposed(layer) else layer.weight


def _transposed(layer):
    return getattr(layer, "transposed", False)


@cache
def _class(kind):
    # torch.fx takes for a leaf what says that it is torch's.
    return type(f"Spread{kind.__name__}", (Spread, kind), {"__module__": kind.__module__})


def _rebuild(kind, state):
    layer = _class(kind).__new__(_class(kind))
    vars(layer).update(state)
    return layer
