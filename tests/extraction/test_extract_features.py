"""psp.extract where channels lie along the last axis: linear layers on tokens, as in transformers and ConvNeXt."""

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from networks import Call, difference, prune, prune_channels, size
from torch import nn
from torchvision.models import VisionTransformer
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

import psp
from psp.errors import KernelError


class Mlp(nn.Module):
    """8 features to 6, `between`, 6 (or `width`) to 4; features 0, 2 and 3 of `fc1` are pruned to constants."""

    def __init__(self, between, width=6):
        super().__init__()
        torch.manual_seed(2)
        self.fc1, self.between, self.fc2 = nn.Linear(8, 6), between, nn.Linear(width, 4)

    def forward(self, x):
        return self.fc2(self.between(self.fc1(x)))


def pruned(net):
    return prune_channels(net.double(), fc1=[0, 2, 3])


def tokens(*shape):
    return torch.randn(*(shape or (2, 5)), 8, dtype=torch.float64)


def twice(x):
    return x.transpose(1, 2).contiguous().relu().movedim(1, -1)


def gated(self, x):
    return x * self.gate(x.mean(1, keepdim=True))


SHRINK = {
    "relu": nn.ReLU(),
    "sigmoid": nn.Sigmoid(),
    "dropout": nn.Sequential(nn.GELU(), nn.Dropout()),
    "scaled": Call(lambda x: torch.nn.functional.gelu(x) * 3.0),
    "sum": Call(lambda x: x.relu() + x.sigmoid()),
    "product": Call(lambda x: x.relu() * x),
    "transposed": Call(twice),
    "joined features": Call(lambda x: torch.cat([x[..., 1:].relu(), x[..., :1]], -1)),
}
STAY = {
    "normalization": nn.LayerNorm(6),
    "of tokens": nn.BatchNorm1d(5),
    "softmax": nn.Softmax(-1),
    "unknown sum": Call(lambda x: x + x.softmax(1)),
    "gate": Call(gated, gate=nn.Linear(6, 6)),
    "without a class token": Call(lambda x: torch.cat([x[:, :1], x[:, 1:].relu()], 1)),
    "joined tokens": Call(lambda x: torch.cat([x, x.relu()], 1)),
    "pooled": nn.AvgPool1d(3, 1, 1),
    "moved batch": Call(lambda x: x.transpose(0, 1).relu().transpose(0, 1)),
}


@pytest.mark.parametrize("name", [*SHRINK, *STAY])
def test_operations_on_tokens(name):
    """Where an operation is known, the second layer does not read the constant features."""
    net = pruned(Mlp({**SHRINK, **STAY}[name]))
    smaller = psp.extract(net, tokens())
    for x in (tokens(), tokens(3, 5)):
        assert difference(net, smaller, x) < 1e-13
    assert (smaller.fc2.in_features == 3) == (name in SHRINK)


@pytest.mark.parametrize(
    ("name", "between", "width"),
    [
        ("gated", Call(lambda x: torch.nn.functional.glu(x)), 3),
        ("gated, along tokens", Call(lambda x: torch.nn.functional.glu(x[:, :4], 1)), 6),
        ("mean", Call(lambda x: x.relu().mean(1)), 6),
        ("flatten", nn.Sequential(nn.ReLU(), nn.Flatten()), 30),
        ("convolution along tokens", nn.Conv1d(5, 5, 3, padding=1), 6),
        ("convolution along features", Call(lambda self, x: self.conv(x.mT).mT, conv=nn.Conv1d(6, 6, 3)), 6),
    ],
)
def test_other_axes_than_the_last(name, between, width):
    net = pruned(Mlp(between, width))
    assert difference(net, psp.extract(net, tokens()), tokens(3, 5)) < 1e-13


def test_columns_of_the_second_layer_free_the_first():
    net = Mlp(nn.ReLU()).double().eval()
    psp.parameterize(net, "column")
    first, second = psp.structure_parameters(net).values()
    first.data.view(-1)[:6] = 0.0
    second.data.view(-1)[[1, 4]] = 0.0
    smaller = psp.extract(net, tokens(2, 3, 4))
    assert difference(net, smaller, tokens(3, 2, 7)) < 1e-13
    assert (smaller.fc1.in_features, smaller.fc1.out_features, smaller.fc2.in_features) == (2, 4, 4)


