"""What a frozen network is made of: operations, and the values between them as their readers see them."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch

# As in registers.h and activation.h.
CONV, COMBINE, POOL_MAX, POOL_MEAN, MULTIPLY, NORM, RESIZE, SHUFFLE = range(8)
NONE, RELU, RELU6, HARD_SIGMOID, HARD_SWISH, SIGMOID, SILU, GELU, GELU_TANH = range(9)
POINTWISE = (COMBINE, MULTIPLY)


@dataclass(eq=False)
class Operation:
    """Something to compute, as lanes.c describes it; its result is a map height×width×channels.

    The network's input is one too, with nothing to compute.
    """

    kind: int | None
    height: int
    width: int
    channels: int
    reads: "list[Value]" = field(default_factory=list)  # `in`, and then `other` if there is one
    activation: int = NONE
    bias: torch.Tensor | None = None
    kernel: tuple = (1, 1)
    stride: tuple = (1, 1)
    dilation: tuple = (1, 1)
    before: tuple = (0, 0)  # pixels of padding above and to the left
    count_padding: bool = False
    weight: torch.Tensor | None = None  # of a convolution, K×J: its columns, and of each
    columns: torch.Tensor | None = (
        None  # the channel in the source of what it reads, J, or for every output its own, K×J
    )
    taps: torch.Tensor | None = None  # and the kernel position, J
    # Of COMBINE; of NORM, with ε behind it; of RESIZE, the shares of the second rows and columns.
    scale: torch.Tensor | None = None
    table: torch.Tensor | None = None  # of RESIZE: two rows for each row, two columns for each column

    @property
    def size(self):
        """Vectors that the result takes."""
        return self.height * self.width * self.channels

    @property
    def own(self):
        """Whether every output of a convolution has columns of its own."""
        return self.columns is not None and self.columns.ndim == 2


class Value(NamedTuple):
    """A map of C channels: channel k is constant[k] + scale[k] · source[index[k]], or constant[k] where index[k] is −1.

    Every tensor has length C; `step` is how far a pixel steps in the source (0: all read one), `alone` that nobody else
    reads this, `flat` that its readers take it for N×(C·H·W), `last` that they take it for N×H×W×C.
    """

    source: Operation
    height: int
    width: int
    index: torch.Tensor
    scale: torch.Tensor
    constant: torch.Tensor
    step: tuple = (1, 1)
    alone: bool = True
    flat: bool = False
    last: bool = False

    @classmethod
    def of(cls, source):
        """What an operation puts out, as it is."""
        count = source.channels
        zeros = torch.zeros(count, dtype=torch.float64)
        return cls(source, source.height, source.width, torch.arange(count), zeros + 1, zeros)

    @property
    def size(self):
        return self.height, self.width

    @property
    def unscaled(self):
        """Whether channels of the source are taken as they are, but for a constant that is added."""
        return bool((self.scale[self.index >= 0] == 1).all())

    @property
    def unchanged(self):
        """Whether channels of the source are taken as they are."""
        return self.unscaled and not self.constant[self.index >= 0].any()

    @property
    def whole(self):
        """Whether each channel and pixel has its place in the source."""
        return self.step == (1, 1) and self.index.equal(torch.arange(self.source.channels))

    def extended(self, front, back):
        """The value with `front` zeros before its channels and the constants `back` behind them."""
        pad = torch.nn.functional.pad
        pads, constant = (front, len(back)), pad(self.constant, (front, 0))
        index, scale = pad(self.index, pads, value=-1), pad(self.scale, pads, value=1.0)
        return self._replace(index=index, scale=scale, constant=torch.cat([constant, back.to(constant.dtype)]))

    def selected(self, channels):
        """The value with these of its channels."""
        return self._replace(index=self.index[channels], scale=self.scale[channels], constant=self.constant[channels])


def require(condition):
    """Raise ValueError, which `Planner.run_node` turns into the error for users, unless the condition holds."""
    if not condition:
        raise ValueError


def pair(value):
    """A size of both axes, given as one number or two."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)
