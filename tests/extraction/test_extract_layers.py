"""psp.extract on layers of every kind: transposed, of one and three axes, of other classes, recurrent, stored apart."""

import copy
import io
import sys

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from networks import Call, difference, prune, prune_channels, size
from test_extract_operations import Branches
from torch import nn
from torch.nn import functional as F

import psp
from psp.errors import ExtractError
from psp.extraction import export as exporting
from psp.extraction import smallest
from psp.kernels.columns import ColumnSparseConv1d, ColumnSparseConv3d
from psp.kernels.spread import spread
from psp.kernels.transposed import ColumnSparseConvTranspose2d
from psp.method.baselines import attach_norm_masks, fix_sparsity, prune_by_norm

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def maps(axes, channels=3, first=6, batch=2):
    return torch.randn(batch, channels, *range(first, first + axes), dtype=torch.float64)


def halved(net, structure, share=0.5):
    """Parameterized, and a share of all structures pruned at random."""
    psp.parameterize(net.double(), structure, place="weight").eval()
    for alpha in psp.structure_parameters(net).values():
        alpha.data[torch.rand(alpha.shape) < share] = 0.0
    return net


@pytest.mark.parametrize("structure", ["channel", "input_channel", "column", "shape", "weight"])
@hypothesis.given(
    axes=st.integers(1, 3),
    groups=st.sampled_from([1, 1, 2, 4]),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.integers(0, 1),
    more=st.booleans(),
    normalized=st.booleans(),
    share=st.sampled_from([0.3, 0.6, 1.0]),
    seed=st.integers(0, 2**16),
)
@hypothesis.settings(max_examples=25, deadline=None)
def test_random_transposed_convolutions(
    structure, axes, groups, kernel, stride, padding, more, normalized, share, seed
):
    """With columns as dense kernels, and as products of their own."""
    torch.manual_seed(seed)
    padding, output_padding = min(padding, kernel - 1), int(more and stride > 1)
    up = TRANSPOSED[axes](8, 12, kernel, stride, padding, output_padding, groups=groups)
    layers = [CONV[axes](3, 8, 1), nn.Sigmoid(), up, *[NORM[axes](12)] * normalized, nn.ReLU(), CONV[axes](12, 4, 1)]
    net = halved(nn.Sequential(*layers), structure, share)
    for zeros in (smallest.ADDING, 1):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(smallest, "ADDING", zeros)
            smaller = psp.extract(net, maps(axes))
        for x in (maps(axes), maps(axes, first=7, batch=1)):
            torch.testing.assert_close(smaller(x), net(x), rtol=1e-11, atol=1e-11)


