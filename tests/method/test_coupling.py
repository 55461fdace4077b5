"""Channels that meet in a sum are one structure: found by hand, pruned together, gone together."""

import copy

import pytest
import torch
from networks import difference, network
from torch.nn import functional as F

import psp
from psp.errors import ConfigError
from psp.method.coupling import meeting
from psp.method.pruners import kept_weights, parametrizations


def branches(stage, blocks=3):
    return [f"layer{stage}.{block}.conv2" for block in range(blocks)]


def test_the_branches_of_a_residual_stage_meet():
    net = psp.create_model("resnet20")
    layers = [name for name, module in net.named_modules() if isinstance(module, torch.nn.Conv2d)]
    assert meeting(net, layers) == [["conv1", *branches(1)], branches(2), branches(3)]
    assert meeting(net, [name for name in layers if name.endswith("conv1")]) == []
    assert meeting(psp.create_model("densenet16"), ["conv1", "block1.0.conv", "block1.1.conv"]) == []


def test_a_depthwise_convolution_passes_channels_on():
    net, _ = network("mobilenet_v3_small")
    groups = meeting(net, [name for name, module in net.named_modules() if isinstance(module, torch.nn.Conv2d)])
    assert ["features.2.block.0.0", "features.2.block.1.0"] in groups
    assert ["features.2.block.2.0", "features.3.block.2.0"] in groups


def test_coupled_channels_share_one_alpha_and_the_stream_gets_thinner():
    net, x = network("resnet20")
    psp.parameterize(net, "channel", skip=["fc"], couple=True)
    alphas = psp.structure_parameters(net)
    assert sorted(alphas) == sorted({"conv1", "layer2.0.conv2", "layer3.0.conv2"} | {n for n in alphas if "conv1" in n})
    with torch.no_grad():
        alphas["conv1"].view(-1)[:6] = 0.0
        alphas["layer2.0.conv2"].view(-1)[:6] = 0.0
    layers = psp.sparsity(net).layers
    assert {layers[name].structures for name in ("conv1", *branches(1))} == {6 / 16}
    smaller = psp.extract(net.eval(), x)
    assert difference(net, smaller, x) < 1e-5
    widths = {m.out_channels for m in smaller.modules() if isinstance(m, torch.nn.Conv2d)}
    assert 10 in widths, "of the first stage nothing is left of the six"
    assert len(psp.param_groups(net, structure_decay=0.1)[-1]["params"]) == len(alphas)


def test_a_copy_and_a_loaded_state_are_coupled_among_themselves():
    net, x = network("resnet20")
    psp.parameterize(net, "channel", skip=["fc"], couple=True)
    twin, loaded = (
        copy.deepcopy(net),
        psp.parameterize(psp.create_model("resnet20"), "channel", skip=["fc"], couple=True),
    )
    with torch.no_grad():
        psp.structure_parameters(twin)["conv1"].view(-1)[:4] = 0.0
    loaded.load_state_dict(twin.state_dict())
    assert torch.equal(loaded.eval()(x), twin.eval()(x))
    assert psp.sparsity(twin).layers["layer1.2.conv2"].structures == 4 / 16
    assert psp.sparsity(net).structures == 0


def test_nothing_to_couple_is_an_error():
    with pytest.raises(ConfigError, match="couple=True, but no outputs of two layers with structure 'channel' meet"):
        psp.parameterize(psp.create_model("densenet16"), "channel", couple=True)


class Depthwise(torch.nn.Module):
    """A channel goes from `wide` through `deep`, which is registered before it, and both share its place."""

    def __init__(self):
        super().__init__()
        self.deep, self.second = torch.nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False), torch.nn.BatchNorm2d(6)
        self.wide, self.first = torch.nn.Conv2d(4, 6, 1, bias=False), torch.nn.BatchNorm2d(6)
        self.out = torch.nn.Conv2d(6, 4, 1)

    def forward(self, x):
        return self.out(self.second(self.deep(self.first(self.wide(x)).relu())).relu())


@pytest.mark.parametrize("couple", [True, False])
def test_alpha_shared_by_place_and_by_coupling_is_trained(couple):
    net = psp.parameterize(Depthwise(), "channel", skip="out", couple=couple).eval()
    (alpha,) = psp.structure_parameters(net).values()
    assert any(parameter is alpha for parameter in net.parameters())
    alpha.data[2:] = 0.0
    assert {layer.structures for layer in psp.sparsity(net).layers.values()} == {4 / 6}
    x = torch.randn(2, 4, 5, 5)
    small = psp.extract(net, x)
    torch.testing.assert_close(small(x), net(x))
    assert psp.cost(small, x).params < 50


