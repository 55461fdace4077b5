"""Pruning to a prescribed sparsity: ℓ1 norm and PSP with fixed sparsity."""

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import nn

import psp
from psp.errors import ConfigError
from psp.method.baselines import attach_norm_masks, fix_sparsity, largest, prune_by_norm
from psp.method.pruners import parametrizations
from psp.method.structures import ALPHA_SHAPE

SHARED = sorted(set(ALPHA_SHAPE) - {"layer"})  # those of which a layer has several
SETTINGS = hypothesis.settings(deadline=None, max_examples=50)


@SETTINGS
@hypothesis.given(scores=st.lists(st.integers(0, 5), min_size=1, max_size=30), sparsity=st.floats(0, 1))
def test_largest_keeps_the_prescribed_number_and_the_greatest(scores, sparsity):
    kept = largest(torch.tensor(scores, dtype=torch.float32), sparsity)
    assert int((~kept).sum()) == round(sparsity * len(scores))
    inside = [s for s, k in zip(scores, kept.tolist(), strict=True) if k]
    outside = [s for s, k in zip(scores, kept.tolist(), strict=True) if not k]
    assert not inside or not outside or min(inside) >= max(outside)


def test_fixed_sparsity_prunes_the_smallest_alpha_and_lets_them_change():
    net = fix_sparsity(nn.Sequential(nn.Linear(4, 3)), sparsity=0.5)
    alpha = psp.structure_parameters(net)["0"]
    for values, zero in (([4.0, -3.0, 2.0, 1.0], [2, 3]), ([0.1, -3.0, 2.0, 0.2], [0, 3])):
        alpha.data.copy_(torch.tensor([values]))
        columns = net[0].weight.detach().abs().sum(0)
        assert (columns == 0).nonzero().flatten().tolist() == zero
        assert psp.sparsity(net).structures == 0.5
    net(torch.ones(1, 4)).sum().backward()
    assert (alpha.grad != 0).all(), "a pruned structure must receive a gradient"


@pytest.mark.parametrize("structure", SHARED)
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 1.0])
def test_every_layer_reaches_the_prescribed_sparsity(structure, sparsity):
    net = fix_sparsity(psp.create_model("resnet20"), structure, sparsity, skip=("conv1", "fc"))
    for layer in psp.sparsity(net).layers.values():
        assert layer.structures * layer.count == pytest.approx(round(sparsity * layer.count))


def test_norm_masks_close_on_the_columns_of_smallest_l1_norm():
    net = attach_norm_masks(nn.Sequential(nn.Linear(4, 2, bias=False)))
    original = net[0].parametrizations.weight.original
    original.data = torch.tensor([[1.0, -5.0, 0.5, 2.0], [1.0, 0.0, 0.6, -2.0]])  # ℓ1 norms 2, 5, 1.1, 4
    assert psp.sparsity(net).structures == 0.0
    assert torch.equal(net[0].weight, original)
    prune_by_norm(net, 0.5)
    assert net[0].weight.tolist() == [[0.0, -5.0, 0.0, 2.0], [0.0, 0.0, 0.0, -2.0]]
    assert psp.sparsity(net).structures == 0.5
    net(torch.ones(1, 4)).sum().backward()
    assert original.grad.tolist() == [[0.0, 1.0, 0.0, 1.0]] * 2, "a masked column trains no more"


@pytest.mark.parametrize("structure", SHARED)
def test_norms_of_every_structure_by_numpy(structure):
    torch.manual_seed(0)
    net = prune_by_norm(attach_norm_masks(nn.Sequential(nn.Conv2d(3, 4, 3)), structure), 0.4)
    weight = net[0].parametrizations.weight.original.detach().abs().numpy()
    axes = {"weight": (), "column": (0,), "channel": (1, 2, 3), "input_channel": (0, 2, 3), "shape": (0, 1)}[structure]
    norms = torch.from_numpy(weight.sum(axis=axes, keepdims=True) if axes else weight)
    kept = net[0].parametrizations.weight[0].kept()
    assert kept.shape == norms.shape
    assert norms[kept].min() > norms[~kept].max()


def test_norm_masks_travel_with_the_state():
    net = prune_by_norm(attach_norm_masks(nn.Sequential(nn.Linear(4, 2))), 0.5)
    other = attach_norm_masks(nn.Sequential(nn.Linear(4, 2)))
    other.load_state_dict(net.state_dict())
    assert torch.equal(other[0].weight, net[0].weight)


