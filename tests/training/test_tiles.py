"""The convolutions by matrix units against PyTorch in float64, and what `tiled` does to a network."""

from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from machine import needs_tiles
from torch import nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

import psp
from psp.errors import KernelError
from psp.training import tiles
from psp.training.tiles import PARTS, TiledConv, is_tiled, tiled

ROUNDING = 2**-8  # of bfloat16, of one value


def images(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).bfloat16().contiguous(memory_format=torch.channels_last)


def a_conv(channels, outputs):
    return nn.Conv2d(channels, outputs, 3, padding=1, bias=False).train()


def results(conv, x, gradient):
    """(output, gradient of x, gradient of the weight) of the training step, by the kernels."""
    leaf = x.clone().requires_grad_()
    y = TiledConv(conv)(leaf)
    assert type(y.grad_fn).__name__ == "_TiledConvBackward", "the kernels themselves are tested"
    return y, *torch.autograd.grad(y, (leaf, conv.weight), gradient)


def assert_close(ours, theirs, relative):
    torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=relative * float(theirs.abs().max()))


@needs_tiles
@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(PARTS, 2 * PARTS + 3),
    channels=st.sampled_from([16, 32, 48, 64, 96]),
    outputs=st.sampled_from([16, 32, 48, 64, 96]),
    height=st.integers(1, 19),
    width=st.integers(1, 10).map(lambda half: 2 * half),
    seed=st.integers(0, 1000),
)
def test_output_and_gradients_are_pytorchs(batch, channels, outputs, height, width, seed):
    torch.manual_seed(seed)
    conv = a_conv(channels, outputs)
    x, gradient = images((batch, channels, height, width), seed), images((batch, outputs, height, width), seed + 1)
    y, dx, dw = results(conv, x, gradient)
    weight = conv.weight.detach().bfloat16().double()
    assert_close(y, F.conv2d(x.double(), weight, padding=1), ROUNDING)
    assert_close(dx, conv2d_input(x.shape, weight, gradient.double(), padding=1), ROUNDING)
    assert_close(dw, conv2d_weight(x.double(), weight.shape, gradient.double(), padding=1), 1e-5)


@needs_tiles
def test_the_number_of_threads_changes_no_bit():
    conv, before = a_conv(32, 16), torch.get_num_threads()
    x, gradient = images((21, 32, 8, 8), 0), images((21, 16, 8, 8), 1)
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(results(conv, x, gradient))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@needs_tiles
def test_nan_is_passed_on_so_that_a_diverging_run_is_noticed():
    x = images((PARTS, 16, 8, 8), 0)
    x[1, 3, 2, 2] = float("nan")
    y, _, dw = results(a_conv(16, 32), x, images((PARTS, 32, 8, 8), 1))
    assert y[1].isnan().any()
    assert y[2:].isfinite().all()
    assert dw.isnan().any()


@needs_tiles
@pytest.mark.parametrize("case", ["evaluation", "another layout", "float32", "odd width", "few images"])
def test_what_the_kernels_cannot_do_pytorch_does(case):
    conv, x = a_conv(16, 16), images((PARTS, 16, 8, 8), 0)
    odd = x[..., :7].contiguous(memory_format=torch.channels_last)
    x = {"another layout": x.contiguous(), "odd width": odd, "few images": x[: PARTS - 1]}.get(case, x)
    conv.train(case != "evaluation")
    with torch.autocast("cpu", torch.bfloat16, enabled=case != "float32"):
        x = x.float() if case == "float32" else x
        y = TiledConv(conv)(x)
        assert type(y.grad_fn).__name__ != "_TiledConvBackward"
        assert torch.equal(y, conv(x))


