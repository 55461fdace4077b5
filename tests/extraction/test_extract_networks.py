"""psp.extract: networks that are more than layers in a row, examples that say too little, and what is refused."""

import copy
import inspect

import pytest
import torch
from networks import Call, difference, parameterized, prune, prune_channels, randomize
from torch import nn
from torch.nn import functional as F

import psp
from psp.errors import ExtractError


@pytest.mark.parametrize("combine", [lambda x, p: x + 2 * p, lambda x, p: x * p.sigmoid()])
def test_what_is_made_of_a_parameter_is_no_batch_either(combine):
    torch.manual_seed(0)
    net = Call(lambda self, x: self.o(combine(self.c(x), self.p)), c=nn.Conv2d(3, 4, 1), o=nn.Conv2d(4, 2, 1))
    net.p = nn.Parameter(torch.randn(1, 4, 8, 8))
    psp.parameterize(net.eval())
    psp.structure_parameters(net)["c"].data.zero_()
    smaller = psp.extract(net, torch.randn(1, 3, 8, 8))
    x = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(smaller(x), net(x))


@pytest.mark.parametrize("combine", [torch.add, torch.mul])
@pytest.mark.parametrize("side", [2, 16])
def test_maps_of_one_pixel_in_the_example_alone(combine, side):
    """A gate per channel, which for images of 2×2 has the shape of the maps."""
    torch.manual_seed(0)
    layers = {"a": nn.Conv2d(3, 4, 3, 2, 1), "b": nn.Conv2d(4, 4, 3, padding=1), "g": nn.Conv2d(4, 4, 1)}
    gated = Call(lambda self, h: combine(self.b(h), self.g(h.mean((2, 3), keepdim=True))), b=layers["b"], g=layers["g"])
    net = psp.parameterize(nn.Sequential(layers["a"], nn.ReLU(), gated, nn.Conv2d(4, 2, 3, padding=1))).double().eval()
    psp.structure_parameters(net)["2.b"].data.zero_()
    smaller = psp.extract(net, torch.randn(1, 3, side, side, dtype=torch.float64))
    assert difference(net, smaller, torch.randn(3, 3, 16, 16, dtype=torch.float64)) < 1e-13


def test_a_view_that_only_fits_the_example_is_no_flattening():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), Call(lambda x: x.view(-1, 64)), nn.Linear(64, 2))
    psp.parameterize(net.double().eval())
    psp.structure_parameters(net)["0"].data[0, 0] = 0.0
    smaller = psp.extract(net, torch.randn(1, 3, 4, 4, dtype=torch.float64))
    assert difference(net, smaller, torch.randn(2, 3, 12, 12, dtype=torch.float64)) < 1e-13


def test_arguments_that_are_not_given_keep_their_defaults():
    class Optional(nn.Module):
        def __init__(self):
            super().__init__()
            self.c, self.o = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)

        def forward(self, x, mask=None, features=False, scale=1.5, mode="plain"):
            h = self.c(x) if mask is None else self.c(x) * mask
            return h if features or mode != "plain" else self.o(h) * scale

    torch.manual_seed(0)
    net = prune_channels(Optional().double(), c=[0, 2])
    x, mask = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.rand(2, 4, 6, 6, dtype=torch.float64)
    assert difference(net, psp.extract(net, x), x) < 1e-13
    smaller = psp.extract(net, (x, mask))
    torch.testing.assert_close(smaller(x, mask), net(x, mask))
    assert smaller.c.out_channels == 2
    with pytest.raises(TypeError):
        smaller(x, mask, True)


def test_arguments_that_can_only_be_named_keep_their_defaults_too():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.c, self.o = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)

        def forward(self, x, *ignored, features=False):
            h = self.c(x)
            return h if features else self.o(h)

    torch.manual_seed(0)
    net = prune_channels(Named().double(), c=[0, 2])
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    smaller = psp.extract(net, x)
    assert difference(net, smaller, x) < 1e-13
    assert list(inspect.signature(smaller.forward).parameters) == ["x", "ignored"]


def test_a_weight_that_is_read_without_its_layer_stays_whole():
    torch.manual_seed(0)
    net = Call(lambda self, x: F.linear(self.norm(self.f(x)).relu(), self.f.weight.t()), f=nn.Linear(8, 6))
    net.norm = randomize(nn.BatchNorm1d(6))
    net.norm.running_mean.normal_()
    for structure in ("channel", "column"):
        pruned = prune(copy.deepcopy(net).double(), structure, lambda *_: 0.5)
        x = torch.randn(3, 8, dtype=torch.float64)
        assert difference(pruned, psp.extract(pruned, x), x) < 1e-13


def test_a_forward_hook_is_named():
    net = parameterized()
    handle = net[3].register_forward_hook(lambda module, inputs, output: 2 * output)
    with pytest.raises(ExtractError, match=r"module '3' of Sequential has a forward hook.*handle\.remove"):
        psp.extract(net, torch.randn(2, 3, 8, 8))
    handle.remove()
    psp.extract(net, torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize(
    ("wrap", "inner"),
    [(nn.DataParallel, "module"), (torch.optim.swa_utils.AveragedModel, "module"), (torch.compile, "_orig_mod")],
)
def test_a_wrapped_network_is_to_be_unwrapped(wrap, inner):
    with pytest.raises(ExtractError, match=f"wraps the network: give model.{inner} instead"):
        psp.extract(wrap(parameterized()).eval(), torch.randn(2, 3, 8, 8))


def test_layers_of_several_types_are_named():
    net = parameterized()
    net[5].bfloat16()
    with pytest.raises(ExtractError, match=r"several types: '0.bias' in float32, '5.bias' in bfloat16; bring them to"):
        psp.extract(net, torch.randn(2, 3, 8, 8))


def test_a_cast_in_forward_is_named():
    net = psp.parameterize(nn.Sequential(nn.Conv2d(3, 4, 3), Call(lambda x: x.float()), nn.Conv2d(4, 2, 3))).eval()
    with pytest.raises(ExtractError, match=r"layer '2' fails.*computes in float64: take casts") as raised:
        psp.extract(net, torch.randn(2, 3, 8, 8))
    assert "While executing" not in str(raised.value)
