"""psp.extract: the same outputs from a smaller network, for every architecture and structure, and the extreme cases."""

import copy
import io

import pytest
import torch
from networks import TORCHVISION, difference, network, parameterized, prune, prune_channels, randomize, size
from torch import nn

import psp
from psp.errors import ExtractError
from psp.extraction.extract import fold_batchnorm
from psp.kernels.columns import ColumnSparseConv2d
from psp.method.baselines import attach_norm_masks, prune_by_norm
from psp.method.structures import ALPHA_SHAPE

NETWORKS = ("resnet20", "densenet16", "densenet40", *TORCHVISION)
# None of the layers of VGG has a bypass.
CASES = [(n, s) for n in NETWORKS for s in ALPHA_SHAPE if (n, s) != ("vgg11_bn", "layer")] + [
    ("densenet_bc100", "column")
]
PRUNED = (
    "layer1.0.conv1", "layer1.1.conv2", "layer2.0.conv2", "layer3.1.conv1", "layer3.1.conv2",  # resnet20, resnet18
    "layer2.0.downsample.0", "layer2.1.conv3", "layer4.2.conv2",  # resnet50
    "block1.1.conv", "block2.0.conv",  # densenet16, densenet40
    "features.denseblock1.denselayer2.conv1", "features.denseblock3.denselayer7.conv2",  # densenet121
    "features.2.block.2.0", "features.5.block.3.0", "features.8.block.2.fc2",  # mobilenet_v3_small
)  # fmt: skip


def convolutions(net):
    return [m for m in net.modules() if isinstance(m, (nn.Conv2d, ColumnSparseConv2d))]


def shapes(net):
    return {name: tensor.shape for name, tensor in net.state_dict().items()}


@pytest.mark.parametrize(("name", "structure"), CASES)
def test_every_architecture_and_structure(name, structure):
    """Half of the structures of every layer pruned at random, some layers wholly, every fifth not at all."""
    net, x = network(name)
    order = [n for n, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]

    def share(layer, alpha):
        if layer in PRUNED:
            return 1.0
        if structure == "layer":
            return 0.5
        return 0.0 if alpha.numel() == 1 or order.index(layer) % 5 == 0 else 0.5

    prune(net, structure, share)
    state, before = copy.deepcopy(net.state_dict()), net(x)
    smaller = psp.extract(net, x)
    assert difference(net, smaller, x) < 1e-5
    assert torch.equal(net(x), before), "the input model is as it was"
    assert all(torch.equal(t, state[k]) for k, t in net.state_dict().items())
    assert not smaller.training
    assert not any("parametrizations" in k for k in smaller.state_dict())
    if structure in ("column", "channel"):
        assert size(smaller) < 0.8 * size(fold_batchnorm(net))
    if structure == "channel":
        # Few zeros are left: constants that stand for all at the border, or that fill up a sum for nothing.
        zeros = sum(int((p == 0).sum()) for p in smaller.parameters())
        assert zeros < 0.02 * size(smaller) + 2000
    other = torch.randn(1, 3, x.shape[2] + 8, x.shape[3] + 5)
    assert difference(net, smaller, other) < 1e-5, "one image of another size"


@pytest.mark.parametrize("structure", sorted(ALPHA_SHAPE))
def test_to_rounding_in_float64(structure):
    net, x = network("resnet20")
    prune(net.double(), structure, lambda layer, alpha: 0.6)
    assert difference(net, psp.extract(net, x.double()), x.double()) < 1e-13


def test_parameters_and_macs_of_a_residual_network_by_hand():
    """ResNet-20 with every second channel of every convolution but the first pruned, and no constants but 0."""
    net = psp.create_model("resnet20").eval()
    psp.parameterize(net, "channel", skip=("conv1", "fc"))
    for alpha in psp.structure_parameters(net).values():
        alpha.data[::2] = 0.0
    smaller = psp.extract(net, torch.randn(2, 3, 32, 32))
    assert difference(net, smaller, torch.randn(2, 3, 32, 32)) < 1e-5
    # Stage 1 keeps the 16 channels of conv1; of stage 2, 8 in the middle come from stage 1 and every second one is
    # live of the others: 16 + 8 = 24; likewise 24 + 16 = 40 of stage 3. In a block: half of the channels.
    streams = [(16, 8, 16), (16, 16, 24), (24, 32, 40)]
    by_stage = [
        (before * inner + inner * inner) * 9 + 2 * (stream * inner + inner * inner) * 9
        for before, inner, stream in streams
    ]
    by_stage[0] += 3 * 16 * 9  # the first convolution
    by_stage[0] += 3 * 8 * 8 * 9  # zeros that cost nothing: 16 outputs of the second convolutions instead of 8
    weights = sum(by_stage) + 40 * 10
    assert sum(p.numel() for n, p in smaller.named_parameters() if n.endswith("weight")) == weights
    assert size(smaller) == weights + 10, "and the bias of fc; all others are 0"
    macs = sum(w * side * side for w, side in zip(by_stage, (32, 16, 8), strict=True)) + 40 * 10
    assert psp.cost(smaller, torch.randn(1, 3, 32, 32)) == (weights + 10, macs)