def test_channels_of_a_transposed_convolution_by_hand():
    """Of 8 inputs 6 are live and one is kept for the constants; of 10 outputs 7 are live, 10·3·3 weights each."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Sigmoid(), nn.ConvTranspose2d(8, 10, 3, 2), nn.Conv2d(10, 4, 1))
    net = prune_channels(net.double(), **{"0": [1, 5], "2": []})
    alpha = psp.structure_parameters(net)["2"]
    assert alpha.shape == (1, 10, 1, 1)
    alpha.data[0, :3] = 0.0
    smaller = psp.extract(net, maps(2))
    assert difference(net, smaller, maps(2, first=9)) < 1e-13
    assert smaller.get_submodule("2").weight.shape == (7, 7, 3, 3)


def test_a_decoder_gets_smaller():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.ConvTranspose2d(16, 16, 4, 2, 1)]
    net = nn.Sequential(*layers, nn.BatchNorm2d(16), nn.ReLU(), nn.ConvTranspose2d(16, 3, 4, 2, 1))
    net = halved(net, "channel")
    smaller, x = psp.extract(net, maps(2, first=8)), maps(2, first=8)
    assert difference(net, smaller, maps(2, first=10)) < 1e-13
    assert psp.cost(smaller, x).params < 0.8 * psp.cost(net, x).params
    assert not any(isinstance(m, nn.BatchNorm2d) for m in smaller.modules()), "folded into the layers before them"


def test_the_cost_of_a_transposed_convolution_by_hand():
    """Each of 5·5 input pixels meets all unpruned weights: of 4 inputs, 6 outputs and 2·2 taps, but 3 of 16 columns."""
    net = psp.parameterize(nn.Sequential(nn.ConvTranspose2d(4, 6, 2, 2, bias=False)), "column").eval()
    alpha = psp.structure_parameters(net)["0"]
    assert alpha.shape == (4, 1, 2, 2)
    x = torch.randn(1, 4, 5, 5)
    assert psp.cost(net, x) == (16 * 6, 16 * 6 * 25)
    alpha.data.view(-1)[:3] = 0.0
    assert psp.cost(net, x) == (13 * 6, 13 * 6 * 25)
    assert psp.cost(psp.extract(net, x), x).params == 13 * 6


def test_a_transposed_convolution_of_few_columns_multiplies_these_alone():
    """Each of 128 inputs is read by one of three taps, for 6 outputs, at 5·5 input pixels."""
    net = psp.parameterize(nn.Sequential(nn.ConvTranspose2d(128, 6, 2, 2)).double(), "column").eval()
    alpha = psp.structure_parameters(net)["0"].data.zero_()
    alpha[::2, 0, 0, 0] = alpha[1::4, 0, 1, 0] = alpha[3::4, 0, 1, 1] = 1.0
    x = torch.randn(1, 128, 5, 5, dtype=torch.float64)
    smaller = psp.extract(net, x)
    other = torch.randn(2, 128, 7, 4, dtype=torch.float64)
    torch.testing.assert_close(smaller(other), net(other), rtol=1e-12, atol=1e-12)
    assert psp.cost(smaller, x) == psp.cost(net, x) == (128 * 6 + 6, 128 * 6 * 25)
    (layer,) = (m for m in smaller.modules() if isinstance(m, ColumnSparseConvTranspose2d))
    assert layer.by_tap == [64, 0, 32, 32]
    smaller(x).sum().backward()
    assert layer.weight.grad.shape == (6, 128)


@pytest.mark.parametrize(
    ("taps", "settings", "kernel", "left"),
    [
        ([1, 2], (2, 1, 0), 2, (0, 0)),  # a k=4 upsampling whose rim is pruned: one that does not overlap
        ([0, 1, 2], (2, 1, 0), 3, (1, 1)),  # one less at the end is one more of output padding
        ([1, 2, 3], (2, 1, 1), 3, (0, 0)),
        ([1, 2, 3], (2, 1, 0), 4, (1, 0)),  # there is no negative output padding
        ([1, 2], (2, 0, 0), 3, (0, 1)),  # nor padding
    ],
)
def test_a_transposed_convolution_loses_the_rim_of_its_kernel(taps, settings, kernel, left):
    net = psp.parameterize(nn.Sequential(nn.ConvTranspose1d(4, 6, 4, *settings)).double(), "shape").eval()
    psp.structure_parameters(net)["0"].data.zero_()[0, 0, taps] = 1.0
    x = torch.randn(1, 4, 7, dtype=torch.float64)
    smaller = psp.extract(net, x)
    torch.testing.assert_close(smaller(x), net(x), rtol=1e-12, atol=1e-12)
    layer = smaller.get_submodule("0")
    assert layer.kernel_size == (kernel,)
    assert (*layer.padding, *layer.output_padding) == left
    if kernel == len(taps):
        assert psp.cost(smaller, x).macs == psp.cost(net, x).macs
    else:
        assert "of a transposed convolution only" in psp.explain(smaller).layers[0].why


def test_baselines_prune_transposed_convolutions():
    for net in (
        fix_sparsity(nn.Sequential(TRANSPOSED[2](4, 6, 2)), "channel"),
        prune_by_norm(attach_norm_masks(nn.Sequential(TRANSPOSED[2](4, 6, 2)), "channel"), 0.5),
    ):
        assert psp.sparsity(net.eval()) == (0.5, 0.5, {"0": (0.5, 0.5, 6)})


@pytest.mark.parametrize(("axes", "kind"), [(1, ColumnSparseConv1d), (3, ColumnSparseConv3d)])
@hypothesis.given(
    stride=st.integers(1, 2), padding=st.integers(0, 2), dilation=st.integers(1, 2), seed=st.integers(0, 2**16)
)
@hypothesis.settings(max_examples=15, deadline=None)
def test_columns_of_one_and_three_axes_are_taken_out(axes, kind, stride, padding, dilation, seed):
    """The first and last tap stay, so that no smaller kernel will do; the second goes."""
    torch.manual_seed(seed)
    net = halved(nn.Sequential(CONV[axes](3, 5, 3, stride, padding, dilation), nn.ReLU()), "column", 0.3)
    alpha = psp.structure_parameters(net)["0"].data.view(3, -1)
    alpha[:, [0, -1]], alpha[:, 1] = 1.0, 0.0
    x = maps(axes, first=8)
    smaller = psp.extract(net, x)
    # Several, so that not all outputs are cut off by ReLU.
    assert difference(net, smaller, maps(axes, first=7, batch=9)) < 1e-13
    if psp.sparsity(net).weights > 0.2:
        assert kind in [type(module) for module in smaller.modules()]
        assert psp.cost(smaller, x) == psp.cost(net, x)


class Own(nn.Conv3d):
    """A convolution of a class of its own, as torchvision's of clips."""


