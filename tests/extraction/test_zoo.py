"""psp.extract over a zoo: the networks of torchvision and timm that other tools leave whole, with each structure.

Each is exact in float64 on two sizes, and never has more parameters left than its masks leave.
"""

import pytest
import timm
import torch
from networks import difference
from torch import nn
from torchvision.models import swin_t
from torchvision.models.video import r3d_18

import psp

# Share of the parameters that may be left, where the masks leave half, by structure "channel" and by "column".
ZOO = {
    "r3d_18": (0.35, 0.46),
    "swin_t": (0.51, 0.51),
    "mobilevit_xxs": (0.51, 0.51),
    "lcnet_050": (0.35, 0.35),
    "nfnet_l0": (0.45, 0.51),
    "mobilenetv4_conv_small": (0.35, 0.35),
    "ghostnet_100": (0.45, 0.45),
    "edgenext_xx_small": (0.45, 0.45),
    "convnextv2_atto": (0.51, 0.51),
    "skresnet18": (0.46, 0.46),
    "resnetv2_50": (0.35, 0.45),
    "resnest14d": (0.45, 0.51),
}


@torch.no_grad()
def build(name):
    """(network, image, image of another size): random weights and statistics, under which no branch is zero."""
    torch.manual_seed(0)
    side, frames = (32, (4,)) if name == "r3d_18" else (64, ())
    other = side if name == "r3d_18" else 96
    if name in ("r3d_18", "swin_t"):
        net = {"r3d_18": r3d_18, "swin_t": swin_t}[name](num_classes=10)
    else:
        net = timm.create_model(name, num_classes=10)
    for parameter in net.parameters():
        parameter += 0.02 * torch.randn_like(parameter)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    images = (torch.randn(n, 3, *frames, size, size, dtype=torch.float64) for n, size in ((1, side), (2, other)))
    return net.double(), *images


@torch.no_grad()
def half(net, structure):
    """Parameterize a network and prune half of the structures of every layer at random."""
    psp.parameterize(net, structure, place="weight").eval()
    for alpha in psp.structure_parameters(net).values():
        if alpha.numel() > 1:
            alpha[torch.rand(alpha.shape) < 0.5] = 0.0
    return net


@pytest.mark.parametrize("structure", ["channel", "column"])
@pytest.mark.parametrize("name", ZOO)
def test_never_more_is_left_than_the_masks_leave(name, structure):
    net, image, other = build(name)
    total = sum(p.numel() for p in net.parameters())
    smaller = psp.extract(half(net, structure), image)
    assert difference(net, smaller, other) < 1e-8
    masked, left = psp.cost(net, image), psp.cost(smaller, image)
    assert left.params <= masked.params
    assert left.params <= ZOO[name][structure == "column"] * total
    assert structure == "column" or left.macs <= masked.macs
