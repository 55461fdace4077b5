"""The pruners that PSP is compared with: channels go until the costs are what was asked for, the weakest first."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

import psp

spec = importlib.util.spec_from_file_location("peers", Path(__file__).parents[1] / "benchmarks" / "peers.py")
peers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(peers)


@pytest.mark.parametrize("name", peers.PRUNERS)
@pytest.mark.parametrize("reduction", [2, 4])
def test_a_pruner_stops_at_the_cost_asked_for(name, reduction):
    torch.manual_seed(0)
    net, image = psp.create_model("resnet20").eval(), torch.randn(1, 3, 32, 32)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.1, 1.0)
    nn.init.constant_(net.layer3[1].bn1.weight[:40], 1e-3)
    before = psp.cost(net, image).macs
    peers.remove(peers.make_pruner(name, net, image, 1e-4), net, image, reduction)
    assert reduction <= before / psp.cost(net, image).macs < 1.1 * reduction
    assert net(image).shape == (1, 10)
    if name == "slimming":
        assert net.layer3[1].bn1.weight.min() > 1e-3


@pytest.mark.parametrize("name", peers.PRUNERS)
def test_a_pruner_adds_its_decay_to_the_gradients(name):
    net = psp.create_model("resnet20")
    image = torch.randn(2, 3, 32, 32)
    pruner = peers.make_pruner(name, net, image, 1e-2)
    net(image).square().sum().backward()
    before = [parameter.grad.clone() for parameter in net.parameters()]
    pruner.regularize(net)
    changed = [n for (n, p), grad in zip(net.named_parameters(), before, strict=True) if not torch.equal(p.grad, grad)]
    assert {n for n in changed if "bn" in n and n.endswith("weight")}
    assert any("conv" in n for n in changed) is (name == "group_norm")
