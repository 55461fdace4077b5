"""Networks with random pruning for the tests of extraction: random normalization, random α, whole layers pruned."""

import torch
import torchvision
from torch import nn

import psp
from psp.method.bypass import without_bypass

TORCHVISION = ("resnet18", "resnet50", "densenet121", "mobilenet_v3_small", "vgg11_bn")
MOBILE = ("mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "convnext_tiny")  # groups, gates, layer norm


def network(name):
    """(network in evaluation mode, example of two images): one of ours or of torchvision's."""
    torch.manual_seed(0)
    if name in TORCHVISION + MOBILE:
        net = getattr(torchvision.models, name)(num_classes=10)
        if name == "vgg11_bn":  # its linear layers hold nearly all of its time and are nothing special
            net.classifier = nn.Sequential(nn.Linear(512 * 49, 64), nn.ReLU(True), nn.Dropout(), nn.Linear(64, 10))
    else:
        net = psp.create_model(name)
    side = 48 if name in TORCHVISION + MOBILE else 16
    return randomize(net).eval(), torch.randn(2, 3, side, side)


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function, **modules):
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.function(self, x) if self.function.__code__.co_argcount == 2 else self.function(x)


@torch.no_grad()
def randomize(net):
    """Give batch normalization statistics and parameters under which a pruned channel is a constant other than 0."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.3)
        if isinstance(module, nn.Linear):
            module.bias.normal_(0, 0.3)
    return net


def parameterized():
    """A small convolutional network for images of 8×8, parameterized by column."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.Flatten(), nn.Linear(32, 5)
    return psp.parameterize(randomize(nn.Sequential(*layers))).eval()


@torch.no_grad()
def prune(net, structure, share):
    """Parameterize `net` and prune at random `share(layer name, α)` of every layer's structures."""
    layers = [name for name, module in net.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    psp.parameterize(net, structure, skip=without_bypass(net, layers) if structure == "layer" else ())
    for name, alpha in psp.structure_parameters(net).items():
        kept = torch.rand(alpha.shape) >= share(name, alpha)
        alpha.copy_(torch.where(kept, 0.5 + torch.rand(alpha.shape), 0.01))
    return net.eval()


@torch.no_grad()
def prune_channels(net, **channels):
    """Parameterize `net` by channel and prune the listed ones of each layer, whose "." is written "__"."""
    psp.parameterize(net, "channel", place="weight")  # a normalization makes constants of what is pruned before it
    alphas = psp.structure_parameters(net)
    for name, pruned in channels.items():
        alphas[name.replace("__", ".")][pruned] = 0.0
    return net.eval()


@torch.no_grad()
def difference(net, smaller, x):
    """Largest difference of their outputs, relative to the largest output of `net`."""
    expected, got = net(x), smaller(x)
    assert got.shape == expected.shape
    assert expected.abs().max() > 0
    return float((got - expected).abs().max() / expected.abs().max())


def size(net):
    """Number of parameters; buffers are no parameters."""
    return sum(p.numel() for p in net.parameters())
