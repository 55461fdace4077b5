"""psp.extract on networks that do other things on other sizes: they are exact there, or refuse them."""

import copy

import pytest
import torch
from networks import Call, difference, prune_channels
from torch import nn
from torch.nn import functional as F

import psp
from psp.errors import ExtractError


def images(size, batch=2):
    """Images of a side, or of a height and a width."""
    height, width = size if isinstance(size, tuple) else (size, size)
    return torch.randn(batch, 3, height, width, dtype=torch.float64)


def frames(count, batch=2):
    return torch.randn(batch, count, 7, 7, dtype=torch.float64)


def features(count, batch=2):
    return torch.randn(batch, count, dtype=torch.float64)


def steps(count, batch=2):
    return torch.randn(batch, count, 6, dtype=torch.float64)


def video(count, batch=2):
    return torch.randn(batch, count, 3, 6, 6, dtype=torch.float64)


def mean_of_steps(self, x):
    return self.b(self.a(x).relu().sum(1) / x.size(1))


def step_by_step(self, x):
    h = 0.0
    for t in range(x.shape[1]):
        h = torch.tanh(self.b(self.a(x[:, t]).relu()) + h)
    return h


def halves_of_rows(self, x):
    top, bottom = self.norm(self.a(x).permute(0, 2, 3, 1)).chunk(2, dim=1)
    return self.b(torch.cat([top, bottom], -1)).mean((1, 2))


def one_more_step(self, x):
    return self.b(F.pad(self.norm(self.a(x)), (0, 0, 0, 1), value=1.0)).sum(1)


def flattened(self, x):
    return torch.flatten(torch.sigmoid(self.a(x)), 1)


def enlarged_if_small(self, x):
    return self.b(self.a(x if min(x.shape[-2:]) >= 12 else F.interpolate(x, size=(16, 16))))


def made_square(self, x):
    height, width = x.shape[-2:]
    if height < width:
        x = F.pad(x, (0, 0, 0, width - height), value=1.0)
    return self.b(self.a(x).relu())


def laid_on_its_side(self, x):
    if x.shape[2] > x.shape[3]:
        x = x.transpose(2, 3)
    return self.b(self.a(x).relu())


def one_by_one(self, x):
    return sum(self.b(self.a(x[:, i : i + 1]).relu()) for i in range(x.shape[1]))