class Upsampled(torch.nn.Module):
    """A convolution and a transposed one, whose weight has its output channels along the second axis, meet in a sum."""

    def __init__(self, channels):
        super().__init__()
        self.plain, self.transposed = torch.nn.Conv2d(4, 6, 1), torch.nn.ConvTranspose2d(channels, 6, 1)

    def forward(self, x, z):
        return self.plain(x) + self.transposed(z)


@pytest.mark.parametrize("channels", [6, 5])
def test_a_transposed_convolution_shares_the_alpha_of_its_output_channels(channels):
    net = psp.parameterize(Upsampled(channels), "channel", couple=True)
    (alpha,) = psp.structure_parameters(net).values()
    alpha.data[0] = 0.0
    for layer, pruner in parametrizations(net).values():
        assert torch.equal(kept_weights(layer, pruner), layer.weight != 0)
    assert net.transposed.weight[:, 0].abs().max() == 0


class Broadcast(torch.nn.Module):
    """A sum of 16 channels, of one that is added to all of them, and of 16 channels of a grouped transposed one."""

    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Conv2d(4, 16, 1), torch.nn.Conv2d(4, 16, 1)
        self.one, self.pool = torch.nn.Conv2d(4, 1, 3, padding=1), torch.nn.AdaptiveAvgPool2d(1)
        self.up = torch.nn.ConvTranspose2d(16, 16, 1, groups=16, bias=False)

    def forward(self, x):
        return self.up(self.a(x)) + self.pool(self.b(x)) + self.one(x) + self.a(x)


def test_only_layers_with_as_many_alpha_share_them():
    net = psp.parameterize(Broadcast(), "channel", couple=True)
    shapes = {name: alpha.numel() for name, alpha in psp.structure_parameters(net).items()}
    assert shapes == {"a": 16, "one": 1}, "b shares those of a, and up the one of the single channel"
    assert net(torch.randn(2, 4, 5, 5)).shape == (2, 16, 5, 5)


class Gated(torch.nn.Module):
    """x + s·y·gate(y) − c(x) with y = b(a(x)): a product, a layer scale, a difference; one stream with `first`."""

    def __init__(self):
        super().__init__()
        self.first, self.a, self.b, self.c = (torch.nn.Conv2d(6, 6, 3, padding=1, bias=False) for _ in range(4))
        self.squeeze, self.excite = torch.nn.Conv2d(6, 3, 1), torch.nn.Conv2d(3, 6, 1)
        self.scale = torch.nn.Parameter(torch.full((6, 1, 1), 0.5))

    def forward(self, x):
        x = self.first(x)
        y = self.b(self.a(x).relu())
        gate = self.excite(self.squeeze(y.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return x + self.scale * (y * gate) - self.c(x)


def test_gates_and_layer_scales_do_not_end_a_stream_and_differences_join_it():
    net = Gated().eval()
    layers = ["first", "a", "b", "squeeze", "excite", "c"]
    assert meeting(net, layers) == [["first", "b", "c"]]
    psp.parameterize(net, "channel", couple=True)
    psp.structure_parameters(net)["first"].data.view(-1)[:2] = 0.0
    x = torch.randn(2, 6, 5, 5)
    smaller = psp.extract(net, x)
    assert difference(net, smaller, x) < 1e-5
    assert smaller.c.in_channels == 4


def test_stochastic_depth_does_not_end_a_stream():
    net, _ = network("efficientnet_b0")
    layers = [name for name, module in net.named_modules() if isinstance(module, torch.nn.Conv2d)]
    groups = meeting(net, layers)
    assert ["features.2.0.block.3.0", "features.2.1.block.3.0"] in groups
    assert not any("fc" in name for group in groups for name in group), "gates keep their channels"


def one_size(self, x, y):
    """Two maps brought to the size of a third, side by side: sizes are no stream."""
    size = x.shape[-2:]
    return torch.cat([F.interpolate(self.a(y), size=size), F.interpolate(self.b(y), size=size)], 1) * size[0] ** -0.5


def one_mask(self, x, y):
    """Two streams behind one mask, which is no stream either."""
    mask = (y > 0).float()
    x = self.a(x) * mask
    x = x + self.b(x * mask).relu() * mask
    z = self.c(x) * mask
    return z + self.d(z * mask).relu() * mask


@pytest.mark.parametrize(("forward", "streams"), [(one_size, []), (one_mask, [["a", "b"], ["c", "d"]])])
def test_sizes_and_masks_join_no_streams(forward, streams):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.d = (torch.nn.Conv2d(6, 6, 3, padding=1) for _ in range(4))

        def forward(self, x, y):
            return forward(self, x, y)

    assert meeting(Net(), ["a", "b", "c", "d"]) == streams
