"""Weights that are stored without their zero rows and columns, and spread among zeros where they are read.

For what cannot be smaller in itself: its kernel has to stay dense, or its shape, since code that is not known reads it.
A layer of torch's own computes its nonzero outputs alone and puts them among the others, which are its bias; of any
other layer, whose forward may do anything with its weight, only the storage is saved.
"""

from functools import cache

import torch
from torch import nn
from torch.nn import functional as F

CONVOLUTIONS = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}


class SpreadWeight(nn.Module):
    """A matrix, or a tensor seen as one of its first axis and all others, of which the nonzero part is stored."""

    def __init__(self, weight):
        super().__init__()
        matrix = weight.detach().flatten(1)
        nonzero = matrix.ne(0)
        nonzero[0, 0] |= not nonzero.any()  # a convolution cannot be of nothing
        rows, columns = (nonzero.any(axis).nonzero().flatten() for axis in (1, 0))
        taps = weight.shape[2:].numel()
        inputs, box = torch.unique(columns // taps, return_inverse=True)
        self.shape = tuple(weight.shape)
        self.left = nn.Parameter(matrix[rows][:, columns])
        self.register_buffer("rows", rows)
        self.register_buffer("columns", columns)
        self.register_buffer("inputs", inputs)
        self.register_buffer("columns_in_box", box * taps + columns % taps)

    def forward(self):
        """The dense tensor; gradients flow to `left`."""
        matrix = self.left.new_zeros(self.shape).flatten(1)
        return matrix.index_put((self.rows[:, None], self.columns), self.left).view(self.shape)

    def box(self):
        """The weight of its nonzero `rows` and of the `inputs`, indices of its second axis, that are not all zero."""
        shape = (len(self.rows), len(self.inputs), *self.shape[2:])
        zeros = self.left.new_zeros(shape)
        if zeros.numel() == self.left.numel():
            return self.left.view(shape)
        return zeros.flatten(1).index_copy(1, self.columns_in_box, self.left).view(shape)

    def extra_repr(self):
        return f"{len(self.rows)}×{len(self.columns)} of {'×'.join(map(str, self.shape))}"


class Spread:
    """What `spread` puts before the class of a layer, whose own forward reads `weight`."""

    made_by_extract = True  # as of psp.kernels.columns

    @property
    def weight(self):
        return self.outputs_first().transpose(0, 1) if _transposed(self) else self.outputs_first()

    def __reduce_ex__(self, protocol):  # its class is made at run time, and pickle could not find it
        return _rebuild, (kind_of(self), vars(self))

    def placed(self, out, axis):
        """`out`, of the nonzero rows, among the channels of `axis`, a negative number, that are constant."""
        rows, count = self.outputs_first.rows, self.outputs_first.shape[0]
        if len(rows) == count:
            return out
        shape = [*out.shape]
        shape[axis] = count
        bias = out.new_zeros(1) if self.bias is None else self.bias.view(-1, *[1] * (-1 - axis))
        return bias.expand(shape).index_copy(axis, rows, out)

    def inputs(self, x, axis):
        """The channels of `axis` that any nonzero weight reads."""
        inputs = self.outputs_first.inputs
        return x if len(inputs) == x.shape[axis] else x.index_select(axis, inputs)

    def biases(self):
        return None if self.bias is None else self.bias[self.outputs_first.rows]


class SpreadLinear(Spread):
    """`Spread` before nn.Linear."""

    def forward(self, x):
        return self.placed(F.linear(self.inputs(x, -1), self.outputs_first.box(), self.biases()), -1)


class SpreadConvolution(Spread):
    """`Spread` before a convolution of one group."""

    def forward(self, x):
        convolve = CONVOLUTIONS[kind_of(self)]
        axis = -1 - len(self.kernel_size)  # counted from behind: there may be no axis of the batch
        settings = self.stride, self.padding, self.dilation
        return self.placed(convolve(self.inputs(x, axis), self.outputs_first.box(), self.biases(), *settings), axis)


def spread(layer):
    """`layer`, a convolution or linear layer of any subclass, with the same weight stored as its nonzero part.

    The weight is seen as a matrix of its output channels and all else. Other attributes are shared with `layer`.
    """
    twin = _rebuild(type(layer), {**vars(layer), "_parameters": dict(layer._parameters)})
    twin._modules = {**layer._modules, "outputs_first": SpreadWeight(outputs_first(layer))}
    del twin._parameters["weight"]
    return twin


def kind_of(layer):
    """The class of a layer; of one that was `spread`, the one it had before."""
    return type(layer).__bases__[1] if isinstance(layer, Spread) else type(layer)


def outputs_first(layer):
    """A layer's weight with the axis of its output channels, of one group, before that of its input channels."""
    return layer.weight.transpose(0, 1) if _transposed(layer) else layer.weight


def _transposed(layer):
    return getattr(layer, "transposed", False)


def _computes_small(kind, state):
    """Whether a layer of exactly this class can compute its nonzero outputs alone."""
    return kind in CONVOLUTIONS and state["groups"] == 1 and state["padding_mode"] == "zeros"


@cache
def _class(mixin, kind):
    # torch.fx takes for a leaf what says that it is torch's.
    return type(f"Spread{kind.__name__}", (mixin, kind), {"__module__": kind.__module__})


def _rebuild(kind, state):
    mixin = SpreadLinear if kind is nn.Linear else SpreadConvolution if _computes_small(kind, state) else Spread
    layer = _class(mixin, kind).__new__(_class(mixin, kind))
    vars(layer).update(state)
    return layer