class Standardized(nn.Conv2d):
    """A convolution whose weight is computed in forward, as timm's."""

    def forward(self, x):
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class OwnNorm(nn.BatchNorm2d):
    """A normalization of a class of its own, with its activation."""

    def forward(self, x):
        norm = (self.running_mean, self.running_var, self.weight, self.bias)
        return F.relu(F.batch_norm(x, *norm, False, 0.0, self.eps))


@pytest.mark.parametrize(("axes", "kind"), [(3, Own), (2, Standardized)])
def test_layers_of_other_classes_get_smaller(axes, kind):
    torch.manual_seed(0)
    net = nn.Sequential(kind(3, 8, 3), nn.ReLU(), kind(8, 6, 3), nn.ReLU(), kind(6, 4, 1))
    net = prune_channels(net.double(), **{"0": [1, 2, 3], "2": [0, 5]})
    smaller = psp.extract(net, maps(axes, first=7))
    assert difference(net, smaller, maps(axes, first=8)) < 1e-13
    shapes = [tuple(smaller.get_submodule(name).weight.shape[:2]) for name in ("0", "2", "4")]
    assert shapes == [(5, 3), (4, 5), (4, 4)]


def test_a_normalization_of_another_class_is_folded():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), OwnNorm(8), nn.Conv2d(8, 4, 3)).double().eval()
    net[1].running_mean.normal_()
    net = prune_channels(net, **{"0": [1, 2]})
    smaller = psp.extract(net, maps(2))
    assert difference(net, smaller, maps(2, first=9)) < 1e-13
    assert smaller.get_submodule("0").out_channels == 6
    assert not hasattr(smaller.get_submodule("0"), "running_mean")


def test_zero_columns_of_a_standardized_weight_are_not_stored():
    torch.manual_seed(0)
    net = halved(nn.Sequential(Standardized(3, 16, 3), nn.ReLU(), Standardized(16, 8, 3)), "column")
    smaller = psp.extract(net, maps(2))
    assert difference(net, smaller, maps(2, first=9)) < 1e-13
    assert psp.cost(smaller, maps(2)).params <= psp.cost(net, maps(2)).params
    assert all("only stored without zeros" in layer.why for layer in psp.explain(smaller).layers)


