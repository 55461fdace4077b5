"""Parameters and multiply-accumulates against published counts, torch's own counter and counts by hand."""

import pytest
import timm
import torch
import torchvision
from networks import Call
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.flop_counter import FlopCounterMode

import psp
from psp.errors import ExtractError
from psp.method.baselines import attach_norm_masks, fix_sparsity, prune_by_norm


@pytest.mark.parametrize(
    ("name", "params", "macs"),
    [
        # Option A shortcuts; 40.8 M is counted elsewhere with 1×1 convolutions as shortcuts (see below).
        ("resnet20", 0.27e6, 40.55e6),
        ("resnet56", 0.85e6, 125.5e6),
        ("densenet40", 1.02e6, None),
        ("densenet_bc100", 0.77e6, None),
    ],
)
def test_published_counts_for_cifar(name, params, macs):
    found = psp.cost(psp.create_model(name), torch.zeros(1, 3, 32, 32))
    assert found.params == pytest.approx(params, rel=0.005)
    assert macs is None or found.macs == pytest.approx(macs, rel=0.001)


def test_the_published_40_8_million_of_resnet20_count_projection_shortcuts():
    found = psp.cost(psp.create_model("resnet20"), torch.zeros(1, 3, 32, 32))
    projections = 16 * 32 * 16 * 16 + 32 * 64 * 8 * 8
    assert (found.macs + projections) / 1e6 == pytest.approx(40.8, abs=0.05)


@pytest.mark.parametrize(
    ("name", "params", "macs"),
    [("resnet18", 11.69e6, 1.81e9), ("resnet50", 25.56e6, 4.09e9), ("densenet121", 7.98e6, 2.83e9)],
)
def test_published_counts_for_ilsvrc(name, params, macs):
    with torch.device("meta"):
        model, image = torchvision.models.get_model(name), torch.zeros(1, 3, 224, 224)
    found = psp.cost(model, image)
    assert found.params == pytest.approx(params, rel=0.001)
    assert found.macs == pytest.approx(macs, rel=0.003)


def test_a_plain_network_costs_what_torchs_counter_says():
    net = torchvision.models.mobilenet_v3_small().eval()
    x = torch.zeros(2, 3, 64, 64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x)
    assert psp.cost(net, x).macs * 2 == counter.get_total_flops()


def small_net():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 5),
    )


def test_what_is_pruned_does_not_count_by_hand():
    """8×8 images: 16 output positions; 27 columns of 4 weights, of which 7 are pruned, and 2 of 5 neurons of 64."""
    net, x = small_net(), torch.zeros(1, 3, 8, 8)
    assert psp.cost(net, x) == (4 * 27 + 8 + 64 * 5 + 5, 4 * 27 * 16 + 64 * 5)
    psp.parameterize(net, {"0": "column", "4": "channel"})
    assert psp.cost(net, x) == (4 * 27 + 8 + 64 * 5 + 5, 4 * 27 * 16 + 64 * 5)
    alphas = psp.structure_parameters(net)
    alphas["0"].data.view(-1)[:7] = 0.0
    alphas["4"].data[:2] = 0.0
    assert psp.cost(net, x) == (4 * 20 + 8 + 64 * 3 + 5, 4 * 20 * 16 + 64 * 3)


def test_grouped_convolutions_and_batches():
    net = psp.parameterize(nn.Sequential(nn.Conv1d(4, 6, 3, groups=2, bias=False)), "channel")
    psp.structure_parameters(net)["0"].data[0] = 0.0
    assert psp.cost(net, torch.zeros(5, 4, 10)) == (5 * 2 * 3, 5 * (5 * 2 * 3) * 8)


def test_counting_changes_nothing():
    torch.manual_seed(0)
    net = psp.parameterize(small_net())
    net[1].eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    psp.cost(net, torch.randn(4, 3, 8, 8))
    assert net.training
    assert not net[1].training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert not net[0]._forward_hooks


def test_extracted_columns_cost_what_the_masked_network_says():
    """A convolution on its own: 27 columns of which 20 are left, for 5 filters at 36 positions."""
    net = psp.parameterize(nn.Sequential(nn.Conv2d(3, 5, 3, bias=False)), "column").eval()
    psp.structure_parameters(net)["0"].data.view(-1)[:7] = 0.0
    x = torch.randn(1, 3, 8, 8)
    assert psp.cost(net, x) == psp.cost(psp.extract(net, x), x) == (5 * 20, 5 * 20 * 36)


@pytest.mark.parametrize("structure", ["column", "channel", "shape"])
def test_the_sparsity_shows_in_the_cost_of_the_masked_and_of_the_extracted_network(structure):
    """60 % of the structures of every layer pruned: 40 % of the weights are left, and after extraction hardly more."""
    net = fix_sparsity(psp.create_model("resnet20"), structure, 0.6, skip=("conv1", "fc")).eval()
    for alpha in psp.structure_parameters(net).values():
        alpha.data.uniform_(0.5, 1.5)
    x = torch.randn(1, 3, 32, 32)
    dense = psp.cost(psp.create_model("resnet20"), x)
    stay = 3 * 16 * 9 * 1024 + 640
    masked, smaller = psp.cost(net, x), psp.cost(psp.extract(net, x), x)
    left = 1 - psp.sparsity(net).weights
    assert (masked.macs - stay) / (dense.macs - stay) == pytest.approx(left, abs=0.02)
    assert smaller.macs <= (1.1 if structure == "shape" else 1.0) * masked.macs  # see psp.extraction.smallest
    assert smaller.macs >= (0.9 if structure == "column" else 0.3) * masked.macs


