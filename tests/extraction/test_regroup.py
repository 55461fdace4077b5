"""psp.extract through reshapes of channels and through sums along other axes: split attention, selective kernels."""

import pytest
import torch
from networks import Call, difference, prune_channels
from timm.layers import SelectiveKernel
from timm.layers.split_attn import SplitAttn
from torch import nn

import psp


class Between(nn.Module):
    """A convolution, some `inner` code, a convolution."""

    def __init__(self, inner, channels=8):
        super().__init__()
        torch.manual_seed(0)
        self.inner = inner
        self.first, self.last = nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(channels, 4, 1)

    def forward(self, x):
        return self.last(self.inner(self.first(x)))


def image(batch=2, height=7, width=6):
    return torch.randn(batch, 3, height, width, dtype=torch.float64)


def parts(x):
    return x.view(x.size(0), 2, x.shape[1] // 2, *x.shape[2:])


def by_tokens(x):
    """Tokens of an operation that is not followed, their number asked for and reshaped by."""
    tokens = torch.cumsum(x.flatten(2).transpose(1, 2), 1)
    batch, count, channels = tokens.shape
    tokens = tokens.reshape(batch, count, 2, channels // 2).transpose(2, 3).reshape(batch, count, channels)
    return tokens.transpose(1, 2).reshape(x.shape)


def shuffled(x):
    """The channels of two groups in turns."""
    batch, channels, height, width = x.size()
    return x.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous().view(batch, -1, height, width)


def rows(network, name):
    return network.get_submodule(name).weight.shape[0]


def test_split_attention_loses_channels_that_are_zero_in_all_of_its_parts():
    net = Between(SplitAttn(8, 8, radix=2, bias=False, norm_layer=None))
    net = prune_channels(net.double(), inner__conv=[0, 1, 3, 8, 9, 10])
    smaller = psp.extract(net, image())
    assert difference(net, smaller, image(3, 9, 8)) < 1e-12
    assert rows(smaller, "inner.conv") in (10, 12), "of each of two groups as many"
    assert rows(smaller, "inner.fc2") == 12
    assert smaller.get_submodule("last").weight.shape == (4, 6, 1, 1)
    assert smaller.get_submodule("inner.fc1").weight.shape[1] == 6


def test_selective_kernels_lose_channels_that_are_zero_on_both_paths():
    net = Between(SelectiveKernel(8, 8, split_input=False))
    pruned = {f"inner__paths__{path}__conv": [0, 4, 5] for path in (0, 1)}
    net = prune_channels(net.double(), **pruned)
    smaller = psp.extract(net, image())
    assert difference(net, smaller, image(3, 9, 8)) < 1e-12
    assert rows(smaller, "inner.paths.0.conv") == rows(smaller, "inner.paths.1.conv") == 5
    assert rows(smaller, "inner.attn.fc_select") == 10
    assert smaller.get_submodule("last").weight.shape == (4, 5, 1, 1)


@pytest.mark.parametrize(
    ("function", "channels", "left"),
    [
        (lambda x: parts(x).sum(1), 4, 6),
        (lambda x: parts(x).mean(1), 4, 6),
        (lambda x: parts(x).softmax(1)[:, 0], 4, None),  # no constant is known to stay one; indices are not followed
        (lambda x: parts(x).reshape(x.shape[0], -1, *x.shape[2:]), 8, 6),
        (lambda x: parts(x).transpose(1, 2).flatten(1, 2), 8, None),  # channels in turns: not followed
        (lambda x: x.flatten(2).mean(2)[:, :, None, None], 8, 5),
        (lambda x: x.flatten(2).reshape(*x.shape), 8, 6),
        (lambda x: x.reshape(x.shape) + x.shape[1], 8, None),
        (lambda x: torch.stack([x, 2 * x], 1).sum(dim=1), 8, 5),
        (lambda x: torch.stack([x, x.relu()], 2).sum(dim=2), 8, None),
        (lambda x: torch.stack([x, x], 1).softmax(1).sum(1), 8, None),
        (lambda x: x * x.shape[1] / x.size(0), 8, None),
        (lambda x: by_tokens(x), 8, None),
        (lambda x: shuffled(torch.cat([y.relu() for y in x.chunk(2, 1)], 1)), 8, None),
        (lambda x: shuffled(x.cumsum(1)), 8, None),
        (lambda x: x.sum((2, 3), keepdim=True), 8, 5),
        (lambda x: x * x.softmax(2), 8, 5),
        (lambda x: x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, x.shape[1]).transpose(1, 2)[..., None], 8, None),
    ],
)
def test_reshapes_and_reductions(function, channels, left):
    """Of 8 channels 0, 4 and 5 are zero, of two parts 0 is in both."""
    net = prune_channels(Between(Call(function), channels).double(), first=[0, 4, 5])
    smaller = psp.extract(net, image())
    for x in (image(), image(1, 9, 11)):
        assert difference(net, smaller, x) < 1e-12
    assert left is None or rows(smaller, "first") <= left


def test_parts_that_are_different_constants_are_no_constant():
    net = Between(Call(lambda x: parts(x).sum(1)), 4)
    net.first = nn.Conv2d(3, 8, 3)
    net = prune_channels(net.double(), first=[0, 4, 5, 2, 6])
    smaller = psp.extract(net, image())
    assert difference(net, smaller, image(1, 9, 11)) < 1e-12
