"""psp.extract on networks as people write them: loops over parts, questions about sizes, outputs of any form."""

import logging
import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from networks import Call, difference, prune_channels
from torch import nn
from torch.nn import functional as F

import psp
from psp.errors import ExtractError, KernelError


def images(side=8, batch=2):
    return torch.randn(batch, 3, side, side, dtype=torch.float64)


def exact(net, smaller):
    """Exact on the example's size and on another one."""
    return all(difference(net, smaller, x) < 1e-13 for x in (images(), images(11, 3)))


class Split(nn.Module):
    """The block of the YOLO family: halves, of which the second goes on, and all of them joined."""

    def __init__(self, parts=lambda x: list(x.chunk(2, 1))):
        super().__init__()
        torch.manual_seed(0)
        self.parts = parts
        self.cv1, self.cv2 = nn.Conv2d(3, 16, 1), nn.Conv2d(32, 5, 1)
        self.m = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))

    def forward(self, x):
        y = self.parts(self.cv1(x))
        for m in self.m:
            y.append(m(y[-1]))
        return self.cv2(torch.cat(y, 1))


def by_loop(x):
    return [part * (i + 1) for i, part in enumerate(x.split(8, 1))]


def by_zip(x):
    return [a + b for a, b in zip(x.split(8, 1), torch.chunk(x.relu(), 2, dim=1), strict=True)]


def by_length(x):
    return [x[:, :8] * len(x.chunk(2, 1)), x.split((8, 8), dim=1)[-1]]


def by_size(x):
    return list(x.chunk(2, 1)) if x.shape[-1] > 3 and int(x.shape[1]) == 16 else [x]


@pytest.mark.parametrize("parts", [lambda x: list(x.chunk(2, 1)), by_loop, by_zip, by_length, by_size])
def test_lists_and_loops_over_parts(parts):
    net = prune_channels(Split(parts).double(), m__0=[0, 1, 2], cv1=[1, 9, 10])
    smaller = psp.extract(net, images())
    assert exact(net, smaller)
    assert smaller.get_submodule("m.0").out_channels == 6, "five live channels and one constant for the border"


@pytest.mark.parametrize("parts", [lambda x: list(x.chunk(2, 1)), by_loop])
def test_pruned_channels_go_through_the_parts_of_a_tensor(parts):
    net = prune_channels(Split(parts).double(), cv1=[1, 2, 9, 10])
    net.cv1.bias.data.zero_()
    smaller = psp.extract(net, images())
    assert exact(net, smaller)
    assert (smaller.cv1.out_channels, smaller.get_submodule("m.0").in_channels) == (12, 6)


class BySize(nn.Module):
    """Does something else with images of more than 10 pixels."""

    def __init__(self):
        super().__init__()
        self.c, self.d = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = self.c(x)
        x = x * 2 if x.shape[-1] > 10 else x + 1
        return self.d(x)


def test_what_the_example_decides_in_the_outermost_code_is_good_for_its_size_alone():
    torch.manual_seed(0)
    net = prune_channels(BySize().double(), c=[0, 3])
    smaller = psp.extract(net, images())
    assert difference(net, smaller, images(batch=5)) < 1e-13
    assert smaller.c.out_channels == 6
    assert "(3, 8, 8)" in psp.explain(smaller).sizes
    with pytest.raises(ExtractError, match=r"extracted for inputs of \(3, 8, 8\), got \(3, 11, 11\); extract it again"):
        smaller(images(11))


def test_a_submodule_that_decides_by_size_stays_as_it_is_and_is_good_for_all_sizes():
    torch.manual_seed(0)
    net = prune_channels(nn.Sequential(nn.Conv2d(3, 3, 1), BySize()).double(), **{"0": [0]})
    smaller = psp.extract(net, images())
    assert exact(net, smaller)
    assert isinstance(smaller.get_submodule("1"), BySize)


def test_a_branch_on_the_data_is_refused_with_its_line():
    class ByData(BySize):
        def forward(self, x):
            return self.c(x) if x.sum() > 0 else -self.c(x)

    line = re.escape("test_written_code.py") + r":\d+, 'return self.c\(x\) if x.sum\(\) > 0 else -self.c\(x\)'"
    with pytest.raises(ExtractError, match=line):
        psp.extract(prune_channels(ByData().double(), c=[0]), images())


class AutoEncoder(nn.Module):
    """Its submodules have names that a GraphModule has attributes of."""

    def __init__(self):
        super().__init__()
        self.code, self.meta, self.graph = nn.Conv2d(3, 8, 3), nn.Sequential(nn.Conv2d(8, 6, 1)), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        return self.graph(self.meta(self.code(x).relu()))


