"""Channels that meet in a sum are one structure: found by hand, pruned together, gone together."""

import copy

import pytest
import torch
from networks import difference, network

import psp
from psp.errors import ConfigError
from psp.method.coupling import meeting


def branches(stage, blocks=3):
    return [f"layer{stage}.{block}.conv2" for block in range(blocks)]


def test_the_branches_of_a_residual_stage_meet():
    net = psp.create_model("resnet20")
    layers = [name for name, module in net.named_modules() if isinstance(module, torch.nn.Conv2d)]
    assert meeting(net, layers) == [["conv1", *branches(1)], branches(2), branches(3)]
    assert meeting(net, [name for name in layers if name.endswith("conv1")]) == []
    assert meeting(psp.create_model("densenet16"), ["conv1", "block1.0.conv", "block1.1.conv"]) == []


def test_a_depthwise_convolution_passes_channels_on():
    net, _ = network("mobilenet_v3_small")
    groups = meeting(net, [name for name, module in net.named_modules() if isinstance(module, torch.nn.Conv2d)])
    assert ["features.2.block.0.0", "features.2.block.1.0"] in groups
    assert ["features.2.block.2.0", "features.3.block.2.0"] in groups


def test_coupled_channels_share_one_alpha_and_the_stream_gets_thinner():
    net, x = network("resnet20")
    psp.parameterize(net, "channel", skip=["fc"], couple=True)
    alphas = psp.structure_parameters(net)
    assert sorted(alphas) == sorted({"conv1", "layer2.0.conv2", "layer3.0.conv2"} | {n for n in alphas if "conv1" in n})
    with torch.no_grad():
        alphas["conv1"].view(-1)[:6] = 0.0
        alphas["layer2.0.conv2"].view(-1)[:6] = 0.0
    layers = psp.sparsity(net).layers
    assert {layers[name].structures for name in ("conv1", *branches(1))} == {6 / 16}
    smaller = psp.extract(net.eval(), x)
    assert difference(net, smaller, x) < 1e-5
    widths = {m.out_channels for m in smaller.modules() if isinstance(m, torch.nn.Conv2d)}
    assert 10 in widths, "of the first stage nothing is left of the six"
    assert len(psp.param_groups(net, structure_decay=0.1)[-1]["params"]) == len(alphas)


def test_a_copy_and_a_loaded_state_are_coupled_among_themselves():
    net, x = network("resnet20")
    psp.parameterize(net, "channel", skip=["fc"], couple=True)
    twin, loaded = (
        copy.deepcopy(net),
        psp.parameterize(psp.create_model("resnet20"), "channel", skip=["fc"], couple=True),
    )
    with torch.no_grad():
        psp.structure_parameters(twin)["conv1"].view(-1)[:4] = 0.0
    loaded.load_state_dict(twin.state_dict())
    assert torch.equal(loaded.eval()(x), twin.eval()(x))
    assert psp.sparsity(twin).layers["layer1.2.conv2"].structures == 4 / 16
    assert psp.sparsity(net).structures == 0


def test_nothing_to_couple_is_an_error():
    with pytest.raises(ConfigError, match="couple=True, but no outputs of two layers with structure 'channel' meet"):
        psp.parameterize(psp.create_model("densenet16"), "channel", couple=True)
