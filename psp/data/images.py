"""A set of small colour images as one uint8 tensor, and their augmentation by the batch."""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

SIDE = 32
PIXELS = 3 * SIDE * SIDE
PADDING = 4
PLAIN_BATCH = 500


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

    def cropped(self, config):
        """Itself: these are cropped by the batch, where the network is, as a part of every step."""
        return self

    def draws(self, count, generator):
        """Random numbers for `augment`, count×3."""
        shifts = torch.randint(2 * PADDING + 1, (2, count), generator=generator)
        return torch.stack([*shifts.float(), torch.rand(count, generator=generator)], 1)

    def feed(self, parts, config, epoch):
        """Pairs of augmented uint8 pixels and labels for pairs of an index and its draws."""
        for index, draws in parts:
            yield augment(self.pixels[index], draws), self.labels[index]

    def plain(self, rows, config):
        """Pairs of pixels and labels, by the batch and as they are, of the images at `rows` (indices)."""
        for index in rows.to(self.labels.device).split(PLAIN_BATCH):
            yield self.pixels[index], self.labels[index]


def augment(pixels, draws):
    """Pad by 4 zero pixels, crop 32×32, flip half of the images. uint8 in and out.

    A row of `draws` (N×3) shifts one image down and right by its first two numbers of 0…8, and flips it where the
    third, uniform in 0…1, is below a half.
    """
    draws = draws.to(pixels.device)
    padded = F.pad(pixels, (PADDING,) * 4)
    windows = padded.unfold(2, SIDE, 1).unfold(3, SIDE, 1)  # a view: N × 3 × 9 × 9 × 32 × 32
    crops = windows[torch.arange(len(pixels), device=pixels.device), :, draws[:, 0].long(), draws[:, 1].long()]
    return torch.where((draws[:, 2] < 0.5).view(-1, 1, 1, 1), crops.flip(3), crops)