def test_submodules_may_be_called_code_and_graph():
    torch.manual_seed(0)
    net = prune_channels(AutoEncoder().double(), code=[0, 3], meta__0=[1])
    smaller = psp.extract(net, images())
    assert exact(net, smaller)
    assert (smaller.code_.out_channels, smaller.graph_.in_channels) == (6, 5)
    assert [layer.left for layer in psp.explain(smaller).layers] == [6 * 27, 30, 10]
    assert list(dict(net.named_children())) == ["code", "meta", "graph"], "the caller's network stays as it is"


class Doubled(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, 2 * self.weight, self.bias)


@pytest.mark.parametrize("name", ["code", "graph", "meta", "_code", "inner"])
def test_a_convolution_in_a_submodule_of_any_name(name):
    torch.manual_seed(0)
    layers = OrderedDict([("first", nn.Conv2d(3, 6, 1)), (name, Doubled(6, 5, 3)), ("last", nn.Conv2d(5, 2, 1))])
    net = prune_channels(nn.Sequential(layers).double(), first=[0, 3], **{name: [1]})
    assert exact(net, psp.extract(net, images()))


@pytest.mark.parametrize("names", [("code", "code_"), ("code_", "code")])
def test_a_name_that_would_be_given_twice_is_refused(names):
    net = nn.Sequential(OrderedDict(zip(names, (nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)), strict=True)))
    with pytest.raises(
        ExtractError, match=r"torch\.fx needs the name 'code' in Sequential for itself: call it otherwise"
    ):
        psp.extract(prune_channels(net.double(), **{names[0]: [1]}), images())
    plain = nn.Sequential(OrderedDict(zip(names, (nn.Conv2d(3, 3, 1), nn.ReLU()), strict=True))).eval()
    with pytest.raises(KernelError, match="needs the name 'code'"):
        psp.freeze(plain, images().float())


@pytest.mark.parametrize("key", ["in", "3x3", "a-b", "graph"])
def test_layers_in_a_dictionary_of_any_key(key):
    class Keyed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleDict({key: nn.Conv2d(3, 6, 1), "out": nn.Conv2d(6, 2, 1)})

        def forward(self, x):
            return self.layers["out"](self.layers[key](x).relu())

    torch.manual_seed(0)
    net = prune_channels(Keyed().double(), **{f"layers__{key}": [0, 3]})
    smaller = psp.extract(net, images())
    assert exact(net, smaller)
    assert psp.explain(smaller).layers[0].left < 18


def test_a_keyword_that_would_be_given_twice_is_refused():
    net = nn.Sequential(OrderedDict([("if", nn.Conv2d(3, 3, 1)), ("if_", nn.Conv2d(3, 3, 1))]))
    with pytest.raises(ExtractError, match="Python needs the name 'if' in Sequential for itself: call it otherwise"):
        psp.extract(prune_channels(net.double(), **{"if": [1]}), images())


def test_a_parameter_that_would_get_the_name_of_another_is_refused():
    def forward(self, x):
        return self.a(x).relu() * self.scales["in"] + self.scales["in_"]

    scales = nn.ParameterDict({"in": nn.Parameter(torch.ones(1)), "in_": nn.Parameter(torch.full((1,), 3.0))})
    net = Call(forward, a=nn.Conv2d(3, 6, 1), scales=scales)
    with pytest.raises(KernelError, match=r"Python needs the name 'scales\.in' in Call for itself"):
        psp.freeze(net.eval(), images().float())


def test_a_question_behind_a_constant_of_forwards_own():
    def forward(self, x):
        y = x - torch.tensor([0.4, 0.5, 0.6], dtype=x.dtype).view(3, 1, 1)
        assert y.dim() == 4
        return self.b(self.a(y).relu())

    torch.manual_seed(0)
    net = prune_channels(Call(forward, a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(6, 2, 1)).double(), a=[0, 3])
    smaller = psp.extract(net, images())
    assert exact(net, smaller)
    assert smaller.a.out_channels < 6


def test_a_plain_tensor_on_a_layer_that_is_called():
    torch.manual_seed(0)
    net = Call(lambda self, x: self.b(self.a(x).relu()) * self.b.scale, a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(6, 2, 1))
    net.b.scale = torch.full((1,), 2.0, dtype=torch.float64)
    net = prune_channels(net.double(), a=[0, 3])
    assert exact(net, psp.extract(net, images()))


