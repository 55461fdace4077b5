"""psp.extract on one operation at a time: constants by hand, random convolutions, all that a network may hold."""

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from networks import Call, difference, prune_channels, randomize, size
from torch import nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

import psp
from psp.errors import ExtractError


class Net(nn.Module):
    """conv1, normalization, `between`, conv2 or `after`; channels 1, 2 and 5 of 8 of conv1 are pruned to constants."""

    def __init__(self, between, channels=8, last=None):
        super().__init__()
        torch.manual_seed(1)
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.between = between
        self.last = last if last is not None else nn.Conv2d(channels, 4, 3, padding=1)
        randomize(self)

    def forward(self, x):
        return self.last(self.between(self.bn1(self.conv1(x))))


def pruned(net, layer="conv1", channels=(1, 2, 5)):
    return prune_channels(net.double(), **{layer: list(channels)})


def example(size=(7, 6)):
    return torch.randn(2, 3, *size, dtype=torch.float64)


def unused_statistics():
    norm = nn.InstanceNorm2d(8, affine=True, track_running_stats=True)
    norm.track_running_stats = False
    return norm


def written(x):
    y = x * 1.0
    y += x
    return y


def assigned(x):
    x = x * 1.0
    x[:, 0] = 1.0
    return x


def viewed(x):
    return x.view(x.size(0), -1)


def cut(x):
    return F.pad(x, (0, 0, 0, 0, -1, 2))


def gated(x):
    return x * torch.sigmoid(F.adaptive_avg_pool2d(x, 1))


def slopes(count):
    prelu = nn.PReLU(count)
    nn.init.uniform_(prelu.weight)
    return prelu


