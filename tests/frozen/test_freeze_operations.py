"""Operations beyond plain convolutions in frozen networks, by every way to run them, against the networks."""

import copy

import pytest
import torch
from cases import ACTIVATIONS, BATCHES, PADS, PAIRS, alone, bound, either_type, error, freeze, needs_bfloat16
from hypothesis import given, settings
from hypothesis import strategies as st
from machine import needs_c
from networks import MOBILE, Call, network, prune
from torch import fx, nn
from torch.nn import functional as F

import psp
from psp.errors import KernelError
from psp.kernels.spread import Spread, SpreadWeight, spread
from psp.kernels.transposed import ColumnSparseConvTranspose2d

pytestmark = needs_c


@settings(deadline=None, max_examples=40)
@given(
    n=st.sampled_from(BATCHES), groups=st.integers(2, 5), members=st.integers(1, 3), outputs=st.integers(1, 3),
    kernel=PAIRS, stride=PAIRS, dilation=PAIRS, padding=PADS, share=st.sampled_from([0.0, 0.3, 1.0]),
    half=st.booleans(), seed=st.integers(0, 2**20),
)  # fmt: skip
def test_convolutions_in_groups(n, groups, members, outputs, kernel, stride, dilation, padding, share, half, seed):
    torch.manual_seed(seed)
    conv = nn.Conv2d(groups * members, groups * outputs, kernel, stride, padding, dilation, groups)
    conv.weight.data *= torch.rand(1, members, *kernel) < share
    x = torch.randn(n, groups * members, 8, 9).to(dtype := either_type(seed))
    assert error(conv, freeze(alone(conv, *x.shape[1:]), x), x) < bound(dtype)


@settings(deadline=None, max_examples=40)
@given(
    n=st.sampled_from(BATCHES), c=st.integers(1, 5), k=st.integers(1, 5), stride=PAIRS, padding=PADS,
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)), more=st.booleans(), bias=st.booleans(),
    seed=st.integers(0, 2**20),
)  # fmt: skip
def test_transposed_convolutions(n, c, k, stride, padding, kernel, more, bias, seed):
    torch.manual_seed(seed)
    more = tuple(more * (s - 1) for s in stride)
    layer = nn.ConvTranspose2d(c, k, kernel, stride, padding, more, bias=bias)
    x = torch.randn(n, c, 9, 8).to(dtype := either_type(seed))
    assert error(layer, freeze(alone(layer, *x.shape[1:]), x), x) < bound(dtype)


@settings(deadline=None, max_examples=20)
@given(
    n=st.sampled_from(BATCHES), c=st.integers(1, 5), k=st.integers(1, 5), stride=PAIRS, padding=PADS,
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)), share=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 2**20),
)  # fmt: skip
def test_transposed_convolutions_of_kept_columns(n, c, k, stride, padding, kernel, share, seed):
    torch.manual_seed(seed)
    whole = nn.ConvTranspose2d(c, k, kernel, stride, padding)
    whole.weight.data *= torch.rand(c, 1, *kernel) < share
    settings = whole.stride, whole.padding, whole.output_padding, whole.dilation
    layer = ColumnSparseConvTranspose2d(whole.weight.detach().transpose(0, 1), whole.bias.detach(), *settings)
    assert torch.equal(layer.dense(), whole.weight)
    x = torch.randn(n, c, 9, 8).to(dtype := either_type(seed))
    assert error(whole, freeze(alone(layer, *x.shape[1:]), x), x) < bound(dtype)


@pytest.mark.parametrize("layer", [
    nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(4, 6, 3, 2, 1, groups=2), nn.ConvTranspose2d(4, 6, 3, 2), nn.Linear(4, 6),
])  # fmt: skip
def test_weights_that_are_stored_without_their_zeros(layer):
    torch.manual_seed(0)
    axes = torch.randn(layer.weight.shape[:2])
    layer.weight.data *= (axes > 0).view(*axes.shape, *[1] * (layer.weight.ndim - 2))
    x = torch.randn(3, 4, 1, 1) if isinstance(layer, nn.Linear) else torch.randn(3, 4, 7, 6)
    around = (nn.Flatten(1),) if isinstance(layer, nn.Linear) else ()
    assert error(nn.Sequential(*around, layer), freeze(nn.Sequential(*around, spread(layer)), x), x) < 1e-5


def test_a_weight_of_a_function_that_is_stored_without_its_zeros():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = SpreadWeight(torch.eye(5)[:3])

        def forward(self, x):
            return F.linear(x.mean((2, 3)), self.weight())

    x = torch.randn(3, 5, 4, 4)
    graph = fx.Graph()
    read, weight = graph.placeholder("x"), graph.call_module("weight")
    graph.output(graph.call_function(F.linear, (graph.call_method("mean", (read, (2, 3))), weight)))
    assert error(Net(), freeze(fx.GraphModule(Net(), graph), x), x) < 1e-5