def test_the_cost_of_a_column_sparse_network_is_what_the_masks_say_or_less():
    """Less, where no column of a channel is left and its producer need not compute it."""
    net = psp.create_model("resnet20")
    psp.parameterize(net, skip=("conv1", "fc"))
    torch.manual_seed(0)
    for alpha in psp.structure_parameters(net).values():
        alpha.data[torch.rand(alpha.shape) < 0.76] = 0.0
    image = torch.randn(1, 3, 32, 32)
    masked, smaller = psp.cost(net.eval(), image), psp.cost(psp.extract(net, image), image)
    assert 0.85 * masked.macs < smaller.macs <= masked.macs
    assert 0.85 * masked.params < smaller.params <= masked.params


def test_nothing_pruned_gives_the_network_with_its_normalization_folded():
    net, x = network("resnet20")
    folded = fold_batchnorm(net)
    psp.parameterize(net)
    smaller = psp.extract(net, x)
    assert difference(net, smaller, x) < 1e-5
    assert shapes(smaller) == shapes(folded)


def test_fold_batchnorm_keeps_outputs_and_model():
    net, x = network("resnet20")
    state = copy.deepcopy(net.state_dict())
    folded = fold_batchnorm(net)
    assert difference(net, folded, x) < 1e-5
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert all(torch.equal(t, state[k]) for k, t in net.state_dict().items())


@pytest.mark.parametrize("name", ["resnet20", "densenet40", "mobilenet_v3_small"])
def test_everything_pruned_leaves_the_constant_output(name):
    net, x = network(name)
    prune(net, "channel", lambda layer, alpha: 1.0)
    smaller = psp.extract(net, x)
    assert difference(net, smaller, x) < 1e-5
    assert smaller(x).var(0).max() == 0
    assert size(smaller) < 100


def test_a_whole_stage_pruned_is_gone():
    net, x = network("resnet20")
    prune(net, "channel", lambda layer, alpha: 1.0 if layer.startswith("layer2.") else 0.0)
    smaller = psp.extract(net, x)
    assert difference(net, smaller, x) < 1e-5
    assert not hasattr(smaller, "layer2")
    assert len(convolutions(smaller)) == 1 + 6 + 6


def test_a_pruned_branch_is_gone_and_its_constant_is_not():
    net, x = network("resnet20")
    smaller = psp.extract(prune_channels(net, layer1__1__conv2=range(16)), x)
    assert difference(net, smaller, x) < 1e-5
    assert not hasattr(smaller.layer1, "1")
    assert len(convolutions(smaller)) == 19 - 2