class Averages(nn.Module):
    """A running mean that is a new tensor after every call, and that nothing puts out."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x):
        y = self.a(x).relu()
        self.mean = 0.9 * self.mean + 0.1 * y.mean().detach()
        return self.b(y)


def test_a_state_that_forward_assigns_anew_stays_a_tensor():
    net = prune_channels(Averages().double(), a=[0, 3])
    assert exact(net, psp.extract(net, images()))
    assert isinstance(net.mean, torch.Tensor)


def test_a_buffer_with_a_name_of_the_graphs_is_refused():
    net = nn.Sequential(nn.Conv2d(3, 3, 1))
    net.register_buffer("graph", torch.zeros(1))
    with pytest.raises(ExtractError, match="needs the name 'graph'"):
        psp.extract(prune_channels(net.double(), **{"0": [1]}), images())


def test_an_out_that_is_none_is_no_write():
    torch.manual_seed(0)
    normalized = nn.Sequential(nn.Conv2d(3, 6, 1), Call(lambda x: F.normalize(x, dim=-1)), nn.Conv2d(6, 2, 1))
    net = prune_channels(normalized.double(), **{"0": [1, 2]})
    assert exact(net, psp.extract(net, images()))


def test_an_out_that_is_a_tensor_is_refused():
    net = nn.Sequential(nn.Conv2d(3, 6, 1), Call(lambda x: torch.add(x, x, out=x)), nn.Conv2d(6, 2, 1))
    with pytest.raises(ExtractError, match=r"'add' .*writes into a tensor"):
        psp.extract(prune_channels(net.double(), **{"0": [1, 2]}), images())


def test_nothing_but_our_own_words(caplog, capfd):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.Flatten(), nn.BatchNorm1d(144), nn.Linear(144, 3)
    net = prune_channels(nn.Sequential(*layers).double(), **{"0": [1]})
    logging.getLogger("torch").propagate = True
    assert difference(net, psp.extract(net, images()), images()) < 1e-13
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


@dataclass
class Detections:
    boxes: torch.Tensor
    maps: list
    scores: object = None


OUTPUTS = {
    "list": lambda a, b: [a, b],
    "dict of lists of tuples": lambda a, b: {"a": a, "rest": [b, (a, b)]},
    "ordered dict": lambda a, b: OrderedDict(out=a, aux=b),
    "named tuple": Pair,
    "dataclass": lambda a, b: Detections(b, [a, b]),
    "list of dataclasses": lambda a, b: [Detections(a, []), Detections(b, [], {"a": (a,)})],
}


class Outputs(nn.Module):
    """Two maps of different sizes, put out in a form."""

    def __init__(self, form):
        super().__init__()
        self.c, self.d, self.form = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3, stride=2), form

    def forward(self, x):
        x = self.c(x).relu()
        return self.form(x, self.d(x))


def flat(nest):
    """Every type, name and number of a nest of outputs."""
    if isinstance(nest, torch.Tensor):
        return [nest.shape, *nest.flatten().tolist()]
    if nest is None or isinstance(nest, str):
        return [nest]
    parts = vars(nest) if isinstance(nest, Detections) else nest
    parts = parts.items() if isinstance(parts, dict) else parts
    return [type(nest).__name__, *(value for part in parts for value in flat(part))]


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_of_any_form(name):
    torch.manual_seed(0)
    net = prune_channels(Outputs(OUTPUTS[name]).double(), d=[0, 3])
    smaller, x = psp.extract(net, images()), images(9, 1)
    got, expected = flat(smaller(x)), flat(net(x))
    assert smaller.d.out_channels == 2
    assert len(got) == len(expected)
    for ours, theirs in zip(got, expected, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-12) if isinstance(theirs, float) else ours == theirs


@pytest.mark.parametrize("name", ["dataclass", "list of dataclasses"])
def test_a_wrong_number_in_a_dataclass_is_found(name):
    """A network that counts its calls gives other outputs each time."""

    class Counting(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return x * self.calls if x.sum() > -1e30 else x

    def form(a, b):
        return OUTPUTS[name](a, b)

    net = Outputs(form)
    net.d = nn.Sequential(net.d, Counting())
    with pytest.raises(ExtractError, match="does not give the outputs of the masked one"):
        psp.extract(prune_channels(net.double(), c=[0]), images())


class Gained(nn.Conv2d):
    """A layer with a parameter beside its weight, which its code multiplies by."""

    def __init__(self, *settings):
        super().__init__(*settings)
        self.gain = nn.Parameter(torch.full((1,), 2.0))

    def forward(self, x):
        return self._conv_forward(x, self.weight, self.bias) * self.gain


class Adapted(nn.Linear):
    """Low-rank adaptation: a weight and a product of two more."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.down, self.up = nn.Parameter(torch.randn(2, inputs)), nn.Parameter(torch.randn(outputs, 2))

    def forward(self, x):
        return F.linear(x, self.weight, self.bias) + F.linear(F.linear(x, self.down), self.up)


def test_a_layer_with_parameters_beside_its_weight_keeps_them():
    torch.manual_seed(0)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), Adapted(4, 5))
    net = prune_channels(nn.Sequential(nn.Conv2d(3, 8, 3), Gained(8, 4, 3), head).double(), **{"0": [1, 3]})
    assert exact(net, psp.extract(net, images()))


