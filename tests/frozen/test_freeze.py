"""Frozen networks, in which images are lanes, against the networks themselves in float64."""

import copy
import multiprocessing
import operator
import os
import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import pytest
import torch
from cases import ACTIVATIONS, BATCHES, PADS, PAIRS, Graph, alone, bound, either_type, error, freeze, needs_bfloat16
from hypothesis import given, settings
from hypothesis import strategies as st
from machine import needs_c
from networks import network, prune
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

import psp
from psp import native
from psp.errors import ConfigError, KernelError
from psp.extraction.rewrite import SelectChannels
from psp.frozen.ways import distances
from psp.kernels.columns import ColumnSparseConv2d

pytestmark = needs_c


@settings(deadline=None, max_examples=60)
@given(
    n=st.sampled_from(BATCHES), c=st.integers(1, 9), k=st.integers(1, 27), kernel=PAIRS, stride=PAIRS, dilation=PAIRS,
    padding=PADS, size=st.tuples(st.integers(7, 9), st.integers(7, 9)), share=st.sampled_from([0.0, 0.2, 1.0]),
    bias=st.booleans(), sparse=st.booleans(), seed=st.integers(0, 2**20),
)  # fmt: skip
def test_random_convolutions(n, c, k, kernel, stride, dilation, padding, size, share, bias, sparse, seed):
    torch.manual_seed(seed)
    conv = nn.Conv2d(c, k, kernel, stride, padding, dilation, bias=bias)
    conv.weight.data *= (torch.rand(k, 1, 1, 1) < 0.7) * (torch.rand(c, *kernel) < share)
    if sparse:
        conv = ColumnSparseConv2d(conv.weight.detach(), conv.bias, stride, padding, dilation)
        conv.relu = seed % 2 == 0
    net, dtype = alone(conv, c, *size), either_type(seed)
    x = torch.randn(n, c, *size).transpose(2, 3).contiguous().transpose(2, 3).to(dtype)
    assert error(net, freeze(net, x), x) < bound(dtype)


@pytest.mark.parametrize("after", [
    nn.MaxPool2d((1, 2), 1), nn.AvgPool2d((1, 2), 1), nn.Upsample(size=(8, 4)), nn.Conv2d(4, 4, (1, 2)),
])  # fmt: skip
@pytest.mark.parametrize("size", [(8, 5), (8, 6), (7, 5)])
def test_maps_of_other_widths_do_not_leave_their_pixels_in_anothers_padding(after, size):
    """Of widths 5 and 4 whose rows are as far apart: those of the narrower one end in a column of zeros."""
    torch.manual_seed(0)
    last = nn.Conv2d(4, 4, 5, padding=2)
    net, x = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), after, last).eval(), torch.randn(2, 4, *size)
    assert error(net, freeze(net, x), x) < 1e-5