def test_a_channel_that_nobody_reads_is_not_computed():
    """Column pruning of the second convolution takes channels out of the first."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    psp.parameterize(net, "column", skip=("0",))
    psp.structure_parameters(net)["2"].data[:, :5] = 0.0
    x = torch.randn(2, 3, 9, 9)
    smaller = psp.extract(net, x)
    assert difference(net, smaller, x) < 1e-5
    assert [tuple(m.weight.shape) for m in convolutions(smaller)] == [(3, 3, 3, 3), (4, 3, 3, 3)]


def test_columns_are_taken_out_of_a_convolution_where_many_are_pruned():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 5, 3, padding=1), nn.ReLU()).eval()
    psp.parameterize(net)
    alpha = psp.structure_parameters(net)["0"]
    alpha.data.zero_()[0, [0, 1, 2, 3, 3], [0, 2, 1, 0, 2], [0, 2, 1, 2, 0]] = 1.0
    x = torch.randn(2, 4, 6, 7)
    smaller = psp.extract(net, x)
    assert difference(net, smaller, x) < 1e-6
    (layer,) = convolutions(smaller)
    assert layer.weight.shape == (5, 5)
    assert layer.channels.tolist() == [0, 1, 2, 3, 3]
    assert layer.taps.tolist() == [0, 8, 4, 2, 6]
    assert layer.relu, "the ReLU is part of it"


@pytest.mark.parametrize(
    ("taps", "kernel", "pads"),
    [
        ([(1, 1)], (1, 1), None),
        ([(0, 0)], (1, 1), (1, -1, 1, -1)),
        ([(1, 0), (1, 1), (1, 2)], (1, 3), None),
        ([(1, 1), (2, 1), (1, 2), (2, 2)], (2, 2), (0, 1, 0, 1)),
        ([(0, 0), (2, 1), (1, 2)], (3, 3), None),  # no smaller kernel: its columns alone
    ],
)
def test_a_pruned_shape_is_a_smaller_kernel(taps, kernel, pads):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False)).eval()
    psp.parameterize(net, "shape")
    alpha = psp.structure_parameters(net)["0"].data.zero_()
    for r, s in taps:
        alpha[0, 0, r, s] = 1.0
    x = torch.randn(2, 3, 5, 6)
    smaller = psp.extract(net, x)
    assert difference(net, smaller, x) < 1e-6
    (conv,) = convolutions(smaller)
    assert conv.kernel_size == kernel
    assert psp.cost(smaller, x).params == psp.cost(net, x).params == 4 * 3 * len(taps)
    assert [m.padding for m in smaller.modules() if isinstance(m, nn.ZeroPad2d)] == ([pads] if pads else [])


def test_networks_pruned_by_a_baseline():
    net, x = network("resnet20")
    prune_by_norm(attach_norm_masks(net, "channel"), 0.5)
    smaller = psp.extract(net.eval(), x)
    assert difference(net, smaller, x) < 1e-5
    assert size(smaller) < 0.5 * size(net)


@pytest.mark.parametrize("structure", ["channel", "column", "shape"])
def test_copied_saved_compiled_and_in_channels_last(structure):
    net, x = network("resnet20")
    smaller = psp.extract(prune(net, structure, lambda layer, alpha: 0.6), x)
    file = io.BytesIO()
    torch.save(smaller, file)
    file.seek(0)
    assert difference(net, torch.load(file, weights_only=False), x) < 1e-5
    twin = copy.deepcopy(smaller)
    twin.load_state_dict(smaller.state_dict())
    last = torch.channels_last
    assert difference(net, twin.to(memory_format=last), x.to(memory_format=last)) < 1e-5
    assert difference(net, torch.compile(smaller, backend="eager", fullgraph=True), x) < 1e-5
    smaller(x).sum().backward()
    assert all(p.grad is not None for p in smaller.parameters()), "it can be trained on"


def test_a_network_with_folded_batchnorm_is_saved():
    net, x = network("resnet20")
    folded, file = fold_batchnorm(net.eval()), io.BytesIO()
    torch.save(folded, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), folded(x))


def test_onnx(tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    net, x = network("resnet20")
    structures = {"layer1.*": "column", "layer2.*": "channel", "layer3.*": "shape"}
    smaller = psp.extract(prune(net, structures, lambda layer, alpha: 0.6), x)
    torch.onnx.export(smaller, (x,), tmp_path / "net.onnx", dynamo=True, verbose=False)
    session = runtime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    expected = net(x).detach()
    assert (torch.from_numpy(got) - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 4, 8, 8), r"layer '0' fails on the example, on input of shape \(2, 4, 8, 8\)"),
        ((2, 3, 9, 8), r"layer '5' fails on the example, on input of shape \(2, 40\)"),
        ((2, 3, 2, 2), r"layer '0' fails on the example.*Give an example_input"),
        ((3, 8, 8), "layer '0' fails on the example.*the batch axis is missing, which makes 4 axes"),
    ],
)
def test_an_example_of_the_wrong_shape_names_the_layer(shape, message):
    with pytest.raises(ExtractError, match=message):
        psp.extract(parameterized(), torch.randn(shape))


def test_an_example_that_is_no_tensor():
    with pytest.raises(ExtractError, match=r"example_input must be a tensor, .* got \[1, 2\]"):
        psp.extract(parameterized(), [1, 2])


def test_a_model_that_was_never_parameterized():
    with pytest.raises(ExtractError, match=r"CifarResNet has no parameterized layer.*call psp.parameterize"):
        psp.extract(psp.create_model("resnet20").eval(), torch.randn(2, 3, 32, 32))


def test_a_model_in_training_mode_is_named():
    net = parameterized()
    net[1].train()
    with pytest.raises(ExtractError, match=r"module '1' of Sequential is in training mode; call model.eval"):
        psp.extract(net, torch.randn(2, 3, 8, 8))
    with pytest.raises(ExtractError, match="Sequential is in training mode"):
        psp.extract(net.train(), torch.randn(2, 3, 8, 8))
    with pytest.raises(ExtractError, match="Sequential is in training mode"):
        fold_batchnorm(net)


def test_two_batch_normalizations_in_a_row_are_both_folded():
    torch.manual_seed(0)
    net = randomize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4))).double().eval()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    folded = fold_batchnorm(net)
    assert [type(m) for m in folded.children()] == [nn.Conv2d]
    torch.testing.assert_close(folded(x), net(x))


def test_an_example_of_zeros_hides_no_wrong_network():
    """Writing into a view of a tensor cannot be followed; without biases every output for zeros is 0 all the same."""

    class WritesIntoView(nn.Module):
        def __init__(self):
            super().__init__()
            self.c, self.fc = nn.Conv2d(3, 8, 3, bias=False), nn.Linear(8, 2)

        def forward(self, x):
            y = self.c(x)
            y[:, :4].mul_(3.0)
            return self.fc(y.mean((2, 3)))

    torch.manual_seed(0)
    net = psp.parameterize(WritesIntoView(), skip="fc").eval()
    psp.structure_parameters(net)["c"].data[:, :1] = 0.0
    with pytest.raises(ExtractError, match="does not give the outputs of the masked one"):
        psp.extract(net, torch.zeros(1, 3, 8, 8))


def test_a_network_with_nan_in_it_is_said_to_have_it():
    net = parameterized()
    net[0].bias.data[0] = float("nan")
    with pytest.raises(ExtractError, match="outputs for example_input are not finite"):
        psp.extract(net, torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize("tokens", [5, 16])
def test_a_normalization_of_tokens_is_not_folded_into_their_features(tokens):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(tokens))
    net[1].running_mean.normal_()
    x, folded = torch.randn(3, tokens, 8), fold_batchnorm(copy.deepcopy(net).eval())
    torch.testing.assert_close(folded(x), net.eval()(x))
    smaller = psp.extract(psp.parameterize(net, skip=()).eval(), x)
    torch.testing.assert_close(smaller(x), net(x))


@pytest.mark.parametrize("combine", [torch.add, torch.mul])
def test_a_parameter_is_no_batch_of_one(combine):
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.c, self.position = nn.Conv2d(3, 4, 1), nn.Parameter(torch.randn(1, 4, 8, 8))

        def forward(self, x):
            return combine(self.c(x), self.position)

    torch.manual_seed(0)
    net = psp.parameterize(Positions()).eval()
    psp.structure_parameters(net)["c"].data.zero_()
    smaller = psp.extract(net, torch.randn(1, 3, 8, 8))
    x = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(smaller(x), net(x))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.d = nn.Conv2d(8, 4, 3)

    def forward(self, x):
        x = self.a(x).relu()
        return self.d(x + self.c(self.b(x).relu()))


@pytest.mark.filterwarnings("ignore:.* have nothing but weights that were kept")
@pytest.mark.parametrize("seed", range(6))
def test_what_was_extracted_can_be_pruned_and_extracted_again(seed):
    torch.manual_seed(seed)
    net, x = Residual().double().eval(), torch.randn(2, 3, 9, 9).double()
    for _ in range(3):
        psp.parameterize(net, "channel")
        for alpha in psp.structure_parameters(net).values():
            alpha.data[torch.rand(alpha.shape) < 0.3] = 0.0
        smaller = psp.extract(net, x)
        assert difference(net, smaller, x) < 1e-12
        net = smaller


@pytest.mark.parametrize("activation", [nn.SiLU, nn.ELU, nn.ReLU6, nn.LeakyReLU, nn.ReLU, nn.Hardswish])
def test_what_is_left_of_columns_can_be_trained(activation):
    """Its gradients are those of the masked network, whatever follows a convolution, and what follows that."""
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 16, 3, padding=1),
        activation(),
        nn.Conv2d(16, 16, 3),
        nn.ReLU(),
        nn.SiLU(),
        nn.Conv2d(16, 4, 1),
    )
    net = psp.parameterize(nn.Sequential(*layers).double().eval())
    for alpha in psp.structure_parameters(net).values():
        alpha.data[torch.rand(alpha.shape) < 0.7] = 0.0
    gradients = []
    for trained in (net, psp.extract(net, torch.randn(2, 3, 8, 8).double())):
        x = torch.linspace(-1, 1, 2 * 3 * 64, dtype=torch.float64).view(2, 3, 8, 8).requires_grad_()
        trained(x).square().sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients)


def test_outputs_of_zeros_are_those_of_zeros():
    net = psp.parameterize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3, bias=False))).eval()
    psp.structure_parameters(net)["2"].data.zero_()
    x = torch.randn(2, 3, 8, 8)
    assert not psp.extract(net, x)(x).any()