class Twice(nn.Module):
    """One layer called twice, one inside code that cannot be followed, one whose weight is read without it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.twice, self.read = nn.Linear(12, 12), nn.Linear(12, 12)
        self.inside = nn.Sequential(Branches(), nn.Linear(12, 12))
        self.inside.forward = lambda x: self.inside[1](x) if x.sum() > 0 else -self.inside[1](x)

    def forward(self, x):
        return self.inside(self.twice(self.twice(x).sigmoid())) @ self.read.weight


@pytest.mark.parametrize("structure", ["channel", "column"])
def test_what_is_not_followed_is_stored_without_its_zeros_and_explained(structure):
    net = halved(Twice(), structure)
    x = torch.randn(4, 12, dtype=torch.float64)
    smaller = psp.extract(net, x)
    assert difference(net, smaller, -x[:3]) < 1e-13
    assert psp.cost(smaller, x).params <= psp.cost(net, x).params
    why = {layer.name: layer.why for layer in psp.explain(smaller).layers}
    without = "stored without zeros, and computed without channels that are all zeros"
    assert why == {
        "twice": f"{without}: it is called several times",
        "read": "only stored without zeros: its weight is read without it",
        "inside.1": f"{without}: the code of 'inside' is not followed",
    }
    printed = str(psp.explain(smaller)).splitlines()
    assert len(printed) == 5
    assert printed[1].split()[:4] == ["twice", "144", *[str(left) for left in psp.explain(smaller).layers[0][2:4]]]


def test_layers_of_a_transformer_that_is_not_followed_compute_without_zeros():
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    net = halved(Call(lambda self, x: self.block(x), block=block), "column")
    x = torch.randn(2, 5, 16).double()
    why = {layer.name: layer.why for layer in psp.explain(psp.extract(net, x)).layers}
    assert why["block.linear1"].startswith(
        "stored without zeros, and computed without channels that are all zeros: the code of"
    )
    assert psp.cost(psp.extract(net, x), x).macs < psp.cost(psp.fold(net), x).macs


def test_a_pruned_filter_that_leaves_its_bias_before_padding_is_explained():
    """A constant map is none any more where the next convolution pads it with zeros."""

    def made(bias, padding, before=()):
        torch.manual_seed(0)
        first, second = nn.Conv2d(3, 8, 3, padding=1, bias=bias), nn.Conv2d(8, 8, 3, padding=padding)
        net = nn.Sequential(first, nn.ReLU(), *before, second, nn.Flatten(), nn.LazyLinear(3))
        net(maps(2).float())
        if bias:
            nn.init.constant_(first.bias, 0.3)
        return psp.explain(psp.extract(prune_channels(net.double().eval(), **{"0": [1, 2, 5]}), maps(2))).layers[0]

    assert made(True, 1).why == "what it prunes leaves its bias, a constant that ends where layer '2' pads with zeros"
    beside = made(True, 0, [nn.ZeroPad2d((2, 0, 0, 0))])
    assert beside.why.endswith("what it prunes leaves its bias, a constant that ends where layer '2' pads with zeros")
    assert [layer.left for layer in (made(False, 1), made(True, 0))] == [5 * 27] * 2


def test_the_way_to_a_border_is_looked_at_once_however_many_ways_there_are():
    """Forty sums of a map and its ReLU, one behind the other, are 2⁴⁰ ways through the graph."""

    def forward(self, x):
        h = self.a(x)
        for _ in range(40):
            h = h + h.relu()
        return self.b(h)

    torch.manual_seed(0)
    net = Call(forward, a=nn.Conv2d(3, 8, 3, padding=1), b=nn.Conv2d(8, 4, 3, padding=1))
    nn.init.constant_(net.a.bias, 0.3)
    smaller = psp.extract(prune_channels(net.double().eval(), a=[1, 2, 5]), maps(2))
    assert psp.explain(smaller).layers[0].why.endswith("a constant that ends where layer 'b' pads with zeros")


def test_what_is_tied_stays_tied():
    """Embedding and classifier share their weight, as in language models."""

    def forward(self, tokens):
        return self.out(self.b(self.a(self.words(tokens)).relu()))

    torch.manual_seed(0)
    layers = {"a": nn.Linear(8, 16), "b": nn.Linear(16, 8), "out": nn.Linear(8, 50, bias=False)}
    net = Call(forward, words=nn.Embedding(50, 8), **layers)
    net.out.weight = net.words.weight
    net, tokens = prune_channels(net.double().eval(), a=[1, 2, 5]), torch.randint(50, (2, 7))
    smaller = psp.extract(net, tokens)
    assert smaller.out.weight is smaller.words.weight
    assert psp.cost(smaller, tokens).params == psp.cost(net, tokens).params - 3 - 3 * 8
    torch.testing.assert_close(smaller(tokens), net(tokens))
    assert smaller.float().out.weight is smaller.words.weight


def test_a_tied_weight_is_counted_once_and_has_no_other_layer_stored_apart():
    """Of few pruned columns a convolution keeps its zeros, where more goes elsewhere: inputs of the second layer."""

    def forward(self, tokens):
        h = self.b(self.a(self.words(tokens)).relu())
        return self.out(self.conv(h.transpose(1, 2)).transpose(1, 2))

    torch.manual_seed(0)
    layers = {"a": nn.Linear(8, 16), "b": nn.Linear(16, 8), "conv": nn.Conv1d(8, 8, 3, padding=1)}
    net = Call(forward, words=nn.Embedding(2000, 8), out=nn.Linear(8, 2000, bias=False), **layers).double()
    net.out.weight = net.words.weight
    alphas = psp.structure_parameters(psp.parameterize(net, {"a": "channel", "conv": "column"}).eval())
    for name, pruned in {"a": [1, 2, 5], "conv": [1, 7]}.items():
        alphas[name].data.view(-1)[pruned] = 0.0
    smaller = psp.extract(net, torch.randint(2000, (2, 7)))
    assert smaller.out.weight is smaller.words.weight
    assert type(smaller.conv) is nn.Conv1d


def test_only_results_of_extract_are_explained():
    other = nn.Linear(2, 2)
    other.meta = "of its own"
    with pytest.raises(ExtractError, match="Linear is no result of"):
        psp.explain(other)
    with pytest.raises(ExtractError, match="Linear is no result of"):
        psp.explain(nn.Linear(2, 2))


@pytest.mark.parametrize("kind", [nn.Linear, nn.Conv2d, nn.ConvTranspose2d, Standardized])
def test_a_spread_layer_is_the_layer(kind):
    torch.manual_seed(0)
    layer = kind(6, 8) if kind is nn.Linear else kind(6, 8, 3)
    layer.weight.data[2] = 0.0
    layer.weight.data[:, 1] = 0.0
    x = torch.randn(2, 6) if kind is nn.Linear else torch.randn(2, 6, 5, 5)
    stored = spread(layer)
    file = io.BytesIO()
    torch.save(stored, file)
    file.seek(0)
    for twin in (stored, copy.deepcopy(stored), torch.load(file, weights_only=False)):
        assert isinstance(twin, kind)
        torch.testing.assert_close(twin(x), layer(x))
        torch.testing.assert_close(twin(x[0]), layer(x[0]))
        twin.double()
        assert twin.weight.dtype == torch.float64
        twin.float()
    assert size(stored) < size(layer)
    stored(x).sum().backward()
    assert stored.outputs_first.left.grad.shape == stored.outputs_first.left.shape
    assert "weight" in layer._parameters, "the layer itself is as it was"


@pytest.mark.parametrize(("kind", "taps"), [(nn.Linear, 1), (nn.Conv1d, 3), (nn.Conv2d, 9), (nn.Conv3d, 27)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_spread_layer_computes_its_nonzero_outputs_from_the_inputs_that_they_read(kind, taps, bias):
    torch.manual_seed(0)
    layer = kind(6, 8, bias=bias) if kind is nn.Linear else kind(6, 8, 3, bias=bias)
    x = torch.randn(2, 6, *[3] * (layer.weight.ndim - 2))
    layer.weight.data[[2, 5, 7]] = 0.0
    layer.weight.data[:, 1] = 0.0
    stored = spread(layer)
    torch.testing.assert_close(stored(x), layer(x))
    assert psp.cost(stored, x).macs == 2 * 5 * 5 * taps
    layer.weight.data.zero_()
    assert torch.equal(spread(layer)(x), layer(x)), "of nothing but zeros"


class Sequences(nn.Module):
    """Features, a recurrent layer and the last step's output."""

    def __init__(self, kind, **options):
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.steps = nn.Linear(6, 10), kind(10, 5, batch_first=True, **options)
        self.out = nn.Linear(10 if "bidirectional" in options else 5, 3)

    def forward(self, x):
        return self.out(self.steps(self.fc(x).sigmoid())[0][:, -1])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"num_layers": 2}], ids=str)