def mean_of_patches(self, x):
    return self.b(self.a(x.reshape(x.shape[0], -1, 24)).relu().sum(1) / (x.shape[1] // 4))


def largest_of_four_frames(self, x):
    maps = self.a(x.flatten(0, 1)).relu().mean((2, 3))
    return self.b(maps.view(x.shape[0], -1, 4, 8).amax(2).sum(1) / x.size(1))


SEQUENCES = {
    "mean of steps": (mean_of_steps, {"a": nn.Linear(6, 8), "b": nn.Linear(8, 5)}),
    "step by step": (step_by_step, {"a": nn.Linear(6, 8), "b": nn.Linear(8, 5)}),
    "one more step": (one_more_step, {"a": nn.Linear(6, 8), "norm": nn.LayerNorm(8), "b": nn.Linear(8, 5)}),
}
IMAGES = {
    "halves of rows": (halves_of_rows, {"a": nn.Conv2d(3, 8, 1), "norm": nn.LayerNorm(8), "b": nn.Linear(16, 5)}),
    "flattened": (flattened, {"a": nn.Conv2d(3, 8, 3, padding=1)}),
    "enlarged": (enlarged_if_small, {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(8, 4, 3)}),
    "made square": (made_square, {"a": nn.Conv2d(3, 8, 3), "b": nn.Conv2d(8, 4, 3, 2)}),
    "laid on its side": (laid_on_its_side, {"a": nn.Conv2d(3, 8, 3), "b": nn.Conv2d(8, 4, 3)}),
}
FRAMES = {"frames": (one_by_one, {"a": nn.Conv2d(1, 8, 3), "b": nn.Conv2d(8, 4, 3)})}
# What takes multiples of four alone.
PATCHES = {"patches": (mean_of_patches, {"a": nn.Linear(24, 8), "b": nn.Linear(8, 5)})}
VIDEO = {"video": (largest_of_four_frames, {"a": nn.Conv2d(3, 8, 3), "b": nn.Linear(8, 5)})}
FEATURES = {"features": (one_by_one, {"a": nn.Linear(1, 8), "b": nn.Linear(8, 4)})}
CASES = [(*case, steps, 7, (1, 6, 8, 14)) for case in SEQUENCES.values()]
CASES += [(*case, images, 16, (8, 15, 17, 32, (16, 20), (20, 16))) for case in IMAGES.values()]
CASES += [(*case, frames, 4, (2, 3, 6)) for case in FRAMES.values()]
CASES += [(*case, steps, 20, (4, 8, 40)) for case in PATCHES.values()]
CASES += [(*case, video, 20, (4, 8, 40)) for case in VIDEO.values()]
CASES += [(*case, features, 4, (2, 3, 6)) for case in FEATURES.values()]
NAMES = [*SEQUENCES, *IMAGES, *FRAMES, *PATCHES, *VIDEO, *FEATURES]


@pytest.mark.parametrize(("forward", "layers", "make", "size", "others"), CASES, ids=NAMES)
def test_another_size_is_exact_or_refused(forward, layers, make, size, others):
    torch.manual_seed(0)
    net = prune_channels(Call(forward, **layers).double(), a=[1, 2, 5])
    smaller = psp.extract(net, make(size))
    assert difference(net, smaller, make(size, 3)) < 1e-13
    for other in others:
        if "only" in psp.explain(smaller).sizes:
            with pytest.raises(ExtractError, match="extract it again with such an example"):
                smaller(make(other))
        else:
            assert difference(net, smaller, make(other)) < 1e-13


def positions():
    """Steps of a sequence, each with a row of its own added: for up to ten of them."""

    def forward(self, x):
        return self.c(F.gelu(self.b(self.a(x) + self.rows[:, : x.shape[1]])))

    torch.manual_seed(0)
    net = Call(forward, a=nn.Linear(6, 16), b=nn.Linear(16, 32), c=nn.Linear(32, 3))
    net.rows = nn.Parameter(torch.randn(1, 10, 16))
    return prune_channels(net.double().eval(), b=[1, 2, 5])


def test_a_network_for_one_size_is_saved_loaded_and_explained(tmp_path):
    net, x = positions(), torch.randn(2, 7, 6).double()
    smaller = psp.extract(net, x)
    torch.save(smaller, tmp_path / "net.pt")
    loaded = torch.load(tmp_path / "net.pt", weights_only=False)
    for kept in (loaded, copy.deepcopy(smaller), copy.deepcopy(loaded)):
        assert torch.equal(kept(x), smaller(x))
        assert psp.explain(kept) == psp.explain(smaller)
        with pytest.raises(ExtractError, match=r"it was extracted for inputs of \(7, 6\), got \(8, 6\)"):
            kept(torch.randn(2, 8, 6).double())


def test_trying_other_sizes_prints_nothing(capfd):
    psp.extract(positions(), torch.randn(2, 10, 6).double())
    assert capfd.readouterr().err == ""


def test_a_network_that_is_exact_on_all_sizes_refuses_none():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    smaller = psp.extract(prune_channels(net.double(), **{"0": [1, 4]}), images(9))
    assert psp.explain(smaller).sizes == "any size that the network takes"
    assert difference(net, smaller, images(23)) < 1e-13


@pytest.mark.parametrize("example", [images(8, 1), images(8, 2), torch.zeros(2, 3, 8, 8, dtype=torch.float64)])
def test_what_the_number_of_images_decides_is_refused(example):
    """Also where the example's outputs are 0 whatever is done."""
    net = Call(lambda self, x: self.a(x) if len(x) == 1 else 2 * self.a(x), a=nn.Conv2d(3, 4, 1, bias=False))
    net = psp.parameterize(net.double().eval(), "column")
    with pytest.raises(ExtractError, match="other things for one image than for several"):
        psp.extract(net, example)


@pytest.mark.parametrize(("numbers", "of_the_example"), [(lambda x: 1 / 64, False), (lambda x: len(x[0, 0]), True)])
def test_a_network_for_multiples_of_a_size_is_compared_on_the_double(numbers, of_the_example):
    """That a number counts rows is seen on no other size than twice the example's."""

    class InPatches(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Linear(8, 5)

        def forward(self, x):
            patches = self.a(x).relu().unflatten(-1, (-1, 8))  # an error for other sizes
            return self.b(patches.sum((2, 3, 4))) * numbers(x)

    torch.manual_seed(0)
    net = prune_channels(InPatches().double(), a=[1, 4])
    smaller = psp.extract(net, images(8))
    assert ("only" in psp.explain(smaller).sizes) == of_the_example
    if of_the_example:
        with pytest.raises(ExtractError, match="extract it again"):
            smaller(images(16))
    else:
        assert difference(net, smaller, images(16)) < 1e-13


@pytest.mark.parametrize(("write", "left"), [(lambda x: x.flatten(1), 6), (lambda x: x.view(x.size(0), -1), 6),
                                             (lambda x: x.view(-1, 8 * 16), 8)])  # fmt: skip
def test_a_linear_layer_behind_a_flattening_loses_what_is_pruned_but_behind_a_view_as_so_many_numbers(write, left):
    """Which takes larger images for more of them, and is exact there; how to write it is said."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), Call(write), nn.Linear(8 * 16, 5))
    net = prune_channels(net.double(), **{"0": [1, 4]})
    smaller = psp.extract(net, images(8))
    assert difference(net, smaller, images(8, 5)) < 1e-13
    assert smaller.get_submodule("4").in_features == left * 16
    said = "x.flatten(1) would be followed through" in psp.explain(smaller).layers[0].why
    assert said is (left == 8)
    if left == 8:
        assert difference(net, smaller, images(16)) < 1e-13


def test_the_steps_of_a_sequence_beside_images_are_tried():
    """A text and an image, of which the text is another function when it is longer."""

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.words = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3), nn.Embedding(9, 4)

        def forward(self, x, words):
            y = self.words(words).mean(1)
            y = 2 * y if words.shape[1] > 7 else y
            return self.b(self.a(x).relu()).mean((2, 3)) + y

    torch.manual_seed(0)
    net = prune_channels(Both().double(), a=[1, 2, 5])
    smaller = psp.extract(net, (images(12), torch.arange(14).view(2, 7) % 9))
    with pytest.raises(ExtractError, match="extract it again with such an example"):
        smaller(images(12), torch.arange(16).view(2, 8) % 9)
