"""Where the α of channels and layers stand: the loss sees each of them, and the product with γ is the group lasso's."""

import copy

import pytest
import torch
from networks import Call, network, size
from sklearn.linear_model import Lasso
from torch import nn
from torch.nn import functional as F

import psp
from psp.errors import ConfigError
from psp.method.bypass import without_bypass
from psp.method.place import normalizations
from psp.method.pruners import parametrizations, scaled_normalizations
from psp.method.structures import ALPHA_SHAPE
from psp.method.tried import is_silenced_by_zeros

CASES = [("resnet20", structure) for structure in sorted(ALPHA_SHAPE)]
CASES += [(name, s) for name in ("densenet16", "resnet18") for s in ("channel", "input_channel", "layer", "shape")]
CASES += [("densenet_bc100", "layer")]
CASES += [("mobilenet_v3_small", s) for s in ("channel", "input_channel", "layer")]


def parameterize(net, structure, **options):
    layers = [name for name, module in net.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    skip = without_bypass(net, layers) if structure == "layer" else ()
    return psp.parameterize(net, structure, skip=skip, **options)


def with_small_epsilon(net):
    """`net` with normalizations that divide by no more than the spread; a small spread lets ε = 1e-5 be seen."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-12
    return net


def conv_net(relu=True):
    """Convolution, normalization, ReLU, convolution: channels of the first meet their normalization, the others not."""
    torch.manual_seed(0)
    between = nn.ReLU() if relu else nn.Identity()
    layers = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), between, nn.Conv2d(6, 4, 3), nn.Flatten()
    return nn.Sequential(*layers).double()


@torch.no_grad()
def change_of_outputs(net, x, alpha, index):
    """Relative change of the outputs in training mode when one α is halved."""
    before = net(x)
    alpha.view(-1)[index] *= 0.5
    after = net(x)
    alpha.view(-1)[index] *= 2
    return float((after - before).norm() / before.norm())


@pytest.mark.parametrize(("name", "structure"), CASES)
def test_the_loss_sees_every_alpha(name, structure):
    """One of each layer, in float64; what a rounding or the ε of a normalization lets through is far below."""
    net, x = network(name)
    net, x = with_small_epsilon(parameterize(net, structure).double().train()), x.double()
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    for layer, alpha in psp.structure_parameters(net).items():
        if ".fc" in layer:  # of a squeeze-and-excitation block: its hard sigmoid is flat where it saturates
            continue
        changes = [change_of_outputs(net, x, alpha, index) for index in range(min(2, alpha.numel()))]
        assert max(changes) > 1e-6, layer


@pytest.mark.parametrize("structure", ["channel", "layer"])
def test_on_weights_a_normalization_hides_them(structure):
    """The opposite of the above, and the reason for it."""
    net, x = network("resnet20")
    net = with_small_epsilon(psp.parameterize(net, structure, skip=["conv1", "fc"], place="weight").double().train())
    alphas = psp.structure_parameters(net).values()
    assert max(change_of_outputs(net, x.double(), alpha, 0) for alpha in alphas) < 1e-8
    assert scaled_normalizations(net) == {}


def test_where_alpha_stands_by_hand():
    net = psp.create_model("resnet20")
    structures = {"layer1.0.conv1": "channel", "layer1.0.conv2": "layer", "layer2.0.conv1": "column", "fc": "channel"}
    expected = {"layer1.0.conv1": [("layer1.0.bn1", 0, 16)], "layer1.0.conv2": [("layer1.0.bn2", 0, 16)]}
    assert normalizations(net, structures) == expected
    dense = normalizations(psp.create_model("densenet16"), {"block1.0.conv": "channel", "block1.1.conv": "layer"})
    after = ["block1.2.bn", "block1.3.bn", "transition1.0"]  # 16 channels come in, each layer adds 12
    assert dense["block1.0.conv"] == [("block1.1.bn", 16, 12), *((name, 16, 12) for name in after)]
    assert dense["block1.1.conv"] == [(name, 28, 12) for name in after]


class Seen(nn.Module):
    """A convolution whose output goes to a normalization, and somewhere else as well."""

    def __init__(self, read):
        super().__init__()
        self.conv, self.bn, self.read = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), read

    def forward(self, x):
        x = self.conv(x)
        return self.read(x, self.bn(x))


@pytest.mark.parametrize(
    ("read", "hidden"),
    [
        (lambda x, normed: normed, True),
        (lambda x, normed: normed + x, False),
        (lambda x, normed: normed.view(x.size(0), -1), True),
        (lambda x, normed: (normed, x), False),
        (lambda x, normed: torch.cat((x, normed), 1), False),
    ],
)
def test_alpha_stands_on_the_weight_if_anything_but_normalizations_sees_the_output(read, hidden):
    assert bool(normalizations(Seen(read), {"conv": "channel"})) is hidden


@pytest.mark.filterwarnings("ignore:the α of 0 stand on weights")
def test_normalizations_of_all_channels_hide_the_alpha_of_a_layer_and_not_of_a_channel():
    norms = nn.GroupNorm(2, 6), nn.GroupNorm(6, 6), nn.InstanceNorm2d(6, affine=True), nn.BatchNorm2d(6)
    for norm in norms:
        net = nn.Sequential(nn.Conv2d(3, 6, 1), norm)
        assert normalizations(net, {"0": "layer"}) == {"0": [("1", 0, 6)]}
        assert bool(normalizations(net, {"0": "channel"})) is (norm is not norms[0])
    assert normalizations(nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6, affine=False)), {"0": "channel"}) == {}


class Branch(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return x + self.layers(x)


def branch(between, bias=False, last=nn.BatchNorm2d):
    return Branch(
        nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), between, nn.Conv2d(4, 4, 1, bias=bias), last(4)
    )


def test_layers_of_a_branch_share_the_place_before_the_sum():
    """Of the first, γ and β times α go through ReLU and convolution into a normalization that takes α away."""
    wanted = {"layers.0": "layer", "layers.3": "layer"}
    both = {name: [("layers.4", 0, 4)] for name in wanted}
    for between in (nn.ReLU(), nn.PReLU(4), nn.RReLU(), nn.Dropout3d(), nn.SiLU(), nn.ReLU6(), nn.SELU(), nn.Tanh()):
        assert normalizations(branch(between), wanted) == both
    assert normalizations(branch(nn.ReLU(), bias=True), wanted) == both  # a mean takes a constant away
    group_norm = branch(nn.ReLU(), bias=True, last=lambda c: nn.GroupNorm(2, c))
    assert normalizations(group_norm, wanted)["layers.0"] == [("layers.1", 0, 4)]
    assert normalizations(branch(nn.Sigmoid()), wanted)["layers.0"] == [("layers.1", 0, 4)]
    assert normalizations(branch(nn.ReLU(), last=lambda c: nn.Identity()), wanted) == {"layers.0": [("layers.1", 0, 4)]}
    assert normalizations(branch(nn.ReLU()), dict.fromkeys(wanted, "channel"))["layers.0"] == [("layers.1", 0, 4)]


def test_layers_of_a_branch_share_one_alpha_and_are_gone_together():
    net = psp.parameterize(psp.create_model("resnet20"), "layer", skip=["conv1", "fc"])
    alphas = psp.structure_parameters(net)
    assert sorted(alphas) == [f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in range(3)]
    alphas["layer1.1.conv1"].data.zero_()
    alphas["layer3.2.conv1"].data.fill_(0.01)
    pruned = [name for name, layer in psp.sparsity(net).layers.items() if layer.structures == 1]
    assert pruned == [f"{block}.{conv}" for block in ("layer1.1", "layer3.2") for conv in ("conv1", "conv2")]
    assert psp.sparsity(net).structures == 4 / 18
    x = torch.randn(2, 3, 32, 32)
    small = psp.extract(net.eval(), x)
    torch.testing.assert_close(small(x), net(x))
    convolutions = [module for module in small.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 19 - 4
    groups = psp.param_groups(net, weight_decay=0.1, structure_decay=0.2)
    assert [len(group["params"]) for group in groups] == [20 + 18, 2 * 10 + 1, 9]


class Mixing(nn.Module):
    """Two layers' channels concatenated, and mixed by a third, whose normalization hides neither's α."""

    def __init__(self):
        super().__init__()
        self.a, self.norm_a = nn.Conv2d(4, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.b, self.norm_b = nn.Conv2d(4, 5, 1, bias=False), nn.BatchNorm2d(5)
        self.mix, self.norm = nn.Conv2d(11, 8, 1, bias=False), nn.BatchNorm2d(8)

    def forward(self, x):
        both = torch.cat([self.norm_a(self.a(x)).relu(), self.norm_b(self.b(x)).relu()], 1)
        return self.norm(self.mix(both))


def test_alpha_does_not_pass_a_convolution_that_mixes_others_in():
    net = Mixing().eval()
    assert normalizations(net, {"a": "layer", "b": "layer"}) == {"a": [("norm_a", 0, 6)], "b": [("norm_b", 0, 5)]}
    psp.parameterize(net, {"b": "layer", "mix": "channel"})
    psp.structure_parameters(net)["b"].data.zero_()
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(psp.extract(net, x)(x), net(x))


class Concatenated(nn.Module):
    """Two layers whose channels, side by side, a depthwise convolution hands on to one normalization."""

    def __init__(self):
        super().__init__()
        self.a, self.b = (nn.Conv2d(3, channels, 3, padding=1, bias=False) for channels in (4, 5))
        self.depthwise = nn.Conv2d(9, 9, 3, padding=1, groups=9, bias=False)
        self.norm = nn.BatchNorm2d(9)

    def forward(self, x):
        return self.norm(self.depthwise(torch.cat([self.a(x), self.b(x)], 1)))


@pytest.mark.parametrize("structure", ["channel", "layer"])
def test_a_depthwise_convolution_leaves_concatenated_channels_where_they_are(structure):
    net, x = Concatenated().eval(), torch.randn(2, 3, 5, 5)
    wanted = {"a": structure, "b": structure}
    assert normalizations(net, wanted) == {"a": [("norm", 0, 4)], "b": [("norm", 4, 5)]}
    psp.parameterize(net, {"a": structure, "b": structure} if structure == "channel" else {"b": structure})
    psp.structure_parameters(net)["b"].data.zero_()
    assert (net(x)[:, 4:] == 0).all()
    assert (net(x)[:, :4] != 0).any((0, 2, 3)).all()
    torch.testing.assert_close(psp.extract(net, x)(x), net(x))


def test_behind_a_bottleneck_alpha_has_the_channels_of_the_last_layer():
    """In a dense block each layer adds 12 channels to those that came in, whatever its bottleneck has."""
    net = psp.create_model("densenet_bc100")
    place = normalizations(net, {"block1.0.narrow.2": "layer", "block1.0.conv": "layer"})
    assert place["block1.0.narrow.2"] == place["block1.0.conv"]
    assert {(first, count) for _, first, count in place["block1.0.conv"]} == {(24, 12)}


class TwiceNormalized(nn.Module):
    """A normalization that has another caller is no place: there α would multiply that one's values, too."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 1, bias=False), nn.Conv2d(4, 4, 1, bias=False)
        self.first, self.twice = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.twice(self.b(self.first(self.a(x)).relu())) + self.twice(self.b(x))


def test_alpha_does_not_go_on_to_a_normalization_that_others_call():
    assert normalizations(TwiceNormalized(), {"a": "layer"})["a"] == [("first", 0, 4)]


def test_channels_and_the_whole_of_a_branch_may_share_a_place_and_both_count():
    net = psp.parameterize(branch(nn.ReLU()), {"layers.0": "layer", "layers.3": "channel"}).eval()
    whole, channels = psp.structure_parameters(net).values()
    with torch.no_grad():
        whole.fill_(0.5)
        channels.view(-1).copy_(torch.tensor([1.0, 0.0, 0.5, 2.0]))
    gamma = net.layers[4].parametrizations.weight.original
    assert torch.equal(net.layers[4].weight, gamma * torch.tensor([0.5, 0.0, 0.25, 1.0]))
    x = torch.randn(2, 4, 5, 5)
    expected = net(x)
    torch.testing.assert_close(psp.extract(net, x)(x), expected)
    torch.testing.assert_close(psp.fold(copy.deepcopy(net))(x), expected)
    torch.testing.assert_close(copy.deepcopy(net)(x), expected)
    whole.data.zero_()
    assert torch.equal(net(x), x)


def test_a_shape_of_a_1x1_and_a_whole_layer_share_alpha_in_shapes_of_their_own():
    net = psp.parameterize(branch(nn.ReLU()), {"layers.0": "layer", "layers.3": "shape"})
    assert list(psp.structure_parameters(net)) == ["layers.0"]
    assert {name: pruner.structure for name, (_, pruner) in parametrizations(net).items()} == {
        "layers.0": "layer",
        "layers.3": "shape",
    }
    psp.structure_parameters(net)["layers.0"].data.zero_()
    assert psp.sparsity(net).weights == 1


@torch.no_grad()
def test_all_branches_can_shrink_together_and_only_the_classifier_has_to_make_up():
    """Why whole layers want a larger ε (docs/choices.md): decay brings all of their α down at no loss."""
    torch.manual_seed(0)
    net = psp.parameterize(psp.create_model("resnet20"), "layer", skip=["conv1", "fc"])
    net, x = with_small_epsilon(net.double().train()), torch.randn(4, 3, 32, 32, dtype=torch.float64)
    before = net(x)
    for shrinking in (net.bn1.weight, net.bn1.bias, *psp.structure_parameters(net).values()):
        shrinking *= 0.5
    net.fc.weight *= 2
    torch.testing.assert_close(net(x), before)


def test_features_before_a_normalization_of_as_many_have_their_alpha_behind_it():
    """Of N×C both are the second axis: on the weight α would cancel, and be gone all at once by decay alone."""
    net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6), nn.BatchNorm1d(6)).double()
    psp.parameterize(net, "channel")
    assert scaled_normalizations(net) == {name: net.get_submodule(name) for name in ("1", "4")}
    alpha, x = psp.structure_parameters(net)["0"], torch.randn(16, 5, dtype=torch.float64)
    before = net(x).detach()
    alpha.data[2] = 0.5
    assert (net(x) - before).abs().max() > 1e-3
    alpha.data[[1, 4]] = 0.0
    net.eval()
    smaller = psp.extract(net, x)
    torch.testing.assert_close(smaller(x), net(x))
    assert smaller.get_submodule("0").out_features == 6