@pytest.mark.parametrize("more", [{}, {"nonlinearity": "relu"}], ids=str)
def test_a_recurrent_layer_loses_the_features_that_nobody_feeds(kind, options, more):
    if more and kind is not nn.RNN:
        pytest.skip("of nn.RNN alone")
    net = prune_channels(Sequences(kind, **options, **more).double(), fc=[0, 2, 4, 6, 8])
    smaller = psp.extract(net, torch.randn(2, 7, 6, dtype=torch.float64))
    assert difference(net, smaller, torch.randn(3, 9, 6, dtype=torch.float64)) < 1e-13
    assert (smaller.fc.out_features, smaller.steps.input_size) == (5, 5)


@pytest.mark.parametrize("options", [{"bias": False}, {"proj_size": 2}], ids=str)
def test_other_recurrent_layers_are_exact(options):
    net = Sequences(nn.LSTM, **options)
    net.out = nn.Linear(options.get("proj_size", 5), 3)
    net = prune_channels(net.double(), fc=[0, 2])
    smaller = psp.extract(net, torch.randn(2, 7, 6, dtype=torch.float64))
    assert difference(net, smaller, torch.randn(3, 9, 6, dtype=torch.float64)) < 1e-13


def exportable(up="channel"):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2, 2)
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 64, 5))
    x = torch.randn(2, 3, 6, 6)
    return psp.extract(prune(net, {"0": "column", "2": "column", "4": up}, lambda *_: 0.5), x), x


