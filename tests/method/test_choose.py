"""Which layers get which structure, and where a bypass exists."""

import copy
import warnings
from types import MappingProxyType

import pytest
import torch
import torchvision
from networks import Call
from torch import nn

import psp
from psp.errors import ConfigError
from psp.method.bypass import without_bypass
from psp.method.choose import choose_structures
from psp.method.pruners import parametrizations


def structures(model):
    return {name: pruner.structure for name, (_, pruner) in parametrizations(model).items()}


class Net(nn.Module):
    """a → (b, c in parallel) → d, with an input size that d's reshape asks for."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.d = nn.Linear(3, 2)

    def forward(self, x):
        y = self.a(x)
        y = self.b(y) + self.c(y)
        return self.d(y.mean((2, 3)).reshape(x.size(0), x.shape[1]))


def test_a_mapping_gives_layers_their_structures_and_the_last_match_counts():
    net = psp.parameterize(
        psp.create_model("resnet20"), {"*": "channel", "layer1.*": "column", "layer1.0.conv1": "weight", "fc": None}
    )
    found = structures(net)
    assert "fc" not in found
    assert found["conv1"] == "channel"
    assert found["layer1.0.conv1"] == "weight"
    assert found["layer1.0.conv2"] == "column"
    assert found["layer3.2.conv2"] == "channel"
    assert len(found) == 19


def test_what_no_pattern_of_a_mapping_matches_stays_as_it_is():
    assert structures(psp.parameterize(Net(), {"b": "shape"}, skip=())) == {"b": "shape"}


@pytest.mark.parametrize(
    ("structure", "skip", "message"),
    [
        ({"layer9.*": "column"}, (), "structure pattern 'layer9.*' matches no layer; the layers are: a, b, c, d"),
        ({"a": "column"}, ("e",), "skip pattern 'e' matches no layer"),
        ({"fc": None, "*": "column"}, (), "pattern 'fc' matches no layer"),
        ({"a": "column", "*": "channel"}, (), "pattern 'a' decides nothing: later ones match all of its layers"),
        ({"*": "row"}, (), "unknown structure 'row'"),
        ({"a": None}, (), "no convolution or linear layer left"),
        ("layer", (), "nothing leads around a, c, d once"),
        ("layer", ("a", "d"), "nothing leads around c once"),
    ],
)
def test_bad_choices_leave_the_model_alone(structure, skip, message):
    net = Net()
    with pytest.raises(ConfigError, match=message):
        psp.parameterize(net, structure, skip=skip)
    assert not parametrizations(net)


def test_a_layer_with_a_bypass_is_accepted():
    assert structures(psp.parameterize(Net(), {"b": "layer", "d": "column"})) == {"b": "layer", "d": "column"}


@pytest.mark.parametrize(
    ("make", "blocking"),
    [
        (lambda: psp.create_model("resnet20"), ["conv1", "fc"]),
        (lambda: psp.create_model("densenet16"), ["conv1", "transition1.2", "transition2.2", "fc"]),
        (lambda: psp.create_model("densenet40"), ["conv1", "transition1.2", "transition2.2", "fc"]),
        (
            torchvision.models.resnet18,
            ["conv1", *(f"layer{stage}.0.downsample.0" for stage in (2, 3, 4)), "fc"],
        ),
        (
            torchvision.models.densenet121,
            ["features.conv0", *(f"features.transition{i}.conv" for i in (1, 2, 3)), "classifier"],
        ),
    ],
)
def test_residual_and_dense_layers_have_a_bypass(make, blocking):
    with torch.device("meta"):
        model = make()
    names = list(choose_structures(model, "weight"))
    assert without_bypass(model, names) == blocking


def test_with_every_layer_behind_a_bypass_pruned_the_input_still_decides():
    torch.manual_seed(0)
    net = psp.parameterize(psp.create_model("resnet20"), "layer", skip=("conv1", "fc")).eval()
    for alpha in psp.structure_parameters(net).values():
        alpha.data.zero_()
    assert psp.sparsity(net).structures == 1.0
    x = torch.randn(2, 3, 32, 32)
    assert not torch.allclose(net(x)[0], net(x)[1])


@pytest.mark.parametrize("bias", [False, True])
def test_a_gate_is_no_bypass_around_what_it_multiplies(bias):
    """0 times a gate is 0 for any image; without weights, a layer with a bias still lets the gate through."""
    net = Call(lambda self, x: self.a(x) * self.g(x).sigmoid(), a=nn.Conv2d(3, 4, 1, bias=bias), g=nn.Conv2d(3, 4, 1))
    assert without_bypass(net, ["a"]) == ([] if bias else ["a"])
    psp.parameterize(net, {"g": "layer"})


def test_a_gate_is_no_bypass_around_a_normalization_that_alpha_makes_zero():
    def forward(self, x):
        return self.head((self.bn(self.a(x)) * self.g(x).sigmoid()).mean((2, 3)))

    layers = {"a": nn.Conv2d(3, 4, 1, bias=False), "g": nn.Conv2d(3, 4, 1), "bn": nn.BatchNorm2d(4)}
    net = Call(forward, **layers, head=nn.Linear(4, 2))
    with pytest.raises(ConfigError, match="nothing leads around a once"):
        psp.parameterize(net, {"a": "layer"})
    assert not parametrizations(net)
    psp.parameterize(net, {"g": "layer"})


def test_attention_is_called_by_its_block_and_needs_a_bypass_for_its_projection():
    attention = nn.MultiheadAttention(4, 2)
    assert without_bypass(Call(lambda self, x: self.m(x, x, x)[0], m=attention), ["m.out_proj"]) == ["m.out_proj"]
    assert without_bypass(Call(lambda self, x: x + self.m(x, x, x)[0], m=attention), ["m.out_proj"]) == []


def test_a_weight_that_is_used_without_its_layer_needs_a_bypass_too():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.c = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return nn.functional.conv2d(x, self.c.weight)

    with pytest.raises(ConfigError, match="nothing leads around c "):
        psp.parameterize(Functional(), "layer")


def test_one_pattern_may_be_a_string_and_rules_any_mapping():
    assert structures(psp.parameterize(Net(), MappingProxyType({"*": "column"}), skip="b")).keys() == {"a", "c", "d"}


def test_a_layer_without_a_shape_is_named():
    with pytest.raises(ConfigError, match="layer '0' has no shape yet"):
        psp.parameterize(nn.Sequential(nn.LazyConv2d(4, 3)))


def test_a_network_that_cannot_be_traced_is_refused_for_layers_only():
    class Dynamic(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(2, 2)

        def forward(self, x):
            return self.a(x) + x if x.sum() > 0 else x

    with pytest.raises(ConfigError, match=r"has to see the branches .* torch\.fx cannot trace Dynamic"):
        psp.parameterize(Dynamic(), "layer")
    assert structures(psp.parameterize(Dynamic(), "column")) == {"a": "column"}


@pytest.mark.parametrize("structure", ["column", "channel", "shape"])
def test_any_torchvision_network(structure):
    with torch.device("meta"):
        net = torchvision.models.mobilenet_v3_small()
    layers = [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert list(structures(psp.parameterize(net, structure)).values()) == [structure] * len(layers)
    assert len(layers) == 54


def test_what_extract_left_of_columns_is_said_to_stay():
    torch.manual_seed(0)
    net = psp.parameterize(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)), "column")
    psp.structure_parameters(net)["2"].data.view(-1)[::2] = 0.0
    smaller = psp.extract(net.eval(), torch.zeros(1, 3, 8, 8))
    with pytest.warns(UserWarning, match="2 have nothing but weights that were kept, and stay as they are"):
        psp.parameterize(smaller, "column")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        psp.parameterize(copy.deepcopy(psp.fold(smaller)), "column", skip="2")
    only = nn.Sequential(smaller.get_submodule("2"))
    with pytest.warns(UserWarning, match="go on from the network"), pytest.raises(ConfigError, match="left to param"):
        psp.parameterize(only, "column")