@needs_tiles
@pytest.mark.parametrize(("channels", "outputs"), [(16, 32), (32, 16), (64, 64)])
def test_a_convolution_that_hands_its_input_on_adds_both_gradients_as_pytorch_does(channels, outputs):
    conv, x = a_conv(channels, outputs), images((PARTS + 1, channels, 6, 8), 0).requires_grad_()
    gradient, beside = images((PARTS + 1, outputs, 6, 8), 1), images((PARTS + 1, channels, 6, 8), 2)
    alone = TiledConv(conv)(x)
    dx, dw = torch.autograd.grad(alone, (x, conv.weight), gradient)
    handing = TiledConv(conv)
    handing.hands_on = True
    for used, expected in (((0, 1), (dx + beside, dw)), ((0,), (dx, dw)), ((1,), (beside, None))):
        outcome = handing(x)
        assert torch.equal(outcome[0], alone)
        assert torch.equal(outcome[1], x)
        ours = torch.autograd.grad(
            [outcome[k] for k in used], (x, conv.weight), [(gradient, beside)[k] for k in used], allow_unused=True
        )
        assert all(a is b or torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


@needs_tiles
def test_which_convolutions_hand_their_input_on(monkeypatch):
    """The first of each block whose shortcut is the identity; of two blocks it is not, and the stem has none."""
    net = psp.create_model("resnet20").train()
    handing = [name for name, m in tiled(net).named_modules() if isinstance(m, TiledConv) and m.hands_on]
    assert handing == [f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in range(stage > 1, 3)]
    x = images((PARTS, 3, 16, 16), 0)

    def gradients():
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            tiled(net)(x).float().square().sum().backward()
        return [p.grad.clone() for p in net.parameters()]

    handed = gradients()
    monkeypatch.setattr(tiles, "_hand_on", lambda node, network: None)
    assert all(torch.equal(a, b) for a, b in zip(handed, gradients(), strict=True))


class Pair(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.conv, self.other, self.same = a_conv(16, 16), a_conv(16, 16), nn.Identity()
        self.first, self.second = nn.BatchNorm2d(16), nn.BatchNorm2d(16)
        self.compute = forward

    def forward(self, x):
        return self.compute(self, x * 1)


def shared(net, x):
    x = F.relu(net.first(net.conv(x)) + x)
    return F.relu(net.second(net.conv(x)) + x)


def added_before(net, x):
    return F.relu(net.first(x * 2) + x) + net.conv(x)


def read_by_a_third(net, x):
    return F.relu(net.first(net.conv(x)) + x) + net.other(x)


def no_keyword(net, x):
    return F.relu(net.first(net.conv(input=x)) + net.same(input=x))


@needs_tiles
@pytest.mark.parametrize("forward", [shared, added_before, read_by_a_third, no_keyword])
def test_where_nothing_is_handed_on(forward):
    net = Pair(forward)
    network, x = tiled(net), images((PARTS, 16, 6, 8), 0)
    assert not any(m.hands_on for m in network.modules() if isinstance(m, TiledConv))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(network(x), net(x), rtol=0.05, atol=0.05)


@needs_tiles
def test_an_identity_with_a_hook_stays():
    net, seen = Pair(lambda net, x: F.relu(net.first(net.conv(x)) + net.same(x))), []
    assert "same" not in tiled(net).code
    net.same.register_forward_hook(lambda *_: seen.append(1))
    with torch.autocast("cpu", torch.bfloat16):
        tiled(net)(images((PARTS, 16, 6, 8), 0))
    assert seen


def test_which_convolutions_are_tiled_by_hand():
    assert is_tiled(nn.Conv2d(16, 48, 3, padding=1, bias=False))
    others = (
        {"stride": 2},
        {"padding": 0},
        {"bias": True},
        {"groups": 16},
        {"padding_mode": "circular"},
        {"dilation": 2},
    )
    for other in others:
        assert not is_tiled(nn.Conv2d(16, 48, 3, **{"padding": 1, "bias": False, **other}))
    assert not is_tiled(nn.Conv2d(16, 48, 1, bias=False))
    assert not is_tiled(nn.Conv2d(12, 48, 3, padding=1, bias=False))


@needs_tiles
@pytest.mark.parametrize("method", ["plain", "psp"])
def test_a_tiled_network_trains_the_parameters_of_the_one_it_was_made_from(method):
    """As close to float64 as autocast is, whose convolutions round as these do, within a half."""
    torch.manual_seed(0)
    model = psp.create_model("resnet20").to(memory_format=torch.channels_last).train()
    if method == "psp":
        psp.parameterize(model, skip=("conv1", "fc"))
    twin, exact = deepcopy(model), deepcopy(model).double()
    network = tiled(model)
    assert sum(isinstance(module, TiledConv) for module in network.modules()) == 16, (
        "all but the first, and two strides"
    )
    x, labels = torch.randn(16, 3, 32, 32).contiguous(memory_format=torch.channels_last), torch.arange(16) % 10
    for forward in (network, twin):
        with torch.autocast("cpu", torch.bfloat16):
            logits = forward(x)
        F.cross_entropy(logits.float(), labels).backward()
    F.cross_entropy(exact(x.double()), labels).backward()

    def distance(net):
        pairs = zip(net.parameters(), exact.parameters(), strict=True)
        return sum(float((p.grad.double() - q.grad).square().sum() / q.grad.square().sum()) for p, q in pairs) ** 0.5

    assert distance(model) < 1.5 * distance(twin)
    assert model.state_dict().keys() == twin.state_dict().keys()


def test_without_a_matrix_unit_the_reason_is_named(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    with pytest.raises(KernelError, match="no matrix unit of AMX"):
        tiled(psp.create_model("resnet20"))