@pytest.mark.parametrize("zeros", [smallest.ADDING, 1])
def test_export_writes_ordinary_operators(tmp_path, monkeypatch, zeros):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(smallest, "ADDING", zeros)
    smaller, x = exportable(up="channel" if zeros > 1 else "column")
    path = psp.export(smaller, tmp_path / "net.onnx", x)
    assert {node.domain for node in onnx.load(path).graph.node} == {""}
    assert "Conv" in {node.op_type for node in onnx.load(path).graph.node}


def test_a_file_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    smaller, x = exportable()
    earlier = tmp_path / "net.onnx"
    earlier.write_text("another")
    monkeypatch.setattr(exporting, "TOLERANCE", -1.0)
    with pytest.raises(ExtractError, match="onnxruntime gives other outputs"):
        psp.export(smaller, earlier, x)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["another"]


@pytest.mark.parametrize(
    "second",
    [
        pytest.param([torch.nan, -1.0, torch.nan, torch.inf], id="NaN for a number"),
        pytest.param([3.0, -1.0, 0.0, torch.inf], id="0 for NaN"),
        pytest.param([3.0, -1.0, torch.nan, torch.finfo(torch.float32).max], id="the largest number for infinity"),
        pytest.param([[3.0], [-1.0], [torch.nan], [torch.inf]], id="another shape, which would broadcast"),
    ],
)
def test_another_output_than_the_first_is_compared_too(tmp_path, monkeypatch, second):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")

    class Two(nn.Module):
        def forward(self, x):
            return x.relu(), x.sum(1)

    x = torch.tensor([[1.0, 2.0], [3.0, -4.0], [torch.nan, 0.0], [torch.inf, 0.0]])
    run = onnxruntime.InferenceSession.run
    wrong = torch.tensor(second).numpy()
    monkeypatch.setattr(onnxruntime.InferenceSession, "run", lambda *args: [run(*args)[0], wrong])
    with pytest.raises(ExtractError, match="onnxruntime gives other outputs than the network: they differ by"):
        psp.export(Two().eval(), tmp_path / "net.onnx", x)
    monkeypatch.undo()
    psp.export(Two().eval(), tmp_path / "net.onnx", x)