RESIZED = [
    {"scale_factor": 2}, {"size": (7, 30)}, {"scale_factor": (1.5, 2)}, {"size": (3, 4), "mode": "nearest-exact"},
    {"scale_factor": 2, "mode": "bilinear"}, {"size": (4, 20), "mode": "bilinear"},
    {"size": (11, 5), "mode": "bilinear", "align_corners": True},
]  # fmt: skip


@pytest.mark.parametrize("options", RESIZED)
def test_interpolation(options):
    x = torch.randn(3, 5, 6, 9)
    net = nn.Sequential(nn.Upsample(**options), nn.Conv2d(5, 3, 3))
    assert error(net, freeze(net, x), x) < 1e-5


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_activations_far_from_zero_too(activation, scale):
    x = scale * torch.randn(18, 5, 6, 9)
    x[0, 0, 0, :4] = torch.tensor([0.0, 1e4, -1e4, 1e-20])
    for net in (nn.Sequential(activation), nn.Sequential(nn.Conv2d(5, 3, 3), nn.BatchNorm2d(3), activation)):
        assert error(net, freeze(net, x), x) < 1e-5


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_nan_stays_a_nan_in_every_activation(activation):
    x = torch.zeros(2, 1, 3, 3)
    x[1, 0, 2, 1] = torch.nan
    frozen = freeze(nn.Sequential(activation), x)
    for way in frozen.ways:
        assert frozen.run(way, x).isnan().nonzero().tolist() == [[1, 0, 2, 1]]


class Block(nn.Module):
    """What ConvNeXt and MobileNet are made of."""

    def __init__(self, c):
        super().__init__()
        self.depthwise = nn.Conv2d(c, c, 7, padding=3, groups=c)
        self.norm, self.wide, self.narrow = nn.LayerNorm(c), nn.Linear(c, 3 * c), nn.Linear(3 * c, c)
        self.scale = nn.Parameter(torch.rand(c, 1, 1))
        self.down, self.up = nn.Conv2d(c, 2, 1), nn.Conv2d(2, c, 1)

    def forward(self, x):
        y = self.depthwise(x).permute(0, 2, 3, 1)
        y = self.narrow(F.gelu(self.wide(self.norm(y)))).permute(0, 3, 1, 2)
        x = x + self.scale * y
        return x * self.up(F.silu(self.down(x.mean((2, 3), keepdim=True)))).sigmoid()


class UNet(nn.Module):
    """Down, a pixel shuffle and a transposed convolution up, beside what was there before; two halves of channels."""

    def __init__(self):
        super().__init__()
        self.enter, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, 2, 1)
        self.block = Block(16)
        self.up, self.shuffle = nn.ConvTranspose2d(16, 6, 3, 2, 1, 1), nn.PixelShuffle(2)
        self.leave = nn.Conv2d(18, 5, 3, padding=1)

    def forward(self, x):
        x = F.relu6(self.enter(x))
        y = self.block(F.hardswish(self.down(x)))
        first, second = torch.cat((x, self.up(y), self.shuffle(y)), 1).chunk(2, dim=1)
        return self.leave(torch.cat((2 * second, first + 1), 1))


def test_a_check_of_the_number_of_axes_is_no_operation():
    class Checked(nn.Module):
        def forward(self, x):
            torch._assert(x.ndim == 4, f"expected 4 axes, got {x.ndim}")
            return F.silu(x)

    x = torch.randn(3, 5, 6, 7)
    assert error(Checked(), freeze(Checked(), x), x) < 1e-5


@pytest.mark.parametrize("n", [1, 3, 35])
def test_a_u_net(n):
    torch.manual_seed(0)
    net, x = UNet().eval(), torch.randn(n, 3, 10, 14)
    assert error(net, freeze(net, x), x) < 1e-5


@needs_bfloat16
def test_a_u_net_in_bfloat16_is_as_exact_as_pytorch():
    torch.manual_seed(0)
    net, x = UNet().eval(), torch.randn(35, 3, 10, 14).bfloat16()
    with torch.no_grad():
        expected, theirs = copy.deepcopy(net).double()(x.double()), copy.deepcopy(net).bfloat16()(x)
    reference = float((theirs - expected).abs().max() / expected.abs().max())
    assert 0 < error(net, freeze(net, x), x) < 1.5 * reference


