"""psp.extract on random networks: branches, sums, concatenations, gates and normalization in any order."""

import random

import hypothesis
import torch
from hypothesis import strategies as st
from networks import prune, randomize
from torch import nn
from torch.nn import functional as F

import psp

LAYERS = (
    lambda c, draw: nn.Conv2d(c, draw([4, 6, 8]), draw([1, 3, 5]), padding="same", bias=draw([True, False])),
    lambda c, draw: nn.Sequential(nn.Conv2d(c, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True)),
    lambda c, draw: nn.Conv2d(c, c * draw([1, 2]), 3, padding=1, groups=c),
    lambda c, draw: nn.BatchNorm2d(c),
    lambda c, draw: nn.ReLU(inplace=draw([True, False])),
    lambda c, draw: draw([nn.Hardswish, nn.Sigmoid, nn.Tanh])(),
    lambda c, draw: nn.MaxPool2d(3, 1, 1),
    lambda c, draw: nn.AvgPool2d(3, 1, 1, count_include_pad=draw([True, False])),
    lambda c, draw: nn.Softmax(1),
)
ALONE = (
    lambda a: 1 - 0.5 * a,
    lambda a: F.pad(a, (0, 0, 0, 0, 1, 2)),
    lambda a: F.pad(a, (1, 1, 1, 1))[:, :, 1:-1, 1:-1],
    lambda a: a * torch.sigmoid(a.mean((2, 3), keepdim=True)),
)
TOGETHER = (torch.add, torch.sub, torch.mul, lambda a, b: torch.cat([a, b], 1))


class RandomNet(nn.Module):
    """Every step reads one of the last three tensors, and some steps a second one of any age."""

    def __init__(self, seed):
        super().__init__()
        draw = random.Random(seed).choice
        self.layers, self.steps, widths = nn.ModuleList(), [], [3]
        for _ in range(draw(range(6, 14))):
            a = draw(range(max(0, len(widths) - 3), len(widths)))
            kind = draw(["layer", "layer", "layer", "alone", "together"])
            if kind == "layer":
                step = self.layers.append(draw(LAYERS)(widths[a], draw))[-1]
                inputs = [a]
            elif kind == "alone":
                step, inputs = draw(ALONE), [a]
            else:
                step = draw(TOGETHER)
                same = [i for i, width in enumerate(widths) if width == widths[a]]
                inputs = [a, draw(same)]
            self.steps.append((step, inputs))
            widths.append(step(*(torch.zeros(2, widths[i], 6, 5) for i in inputs)).shape[1])
        self.fc = nn.Linear(widths[-1], 5)

    def forward(self, x):
        tensors = [x * 1.0]
        for step, inputs in self.steps:
            tensors.append(step(*(tensors[i] for i in inputs)))
        return self.fc(tensors[-1].mean((2, 3))), tensors[len(tensors) // 2]


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(
    seed=st.integers(0, 2**20),
    structure=st.sampled_from(["weight", "column", "channel", "channel", "shape"]),
    share=st.sampled_from([0.3, 0.6, 0.9]),
)
def test_random_networks(seed, structure, share):
    torch.manual_seed(seed)
    net = randomize(RandomNet(seed)).double()
    prune(net, structure, lambda layer, alpha: random.Random(f"{seed} {layer}").choice([share, share, 0.0, 1.0]))
    smaller = psp.extract(net, torch.randn(2, 3, 6, 5, dtype=torch.float64))
    x = torch.randn(3, 3, 7, 8, dtype=torch.float64)
    for got, expected in zip(smaller(x), net(x), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-11 * max(1.0, float(expected.detach().abs().max())))
