"""Errors counted by hand."""

import torch
from torch import nn

from psp.data.images import SIDE, Images
from psp.data.sets import Dataset
from psp.runs.config import RunConfig
from psp.training.evaluate import Errors, errors_pct

# Places of the logits of seven classes, the largest first, and the class that each image is of.
RANKINGS = [
    ([3, 0, 1, 2, 4, 5, 6], 3),  # first
    ([3, 0, 1, 2, 4, 5, 6], 0),  # second
    ([6, 5, 4, 3, 2, 1, 0], 2),  # fifth
    ([6, 5, 4, 3, 2, 1, 0], 1),  # sixth
    ([1, 2, 3, 4, 5, 6, 0], 0),  # last
]


class Ranks(nn.Module):
    """Gives the image whose first pixel is k, of all images normalized by 0 and 1, the logits of ranking k."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(-torch.tensor([order for order, _ in RANKINGS]).argsort(1).float())

    def forward(self, x):
        assert not self.training
        return self.logits[x[:, 0, 0, 0].long()]


def test_top_1_and_top_5_errors_are_shares_of_the_images():
    pixels = torch.zeros(len(RANKINGS), 3, SIDE, SIDE, dtype=torch.uint8)
    pixels[:, 0, 0, 0] = torch.arange(len(RANKINGS))
    images = Images(pixels, torch.tensor([label for _, label in RANKINGS]))
    data = Dataset("by hand", 7, images, images, (0.0,) * 3, (1.0,) * 3, "")
    assert errors_pct(Ranks().train(), images, data, RunConfig(batch_size=2)) == Errors(80.0, 40.0)
