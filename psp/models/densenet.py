"""Densely connected networks for 32×32 images (Huang et al. 2017).

Depth 3n + 4 with n layers in each of three dense blocks: a layer's output, k channels (the growth rate), is
concatenated to its input. Between blocks a transition: 1×1 convolution and 2×2 average pooling. In the BC
variants a layer first narrows its input to 4k channels by a 1×1 convolution, has half as many 3×3
convolutions, and a transition halves the channels. 1.02 M parameters for DenseNet-40 and 0.77 M for
DenseNet-BC-100, both with k = 12 and ten classes. DenseNet-16, 0.13 M, is not of that paper: DenseNet-40 at a
size that a laptop trains in minutes.
"""

import torch
from torch import nn
from torch.nn import functional as F

GROWTH = 12
# name: (3×3 convolutions in a dense block, BC variant)
CIFAR_DENSENETS = {"densenet16": (4, False), "densenet40": (12, False), "densenet_bc100": (16, True)}


class DenseLayer(nn.Module):
    """x ↦ [x, conv3×3(relu(bn(x')))] with x' = conv1×1(relu(bn(x))) in a bottleneck layer, else x."""

    def __init__(self, channels, bottleneck):
        super().__init__()
        inner = 4 * GROWTH if bottleneck else channels
        self.narrow = _bn_relu_conv1x1(channels, inner) if bottleneck else nn.Identity()
        self.bn = nn.BatchNorm2d(inner)
        self.conv = nn.Conv2d(inner, GROWTH, 3, padding=1, bias=False)

    def forward(self, x):
        branch = F.relu(self.bn(self.narrow(x)), inplace=True)
        return torch.cat((x, self.conv(branch)), 1)


class CifarDenseNet(nn.Module):
    """Three dense blocks of `layers` layers each. Input N×3×32×32, output N×num_classes logits."""

    def __init__(self, layers, bottleneck, num_classes):
        super().__init__()
        channels = 2 * GROWTH if bottleneck else 16
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        for block in (1, 2, 3):
            dense = [DenseLayer(channels + i * GROWTH, bottleneck) for i in range(layers)]
            self.add_module(f"block{block}", nn.Sequential(*dense))
            channels += layers * GROWTH
            if block < 3:
                out_channels = channels // 2 if bottleneck else channels
                self.add_module(f"transition{block}", _bn_relu_conv1x1(channels, out_channels))
                channels = out_channels
        self.bn = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x):
        x = F.avg_pool2d(self.transition1(self.block1(self.conv1(x))), 2)
        x = F.avg_pool2d(self.transition2(self.block2(x)), 2)
        x = self.block3(x)
        return self.fc(F.relu(self.bn(x), inplace=True).mean((2, 3)))


def _bn_relu_conv1x1(channels, out_channels):
    return nn.Sequential(
        nn.BatchNorm2d(channels), nn.ReLU(inplace=True), nn.Conv2d(channels, out_channels, 1, bias=False)
    )