def test_channels_go_from_a_convolution_through_a_permutation_into_linear_layers():
    """A block like ConvNeXt's: constants of the convolution end in the bias of the linear layer, and so back."""
    net = nn.Sequential()
    net.conv, net.first = nn.Conv2d(3, 8, 3), Call(lambda x: x.relu().permute(0, 2, 3, 1))
    net.fc, net.last, net.out = nn.Linear(8, 6), Call(lambda x: x.relu().permute(0, -1, 1, 2)), nn.Conv2d(6, 2, 1)
    torch.manual_seed(0)
    net = prune_channels(net.double(), conv=[1, 2, 5], fc=[0, 4])
    smaller = psp.extract(net, torch.randn(1, 3, 6, 6, dtype=torch.float64))
    assert difference(net, smaller, torch.randn(2, 3, 7, 5, dtype=torch.float64)) < 1e-13
    assert smaller.fc.weight.shape == (4, 5)
    assert (smaller.conv.out_channels, smaller.out.in_channels) == (5, 4)


@hypothesis.given(
    structure=st.sampled_from(("weight", "column", "channel")),
    spatial=st.lists(st.integers(1, 3), max_size=3),
    activation=st.sampled_from((nn.ReLU, nn.Sigmoid, nn.GELU)),
    share=st.sampled_from((0.3, 0.7, 1.0)),
    shortcut=st.booleans(),
    seed=st.integers(0, 2**16),
)
@hypothesis.settings(max_examples=60, deadline=None)
def test_random_linear_networks(structure, spatial, activation, share, shortcut, seed):
    torch.manual_seed(seed)
    inner = nn.Sequential(nn.Linear(8, 5), activation(), nn.Linear(5, 8), activation())
    body = Call(lambda self, x: self.inner(x) + x, inner=inner) if shortcut else inner
    net = nn.Sequential(nn.Linear(8, 8), activation(), body, nn.Linear(8, 3)).double()
    prune(net, structure, lambda *_: share)
    smaller = psp.extract(net, tokens(2, *spatial))
    assert difference(net, smaller, tokens(3, *spatial)) < 1e-12
    assert size(smaller) <= size(psp.fold(net))


def vision_transformer():
    return VisionTransformer(16, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=64, num_classes=10)


def convnext():
    return ConvNeXt([CNBlockConfig(8, 16, 2), CNBlockConfig(16, None, 2)], num_classes=10, layer_scale=0.5)


@pytest.mark.parametrize("build", [vision_transformer, convnext])
@pytest.mark.parametrize("structure", ["column", "channel"])
def test_networks_of_torchvision(build, structure):
    """The wide inner layers, which hold most of the weights, shrink with what is pruned of them."""
    torch.manual_seed(0)
    net = build().double()
    for p in net.parameters():
        p.data += 0.02 * torch.randn_like(p)
    inner = [m for m in net.modules() if isinstance(m, nn.Linear) and 4 * m.in_features == m.out_features]
    before = [m.out_features for m in inner]
    prune(net, structure, lambda *_: 0.6)
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    smaller = psp.extract(net, x)
    assert difference(net, smaller, torch.randn(3, 3, 16, 16, dtype=torch.float64)) < 1e-12
    after = [m.out_features for m in smaller.modules() if isinstance(m, nn.Linear)]
    assert len(before) == 2 if build is vision_transformer else len(before) == 4
    assert sum(w < 0.6 * before[0] or w < 0.6 * before[-1] for w in after) >= len(before)


def test_a_layer_called_by_keyword():
    net = Mlp(nn.ReLU())
    net.forward = lambda x: net.fc2(input=net.between(net.fc1(input=x)))
    assert psp.extract(pruned(net), tokens()).fc1.out_features == 3


def test_frozen_networks_have_no_place_for_tokens():
    net = Mlp(nn.ReLU()).eval()
    psp.parameterize(net, "column")
    psp.structure_parameters(net)["fc1"].data.view(-1)[:6] = 0.0
    images = torch.randn(4, 3, 5, 8)
    with pytest.raises(KernelError, match=r"cannot be run by psp\.freeze"):
        psp.freeze(psp.extract(net, images), images)