def test_a_layer_that_normalizes_its_weight_is_warned_of():
    class Standardized(nn.Conv2d):
        def forward(self, x):
            weight = F.layer_norm(self.weight, self.weight.shape[1:], eps=1e-6)
            return F.conv2d(x, weight, self.bias, self.stride, self.padding)

    class Plain(nn.Conv2d):
        def forward(self, x):
            return super().forward(x)

    class Normalized(nn.Linear):
        def forward(self, x):
            torch.rand(1)  # as dropout draws numbers
            return F.linear(x, F.normalize(self.weight, dim=1), self.bias)

    weight_norm = torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    layers = {"a": Standardized(3, 4, 3, padding=1), "b": Plain(4, 4, 3), "c": weight_norm, "d": Normalized(4, 2)}
    net = Call(lambda self, x: self.d((self.b(self.a(x)) + self.c(x)).mean((2, 3))), **layers)
    nn.init.zeros_(net.b.weight)
    net.b.register_forward_hook(lambda *_: pytest.fail("called"))
    before = torch.get_rng_state()
    with pytest.warns(UserWarning, match="the α of a, d stand on weights, where a normalization hides them"):
        psp.parameterize(net, "channel")
    assert torch.equal(torch.get_rng_state(), before)


def test_of_tokens_nothing_but_gamma_and_beta_is_folded():
    """Of N×C×C BatchNorm1d takes the tokens for channels, which looks the same; no filter is zeroed for them."""
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)).double()
    psp.parameterize(net, {"0": "channel"})
    assert list(scaled_normalizations(net)) == ["1"]
    psp.structure_parameters(net)["0"].data[[1, 4]] = 0.0
    net.eval()
    x = torch.randn(5, 6, 4, dtype=torch.float64)
    torch.testing.assert_close(psp.fold(copy.deepcopy(net))(x), net(x))
    torch.testing.assert_close(psp.extract(net, x)(x), net(x))