@needs_bfloat16
@pytest.mark.parametrize("layer", [nn.Conv2d(5, 2, 3, padding=2), nn.ConvTranspose2d(5, 3, 3, 2)])
def test_an_odd_number_of_columns_at_the_border_reads_nothing_outside(layer):
    """What lies behind a way's memory is NaN here: not even times 0 is it to be added."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 5, 3, padding=1), layer).eval()
    frozen, x = psp.freeze(net, torch.zeros(1, 4, 6, 5).bfloat16()), torch.randn(33, 4, 6, 5).bfloat16()
    for way in frozen.ways:
        frozen.run(way, x)  # which makes room
        if way.kind == "images as lanes":
            way.memory = torch.full((len(way.memory) + 2**16,), 0xFF, dtype=torch.uint8)
        assert frozen.run(way, x).isfinite().all()


def test_threads_of_python_can_call_one_frozen_network_and_several():
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, k, 3)).eval() for k in (2, 5)]
    x = torch.randn(64, 40, 3, 16, 16)
    frozen = [psp.freeze(net, x[0]) for net in nets]
    with torch.no_grad():
        expected = [[net(images) for images in x] for net in nets]
    with ThreadPoolExecutor(4) as pool:
        for function, right in zip(frozen, expected, strict=True):
            for got, wanted in zip(pool.map(function, x), right, strict=True):
                torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
        got = list(pool.map(lambda i: frozen[i % 2](x[i // 2]), range(2 * len(x))))
    for i, out in enumerate(got):
        torch.testing.assert_close(out, expected[i % 2][i // 2], rtol=1e-4, atol=1e-4)


def test_questions_about_the_size_that_are_answered_leave_nothing_behind():
    class Asking(nn.Module):
        def __init__(self):
            super().__init__()
            self.c = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            assert x.shape[2] == x.shape[3], "square images only"
            return self.c(F.dropout(x, 0.5, self.training))

    net, x = Asking().eval(), torch.randn(2, 3, 8, 8)
    assert error(net, freeze(net, x), x) < 1e-5


def test_a_network_extracted_for_one_size_can_be_frozen():
    class OfOneSize(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

        def forward(self, x):
            x = self.a(x).relu()
            return self.b(x) if x.shape[2] < 16 else x

    net, x = psp.parameterize(OfOneSize(), "column").eval(), torch.randn(2, 3, 12, 12)
    smaller = psp.extract(net, x)
    assert smaller.meta["sizes"] == [(3, 12, 12)]
    assert error(smaller, psp.freeze(smaller, x), x) < 1e-5


def test_a_network_around_an_extracted_one_can_be_frozen():
    """What psp.extract made is not traced into, wherever it stands."""
    net = psp.parameterize(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3))).eval()
    x = torch.randn(5, 3, 9, 9)
    for alpha in psp.structure_parameters(net).values():
        alpha.data.view(-1)[::2] = 0.0
    around = nn.Sequential(psp.extract(net, x), nn.ReLU()).eval()
    assert any(isinstance(module, ColumnSparseConv2d) for module in around.modules())
    assert error(around, freeze(around, x), x) < 1e-5


def test_what_one_image_decides_for_several_or_drops_at_random_is_refused():
    class ByBatch(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.a(x) if len(x) == 1 else self.b(x)

    class OneOnly(ByBatch):
        def forward(self, x):
            assert len(x) == 1, "one image"
            return self.a(x)

    class Shares(ByBatch):
        def forward(self, x):
            return (self.a(x) if len(x) == 1 else self.b(x)).flatten(1).softmax(1)

    class Dropping(nn.Module):
        def forward(self, x):
            return F.dropout(x, 0.5)

    with pytest.raises(KernelError, match="ByBatch does other things for several images than for one"):
        psp.freeze(ByBatch().eval(), torch.zeros(4, 3, 8, 8))
    with pytest.raises(KernelError, match="Shares does other things for several images than for one"):
        psp.freeze(Shares().eval(), torch.zeros(4, 3, 8, 8))
    with pytest.raises(KernelError, match="OneOnly cannot be run on several images: one image"):
        psp.freeze(OneOnly().eval(), torch.zeros(4, 3, 8, 8))
    with pytest.raises(KernelError, match=r"dropout.* cannot be run by psp\.freeze"):
        psp.freeze(Dropping().eval(), torch.zeros(4, 3, 8, 8))


def random_network(seed):
    """Ten operations, each on any of the latest results."""
    torch.manual_seed(seed)
    made, choose = Graph(3, 6, 7), random.Random(seed)
    nodes = [made.input]
    for _ in range(10):
        nodes.append(another(made, nodes, choose))
    return made.network(nodes[-1])


def another(made, nodes, choose):
    x = choose.choice(nodes[-3:])
    c = made.shapes[x][1]
    alike = [node for node in nodes if made.shapes[node] == made.shapes[x]]
    as_large = [node for node in nodes if made.shapes[node][2:] == made.shapes[x][2:]]
    index = torch.randint(c + 2, (choose.randint(1, 9),))
    layer = nn.Conv2d(c, choose.choice([c, 5, 17]), 3, padding=1)
    layer.weight.data *= torch.rand(len(layer.weight), 1, 1, 1) < 0.8
    every_second = (*[slice(None)] * 3, slice(None, None, 2))
    kinds = [
        lambda: made.module(layer, x),
        lambda: made.function(torch.add, made.module(nn.Conv2d(c, c, 3, padding=1), x), choose.choice(alike)),
        lambda: made.function(torch.add, choose.choice(alike), choose.choice(alike)),
        lambda: made.function(F.relu, x, inplace=False),
        lambda: made.module(nn.BatchNorm2d(c), x),
        lambda: made.function(torch.cat, (x, choose.choice(as_large), x), 1),
        lambda: made.module(SelectChannels(index, torch.randn(1, 2, 1, 1)), x),
        lambda: made.function(F.pad, x, (0, 0, 0, 0, choose.randint(0, 2), choose.randint(0, 2))),
        lambda: made.function(operator.getitem, x, every_second),
        lambda: made.module(nn.MaxPool2d(3, 1, 1), x),
        lambda: made.module(nn.Conv2d(c, 2 * c, 3, padding=1, groups=c), x),
        lambda: made.module(choose.choice(ACTIVATIONS), x),
        lambda: made.function(torch.mul, choose.choice(alike), choose.choice(alike)),
        lambda: made.function(torch.mul, x, made.module(nn.AdaptiveAvgPool2d(1), x)),
        lambda: made.function(operator.getitem, x, (slice(None), slice(c // 2, None))),
    ]
    return choose.choice(kinds)()


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**20), n=st.sampled_from(BATCHES), threads=st.sampled_from([1, 2, 5]))
def test_random_networks(seed, n, threads):
    net, x, before = random_network(seed), torch.randn(n, 3, 6, 7), torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert error(net, freeze(net, x), x) < 1e-5
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("name", "structure"), [*product(["resnet20"], ["column", "channel", "shape", "layer"]), ("densenet40", "channel")]
)
def test_extracted_networks(name, structure):
    net, x = network(name)
    smaller = psp.extract(prune(net, structure, lambda layer, alpha: 0.7 if alpha.numel() > 1 else 0.3), x)
    state = copy.deepcopy(smaller.state_dict())
    frozen = freeze(smaller, x)
    for n in (0, 1, 35):
        images = torch.randn(n, 3, 16, 16)
        if n:
            assert error(smaller, frozen, images) < 1e-5
        assert frozen(images).shape == (n, 10)
    assert all(torch.equal(tensor, state[key]) for key, tensor in smaller.state_dict().items())
    smaller.fc.weight.data.zero_()
    assert error(net.float(), frozen, x) < 1e-5, "frozen"


def test_pooling_by_functions():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.c = nn.Conv2d(3, 8, 3)

        def forward(self, x):
            return F.adaptive_avg_pool2d(F.max_pool2d(self.c(x), 3, 2, padding=1), (1, 1)).flatten(1)

    torch.manual_seed(0)
    net, x = Pooled().eval(), torch.randn(3, 3, 12, 10)
    assert error(net, psp.freeze(net, x), x) < 1e-5


def test_networks_of_others():
    """A 7×7 stem, maximum pooling, strided shortcuts; batch normalization that is not folded."""
    net, x = network("resnet18")
    assert error(net, freeze(net, x), x) < 1e-5


@needs_bfloat16
@pytest.mark.parametrize("structure", ["column", "channel"])
def test_bfloat16_is_as_exact_as_pytorch(structure):
    net, x = network("resnet20")
    smaller = psp.extract(prune(net, structure, lambda layer, alpha: 0.6), x)
    images = torch.randn(70, 3, 16, 16).bfloat16()
    theirs = copy.deepcopy(smaller).bfloat16()
    assert 0 < error(smaller, freeze(smaller, images), images) < 1.5 * error(smaller, theirs, images)


@needs_bfloat16
def test_random_networks_in_bfloat16():
    for seed in range(30):
        net, images = random_network(seed), torch.randn(34, 3, 6, 7).bfloat16()
        assert error(net, freeze(net, images), images) < 0.05


@pytest.mark.parametrize(
    "layer",
    [
        nn.AvgPool2d(2), nn.AvgPool2d(3, 2, 1), nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.MaxPool2d(3, 2, 1),
        nn.AdaptiveAvgPool2d((None, 1)), nn.AdaptiveAvgPool2d(1),
        nn.Sequential(nn.ZeroPad2d((0, 1, -1, 2)), nn.Conv2d(3, 4, 2)),
        nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(3 * 35, 4), nn.ReLU()), nn.Identity(),
        nn.Sequential(nn.BatchNorm2d(3, affine=False), nn.ReLU(), nn.Conv2d(3, 2, 1, padding="same")),
    ],
)  # fmt: skip
def test_layers(layer):
    x = torch.randn(20, 3, 5, 7)
    padded = isinstance(layer, nn.Sequential) and isinstance(layer[0], nn.ZeroPad2d)  # as psp.extract writes it
    net = alone(layer, 3, 5, 7) if padded else nn.Sequential(layer)
    assert error(net, freeze(net, x), x) < 1e-5


def test_a_nan_stays_a_nan():
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.MaxPool2d(2))
    x = torch.randn(3, 1, 4, 4)
    x[1, 0, 0, 0] = torch.nan
    assert freeze(net, x)(x).isnan().nonzero().tolist() == [[1, 0, 0, 0]]


@pytest.mark.parametrize("layer", [nn.SiLU(), nn.Sigmoid(), nn.GELU(), nn.GELU("tanh"), nn.Hardswish()])
def test_activations_of_the_largest_numbers(layer):
    values = torch.tensor([-torch.inf, -3e38, -1e38, -1e4, -89.0, -88.0, -60.0, 60.0, 89.0, 1e4, 1e37, torch.nan])
    x = values.view(1, 1, 3, 4)
    net = nn.Sequential(nn.Identity(), layer)
    torch.testing.assert_close(freeze(net, x)(x), net(x), rtol=1e-5, atol=1e-30, equal_nan=True)


@pytest.mark.parametrize("flags", [("-mavx2", "-mfma"), ("-march=x86-64",)])
def test_narrower_vectors_than_this_processor_has(monkeypatch, flags):
    """The code that an older processor would run; four to a vector is what ARM has."""
    if "__AVX2__" not in native.output(["cc", *native.NATIVE, "-dM", "-E", "-x", "c", os.devnull]):
        pytest.skip("no AVX2 here")
    native.load.cache_clear()
    monkeypatch.setattr(native, "NATIVE", flags)
    try:
        for seed in range(12):
            net, x = random_network(seed), torch.randn(11, 3, 6, 7)
            assert error(net, freeze(net, x), x) < 1e-5
        assert {way.lanes for way in freeze(net, x).ways} == {8 if "-mavx2" in flags else 4}
        halved = freeze(net, x.bfloat16())
        assert {way.dtype for way in halved.ways} == {torch.float32}, "no products of bfloat16 here"
        assert str(halved.way(11)).endswith("lanes, float32")
        assert error(net, halved, x.bfloat16()) < 0.02
    finally:
        native.load.cache_clear()


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (nn.Tanh(), "layer '0'"), (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), "'0'"),
        (nn.ConvTranspose2d(4, 4, 3, groups=2), "layer '0'"), (nn.Upsample(scale_factor=2, mode="bicubic"), "'0'"),
        (nn.LayerNorm((4, 6, 6)), "layer '0'"), (nn.AdaptiveAvgPool2d(4), "layer '0'"),
        (nn.AvgPool2d(2, ceil_mode=True), "layer '0'"),
        (nn.Linear(6, 3), "layer '0'"), (nn.MaxPool2d(2, dilation=2), "layer '0'"),
    ],
)  # fmt: skip
def test_what_cannot_be_frozen_is_named(layer, name):
    with pytest.raises(KernelError, match=f"{name} cannot be run by psp.freeze; run the network itself$"):
        freeze(nn.Sequential(layer), torch.zeros(1, 4, 6, 6))


@pytest.mark.parametrize("function", [
    lambda x: 2 / x, lambda x: x / x, lambda x: x @ x, lambda x: x[:, :, 1:], lambda x: x.mean(1),
    lambda x: (x, x), lambda x: x + x[:, :1], lambda x: x * torch.ones(6), lambda x: x.permute(0, 2, 3, 1),
    lambda x: F.pad(x, (1, 1, 0, 0)), lambda x: torch.cat((x, x)),
    lambda x: F.avg_pool2d(x, 2, 2, 0, True), lambda x: torch.flatten(x, 1).relu()])  # fmt: skip
def test_functions_that_cannot_be_frozen(function):
    class Net(nn.Module):
        def forward(self, x):
            return function(x)

    with pytest.raises(KernelError, match=r"^operation '.*' cannot be run by psp.freeze"):
        freeze(Net(), torch.zeros(1, 4, 6, 6))


def test_images_that_it_was_not_frozen_for():
    net, x = nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8)
    frozen = freeze(nn.Sequential(net), x)
    for wrong in (x.double(), x[:, :, 1:], x[0]):
        with pytest.raises(ConfigError, match=r"frozen for torch.float32 images of shape \(3, 8, 8\).*call psp.freeze"):
            frozen(wrong)
    with pytest.raises(ConfigError, match="has no gradients"):
        frozen(x.clone().requires_grad_())
    with pytest.raises(KernelError, match=r"not for 4 axes, torch\.float64"):
        freeze(nn.Sequential(net), x.double())


def test_images_that_have_no_numbers_of_their_own_in_memory():
    net, x = nn.Sequential(nn.Conv2d(3, 4, 3)), torch.randn(2, 3, 8, 8)
    frozen = freeze(net, x)
    assert error(net, frozen, torch._neg_view(x)) < 1e-5
    with FakeTensorMode(), pytest.raises(ConfigError, match="trace, script or export the network itself"):
        frozen(torch.empty(2, 3, 8, 8))
    with pytest.raises(ConfigError, match="trace, script or export the network itself"):
        torch.jit.trace(frozen.__call__, (x,))
    compiled = torch.compile(lambda x: frozen(x) + 1, backend="eager")
    assert torch.equal(compiled(x), frozen(x) + 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_process_does_not_wait_for_a_call_of_its_parent():
    net, x = nn.Sequential(nn.Conv2d(3, 4, 3)), torch.randn(2, 3, 8, 8)
    frozen = freeze(net, x)

    def call():
        torch.set_num_threads(1)  # a child has none of its parent's
        frozen(x)

    with frozen.lock:
        child = multiprocessing.get_context("fork").Process(target=call)
        child.start()
        child.join(60)
    assert child.exitcode == 0


def test_a_map_that_is_too_large_is_refused():
    with pytest.raises(KernelError, match="too many values for freeze; freeze it for smaller images"):
        distances(torch.tensor([0, 2**31]))
    assert distances(torch.tensor([-(2**31) + 1, 2**31 - 1])).tolist() == [-(2**31) + 1, 2**31 - 1]


def test_without_a_compiler(monkeypatch):
    native.load.cache_clear()
    monkeypatch.setenv("CC", "no-such-compiler")
    try:
        with pytest.raises(KernelError, match=r"lanes\.c cannot be compiled.*install gcc or clang"):
            freeze(nn.Sequential(nn.Conv2d(3, 4, 3)), torch.zeros(1, 3, 8, 8))
    finally:
        native.load.cache_clear()


class TwiceRead(nn.Module):
    """A convolution whose output is read again after its ReLU was computed, in place or not."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        h = self.first(x)
        return h + self.second(self.relu(h))