# Operations that carry constants on, so that conv1 loses its three pruned channels.
KNOWN = {
    "relu": nn.ReLU(inplace=True),
    "activations": nn.Sequential(nn.Hardswish(), nn.Hardsigmoid(), nn.Sigmoid(), nn.GELU(), nn.LeakyReLU(), nn.SiLU()),
    "functions": Call(lambda x: F.gelu(F.relu6(x)).sigmoid().clamp(min=0.2) * 2 + 1),
    "scalar first": Call(lambda x: 1 - 2 * x),
    "dropout": nn.Sequential(nn.Dropout(), nn.Identity(), nn.Dropout2d(0.2)),
    "max pool": nn.MaxPool2d(3, 2, padding=1),
    "average pool": nn.AvgPool2d(2),
    "average pool, padding not counted": nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),
    "pool functions": Call(lambda x: F.avg_pool2d(F.max_pool2d(x, 2, stride=1), kernel_size=2)),
    "adaptive pools": nn.Sequential(nn.AdaptiveMaxPool2d(5), nn.AdaptiveAvgPool2d((3, 4))),
    "pool that keeps its axes": Call(lambda x: x.mean((-2, -1), keepdim=True)),
    "slice": Call(lambda x: x[:, :, ::2, 1:]),
    "slices of channels": Call(lambda x: torch.cat([x[:, :3].relu(), x[:, 3:]], 1)),
    "slices of channels from the end": Call(lambda x: torch.cat([x[:, -6:, ..., :].relu(), x[:, :-6]], 1)),
    "residual": Call(lambda x: x + F.relu(x) - x),
    "in place": Call(written),
    "in place methods": Call(lambda x: (x * 1.0).relu_().add_(1.0)),
    "in place, read again": Call(lambda self, x: self.relu(x) - 2 * x, relu=nn.ReLU(inplace=True)),
    "dropout by functions": Call(lambda x: F.dropout(F.dropout2d(x, training=False), 0.0)),
    "stochastic depth": Call(lambda self, x: x + self.drop(x.relu()), drop=StochasticDepth(0.3, "row")),
    "gate": Call(gated),
    "normalization": nn.Sequential(nn.ReLU(), nn.BatchNorm2d(8)),
    "normalization of each image": nn.InstanceNorm2d(8),
    "normalization of each image, and γ": nn.InstanceNorm2d(8, affine=True),
    "normalization of each image, by running statistics": nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
    "normalization of each image, whose running statistics are not used": unused_statistics(),
    "a group for each channel": nn.GroupNorm(8, 8),
    "reflecting padding": Call(lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect")),
    "convolution that reflects": nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
    "contiguous": Call(lambda x: x.contiguous()),
    "PReLU": nn.PReLU(),
    "PReLU, a slope each": Call(lambda self, x: self.prelu(x), prelu=slopes(8)),
    "upsampling": nn.Upsample(scale_factor=2),
    "bilinear upsampling": nn.UpsamplingBilinear2d(scale_factor=2),
    "interpolation": Call(lambda x: F.interpolate(x, scale_factor=1.5, mode="bicubic", align_corners=True)),
    "interpolation to the size of another": Call(
        lambda x: F.interpolate(F.max_pool2d(x, 2), size=x.shape[-2:], mode="bilinear")
    ),
    "interpolation to a length each": Call(lambda x: F.interpolate(x[:, :, ::2], size=(x.size(2), x.shape[3]))),
    "lengths of an answer": Call(lambda x: F.interpolate(F.max_pool2d(x, 2), size=x.size()[2:])),
}
# Operations about which less or nothing is assumed; the result is as exact.
UNKNOWN = {
    "average pool that counts padding": nn.AvgPool2d(3, 2, padding=1),
    "average pool with a divisor": nn.AvgPool2d(2, divisor_override=3),
    "zero padding": nn.ZeroPad2d((1, 0, 2, 1)),
    "padding by 0.5": Call(lambda x: F.pad(x, (1, 1), value=0.5)),
    "softmax": nn.Softmax(1),
    "every other channel": Call(lambda x: torch.cat([x[:, ::2], x[:, 1::2].relu()], 1)),
    "channels and pixels": Call(lambda x: torch.cat([x[:, :4, :3], x[:, 4:, :3]], 1)),
    "group norm": nn.GroupNorm(2, 8),
    "asked for the channels, too": Call(lambda x: x.reshape(*x.shape[:2], -1).view(*x.shape)),
    "shuffle": Call(lambda x: x.view(x.shape[0], 2, 4, *x.shape[2:]).transpose(1, 2).flatten(1, 2)),
    "broadcast": Call(lambda x: x + x.mean((2, 3), keepdim=True)),
    "a parameter": Call(lambda self, x: x * self.scale, scale=nn.Parameter(torch.rand(8, 1, 1))),
    "scaled sum": Call(lambda x: torch.add(x, x, alpha=2)),
    "transposed convolution": nn.ConvTranspose2d(8, 8, 2),
    "depthwise convolution": nn.Conv2d(8, 8, 3, padding=1, groups=8),
    "grouped convolution": nn.Conv2d(8, 8, 3, padding=1, groups=4),
    "chunks": Call(lambda x: torch.cat([c.relu() for c in x.chunk(2, 1)], 1)),
    "assignment": Call(assigned),
    "division": Call(lambda x: x / (1 + x.abs())),
}


@pytest.mark.parametrize("name", [*KNOWN, *UNKNOWN])
def test_operations_between_two_convolutions(name):
    net = pruned(Net({**KNOWN, **UNKNOWN}[name]))
    smaller = psp.extract(net, example())
    assert difference(net, smaller, example()) < 1e-13
    if name in KNOWN:
        # One of the three may stay for the border.
        assert smaller.conv1.out_channels in (5, 6)