def test_a_lazy_normalization_of_features_is_to_be_run_first():
    with pytest.raises(ConfigError, match="'1' has no shape yet; run the network once"):
        psp.parameterize(nn.Sequential(nn.Linear(4, 6), nn.LazyBatchNorm1d()), {"0": "channel"})


def test_a_group_for_each_channel_takes_a_bias_away_too():
    depthwise = nn.Conv2d(6, 6, 3, groups=6)
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), depthwise, nn.GroupNorm(6, 6))
    assert normalizations(net, {"0": "channel"}) == {"0": [("4", 0, 6)]}


def test_a_linear_layer_keeps_the_alpha_of_its_channels_where_they_lie_along_another_axis():
    """BatchNorm1d normalizes the second axis, which of tokens, N×5×6, is not that of the features."""
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(5), nn.Flatten(), nn.Linear(30, 3)).double()
    assert normalizations(net, {"0": "channel"}) == {}
    assert normalizations(net, {"0": "layer"}) == {"0": [("1", 0, 5)]}
    psp.parameterize(net, {"0": "channel"})
    psp.structure_parameters(net)["0"].data[1] = 0.0
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    assert torch.allclose(psp.extract(net.eval(), x)(x), net(x))


def test_gamma_and_beta_are_multiplied_and_pruned_with_their_filter():
    net = psp.parameterize(conv_net(), "channel", threshold=0.1)
    factor = torch.tensor([1.0, 0.5, 0.05, -0.3, 1.0, 2.0], dtype=torch.float64)
    with torch.no_grad():
        net[1].parametrizations.weight.original.uniform_(0.5, 1.5)
        net[1].parametrizations.bias.original.normal_()
        psp.structure_parameters(net)["0"].view(-1).copy_(factor)
    gamma, beta = (net[1].parametrizations[name].original for name in ("weight", "bias"))
    nu = torch.where(factor.abs() < 0.1, 0.0, factor)
    assert torch.equal(net[1].weight, gamma * nu)
    assert torch.equal(net[1].bias, beta * nu)
    assert psp.sparsity(net).layers["0"].weights == 1 / 6
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    trained, evaluated = net(x), net.eval()(x)
    plain = psp.fold(copy.deepcopy(net))
    assert torch.equal(plain(x), evaluated)
    assert torch.equal(plain.train()(x), trained)
    assert plain[0].weight[2].abs().max() == 0
    assert not parametrizations(plain)
    assert sorted(plain.state_dict()) == sorted(conv_net().state_dict())
    assert size(psp.extract(net, x)) < size(plain)