def test_a_linear_layer_before_a_normalization_without_gamma():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6, affine=False), nn.ReLU(), nn.Linear(6, 3)).double()
    net[1].running_mean.normal_(), net[1].running_var.uniform_(0.5, 2.0)
    net = psp.parameterize(net.eval(), "column")
    psp.structure_parameters(net)["0"].data[0, 2:5] = 0.0
    x = torch.randn(4, 8, dtype=torch.float64)
    assert difference(net, psp.extract(net, x), x) < 1e-13


def test_an_output_that_is_true_or_false():
    torch.manual_seed(0)
    net = Call(lambda self, x: (self.a(x), self.a(x) > 0), a=nn.Conv2d(3, 4, 3))
    net = prune_channels(net.double(), a=[1])
    ours, theirs = psp.extract(net, images())(x := images()), net(x)
    assert torch.equal(ours[1], theirs[1])


def test_arguments_by_their_names():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(16, 4, 1)
            self.w = nn.Parameter(torch.randn(8, 8, 1, 1))

        def forward(self, x):
            x = self.a(x)
            return self.b(torch.cat(tensors=[x, F.conv2d(input=x, weight=self.w)], dim=1)), torch.stack(tensors=[x, x])

    torch.manual_seed(0)
    net = prune_channels(Named().double(), a=[1, 3])
    ours, theirs = psp.extract(net, images())(x := images()), net(x)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(ours, theirs, strict=True))


def test_complex_outputs():
    torch.manual_seed(0)
    net = prune_channels(Call(lambda self, x: torch.fft.rfft2(self.a(x)), a=nn.Conv2d(3, 4, 3)).double(), a=[1])
    assert torch.allclose(psp.extract(net, images())(x := images(11)), net(x), atol=1e-12)


def test_an_input_with_an_empty_axis():
    class Boxed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(3, 4, 3)

        def forward(self, x, boxes):
            return self.a(x), boxes * 2

    torch.manual_seed(0)
    net = prune_channels(Boxed().double(), a=[1])
    boxes = torch.zeros(2, 0, 4, dtype=torch.float64)
    smaller = psp.extract(net, (images(), boxes))
    assert psp.explain(smaller).sizes == "any size that the network takes"
    assert smaller(images(11), boxes)[1].shape == (2, 0, 4)


def by_type(self, x):
    """As an RMS normalization that knows how many digits its type has."""
    y = self.a(x)
    eps = 0.1 if y.dtype == torch.float32 else 1e-6
    return self.b(y * torch.rsqrt(y.square().mean(1, keepdim=True) + eps))


def test_code_that_is_another_for_another_type_is_refused_where_it_would_differ():
    torch.manual_seed(0)
    net = prune_channels(Call(by_type, a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 4, 3)), a=[0, 1, 2, 3])
    x = torch.randn(2, 3, 8, 8)
    with pytest.raises(ExtractError, match=r"computes something else in torch\.float32 on cpu than in float64"):
        psp.extract(net, x)
    assert difference(net.double(), psp.extract(net, x.double()), x.double()) < 1e-13


def test_groups_that_are_counted_by_the_code():
    """Blurred pooling, each channel by itself."""

    def blurred(self, x):
        y = self.a(x)
        return self.b(F.conv2d(y, self.kernel, stride=2, groups=y.shape[1]))

    torch.manual_seed(0)
    net = Call(blurred, a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 4, 3))
    net.register_buffer("kernel", torch.full((8, 1, 3, 3), 1 / 9))
    net = prune_channels(net.double(), a=[0, 1, 2], b=[1])
    x = torch.randn(2, 3, 12, 12).double()
    assert difference(net, psp.extract(net, x), x) < 1e-13


@pytest.mark.parametrize(
    ("forward", "remedy"),
    [
        (lambda self, x: self.a(x) + torch.ones(x.size(0), 8, 1, 1).double(), "as by x.new_zeros"),
        (lambda self, x: self.a(x) / torch.tensor(x.shape[1]), "as by x.new_zeros"),
        (lambda self, x: self.a(x) if x.sum() > 0 else x, "Move the code that depends on the data"),
    ],
)
def test_what_cannot_be_followed_says_what_to_do(forward, remedy):
    net = prune_channels(Call(forward, a=nn.Conv2d(3, 8, 3)).double(), a=[0])
    with pytest.raises(ExtractError, match=remedy):
        psp.extract(net, torch.randn(2, 3, 8, 8).double())


def test_writing_into_a_tensor_says_what_to_do():
    def writing(self, x):
        y = self.a(x)
        y[:, 0] = 0
        return y

    with pytest.raises(ExtractError, match="Make a new tensor instead of writing into one"):
        psp.extract(prune_channels(Call(writing, a=nn.Conv2d(3, 8, 3)), a=[1]), torch.randn(2, 3, 8, 8))