@pytest.mark.parametrize(
    ("name", "between", "last"),
    [
        ("flatten", nn.ReLU(), nn.Sequential(nn.Flatten(), nn.Linear(8 * 42, 5))),
        ("view", nn.ReLU(), nn.Sequential(Call(viewed), nn.Linear(8 * 42, 5))),
        ("reshape", nn.ReLU(), nn.Sequential(Call(lambda x: x.reshape(-1, 8 * 42)), nn.Linear(8 * 42, 5))),
        ("mean", nn.ReLU(), nn.Sequential(Call(lambda x: torch.mean(x, dim=[2, 3])), nn.Linear(8, 5))),
        ("output", nn.ReLU(), nn.Identity()),
        ("linear per position", Call(lambda x: x.movedim(1, -1)), nn.Linear(8, 5)),
        ("cat", Call(lambda x: torch.cat([x, x.relu(), x], dim=-3)), nn.Conv2d(24, 4, 3, padding=1)),
        ("channel padding", Call(cut), nn.Conv2d(9, 4, 3, padding=1)),
        ("no padding", nn.ReLU(), nn.Conv2d(8, 4, 3)),
        ("same padding", nn.ReLU(), nn.Conv2d(8, 4, (2, 4), padding="same", dilation=2)),
        ("strided", nn.ReLU(), nn.Conv2d(8, 4, 3, stride=(2, 3), padding=(0, 2))),
        ("several outputs", nn.ReLU(), Call(lambda x: torch.stack(x.unbind(1)[:3]))),
    ],
)
def test_ends_of_a_network(name, between, last):
    net = pruned(Net(between, last=last))
    smaller = psp.extract(net, example())
    assert difference(net, smaller, example()) < 1e-13
    if name not in ("linear per position", "several outputs"):
        assert smaller.conv1.out_channels in (5, 6)


@pytest.mark.parametrize("unit", [nn.GLU(1), Call(lambda x: F.glu(x, dim=-3)), Call(lambda x: F.glu(x, 1))])
def test_gated_linear_units_by_hand(unit):
    """Channel k times the sigmoid of k + 4: 1 and 5, both constant, make one; 2 is constant, its gate is not."""
    net = pruned(Net(unit, channels=4, last=nn.Conv2d(4, 4, 3)))
    smaller = psp.extract(net, example())
    assert difference(net, smaller, example()) < 1e-13
    assert (smaller.conv1.out_channels, smaller.last.in_channels) == (5, 3)


def test_what_a_gate_lets_through_of_zeros_is_nothing():
    net = pruned(Net(Call(lambda x: F.glu(x.relu(), 1)), channels=4, last=nn.Conv2d(4, 4, 3)), channels=(1, 2))
    net.bn1.bias.data[:], net.bn1.running_mean[:] = -1.0, 0.0
    smaller = psp.extract(net, example())
    assert difference(net, smaller, example()) < 1e-13
    assert (smaller.conv1.out_channels, smaller.last.in_channels) == (4, 2)


STATISTICS = [nn.InstanceNorm2d(8, affine=True), nn.GroupNorm(8, 8), nn.BatchNorm2d(8, track_running_stats=False)]


@pytest.mark.parametrize("norm", STATISTICS)
def test_channels_with_their_alpha_behind_statistics_of_the_input_go(norm):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.Conv2d(8, 4, 3)).double()
    psp.parameterize(net, "channel", skip="3").eval()
    psp.structure_parameters(net)["0"].data[:5] = 0.0
    smaller = psp.extract(net, example())
    assert difference(net, smaller, example()) < 1e-13
    assert smaller.get_submodule("0").out_channels == len(smaller.get_submodule("1").weight) == 3


def test_the_effect_of_a_constant_at_the_border_by_hand():
    """A map of ones under a 3×3 kernel of ones: 9 in the middle, 6 at an edge, 4 in a corner, for the padding is 0."""
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, 3, padding=1, bias=False)).eval()
    nn.init.ones_(net[1].weight)
    net[0].bias.data = torch.tensor([0.0, 1.0])
    psp.parameterize(net, "channel", skip=("1",))
    psp.structure_parameters(net)["0"].data[1] = 0.0
    smaller = psp.extract(net, torch.randn(1, 1, 4, 4))
    nn.init.zeros_(smaller.get_submodule("0").weight)
    nn.init.zeros_(smaller.get_submodule("0").bias[:1])
    middle = [[4, 6, 6, 4], [6, 9, 9, 6], [6, 9, 9, 6], [4, 6, 6, 4]]
    assert smaller(torch.randn(1, 1, 4, 4))[0, 0].tolist() == middle


def test_one_constant_channel_stands_for_all():
    """Six constants of eight channels: two live ones and one for the border are left, and w = Σ value_c·w_c / value."""
    net = pruned(Net(nn.Sigmoid()), channels=range(6))
    smaller = psp.extract(net, example())
    assert difference(net, smaller, example()) < 1e-13
    assert smaller.conv1.out_channels == 3
    assert smaller.last.weight.shape == (4, 3, 3, 3)