@pytest.mark.parametrize("relu", [True, False])
def test_the_gradient_of_alpha_is_the_exact_chain_rule_over_gamma_and_beta(relu):
    """Σ over the network's two parameters of ∂E/∂q · γ or β, also of a pruned α, straight through.

    Before a ReLU, whose gradient at 0 is 0, that of a pruned one is 0: it does not come back.
    """
    net = psp.parameterize(conv_net(relu), "channel", threshold=0.1)
    with torch.no_grad():
        psp.structure_parameters(net)["0"].view(-1)[1] = 0.01
        net[1].parametrizations.bias.original.normal_()
    x, alpha = torch.randn(4, 3, 8, 8, dtype=torch.float64), psp.structure_parameters(net)["0"]
    net(x).square().mean().backward()
    originals = [net[1].parametrizations[name].original for name in ("weight", "bias")]
    plain = conv_net(relu)
    with torch.no_grad():
        for name in ("weight", "bias"):
            getattr(plain[1], name).copy_(getattr(net[1], name))
    plain(x).square().mean().backward()
    grads = plain[1].weight.grad, plain[1].bias.grad
    expected = sum(grad * original for grad, original in zip(grads, originals, strict=True))
    torch.testing.assert_close(alpha.grad.view(-1), expected.detach())
    assert bool(expected[1] == 0) is relu
    assert plain[1].weight[1] == plain[1].bias[1] == 0