def test_a_network_of_several_inputs_is_written_with_all_of_them_in_their_order(tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")

    class Difference(nn.Module):
        def forward(self, image, rows):
            return image.relu() - 2 * rows

    inputs = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 1)
    path = psp.export(Difference().eval(), tmp_path / "net.onnx", inputs)
    assert [x.shape for x in onnxruntime.InferenceSession(path).get_inputs()] == [[2, 3, 4, 5], [2, 3, 4, 1]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_only_networks_in_float32_are_exported(dtype, tmp_path):
    with pytest.raises(ExtractError, match=rf"float32 on the CPU, and 'weight' is {dtype} on cpu: call network\.float"):
        psp.export(nn.Linear(3, 2, bias=False).to(dtype).eval(), tmp_path / "net.onnx", torch.zeros(1, 3, dtype=dtype))


@pytest.mark.parametrize("missing", ["onnxruntime", "onnxscript"])
def test_what_export_needs_is_named_before_anything_is_computed(missing, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ExtractError, match=f"psp.export needs {missing}: pip install onnx onnxscript onnxruntime"):
        psp.export(nn.Identity().eval(), tmp_path / "net.onnx", torch.zeros(1))


def test_masked_values_that_are_the_same_infinity_are_the_same(tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")

    class Masked(nn.Module):
        def forward(self, x):
            return x.relu(), torch.where(x > 0, x, -torch.inf)

    psp.export(Masked().eval(), tmp_path / "net.onnx", torch.randn(2, 3))


def test_a_network_in_training_mode_is_not_exported_and_stays_as_it_is(tmp_path):
    pytest.importorskip("onnxscript")
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    with pytest.raises(ExtractError, match="in training mode"):
        psp.export(net, tmp_path / "net.onnx", torch.randn(2, 3, 6, 6))
    assert net[1].num_batches_tracked == 0


def test_export_of_an_output_of_whole_numbers(tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")

    class Classes(nn.Module):
        def forward(self, x):
            return x.argmax(1), x.relu()

    psp.export(Classes().eval(), tmp_path / "net.onnx", torch.randn(2, 3))


def test_what_a_normalization_over_channels_has_put_back_is_said():
    """LayerNorm's mean and spread are of all channels, of constants, too: the first layer's are put back for it."""
    net = nn.Sequential(nn.Linear(8, 6), nn.LayerNorm(6), nn.Linear(6, 3)).double().eval()
    psp.parameterize(net, "channel", skip="2", place="weight")
    psp.structure_parameters(net)["0"].data[:3] = 0.0
    x = torch.randn(4, 8, dtype=torch.float64)
    smaller = psp.extract(net, x)
    torch.testing.assert_close(smaller(x), net(x))
    (layer,) = psp.explain(smaller).layers
    assert (layer.before, layer.left) == (48, 24)
    assert layer.why == "what it prunes is put back for layer '1', of whose channels none can go"
    nothing_between = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).double().eval()
    psp.parameterize(nothing_between, "channel", skip="2")
    psp.structure_parameters(nothing_between)["0"].data[:3] = 0.0
    assert psp.explain(psp.extract(nothing_between, x)).layers[0].why == ""


def test_reasons_name_what_is_in_the_way():
    """Of a layer that is gone but for a weight; of one that reflects; of groups that are pruned alike."""
    torch.manual_seed(0)
    gone = psp.parameterize(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)).double().eval(), "channel", skip="1")
    psp.structure_parameters(gone)["0"].data.zero_()
    gone[0].bias.data.zero_()
    assert psp.explain(psp.extract(gone, maps(2))).layers[0].why == ""

    def why(layer, structure):
        net = psp.parameterize(nn.Sequential(layer, nn.Conv2d(16, 4, 1)).double().eval(), structure, skip="1")
        psp.structure_parameters(net)["0"].data.view(-1, 3, 3)[:, 1:, 1:] = 0.0
        return psp.explain(psp.extract(net, maps(2, 16))).layers[0].why

    reflecting = nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect")
    assert why(reflecting, "column").endswith("with reflect padding it loses channels and no columns or taps")
    assert why(nn.Conv2d(16, 16, 3, padding=1, groups=16), "shape").endswith(
        "or a dense kernel is faster with its zeros"
    )


def test_what_is_left_of_nothing_is_explained_once_it_is_loaded(tmp_path):
    net = psp.parameterize(Call(lambda self, x: x + self.a(x), a=nn.Conv2d(3, 3, 1, bias=False)).eval(), "layer")
    psp.structure_parameters(net)["a"].data.zero_()
    smaller = psp.extract(net, torch.randn(2, 3, 5, 5))
    torch.save(smaller, tmp_path / "net.pt")
    loaded = torch.load(tmp_path / "net.pt", weights_only=False)
    assert psp.explain(loaded) == psp.explain(smaller)
    assert not list(loaded.parameters())
