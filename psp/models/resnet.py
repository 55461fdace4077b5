"""Residual networks for 32×32 images (He et al. 2016, section 4.2).

Depth 6n + 2: a 3×3 convolution, three stages of n blocks with 16, 32 and 64 channels, global average
pooling and a linear classifier. Shortcuts are free of parameters (option A): where a stage halves the
image, the identity is subsampled and the new channels are zero. 0.27 M parameters at depth 20, 0.85 M at 56.
"""

from torch import nn
from torch.nn import functional as F

CIFAR_RESNETS = {f"resnet{6 * n + 2}": n for n in (3, 5, 7, 9, 18)}
WIDTHS = (16, 32, 64)


class PadShortcut(nn.Module):
    """Option A: every second pixel of the identity, the new channels zero, half of them on either side."""

    def __init__(self, channels, out_channels, stride):
        super().__init__()
        self.stride = stride
        self.new = out_channels - channels

    def forward(self, x):
        subsampled = x[:, :, :: self.stride, :: self.stride]
        return F.pad(subsampled, (0, 0, 0, 0, self.new // 2, self.new - self.new // 2))


class BasicBlock(nn.Module):
    """relu(x' + bn(conv(relu(bn(conv(x)))))) with x' the shortcut of x."""

    def __init__(self, channels, out_channels, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        same = stride == 1 and channels == out_channels
        self.shortcut = nn.Identity() if same else PadShortcut(channels, out_channels, stride)

    def forward(self, x):
        branch = F.relu(self.bn1(self.conv1(x)), inplace=True)
        branch = self.bn2(self.conv2(branch))
        return F.relu(branch + self.shortcut(x), inplace=True)


class CifarResNet(nn.Module):
    """`blocks` residual blocks in each of three stages. Input N×3×32×32, output N×num_classes logits."""

    def __init__(self, blocks, num_classes):
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.layer1 = _stage(WIDTHS[0], WIDTHS[0], blocks, stride=1)
        self.layer2 = _stage(WIDTHS[0], WIDTHS[1], blocks, stride=2)
        self.layer3 = _stage(WIDTHS[1], WIDTHS[2], blocks, stride=2)
        self.fc = nn.Linear(WIDTHS[2], num_classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


def _stage(channels, out_channels, blocks, stride):
    first = BasicBlock(channels, out_channels, stride)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))