def test_gamma_and_beta_behind_alpha_decay_and_no_other():
    net = psp.parameterize(psp.create_model("resnet20"), "channel", skip=["conv1", "fc"])
    weights, others, alphas = psp.param_groups(net, weight_decay=0.1, structure_decay=0.2)
    ids = [{id(p) for p in group["params"]} for group in (weights, others, alphas)]
    bn = net.layer1[0].bn1
    assert {id(bn.parametrizations[name].original) for name in ("weight", "bias")} <= ids[0]
    assert {id(net.bn1.weight), id(net.bn1.bias), id(net.fc.bias)} == ids[1]
    assert sum(map(len, ids)) == len(list(net.parameters()))


def test_decay_on_both_factors_behind_a_normalization_is_the_lasso():
    """½‖y − Zγα‖²/n with decay on γ and on α, Z the normalized channels, against scikit-learn's solver."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(8, eps=1e-12)
    net = nn.Sequential(nn.Conv1d(8, 8, 1, bias=False), norm, nn.Flatten()).double()
    x = torch.randn(200, 8, 1, dtype=torch.float64)
    net[0].weight.requires_grad_(False)
    z = net(x).detach()
    y = z @ torch.tensor([1.0, -0.8, 0.5, 0.3, 0.1, 0, 0, 0], dtype=torch.float64) + 0.3 * torch.randn(200).double()
    psp.parameterize(net, "channel", threshold=0.0)
    norm.parametrizations.bias.original.requires_grad_(False)
    groups = psp.param_groups(net, weight_decay=0.05, structure_decay=0.2)
    optimizer = torch.optim.SGD(groups, lr=0.1)
    for _ in range(5000):
        optimizer.zero_grad()
        (0.5 * (net(x).sum(1) - y).square().mean()).backward()
        optimizer.step()
    lasso = Lasso((0.05 * 0.2) ** 0.5, fit_intercept=False, tol=1e-12).fit(z.numpy(), y.numpy()).coef_
    torch.testing.assert_close(norm.weight.detach(), torch.from_numpy(lasso), atol=1e-4, rtol=0)
    assert 0 < (lasso == 0).sum() < 8


def test_layers_of_a_dense_block_share_their_readers_normalization_also_in_two_calls():
    once = psp.parameterize(psp.create_model("densenet16"), "channel", skip=["conv1", "transition*", "fc"])
    twice = psp.create_model("densenet16")
    psp.parameterize(twice, {"block1.0.conv": "channel", "block2.*": "channel"})
    psp.parameterize(twice, {"block1.[123].conv": "channel", "block3.*": "channel"})
    twice.load_state_dict(once.state_dict())
    with torch.no_grad():
        for net in (once, twice):
            for alpha in psp.structure_parameters(net).values():
                alpha.copy_(torch.linspace(0.05, 1.5, alpha.numel()).view_as(alpha))
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(once.eval()(x), twice.eval()(x))


def test_a_network_that_cannot_be_traced_keeps_them_on_weights_and_says_so():
    class Dynamic(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.bn(self.conv(x)) if x.sum() > 0 else x

    line = r"cannot trace Dynamic at .*test_place\.py:\d+, 'return self\.bn.*> 0 else x'"
    with pytest.warns(UserWarning, match=rf"{line}.* α of channels stand on weights"):
        net = psp.parameterize(Dynamic(), "channel")
    assert scaled_normalizations(net) == {}


def test_what_training_alone_draws_does_not_hide_the_network():
    def forward(self, x):
        y = self.norm(self.conv(x))
        return y * torch.empty(len(y), 1, 1, 1).bernoulli_(0.8) if self.training else y

    net = psp.parameterize(Call(forward, conv=nn.Conv2d(3, 4, 1), norm=nn.BatchNorm2d(4)), "channel")
    assert list(scaled_normalizations(net)) == ["norm"]
    assert net.training


@pytest.mark.parametrize("norm", [nn.InstanceNorm2d(4), nn.BatchNorm2d(4, affine=False)])
def test_a_normalization_without_gamma_hides_alpha_and_says_so(norm):
    net = nn.Sequential(nn.Conv2d(3, 4, 1), norm, nn.ReLU(), nn.Conv2d(4, 3, 1))
    with pytest.warns(UserWarning, match=r"α of 0 stand on weights, where .* hides them: none that follows has a γ"):
        psp.parameterize(net, "channel")
    assert scaled_normalizations(net) == {}


def test_what_is_concatenated_by_name_is_found():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.bn = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 2, 1), nn.BatchNorm2d(6)

        def forward(self, x):
            return self.bn(torch.cat(tensors=[self.a(x), self.b(x)], dim=1))

    assert normalizations(Named(), dict.fromkeys("ab", "channel")) == {"a": [("bn", 0, 4)], "b": [("bn", 4, 2)]}


@pytest.mark.parametrize("structure", ["channel", "layer"])
def test_the_copies_of_data_parallel_are_refused_where_they_would_share_alpha(structure):
    net = psp.parameterize(psp.create_model("resnet20"), structure, skip=("conv1", "fc"))
    scale = net.layer1[0].bn2.parametrizations.weight[0]
    with pytest.raises(ConfigError, match=r"use nn\.parallel\.DistributedDataParallel"):
        scale._replicate_for_data_parallel()(torch.ones(16))


def test_an_unknown_place_is_named():
    with pytest.raises(ConfigError, match="unknown place 'norm'; choose one of auto, weight"):
        psp.parameterize(conv_net(), "channel", place="norm")


class NormAndReLU(nn.BatchNorm2d):
    """Both in one, as libraries of networks have it."""

    def __init__(self, channels):
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(super().forward(x))


class Standardized(nn.Conv2d):
    """Its weight has mean 0 in every filter."""

    def forward(self, x):
        return F.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


def test_layers_and_normalizations_of_ones_own_are_as_those_they_are_made_from():
    torch.manual_seed(0)
    net = nn.Sequential(Standardized(3, 6, 3), NormAndReLU(6), nn.Conv2d(6, 4, 3)).double()
    psp.parameterize(net, "channel")
    assert list(scaled_normalizations(net)) == ["1"]
    (alpha, _), x = psp.structure_parameters(net).values(), torch.randn(2, 3, 8, 8).double()
    assert change_of_outputs(net, x, alpha, 0) > 1e-3
    alpha.data[:2] = 0.0
    net.eval()
    smaller = psp.extract(net, x)
    assert smaller.get_submodule("0").out_channels == 4
    assert not psp.fold(copy.deepcopy(net))[0].weight[:2].any()
    torch.testing.assert_close(smaller(x), net(x))


class GainOfOne(nn.BatchNorm2d):
    """γ is what is added to a gain of 1, as in generators of images."""

    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, 1 + self.weight, self.bias, self.training)


class Skipped(nn.BatchNorm2d):
    """A normalization and its input beside it."""

    def forward(self, x):
        return super().forward(x) + x


@pytest.mark.parametrize("norm", [GainOfOne, Skipped])
def test_a_normalization_that_zeros_do_not_silence_is_no_place(norm):
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Conv2d(3, 6, 3), norm(6), nn.Conv2d(6, 4, 3)).double(), torch.randn(2, 3, 8, 8).double()
    with pytest.warns(UserWarning, match="the α of 0 stand on weights, where a normalization hides them"):
        psp.parameterize(net, "channel")
    psp.structure_parameters(net)["0"].data[:2] = 0.0
    net.eval()
    assert not psp.fold(copy.deepcopy(net))[0].weight[:2].any()
    for other in (psp.fold(copy.deepcopy(net)), psp.extract(net, x)):
        torch.testing.assert_close(other(x), net(x))


class ByImage(nn.LayerNorm):
    """Of channels in the second place, behind which SiLU follows."""

    def forward(self, x):
        return F.silu(super().forward(x.transpose(1, -1)).transpose(1, -1))


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.InstanceNorm2d, nn.RMSNorm, NormAndReLU, ByImage])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_normalizations_that_zeros_silence(norm, device):
    with torch.device(device):
        assert is_silenced_by_zeros(norm(6, affine=True) if norm is nn.InstanceNorm2d else norm(6))


class Features(nn.LayerNorm):
    """Of N×tokens×features, and it keeps what it put out."""

    def forward(self, x):
        _, _, features = x.shape
        assert features == len(self.weight)
        self.last = super().forward(x)
        return self.last


def test_a_normalization_is_tried_in_its_own_type_and_without_what_it_keeps():
    norm = Features(6)
    norm(torch.randn(2, 5, 6))
    assert is_silenced_by_zeros(norm)
    torch.set_default_dtype(torch.float64)
    try:
        assert is_silenced_by_zeros(norm)
        assert not is_silenced_by_zeros(GainOfOne(6))
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_normalization_that_takes_no_usual_shape_is_not_tried():
    class Labelled(nn.BatchNorm2d):
        def forward(self, x, label):
            return super().forward(x) * label

    assert not is_silenced_by_zeros(Labelled(6))


@pytest.mark.parametrize("passed", [lambda h: h, lambda h: F.leaky_relu(F.max_pool2d(h, 2))])
def test_a_normalization_that_is_a_function_is_warned_of(passed):
    def forward(self, x):
        return F.batch_norm(passed(self.a(x)), None, None, training=True)

    with pytest.warns(UserWarning, match="the α of a stand on weights, where a normalization hides them"):
        psp.parameterize(Call(forward, a=nn.Conv2d(3, 6, 3)), "channel")


@pytest.mark.parametrize(
    ("norm", "make", "shape"),
    [
        (nn.LayerNorm(16), lambda: nn.Linear(8, 8, bias=False), (5, 8)),
        (nn.GroupNorm(1, 16), lambda: nn.Conv2d(8, 8, 1, bias=False), (5, 8, 3, 3)),
        (nn.LayerNorm(8), lambda: nn.Linear(8, 8, bias=False), (5, 3, 8)),  # of tokens, and joined with others
    ],
)
def test_what_is_joined_with_others_is_of_their_mean_too(norm, make, shape):
    """A layer whose output is normalized together with another's: without it, that one has another mean."""
    torch.manual_seed(0)
    net = Call(lambda self, x: self.norm(torch.cat([self.a(x), self.b(x)], 1)), a=make(), b=make(), norm=norm)
    psp.parameterize(net.double().eval(), {"a": "layer"})
    (alpha,), x = psp.structure_parameters(net).values(), torch.randn(shape).double()
    alpha.data.zero_()
    torch.testing.assert_close(psp.fold(copy.deepcopy(net))(x), net(x))
    torch.testing.assert_close(psp.extract(net, x)(x), net(x))