def test_without_padding_no_constant_stays():
    smaller = psp.extract(pruned(Net(nn.Sigmoid(), last=nn.Conv2d(8, 4, 3)), channels=range(6)), example())
    assert smaller.conv1.out_channels == 2


def test_constants_of_zero_need_nothing():
    net = Net(nn.ReLU())
    net.bn1.bias.data[:6] = -9.0
    smaller = psp.extract(pruned(net, channels=range(6)), example())
    assert smaller.conv1.out_channels == 2


def test_a_depthwise_convolution_loses_the_channels_that_its_input_lost():
    depthwise = nn.Sequential(nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Sigmoid())
    net = Net(depthwise)
    net.bn1.bias.data[[1, 2, 5]] = -9.0
    smaller = psp.extract(pruned(net), example())
    assert difference(net, smaller, example()) < 1e-13
    inner = smaller.get_submodule("between.1")
    assert (inner.groups, tuple(inner.weight.shape)) == (6, (6, 1, 3, 3)), "five live ones, one for the border"


def test_whole_groups_of_a_convolution_go():
    net = Net(nn.Sequential(nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=2)), last=nn.Conv2d(8, 4, 1))
    smaller = psp.extract(pruned(net, "between__1", range(4)), example())
    assert difference(net, smaller, example()) < 1e-13
    assert tuple(smaller.get_submodule("between.1").weight.shape) == (4, 4, 3, 3)
    assert smaller.conv1.out_channels == 4


@pytest.mark.parametrize("padding", [0, 1])
def test_groups_of_a_convolution_shrink_to_the_largest_that_is_left(padding):
    def net():
        grouped = nn.Conv2d(8, 8, 3, padding=padding, groups=2)
        return Net(nn.Sequential(nn.Sigmoid(), grouped), last=nn.Conv2d(8, 4, 1))

    outputs, inputs = pruned(net(), "between__1", [0, 1, 2, 6]), pruned(net(), channels=[0, 1, 5, 6, 7])
    smaller = psp.extract(outputs, example())
    assert difference(outputs, smaller, example()) < 1e-13
    assert tuple(smaller.get_submodule("between.1").weight.shape) == (6, 4, 3, 3), "three are left of the second group"
    smaller = psp.extract(inputs, example())
    assert difference(inputs, smaller, example()) < 1e-13
    left = smaller.get_submodule("between.1").weight.shape[1]
    assert left == (4 if padding else 2), "where padding is read beside a constant, it has to be there"


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(
    groups=st.sampled_from([1, 1, 2, 4]),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    mode=st.sampled_from(["zeros", "zeros", "circular"]),
    structures=st.tuples(*[st.sampled_from(["weight", "column", "channel", "shape"])] * 2),
    share=st.sampled_from([0.2, 0.5, 0.8, 1.0]),
    size=st.tuples(st.integers(7, 10), st.integers(7, 10)),
    activation=st.sampled_from([nn.Sigmoid(), nn.ReLU()]),
    seed=st.integers(0, 2**20),
)
def test_random_convolutions(
    groups, kernel, stride, padding, dilation, mode, structures, share, size, activation, seed
):
    """A pruned convolution of any shape behind one whose pruned channels are constants."""
    torch.manual_seed(seed)
    net = Net(activation, last=nn.Conv2d(8, 8, kernel, stride, padding, dilation, groups, padding_mode=mode)).double()
    psp.parameterize(net, structures[0], skip=("last",))
    psp.parameterize(net, structures[1], skip=("conv1",))
    for alpha in psp.structure_parameters(net).values():
        alpha.data[torch.rand(alpha.shape) < share] = 0.0
    x = example(size)
    smaller = psp.extract(net.eval(), x)
    torch.testing.assert_close(smaller(x), net(x), rtol=1e-11, atol=1e-11)
    assert size_of_convolutions(smaller) <= size_of_convolutions(net)