@pytest.mark.parametrize("share", [0.6, 0.9])
def test_a_u_net_whose_columns_were_pruned(share):
    torch.manual_seed(0)
    net, x = prune(UNet(), "column", lambda layer, alpha: share), torch.randn(3, 3, 10, 14)
    smaller = psp.extract(net, x)
    assert isinstance(smaller.up, Spread)
    assert error(smaller, freeze(smaller, x), x) < 1e-5


@pytest.mark.parametrize("name", MOBILE)
def test_networks_whose_channels_were_pruned(name):
    net, x = network(name)
    smaller = psp.extract(prune(net, "channel", lambda layer, alpha: 0.3 if alpha.numel() > 1 else 0.0), x)
    assert error(smaller, freeze(smaller, x), x) < 1e-5


def test_zeros_in_place_of_channels_that_are_the_last_axis():
    torch.manual_seed(0)
    net, x = network("convnext_tiny")
    smaller = psp.extract(prune(net, "layer", lambda layer, alpha: 0.5), x)
    assert any(node.target is F.pad and len(node.args[1]) == 2 for node in smaller.graph.nodes)
    assert error(smaller, freeze(smaller, x), x) < 1e-5


class Decoder(nn.Module):
    """As U-Nets are written: maps are brought to the size of others, whatever it is, and flattened by their lengths."""

    def __init__(self):
        super().__init__()
        self.enter, self.down, self.leave = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 2), nn.Conv2d(16, 2, 1)
        self.register_buffer("mean", torch.rand(3, 1, 1))
        self.register_buffer("std", 1 + torch.rand(3, 1, 1))
        self.fc = nn.Linear(2 * 9 * 12, 5)

    def forward(self, x):
        x = self.enter((x - self.mean) / self.std).relu()
        y = self.down(x).relu()
        larger = F.interpolate(y, size=x.shape[2:])
        missing = x.size(2) - 2 * y.size(2)
        assert missing > 0
        x = self.leave(torch.cat([larger, 1 - x], 1)) / missing - 0.5
        return self.fc(x.view(x.size(0), -1)) - 1.0


@pytest.mark.parametrize("n", [1, 3])
def test_questions_about_sizes_are_answered(n):
    torch.manual_seed(0)
    net, x = Decoder().eval(), torch.randn(n, 3, 9, 12)
    assert error(net, freeze(net, x), x) < 1e-5
    psp.parameterize(net, "column", skip="fc")
    for alpha in psp.structure_parameters(net).values():
        alpha.data[torch.rand(alpha.shape) < 0.5] = 0.0
    smaller = psp.extract(net, x)
    assert error(smaller, freeze(smaller, x), x) < 1e-5


@pytest.mark.parametrize(
    "flattened", [lambda x: x.reshape(-1, 4 * 6 * 6), lambda x: torch.reshape(x, (x.size(0), 144))]
)
def test_flattening_by_a_number(flattened):
    net = Call(lambda self, x: self.fc(flattened(x)), fc=nn.Linear(144, 5)).eval()
    x = torch.randn(3, 4, 6, 6)
    assert error(net, freeze(net, x), x) < 1e-5


IN_PLACE = {
    "a module": lambda self, y: self.relu(y),
    "a method": lambda self, y: y.add_(1.0),
    "a function": lambda self, y: F.relu(y, inplace=True),
    "a function of torch's": lambda self, y: torch.relu_(y),
}


@pytest.mark.parametrize("statement", IN_PLACE)
def test_a_statement_that_writes_into_a_map_counts(statement):
    def forward(self, x):
        y = self.a(x)
        IN_PLACE[statement](self, y)
        return self.b(y)

    torch.manual_seed(0)
    net = Call(forward, a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 4, 3), relu=nn.ReLU(inplace=True)).eval()
    x = torch.randn(3, 3, 9, 7)
    assert error(net, freeze(net, x), x) < 1e-5


@pytest.mark.parametrize("factor", [lambda x: 1 + x.abs().max().item(), lambda x: 1 + x.size(0) // 3])
def test_what_is_computed_of_pixels_or_of_the_batch_is_no_number(factor):
    net = Call(lambda self, x: self.a(x) * factor(x), a=nn.Conv2d(3, 4, 3)).eval()
    with pytest.raises(KernelError):
        freeze(net, torch.randn(3, 3, 9, 7))


def test_differences_of_maps():
    def forward(self, x):
        first, second = self.a(x), self.b(x).relu()
        return (first - second) - (first.relu() - 0.5 * second) / 2

    torch.manual_seed(0)
    net, x = Call(forward, a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(3, 4, 3)).eval(), torch.randn(3, 3, 9, 7)
    assert error(net, freeze(net, x), x) < 1e-5