def test_a_normalization_of_two_layers_is_neithers_place():
    def forward(self, x):
        return torch.cat([self.norm(self.a(x)), self.norm(self.b(x))], 1)

    net = Call(forward, a=nn.Conv2d(3, 6, 3), b=nn.Conv2d(3, 6, 3), norm=nn.BatchNorm2d(6))
    with pytest.warns(UserWarning, match="the α of a stand on weights"):
        psp.parameterize(net, {"a": "channel"})
    assert not scaled_normalizations(net)


def test_a_block_that_is_called_twice_has_its_alpha_on_its_normalization():
    def forward(self, x):
        return self.norm(self.a(self.norm(self.a(x)).relu()))

    net = psp.parameterize(Call(forward, a=nn.Conv2d(3, 3, 3), norm=nn.BatchNorm2d(3)), "channel")
    assert list(scaled_normalizations(net)) == ["norm"]


def test_filters_that_are_used_for_something_else_stay_as_they_are():
    """An autoencoder whose decoder has the weights of its encoder."""

    def forward(self, x):
        return F.conv_transpose2d(self.b(self.norm(self.a(x)).relu()), self.a.weight)

    torch.manual_seed(0)
    net = Call(forward, a=nn.Conv2d(3, 8, 3, bias=False), norm=nn.BatchNorm2d(8), b=nn.Conv2d(8, 8, 1)).double().eval()
    psp.parameterize(net, {"a": "channel"})
    (alpha,), x = psp.structure_parameters(net).values(), torch.randn(2, 3, 8, 8).double()
    alpha.data[:4] = 0.0
    torch.testing.assert_close(psp.fold(copy.deepcopy(net))(x), net(x))
    torch.testing.assert_close(psp.extract(net, x)(x), net(x))


