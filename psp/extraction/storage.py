"""The last resort: where more is left than the masks leave, zeros are not stored."""

from torch import nn

from psp.extraction.layers import has_columns, with_columns
from psp.kernels.spread import LAYERS, Spread, spread
