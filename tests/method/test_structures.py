"""Shapes of α, by hand, and what a column is."""

import pytest
import torch
from torch.nn import functional as F

from psp.errors import ConfigError
from psp.method.structures import ALPHA_SHAPE, alpha_shape


@pytest.mark.parametrize(
    ("structure", "conv2d", "linear"),
    [
        ("weight", (8, 3, 5, 7), (8, 3)),
        ("column", (1, 3, 5, 7), (1, 3)),
        ("channel", (8, 1, 1, 1), (8, 1)),
        ("shape", (1, 1, 5, 7), (1, 1)),
        ("layer", (1, 1, 1, 1), (1, 1)),
    ],
)
def test_alpha_shape(structure, conv2d, linear):
    assert alpha_shape((8, 3, 5, 7), structure) == conv2d
    assert alpha_shape((8, 3), structure) == linear


def test_every_structure_broadcasts_against_every_kind_of_weight():
    for structure in ALPHA_SHAPE:
        for weight in ((4, 3), (4, 3, 5), (4, 3, 5, 2), (4, 3, 5, 2, 2)):
            assert torch.broadcast_shapes(weight, alpha_shape(weight, structure)) == weight


def test_a_column_is_a_row_of_the_im2col_matrix():
    """Zeroing column j of the flattened weight equals leaving row j of im2col out of the matrix product."""
    torch.manual_seed(0)
    x, weight = torch.randn(2, 3, 6, 5, dtype=torch.float64), torch.randn(4, 3, 3, 3, dtype=torch.float64)
    kept = torch.rand(alpha_shape(weight.shape, "column")) < 0.5
    rows = kept.flatten()
    lowered = F.unfold(x, 3, padding=1)
    smaller = weight.flatten(1)[:, rows] @ lowered[:, rows]
    torch.testing.assert_close(F.conv2d(x, weight * kept, padding=1).flatten(2), smaller)


def test_an_unknown_structure_is_named():
    with pytest.raises(ConfigError, match="unknown structure 'collumn'; choose one of weight, column"):
        alpha_shape((4, 3), "collumn")


def test_a_column_of_a_grouped_convolution_is_the_same_position_in_every_group():
    x = torch.randn(1, 6, 5, 5, dtype=torch.float64)
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64)  # two groups of two filters on three channels each
    kept = torch.rand(alpha_shape(weight.shape, "column")) < 0.5
    rows = kept.flatten()
    groups = [F.unfold(half, 3)[:, rows] for half in x.chunk(2, 1)]
    smaller = [w.flatten(1)[:, rows] @ lowered for w, lowered in zip(weight.chunk(2), groups, strict=True)]
    torch.testing.assert_close(F.conv2d(x, weight * kept, groups=2).flatten(2), torch.cat(smaller, 1))