class Remembering(nn.Module):
    """Its forward counts its calls and adds what came out last."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.calls, self.last = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), 0, None

    def forward(self, x):
        self.calls += 1
        y = self.norm(self.a(x))
        self.last, y = y.detach(), y if self.last is None else y + self.last
        return y


def test_looking_at_the_code_leaves_nothing_behind():
    net = psp.parameterize(Remembering(), "channel")
    assert list(scaled_normalizations(net)) == ["norm"]
    assert (net.calls, net.last) == (0, None)


def test_what_has_no_shape_yet_is_named():
    with pytest.raises(ConfigError, match="layer '1' has no shape yet; run the network once on an example first"):
        psp.parameterize(nn.Sequential(nn.Conv2d(3, 6, 3), nn.LazyBatchNorm2d()), "channel")


# What a network may do with a convolution's output before it normalizes it, x being the input. There the α of channels
# and of the whole layer are hidden where they stand on the weight: a place is found for them, or they are warned of.
BETWEEN = {
    "relu_": lambda h, x: torch.relu_(h),
    "prelu": lambda h, x: F.prelu(h, x[0, 0, 0, :1].abs()),
    "interpolation": lambda h, x: F.interpolate(h, scale_factor=2),
    "padding": lambda h, x: F.pad(h, (1, 1, 1, 1)),
    "flattened": lambda h, x: F.adaptive_avg_pool2d(h, 4).flatten(2),
    "mean": lambda h, x: h.mean((2, 3)),
    "concatenation": lambda h, x: torch.cat([x, h], 1),
    "concatenation, negative axis": lambda h, x: torch.cat([h, x], -3),
    "sigmoid": lambda h, x: torch.sigmoid(h),
    "mean of channels": lambda h, x: h.mean(1, keepdim=True),
    "shuffled": lambda h, x: h.reshape(8, 2, 2, 5, 5).transpose(1, 2).reshape(8, 2, 10, 5),
    "pixels first": lambda h, x: h.flatten(2).transpose(1, 2),
    "images side by side": lambda h, x: torch.cat([h, x], 0),
    "pixels side by side": lambda h, x: torch.cat([h, x], 2),
}


@pytest.mark.parametrize("structure", ["channel", "layer"])
@pytest.mark.parametrize("between", BETWEEN)
def test_every_alpha_is_seen_or_warned_of(between, structure, recwarn):
    torch.manual_seed(0)
    x = torch.randn(8, 4, 5, 5, dtype=torch.float64)
    normed = BETWEEN[between](x.clone(), x)
    norm = (nn.BatchNorm2d if normed.ndim == 4 else nn.BatchNorm1d)(normed.shape[1], eps=1e-12)

    def forward(self, x):
        y = self.norm(BETWEEN[between](self.conv(x), x))
        return torch.cat([y.flatten(), x.flatten()])

    net = Call(forward, conv=nn.Conv2d(4, 4, 3, padding=1, bias=False), norm=norm).double()
    nn.init.normal_(net.norm.weight)
    psp.parameterize(net, structure)
    ((name, alpha),) = psp.structure_parameters(net).items()
    seen = change_of_outputs(net, x, alpha, 0) > 1e-6
    assert seen is not any(f"the α of {name} stand on weights" in str(w.message) for w in recwarn)


def test_what_is_replaced_or_copied_by_itself_is_named():
    """The α of a convolution multiply γ and β of the normalization behind it: one of the two alone is nothing."""

    def fresh():
        torch.manual_seed(0)
        return psp.parameterize(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), "channel").eval()

    replaced = fresh()
    replaced[0] = nn.Conv2d(3, 4, 1)
    twin = nn.Sequential(*(copy.deepcopy(part) for part in fresh()))
    x = torch.randn(2, 3, 4, 4)
    for net, names in (
        (replaced, "'1'"),
        (twin, "'1', '0'"),
        (fresh()[:1], "'0'"),
        (fresh()[0], "ParametrizedConv2d|Conv2d"),
    ):
        with pytest.raises(
            ConfigError, match=f"the α at ({names}) are of a layer and a normalization of which only one"
        ):
            psp.fold(net)
    assert psp.param_groups(fresh()[1:])[0]["params"], "groups are made of parts, too: γ and β decay"
    whole = copy.deepcopy(fresh())
    torch.testing.assert_close(psp.fold(copy.deepcopy(whole))(x), whole(x))
