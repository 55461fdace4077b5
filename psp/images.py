"""A set of 32×32 colour images as one uint8 tensor."""

from dataclasses import dataclass

import torch

SIDE = 32
PIXELS = 3 * SIDE * SIDE


@dataclass(frozen=True)
class Images:
    """uint8 pixels N×3×32×32 and int64 labels N."""

    pixels: torch.Tensor
    labels: torch.Tensor

    def __len__(self):
        return len(self.labels)

    def to(self, device):
        return Images(self.pixels.to(device), self.labels.to(device))

    def rows(self, index):
        return Images(self.pixels[index], self.labels[index])