def test_a_relu_that_writes_over_its_input_is_seen_by_all_later_readers():
    torch.manual_seed(0)
    net, x = TwiceRead().eval(), torch.randn(5, 3, 6, 6)
    assert error(net, freeze(net, x), x) < 1e-5
    assert net.relu.inplace, "the network stays as it is"


class SumOfHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(48, 5), nn.Linear(48, 5)

    def forward(self, x):
        x = x.flatten(1)
        return self.a(x) + self.b(x)


def test_a_sum_of_linear_layers_stays_flat():
    net, x = SumOfHeads().eval(), torch.randn(5, 3, 4, 4)
    assert error(net, freeze(net, x), x) < 1e-5


def test_networks_that_are_not_ready_are_refused():
    x = torch.randn(2, 3, 6, 6)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    with pytest.raises(KernelError, match="in training mode"):
        psp.freeze(net, x)
    with pytest.raises(KernelError, match="still parameterized"):
        psp.freeze(psp.parameterize(net.eval(), "channel"), x)
    with pytest.raises(KernelError):
        psp.freeze(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(1, 2)).eval(), x)


@pytest.mark.parametrize("shape", [(4, 16, 16), (2, 16, 16), (3, 8, 8)])
def test_images_that_the_network_does_not_take(shape):
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(2048, 4)
    with pytest.raises(KernelError, match=r"layer '[03]' fails on the example"):
        psp.freeze(nn.Sequential(*layers).eval(), torch.randn(2, *shape))


def test_what_is_no_plain_network_is_refused():
    net, x = nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), torch.randn(2, 3, 6, 6)
    with pytest.raises(KernelError, match=r"images must be a tensor N×C×H×W, got tuple"):
        psp.freeze(net, (x,))
    net[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    with pytest.raises(KernelError, match="module '0' of Sequential has a forward hook"):
        psp.freeze(net, x)


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_frozen_network_is_neither_copied_nor_saved(again):
    frozen = psp.freeze(nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), torch.zeros(1, 3, 8, 8))
    with pytest.raises(KernelError, match="save the network that it was made of, and freeze that"):
        again(frozen)
