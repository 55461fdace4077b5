"""psp.extract: the same outputs from a smaller network, for every architecture and structure, and the extreme cases."""

import copy

import pytest
import torch
from networks import TORCHVISION, difference, network, size

import psp
from psp.extract import fold_batchnorm
from psp.structures import ALPHA_SHAPE

NETWORKS = ("resnet20", "densenet", *TORCHVISION)
# What a whole network would end with: no path from the image to the classes.
ONLY_PATH = {"densenet": {"fc": 0.3}, "mobilenet_v3_small": {}, "vgg11_bn": {}, "densenet121": {"classifier": 0.3}}
LAYER_PRUNED = {
    "resnet20": ("layer1.0.conv1", "layer1.1.conv2", "layer2.0.conv2", "layer3.1.conv1", "layer3.1.conv2"),
    "densenet": ("block1.1.conv", "block2.0.conv"),
    "resnet18": ("layer1.0.conv1", "layer2.0.downsample.0", "layer3.1.conv2"),
    "resnet50": ("layer1.0.conv1", "layer2.1.conv3", "layer3.0.downsample.0", "layer4.2.conv2"),
    "densenet121": ("features.denseblock1.denselayer2.conv1", "features.denseblock3.denselayer7.conv2"),
    "mobilenet_v3_small": ("features.2.block.2.0", "features.5.block.3.0", "features.8.block.2.fc2"),
    "vgg11_bn": (),
}


def tolerance(x):
    return 1e-5 if x.dtype == torch.float32 else 1e-11


def pruned_network(name, structure):
    """Half of the structures of every layer pruned at random, some layers wholly, some not at all."""
    net, x = network(name)
    psp.parameterize(net, structure)
    alphas = psp.structure_parameters(net)
    for i, (layer, alpha) in enumerate(alphas.items()):
        share = 1.0 if layer in LAYER_PRUNED[name] else 0.0 if i % 5 == 0 or alpha.numel() == 1 else 0.5
        kept = torch.rand(alpha.shape) >= share
        alpha.data.copy_(torch.where(kept, 0.5 + torch.rand(alpha.shape), 0.01))
    return net.eval(), x


@pytest.mark.parametrize("structure", sorted(ALPHA_SHAPE))
@pytest.mark.parametrize("name", NETWORKS)
def test_every_architecture_and_structure(name, structure):
    net, x = pruned_network(name, structure)
    state = copy.deepcopy(net.state_dict())
    before = net(x)
    smaller = psp.extract(net, x)
    assert difference(net, smaller, x) < 1e-5
    assert torch.equal(net(x), before)
    assert all(torch.equal(t, state[k]) for k, t in net.state_dict().items())
    assert psp.structure_parameters(net), "still parameterized"
    if structure in ("column", "channel"):
        assert size(smaller) < 0.7 * size(fold_batchnorm(net))
    assert not smaller.training
    other = torch.randn(1, *x.shape[1:-2], x.shape[2] + 8, x.shape[3] + 5)
    assert difference(net, smaller, other) < 1e-5, "of another size, one image"
