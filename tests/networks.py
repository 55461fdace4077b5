"""Networks with random pruning for the tests of extraction: random normalization, random α, whole layers pruned."""

import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import psp

TORCHVISION = ("resnet18", "resnet50", "densenet121", "mobilenet_v3_small", "vgg11_bn")


def network(name):
    """(network in evaluation mode, example of two images): "resnet20", "densenet" or one of torchvision's."""
    torch.manual_seed(0)
    if name == "densenet":
        net = randomize(DenseNet())
    elif name in TORCHVISION:
        net = getattr(torchvision.models, name)(num_classes=10)
        if name == "vgg11_bn":  # its linear layers hold nearly all of its time and are nothing special
            net.classifier = nn.Sequential(nn.Linear(512 * 49, 64), nn.ReLU(True), nn.Dropout(), nn.Linear(64, 10))
    else:
        net = psp.create_model(name)
    side = 64 if name in TORCHVISION else 16
    return randomize(net).eval(), torch.randn(2, 3, side, side)


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


@torch.no_grad()
def prune(net, structure, share):
    """Parameterize `net` and prune at random `share(layer name, α)` of every layer's structures."""
    psp.parameterize(net, structure)
    for name, alpha in psp.structure_parameters(net).items():
        kept = torch.rand(alpha.shape) >= share(name, alpha)
        alpha.copy_(torch.where(kept, 0.5 + torch.rand(alpha.shape), 0.01))
    return net.eval()


@torch.no_grad()
def prune_channels(net, **channels):
    """Parameterize `net` by channel and prune the listed ones of each layer, whose "." is written "__"."""
    psp.parameterize(net, "channel")
    alphas = psp.structure_parameters(net)
    for name, pruned in channels.items():
        alphas[name.replace("__", ".")][pruned] = 0.0
    return net.eval()


class DenseNet(nn.Module):
    """Two dense blocks, batch normalization before the convolutions, as in CIFAR DenseNets."""

    def __init__(self, growth=6):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.block1 = nn.ModuleList(DenseLayer(8 + growth * i, growth) for i in range(3))
        self.transition = nn.Sequential(
            nn.BatchNorm2d(26), nn.ReLU(), nn.Conv2d(26, 13, 1, bias=False), nn.AvgPool2d(2)
        )
        self.block2 = nn.ModuleList(DenseLayer(13 + growth * i, growth) for i in range(3))
        self.norm = nn.BatchNorm2d(31)
        self.fc = nn.Linear(31, 10)

    def forward(self, x):
        x = self.conv1(x)
        for layer in self.block1:
            x = torch.cat([x, layer(x)], 1)
        x = self.transition(x)
        for layer in self.block2:
            x = torch.cat([x, layer(x)], 1)
        return self.fc(F.relu(self.norm(x)).mean((2, 3)))


class DenseLayer(nn.Module):
    def __init__(self, channels, growth):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, growth, 3, padding=1, bias=False)

    def forward(self, x):
        return self.conv(F.relu(self.norm(x)))


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
