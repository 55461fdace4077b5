"""The column-sparse convolution against torch's own with the other columns zero."""

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch.nn import functional as F

from psp.kernels.columns import ColumnSparseConv2d

pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(
    n=st.integers(1, 3),
    c=st.integers(1, 5),
    k=st.integers(1, 6),
    kernel=pairs,
    stride=pairs,
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=pairs,
    size=st.tuples(st.integers(7, 11), st.integers(7, 11)),
    share=st.sampled_from([0.0, 0.3, 0.8, 1.0]),
    bias=st.booleans(),
    relu=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_random_convolutions(n, c, k, kernel, stride, padding, dilation, size, share, bias, relu, seed):
    torch.manual_seed(seed)
    x = torch.randn(n, c, *size, dtype=torch.float64)
    weight = torch.randn(k, c, *kernel, dtype=torch.float64) * (torch.rand(c, *kernel) >= share)
    b = torch.randn(k, dtype=torch.float64) if bias else None
    layer = ColumnSparseConv2d(weight, b, stride, padding, dilation)
    layer.relu = relu
    expected = F.conv2d(x, weight, b, stride, padding, dilation)
    torch.testing.assert_close(layer(x), F.relu(expected) if relu else expected)
    assert layer.weight.shape[1] == int(weight.any(0).sum())
    torch.testing.assert_close(layer(x.contiguous(memory_format=torch.channels_last)), layer(x))


def test_a_column_is_kept_if_any_output_reads_it():
    weight = torch.zeros(2, 2, 1, 3)
    weight[1, 0, 0, 2] = 5.0
    weight[0, 1, 0, 0] = 7.0
    layer = ColumnSparseConv2d(weight, None, (1, 1), (0, 0), (1, 1))
    assert layer.weight.tolist() == [[0.0, 7.0], [5.0, 0.0]]
    assert (layer.channels.tolist(), layer.taps.tolist()) == ([0, 1], [2, 0])
    x = torch.arange(6.0).view(1, 2, 1, 3)
    assert layer(x).flatten().tolist() == [7 * 3.0, 5 * 2.0]
    assert "columns=2 of 6" in repr(layer)


@pytest.mark.parametrize("name", ["channels", "taps", "weight"])
def test_its_state_says_which_columns_it_has(name):
    layer = ColumnSparseConv2d(torch.randn(3, 2, 3, 3), None, (1, 1), (1, 1), (1, 1))
    assert name in layer.state_dict()
