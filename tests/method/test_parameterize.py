"""q = w · ν(α): forward, straight-through backward, sparsity and folding, against hand-made references."""

import copy
import math

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from networks import Call
from torch import nn

import psp
from psp.errors import ConfigError
from psp.method.structures import ALPHA_SHAPE
from psp.method.threshold import ThresholdedScale

EPS = 0.1


def scale(weight, alpha, structure="column", threshold=EPS):
    module = ThresholdedScale(weight, structure, threshold, init=1.0)
    module.alpha.data.copy_(torch.as_tensor(alpha, dtype=weight.dtype).view_as(module.alpha))
    return module


def small_net():
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten(), nn.Linear(8, 5))


@pytest.mark.parametrize(
    "function", [psp.parameterize, psp.sparsity, psp.fold, psp.structure_parameters, psp.param_groups]
)
def test_what_is_no_network_is_named(function):
    with pytest.raises(ConfigError, match=r"a network is an nn\.Module, got 3"):
        function(3)


def test_gradcheck_where_nothing_is_pruned():
    torch.manual_seed(0)
    weight = torch.randn(3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    sign = torch.where(torch.arange(8) % 2 == 0, 1.0, -1.0).view(1, 2, 2, 2)
    alpha = (sign * (0.5 + torch.rand(1, 2, 2, 2, dtype=torch.float64))).requires_grad_()
    module = scale(weight.detach(), alpha.detach())

    def q(weight, alpha):
        return torch.func.functional_call(module, {"alpha": alpha}, (weight,))

    assert torch.autograd.gradcheck(q, (weight, alpha))


def test_straight_through_gradient_by_hand():
    """∂E/∂w = g · ν(α), zero where pruned; ∂E/∂α_i = Σ_j g_ij · w_ij, as if nothing were pruned."""
    weight = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=torch.float64, requires_grad=True)
    module = scale(weight.detach(), [0.5, 0.05, -2.0])
    g = torch.tensor([[1.0, 10.0, 100.0], [2.0, 20.0, 200.0]], dtype=torch.float64)
    q = module(weight)
    assert q.tolist() == [[0.5, 0.0, -6.0], [2.0, 0.0, -12.0]]
    q.backward(g)
    assert weight.grad.tolist() == [[0.5, 0.0, -200.0], [1.0, 0.0, -400.0]]
    assert module.alpha.grad.tolist() == [[1 * 1 + 2 * 4, 10 * 2 + 20 * 5, 100 * 3 + 200 * 6]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_threshold_itself_is_kept(dtype):
    eps = torch.tensor(EPS, dtype=dtype)
    below = torch.nextafter(eps, torch.zeros((), dtype=dtype))
    alpha = torch.stack([eps, -eps, below, -below])
    module = scale(torch.ones(1, 4, dtype=dtype), alpha, threshold=eps.item())
    assert module.kept().tolist() == [[True, True, False, False]]
    assert torch.equal(module(torch.ones(1, 4, dtype=dtype)), torch.stack([eps, -eps, eps * 0, eps * 0]).view(1, 4))


@pytest.mark.parametrize("eps", [0.1, 0.35, 0.7])
def test_no_alpha_at_the_threshold_is_pruned_by_another_type(eps):
    net = psp.parameterize(nn.Linear(4, 4), "column", threshold=eps, init=eps)
    for dtype in (torch.float32, torch.float64, torch.float32):
        assert psp.sparsity(net.to(dtype)).structures == 0.0


def test_a_pruned_column_comes_back():
    """With |α| just below ε and a loss that wants the column, a step of SGD lifts it over the threshold."""
    layer = psp.parameterize(nn.Sequential(nn.Linear(1, 1, bias=False)), threshold=EPS)
    alpha = psp.structure_parameters(layer)["0"]
    alpha.data.fill_(0.09)
    layer[0].parametrizations.weight.original.data.fill_(1.0)
    assert psp.sparsity(layer).structures == 1.0
    optimizer = torch.optim.SGD(psp.param_groups(layer), lr=0.1)
    ((layer(torch.ones(1, 1)) - 1) ** 2).sum().backward()
    optimizer.step()
    assert alpha.item() == pytest.approx(0.09 + 0.1 * 2)  # ∂E/∂α = 2·(0 − 1)·w
    assert psp.sparsity(layer).structures == 0.0


class Bypassed(nn.Module):
    """A layer beside a path that leads around it, so that any structure of it may be pruned."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x) + x.mean()


@st.composite
def layers(draw):
    """(layer, an input for it): linear, or a convolution of one to three axes with groups, stride and dilation."""
    axes = draw(st.integers(0, 3))
    groups = draw(st.integers(1, 3)) if axes else 1
    k, c = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    if not axes:
        return nn.Linear(c, k).to(dtype), torch.randn(2, c).to(dtype)
    kernel = tuple(draw(st.integers(1, 3)) for _ in range(axes))
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    stride, dilation = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    layer = convolution(c, k, kernel, stride=stride, dilation=dilation, padding=2, groups=groups)
    return layer.to(dtype), torch.randn(2, c, *(draw(st.integers(3, 5)) for _ in range(axes))).to(dtype)


@hypothesis.settings(deadline=None, max_examples=120)
@hypothesis.given(
    case=layers(), structure=st.sampled_from(sorted(ALPHA_SHAPE)), threshold=st.floats(0, 2), seed=st.integers(0, 2**20)
)
def test_masks_gradients_sparsity_and_fold_on_random_layers(case, structure, threshold, seed):
    torch.manual_seed(seed)
    layer, x = case
    net = psp.parameterize(Bypassed(layer), structure, threshold=threshold, init=5.0)
    alpha = psp.structure_parameters(net)["layer"]
    alpha.data.normal_()
    original = layer.parametrizations.weight.original
    epsilon = torch.tensor(threshold, dtype=alpha.dtype).item()
    own = alpha.detach().expand(original.shape)  # α of the structure that each weight belongs to
    pruned = own.abs() < epsilon
    q = layer.weight
    assert not q[pruned].any()
    assert torch.equal(q[~pruned], (original * own)[~pruned])
    g = torch.randn_like(q)
    q.backward(g)
    straight_through = (g * original.detach()).sum_to_size(alpha.shape)  # pruned or not
    torch.testing.assert_close(alpha.grad, straight_through)
    assert torch.equal(original.grad, torch.where(pruned, 0, g * own))
    gone = sum(abs(a) < epsilon for a in alpha.flatten().tolist())
    measured = psp.sparsity(net)
    assert measured.structures == pytest.approx(gone / alpha.numel())
    assert measured.weights == pytest.approx(pruned.double().mean().item())
    assert measured.layers["layer"].count == alpha.numel()
    before = net(x)
    relative = 1e-6 if x.dtype != torch.bfloat16 else 0.0  # the same product, rounded once in either case
    after = psp.fold(net)(x)
    torch.testing.assert_close(after, before, rtol=0, atol=relative * before.abs().max().item())
    assert not psp.structure_parameters(net)
    assert sorted(net.state_dict()) == ["layer.bias", "layer.weight"]


def test_summed_gradient_by_hand():
    """∂E/∂α_i = Σ_j g_ij, without the factor w_ij; the forward pass and ∂E/∂w stay."""
    net = psp.parameterize(nn.Sequential(nn.Linear(3, 2, bias=False)), gradient="summed")
    weight, alpha = net[0].parametrizations.weight.original, psp.structure_parameters(net)["0"]
    weight.data = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    alpha.data = torch.tensor([[0.5, 0.05, -2.0]])
    q = net[0].weight
    assert q.tolist() == [[0.5, 0.0, -6.0], [2.0, 0.0, -12.0]]
    q.backward(torch.tensor([[1.0, 10.0, 100.0], [2.0, 20.0, 200.0]]))
    assert weight.grad.tolist() == [[0.5, 0.0, -200.0], [1.0, 0.0, -400.0]]
    assert alpha.grad.tolist() == [[3.0, 30.0, 300.0]]


def test_the_defaults_are_the_documented_ones():
    pruner = psp.parameterize(small_net())[0].parametrizations.weight[0]
    assert (pruner.structure, pruner.threshold, pruner.gradient) == ("column", 0.1, "exact")
    assert (pruner.alpha == 1.0).all()


def test_sparsity_over_several_layers_by_hand():
    """Columns: 27 in the first layer (×4 weights), 4 in the second (×2); prune 9 and 4 of them."""
    net = psp.parameterize(small_net(), skip=("4",))
    alphas = psp.structure_parameters(net)
    assert {name: tuple(a.shape) for name, a in alphas.items()} == {"0": (1, 3, 3, 3), "2": (1, 4, 1, 1)}
    alphas["0"].data[:, 1] = 0.0
    alphas["2"].data.zero_()
    measured = psp.sparsity(net)
    assert measured.structures == pytest.approx((9 + 4) / 31)
    assert measured.weights == pytest.approx((9 * 4 + 4 * 2) / (27 * 4 + 4 * 2))
    assert measured.layers["0"].structures == pytest.approx(1 / 3)
    assert measured.layers["2"].structures == 1.0


def test_with_alpha_one_the_network_is_the_plain_one():
    torch.manual_seed(0)
    plain, x = small_net(), torch.randn(2, 3, 4, 4)
    assert torch.equal(psp.parameterize(copy.deepcopy(plain))(x), plain(x))


def test_skip_patterns():
    net = psp.parameterize(psp.create_model("resnet20"), skip=("conv1", "fc", "layer[12].*"))
    assert all(name.startswith("layer3.") for name in psp.structure_parameters(net))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": -0.1}, "threshold .* at least 0, got -0.1"),
        ({"threshold": float("nan")}, r"threshold \(ε\) must be a finite number, got nan"),
        ({"threshold": "0.1"}, r"threshold \(ε\) must be a finite number, got '0.1'"),
        ({"init": math.inf}, "init α must be a finite number, got inf"),
        ({"init": 0.05, "threshold": 0.1}, "init α = 0.05 lies below the threshold"),
        ({"gradient": "sum"}, "unknown gradient 'sum'; choose one of exact, summed"),
        ({"structure": "filter"}, "unknown structure 'filter'"),
        ({"skip": ("fc",)}, "skip pattern 'fc' matches no layer; the layers are: 0, 2, 4"),
        ({"structure": ["column"]}, r"unknown structure \['column'\]; choose one of"),
        ({"structure": {0: "column"}}, "layers are chosen by names or patterns, such as 'layer1.*', got 0"),
        ({"skip": [0]}, "layers are chosen by names or patterns, such as 'layer1.*', got 0"),
        ({"skip": 3}, "layers are chosen by names or patterns, such as 'layer1.*', got 3"),
        ({"skip": ("*",)}, r"no convolution or linear layer left .* and skip=\('\*',\)"),
        ({"structure": {}}, r"no convolution or linear layer left .* by structure=\{\}"),
        ({"structure": None}, "no convolution or linear layer left .* by structure=None"),
    ],
)
def test_bad_arguments_leave_the_model_alone(arguments, message):
    net = small_net()
    before = list(net.state_dict())
    with pytest.raises(ConfigError, match=message):
        psp.parameterize(net, **arguments)
    assert list(net.state_dict()) == before


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
@pytest.mark.parametrize("give", [psp.parameterize, psp.fix_sparsity])
def test_a_network_is_parameterized_before_it_is_wrapped(wrap, give):
    net = small_net()
    with pytest.raises(ConfigError, match="parameterized before it is wrapped, not as"):
        give(wrap(net))
    assert not psp.structure_parameters(net)


def test_complex_weights_have_no_alpha():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, dtype=torch.complex64))
    with pytest.raises(ConfigError, match=r"the weight of layer '1' is torch\.complex64, where α needs real numbers"):
        psp.parameterize(net)
    assert not psp.structure_parameters(net)


def test_parameterizing_twice_is_an_error_that_names_the_layer():
    net = psp.parameterize(small_net())
    with pytest.raises(ConfigError, match="layer '0' is parameterized already"):
        psp.parameterize(net)


def test_layers_that_are_parameterized_later_count_for_the_bypass():
    net = Call(lambda self, x: self.a(x) + self.b(x), a=nn.Conv2d(3, 3, 1), b=nn.Conv2d(3, 3, 1))
    psp.parameterize(net, {"a": "layer"})
    with pytest.raises(ConfigError, match="nothing leads around b once the other layers are pruned"):
        psp.parameterize(net, {"b": "layer"})
    assert list(psp.structure_parameters(net)) == ["a"]


def test_a_layer_whose_structure_is_something_else_is_named():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    net[1].structure = "tree"
    with pytest.raises(ConfigError, match="layer '1' has an attribute `structure` already"):
        psp.parameterize(net, "column")
    assert not psp.structure_parameters(net)


def test_a_model_without_structure_parameters():
    net = small_net()
    assert psp.structure_parameters(net) == {}
    assert psp.sparsity(net) == (0.0, 0.0, {})
    assert psp.fold(net) is net


def test_training_one_step_matches_an_explicit_product():
    """A second implementation: the same step with α · w written out, no parametrization."""
    torch.manual_seed(0)
    net = psp.parameterize(nn.Sequential(nn.Linear(3, 2, bias=False)))
    weight = net[0].parametrizations.weight.original.detach().clone().requires_grad_()
    alpha = torch.ones(1, 3, requires_grad=True)
    optimizer = torch.optim.SGD(psp.param_groups(net, 0.1, 0.2), lr=0.05, momentum=0.9)
    reference = torch.optim.SGD(
        [{"params": [weight], "weight_decay": 0.1}, {"params": [alpha], "weight_decay": 0.2}], lr=0.05, momentum=0.9
    )
    for _ in range(3):
        x, y = torch.randn(4, 3), torch.randn(4, 2)
        for opt, output in ((optimizer, net(x)), (reference, x @ (alpha * weight).T)):
            opt.zero_grad()
            ((output - y) ** 2).mean().backward()
            opt.step()
    torch.testing.assert_close(net[0].parametrizations.weight.original, weight)
    torch.testing.assert_close(psp.structure_parameters(net)["0"], alpha)
    assert math.isfinite(alpha.sum().item())


def test_what_is_no_network():
    with pytest.raises(ConfigError, match=r"a network is an nn\.Module, got 'resnet20'"):
        psp.parameterize("resnet20")


@pytest.mark.parametrize("disguise", [nn.utils.weight_norm, nn.utils.spectral_norm])
@pytest.mark.filterwarnings("ignore")
def test_a_weight_that_is_no_parameter_is_named_before_any_layer_is_touched(disguise):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), disguise(nn.Conv2d(4, 4, 3)))
    with pytest.raises(ConfigError, match=r"the weight of layer '1' is no parameter.*or skip the layer"):
        psp.parameterize(net)
    assert not psp.structure_parameters(net)
    psp.parameterize(net, skip=["1"])


def test_nan_is_not_pruned():
    """A run that has diverged does not look like one that has pruned."""
    net = psp.parameterize(nn.Sequential(nn.Linear(4, 2)))
    psp.structure_parameters(net)["0"].data[0, 0] = math.nan
    assert psp.sparsity(net).structures == 0
    assert net(torch.zeros(1, 4)).isnan().all()


class Tied(nn.Module):
    """Two linear layers and an embedding that share one weight."""

    def __init__(self):
        super().__init__()
        self.embed, self.a, self.b = nn.Embedding(6, 6), nn.Linear(6, 6), nn.Linear(6, 6, bias=False)
        self.a.weight = self.b.weight = self.embed.weight

    def forward(self, x):
        return self.b(self.a(self.embed(x)).relu())


@pytest.mark.parametrize("skip", [(), ("a",), ("b",)])
def test_modules_that_share_a_weight(skip):
    net = psp.parameterize(Tied(), "column", skip=skip).eval()
    for i, alpha in enumerate(psp.structure_parameters(net).values()):
        alpha.data = 1.5 - i + torch.zeros_like(alpha)
        alpha.data[0, i : i + 3] = 0.0
    x = torch.randint(0, 6, (5, 2))
    expected = net(x)
    torch.testing.assert_close(psp.extract(net, x)(x), expected)
    embedded = net.embed.weight.clone()
    torch.testing.assert_close(psp.fold(net)(x), expected)
    assert torch.equal(net.embed.weight, embedded)


def test_what_is_folded_can_be_trained_on():
    """Also a weight that is a product of two: under no_grad torch would make a buffer of it."""
    plain = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), nn.Linear(3, 2))
    folded = psp.fold(psp.parameterize(net))
    trained = {name for name, parameter in folded.named_parameters() if parameter.requires_grad}
    assert trained == set(dict(plain.named_parameters()))
    assert all(parameter.is_leaf for parameter in folded.parameters())
