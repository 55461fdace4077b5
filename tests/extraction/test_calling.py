"""psp.extract whatever surrounds the call: types and defaults of the caller, arguments and states of the network."""

import pytest
import torch
from networks import Call, difference, prune_channels
from torch import nn
from torch.nn import functional as F

import psp
from psp.errors import ExtractError


def images(side=8):
    return torch.randn(2, 3, side, side)


def layers():
    torch.manual_seed(0)
    return {"a": nn.Conv2d(3, 8, 3), "b": nn.Conv2d(8, 4, 3)}


class Starred(nn.Module):
    """It asks for a size, and takes more arguments than it uses."""

    def __init__(self):
        super().__init__()
        self.a, self.b = layers().values()

    def forward(self, x, *more, **options):
        if x.shape[-1] < 5:
            raise ValueError("too small")
        return self.b(self.a(x).relu())


def in_its_own_type(self, x):
    weight = next(self.parameters())
    return self.b(self.a(x.to(weight.device, weight.dtype)).relu())


def ending_in_its_own_type(self, x):
    return self.b(self.a(x).relu()).to(next(self.parameters()).dtype)


def test_arguments_with_stars_are_left_empty():
    net = prune_channels(Starred(), a=[1, 2, 5])
    assert difference(net, psp.extract(net, images()), images(11)) < 1e-6


@pytest.mark.parametrize("forward", [in_its_own_type, ending_in_its_own_type])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_the_code_asks_of_its_parameters_type_is_answered_for_the_one_they_have(forward, dtype):
    net = prune_channels(Call(forward, **layers()), a=[1, 2, 5]).to(dtype)
    smaller, x = psp.extract(net, images()), images().to(dtype)
    assert smaller(x).dtype == net(x).dtype == dtype
    assert difference(net, smaller, x) < (0.05 if dtype == torch.bfloat16 else 1e-6)


def more_exactly(self, x):
    return self.b(self.a(x)).to(torch.float64).logsumexp(1)


def test_a_type_that_the_code_names_is_that_type():
    net = prune_channels(Call(more_exactly, **layers()), a=[1, 2, 5])
    smaller, x = psp.extract(net, images()), images()
    assert smaller(x).dtype == torch.float64
    assert difference(net, smaller, x) < 1e-6


def test_where_the_two_cannot_be_told_apart_it_is_said():
    def forward(self, x):
        return in_its_own_type(self, x).to(torch.float64)

    net = prune_channels(Call(forward, **layers()), a=[1])
    with pytest.raises(ExtractError, match=r"in torch\.float32 on cpu: its forward names types or devices"):
        psp.extract(net, images())


def test_autocast_is_the_callers():
    net = prune_channels(Starred(), b=[0, 1, 2, 3])
    with torch.autocast("cpu", torch.bfloat16):
        assert all(p.dtype == torch.float32 for p in psp.extract(net, images()).parameters())


def with_half_the_bits(self, x):
    with torch.autocast("cpu", torch.bfloat16):
        return self.b(self.a(x).relu()).to(x.dtype)


def test_a_part_that_enters_autocast_stays_as_it_is():
    rounding = Call(with_half_the_bits, **layers())
    net = prune_channels(nn.Sequential(nn.Conv2d(3, 3, 1), rounding, nn.Conv2d(4, 2, 1)), **{"1.a": [1, 2, 5]})
    smaller, x = psp.extract(net, images()), images()
    assert difference(net, smaller, x) < 1e-6, "bfloat16 would be seen: it has 8 bits"
    assert smaller.get_submodule("1").a.out_channels == 8


def test_a_network_that_enters_autocast_itself_is_told_what_to_do():
    net = prune_channels(Call(with_half_the_bits, **layers()), a=[1, 2, 5])
    with pytest.raises(ExtractError, match=r"enters torch\.autocast.* Call the network within torch\.autocast"):
        psp.extract(net, images())


@pytest.mark.parametrize("around", [torch.inference_mode, lambda: torch.device("meta")])
def test_what_is_extracted_can_be_trained_whatever_the_caller_has_made_the_default(around):
    net, x = prune_channels(Starred(), a=[1, 2, 5]), images()
    with around():
        smaller = psp.extract(net, x)
    smaller(x).sum().backward()
    assert all(parameter.grad is not None for parameter in smaller.parameters())


def test_a_network_that_keeps_an_activation_is_named():
    net = prune_channels(Starred(), a=[1])
    net.kept = net(images())
    with pytest.raises(ExtractError, match=r"Starred cannot be copied .* remove that first"):
        psp.extract(net, images())


def by_a_function(self, x):
    return self.linear(F.linear(x, self.a.weight).relu())


def test_a_layer_that_is_called_as_an_operation_is_keeps_its_name():
    torch.manual_seed(0)
    net = Call(by_a_function, a=nn.Linear(8, 6, bias=False), linear=nn.Linear(6, 4))
    psp.parameterize(net, "column")
    psp.structure_parameters(net)["linear"].data[:, :3] = 0.0
    x = torch.randn(5, 8)
    assert difference(net.eval(), psp.extract(net, x), x) < 1e-6


def of_one_row(self, x):
    return F.linear(x, self.a.weight[0])


def test_a_function_whose_weight_is_one_row_stays_a_function():
    net = psp.parameterize(Call(of_one_row, a=nn.Linear(8, 6, bias=False)), "column").eval()
    x = torch.randn(5, 8)
    assert difference(net, psp.extract(net, x), x) < 1e-6


class ByItsNumbers(nn.Module):
    """What torch.fx cannot follow."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return x if x.sum() > 1e9 else self.conv(x)


def also_by_its_part(self, x):
    h = self.a(x)
    return self.inner(h) + self.inner.conv(h)


def test_a_layer_that_is_called_alone_and_within_something_opaque_stays_as_it_is():
    torch.manual_seed(0)
    net = psp.parameterize(Call(also_by_its_part, a=nn.Conv2d(3, 4, 3), inner=ByItsNumbers()), "column").eval()
    for alpha in psp.structure_parameters(net).values():
        alpha.data[:, :2] = 0.0
    assert difference(net, psp.extract(net, images()), images()) < 1e-6


class DividedByTheSide(nn.Module):
    """With a mask of the size of its images."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x, mask):
        return self.a(x) * mask[:, None] / int(x.shape[2]) ** 2


def test_where_no_other_size_can_be_tried_the_answer_is_for_the_examples_alone():
    net = prune_channels(DividedByTheSide(), a=[1, 2])
    smaller = psp.extract(net, (images(), torch.ones(2, 8, 8, dtype=torch.long)))
    assert psp.explain(smaller).sizes == "[(3, 8, 8), (8, 8)] only"
    with pytest.raises(ExtractError, match="extract it again with such an example"):
        smaller(images(16), torch.ones(2, 16, 16, dtype=torch.long))


def test_outputs_that_are_no_tensors(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    net = Call(lambda self, x: (self.a(x), None), a=nn.Conv2d(3, 2, 1)).eval()
    assert psp.export(net, tmp_path / "net.onnx", images()).is_file()
    net = Call(lambda self, x: (self.a(x), 3), a=nn.Conv2d(3, 2, 1)).eval()
    with pytest.raises(ExtractError, match="outputs are to be tensors, and the network's have 3 among them"):
        psp.export(net, tmp_path / "other.onnx", images())