def test_transformer_layers_are_counted_in_evaluation_mode_too():
    """For 5 tokens of 8 features, 2 heads: projections 4·8·8·5, products of tokens 2·5·5·8, feed-forward 2·8·16·5."""
    layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True)
    for mode in (True, False):
        assert psp.cost(layer.train(mode), torch.randn(1, 5, 8)).macs == 4 * 8 * 8 * 5 + 2 * 5 * 5 * 8 + 2 * 8 * 16 * 5
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_module_that_reads_a_view_of_a_parameter_is_counted():
    class Token(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.fc = nn.Parameter(torch.randn(1, 8)), nn.Linear(8, 4)

        def forward(self, x):
            return self.fc(self.token.expand(len(x), -1)) + self.fc(x)

    net = psp.parameterize(Token(), "channel", place="weight")
    net.fc.bias.requires_grad_(False)
    assert psp.cost(net, torch.randn(3, 8)) == (8 + 8 * 4 + 4, 2 * 3 * 8 * 4)
    assert [name for name, p in net.named_parameters() if not p.requires_grad] == ["fc.bias"]


def test_pooling_vision_transformers_of_timm_are_counted():
    net = timm.create_model("pit_ti_224", num_classes=10)
    assert psp.cost(net, torch.randn(1, 3, 224, 224)).macs == pytest.approx(0.7e9, rel=0.03)


def test_a_weight_that_two_layers_share_is_counted_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x))

    net = psp.parameterize(Tied())
    alphas = psp.structure_parameters(net)
    alphas["a"].data[:, :6] = 0.0
    alphas["b"].data[:, 2:] = 0.0
    assert psp.cost(net, torch.randn(1, 8)) == (8 * (8 - 4), 2 * 8 * 2), "columns 2 to 5 are zero in both"


def test_weight_norm_below_structures():
    net = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 3, bias=False)))
    psp.parameterize(net)
    psp.structure_parameters(net)["0"].data[:, 0] = 0.0
    assert psp.sparsity(net) == (0.25, 0.25, {"0": (0.25, 0.25, 4)})
    assert psp.cost(net, torch.zeros(1, 4)) == (3 + 12 - 3, 9)
    prune_by_norm(attach_norm_masks(nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 3)))), 0.5)


def test_several_arguments_which_stay_as_they_are():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x, y):
            return self.fc(x.relu_() + y)

    x = -torch.ones(2, 4)
    assert psp.cost(Two(), (x, torch.ones(2, 4))) == (15, 24)
    assert torch.equal(x, -torch.ones(2, 4))


def test_a_weight_that_a_layer_without_parameters_shares_is_not_gone():
    net = nn.ModuleDict({"a": nn.Linear(4, 4, bias=False), "b": nn.Linear(4, 4, bias=False)})
    net["b"].weight = net["a"].weight
    net.forward = lambda x: net["b"](net["a"](x))
    psp.parameterize(net, skip=["b"])
    psp.structure_parameters(net)["a"].data[0, :2] = 0.0
    assert psp.cost(net, torch.randn(1, 4)) == (16, 8 + 16)


def test_a_shape_is_no_example():
    with pytest.raises(ExtractError, match=r"example_input is a tensor and not its shape: torch\.zeros\(1, 3, 8, 8\)"):
        psp.cost(nn.Conv2d(3, 4, 3), (1, 3, 8, 8))
    with pytest.raises(ExtractError, match=r"torch\.zeros\(1, 3\)"):
        psp.cost(nn.Linear(3, 4), [1, 3])
    rows = Call(lambda self, count: self.a(torch.ones(count, 3)), a=nn.Linear(3, 4))
    assert psp.cost(rows, (5,)).macs == 5 * 12


def test_a_layer_called_by_keyword_counts_as_any_other():
    """A transposed one: each of 25 pixels of 4 channels meets 6 outputs of 4 taps; 2 of the channels are pruned."""
    net = Call(lambda net, x: net.up(input=x), up=nn.ConvTranspose2d(4, 6, 2, 2, bias=False))
    psp.parameterize(net, "input_channel")
    psp.structure_parameters(net)["up"].data.view(-1)[:2] = 0.0
    assert psp.cost(net, torch.zeros(1, 4, 5, 5)).macs == 25 * 2 * 6 * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_lstm_by_hand(dtype):
    """Four gates of H×(C+H) for each step, in whatever type: of float32 torch has a kernel that its counter misses."""
    net = nn.LSTM(6, 8, batch_first=True).to(dtype)
    enabled = torch.backends.mkldnn.enabled
    assert psp.cost(net, torch.zeros(1, 5, 6, dtype=dtype)).macs == 5 * 4 * 8 * (6 + 8)
    assert torch.backends.mkldnn.enabled == enabled