@pytest.mark.parametrize("sparsity", [-0.1, 1.1, float("nan"), "0.5", None])
def test_a_sparsity_outside_its_range(sparsity):
    net = attach_norm_masks(nn.Sequential(nn.Linear(4, 2)))
    with pytest.raises(ConfigError, match="sparsity must lie in 0…1"):
        prune_by_norm(net, sparsity)
    with pytest.raises(ConfigError, match="sparsity must lie in 0…1"):
        fix_sparsity(nn.Sequential(nn.Linear(4, 2)), sparsity=sparsity)


@pytest.mark.parametrize("init", [float("nan"), "1"])
def test_an_initial_alpha_that_is_no_number(init):
    with pytest.raises(ConfigError, match=f"init α must be a finite number, got {init!r}"):
        fix_sparsity(nn.Sequential(nn.Linear(4, 2)), init=init)


@pytest.mark.parametrize("structure", ["layer", {"*": "column", "layer3.*": "layer"}])
def test_no_share_of_a_layer_can_be_fixed(structure):
    net = psp.create_model("resnet20")
    with pytest.raises(ConfigError, match="structure 'layer' has no sparsity per layer"):
        fix_sparsity(net, structure, skip=("conv1", "fc"))
    assert not parametrizations(net)


def test_whole_layers_are_ranked_over_the_network_by_their_mean():
    class Around(nn.Module):
        def __init__(self, *layers):
            super().__init__()
            self.branch = nn.Sequential(*layers)

        def forward(self, x):
            return x + self.branch(x)

    sizes = {"0.branch.0": (2, 4, 1.0), "0.branch.1": (4, 2, 3.0), "1.branch.0": (2, 2, 1.5), "2": (2, 1, 9.0)}
    layers = [nn.Linear(n, m, bias=False) for n, m, _ in sizes.values()]
    net = nn.Sequential(Around(layers[0], layers[1]), Around(layers[2]), layers[3])
    for name, (_, _, value) in sizes.items():  # sums of the whole layers: 8, 24, 6; the first has the smallest mean
        net.get_submodule(name).weight.data.fill_(value)
    attach_norm_masks(net, {"*": "layer", "2": "column"})
    prune_by_norm(net, 0.4)  # of three whole layers one, of the last one's two columns one
    assert {name: layer.structures for name, layer in psp.sparsity(net).layers.items()} == {
        "0.branch.0": 1.0,
        "0.branch.1": 0.0,
        "1.branch.0": 0.0,
        "2": 0.5,
    }


def test_layers_of_one_branch_are_ranked_as_one_and_leave_together():
    """By the mean over all weights of a branch: 2304 of conv1 at 3 and of conv2 at 1 are as 4608 at 2."""
    net = attach_norm_masks(psp.create_model("resnet20"), {"layer1.*": "layer", "layer2.0.*": "column"})
    for block, (first, second) in enumerate([(3.0, 1.0), (1.5, 1.5), (4.0, 0.5)]):
        for conv, value in (("conv1", first), ("conv2", second)):
            net.get_submodule(f"layer1.{block}.{conv}").parametrizations.weight.original.data.fill_(value)
    prune_by_norm(net, 0.34)
    layers = psp.sparsity(net).layers
    assert [name for name in layers if layers[name].structures == 1] == ["layer1.1.conv1", "layer1.1.conv2"]


@pytest.mark.parametrize("prescribe", [attach_norm_masks, fix_sparsity])
def test_a_single_kernel_position_is_a_whole_layer(prescribe):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1))
    with pytest.raises(ConfigError, match="layer '1': structure 'shape' of a weight 4×8×1×1 is the whole layer"):
        prescribe(net, "shape")
    assert not parametrizations(net)
    assert list(parametrizations(prescribe(net, "shape", skip="1"))) == ["0"]


def test_a_branch_of_a_convolution_and_a_linear_layer_shares_its_mask():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.first = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.LayerNorm(4)
            self.linear, self.second = nn.Linear(4, 4, bias=False), nn.LayerNorm(4)

        def forward(self, x):
            tokens = self.first(self.conv(x).permute(0, 2, 3, 1)).relu()
            return x + self.second(self.linear(tokens)).permute(0, 3, 1, 2)

    net = prune_by_norm(attach_norm_masks(Tokens(), "layer"), 1.0)
    assert psp.sparsity(net).structures == 1
    assert net.linear.weight.abs().max() == net.conv.weight.abs().max() == 0