def size_of_convolutions(net):
    return sum(m.weight.numel() for m in net.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize("axes", [1, 3])
def test_convolutions_of_one_and_three_axes(axes):
    torch.manual_seed(0)
    conv, norm = (nn.Conv1d, nn.BatchNorm1d) if axes == 1 else (nn.Conv3d, nn.BatchNorm3d)
    net = nn.Sequential(conv(3, 8, 3, padding=1), norm(8), nn.Sigmoid(), conv(8, 4, 3, padding=1)).double().eval()
    net[1].bias.data.normal_()
    psp.parameterize(net, "channel")
    psp.structure_parameters(net)["0"].data[:4] = 0.0
    x = torch.randn(2, 3, *[6] * axes, dtype=torch.float64)
    smaller = psp.extract(net, x)
    assert difference(net, smaller, x) < 1e-13
    assert smaller.get_submodule("0").out_channels == 5
    shape = psp.parameterize(nn.Sequential(conv(3, 4, 3, padding=1)).double(), "shape").eval()
    psp.structure_parameters(shape)["0"].data[..., 0] = 0.0
    assert difference(shape, psp.extract(shape, x), x) < 1e-13


class Shared(nn.Module):
    """One convolution and one normalization called twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.bn(self.conv(F.relu(self.bn(self.conv(x)))))


def test_a_layer_that_is_called_twice_stays_whole():
    net = prune_channels(randomize(Shared()).double(), conv=[1])
    smaller = psp.extract(net, example())
    assert difference(net, smaller, example()) < 1e-13
    assert tuple(smaller.conv.weight.shape) == (3, 3, 3, 3)


class Branches(nn.Module):
    """Code that depends on the data, which torch.fx cannot follow."""

    def forward(self, x):
        return x * 2 if x.mean() > 0 else x


def test_code_that_cannot_be_traced_stays_as_it_is():
    net = pruned(Net(nn.Sequential(nn.ReLU(), Branches())))
    smaller = psp.extract(net, example())
    for x in (example(), -example().abs()):
        assert difference(net, smaller, x) < 1e-13
    assert isinstance(smaller.get_submodule("between.1"), Branches)


def test_a_network_whose_own_code_cannot_be_traced():
    class Root(Net):
        def forward(self, x):
            return super().forward(x if x.mean() > 0 else -x)

    with pytest.raises(ExtractError, match=r"cannot follow the forward of Root.*into a submodule of its own"):
        psp.extract(pruned(Root(nn.ReLU())), example())


def test_a_write_that_cannot_be_followed_is_refused():
    with pytest.raises(ExtractError, match="operation 'copy_' in 'between' writes into a tensor"):
        psp.extract(pruned(Net(Call(lambda x: (x * 1.0).copy_(x)))), example())


def test_random_numbers_are_refused():
    with pytest.raises(ExtractError, match=r"does not give the outputs of the masked one.*random numbers"):
        psp.extract(pruned(Net(Call(lambda x: F.dropout(x, 0.5)))), example())


def test_a_write_through_a_view_is_refused():
    def through(x):
        y = x * 1.0
        y[:, :, ::2].relu_()
        return y

    with pytest.raises(ExtractError, match="does not give the outputs of the masked one"):
        psp.extract(pruned(Net(Call(through))), example())


def test_several_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(2, 6, 3)

        def forward(self, x, y, scale=2.0):
            return {"sum": self.a(x) + self.b(y) * scale, "a": self.a(x).shape[0]}

    net = prune_channels(Two().double(), a=[0, 1], b=[1, 2])
    inputs = example(), torch.randn(2, 2, 7, 6, dtype=torch.float64)
    smaller = psp.extract(net, inputs)
    torch.testing.assert_close(smaller(*inputs)["sum"], net(*inputs)["sum"])
    assert smaller.b.out_channels == 4
    assert size(smaller) < size(net)


def test_a_check_of_the_number_of_axes_keeps_nothing_from_being_folded():
    class Checked(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

        def forward(self, x):
            x = self.conv(x)
            torch._assert(x.ndim == 4, f"expected 4 axes, got {x.ndim}")
            return self.bn(x).mean(x.dim() - 1)

    torch.manual_seed(0)
    net = psp.parameterize(randomize(Checked()), "channel", place="weight").double().eval()
    smaller = psp.extract(net, example())
    assert difference(net, smaller, example()) < 1e-13
    assert [name for name, _ in smaller.named_children()] == ["conv"]
