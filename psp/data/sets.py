"""Image sets by name.

CIFAR-10 and CIFAR-100 come from `psp.data.cifar`, trees of image folders such as ILSVRC2012 from `psp.data.folders`;
the embedded default, `digits`, are the 1,797 handwritten digits that ship with scikit-learn.
"""

import hashlib
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from psp.data.cifar import CIFAR
from psp.data.images import Images
from psp.errors import ConfigError, extra

# Trees of image folders; all other sets have images of 32×32.
TREES = ("ilsvrc2012", "imagenette", "drawings")
# The split that holds out training images is the same for every run of every profile.
HOLDOUT_SEED = 2019


@dataclass(frozen=True)
class Dataset:
    """Training and test images (`psp.data.images.Images` or `psp.data.folders.Files`) and what one should know of them.

    Attributes:
        mean, std: of the training pixels, held out or not, per channel, in 0…255; of a tree those of ILSVRC2012.
        sha256: of pixels and labels; for a tree, of the names and sizes of its files.
        about: what a record says of a tree: its classes, and files that were left out or converted.
    """

    name: str
    num_classes: int
    train: Images
    test: Images
    mean: tuple
    std: tuple
    sha256: str
    about: dict = field(default_factory=dict)

    def to(self, device):
        return replace(self, train=self.train.to(device), test=self.test.to(device))

    def hold_out(self, count):
        """(training images, `count` held-out ones): a split of the training set, the same for every run."""
        if not 0 <= count < len(self.train):
            raise ConfigError(f"holdout must lie in 0…{len(self.train) - 1} for {self.name}, got {count}")
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(HOLDOUT_SEED))
        order = order.to(self.train.labels.device)
        return self.train.rows(order[count:].sort().values), self.train.rows(order[:count].sort().values)

    def summary(self):
        """What a run record says of its data."""
        counts = {"train": len(self.train), "test": len(self.test)}
        return {"name": self.name, **counts, "sha256": self.sha256, **self.about}


def load(name):
    """The `Dataset` called `name`: "digits", "cifar10", "cifar100" or one of `TREES`.

    It is looked for in $PSP_DATA, then in `data/` beside this package. Nothing is downloaded here.
    Raises ConfigError for an unknown name, DataError for missing, truncated or mislabelled files.
    """
    check_dataset(name)
    if name in TREES:
        return _tree(name)
    train, test = _digits() if name == "digits" else CIFAR[name].load()
    digest = hashlib.sha256()
    for part in (train.pixels, train.labels, test.pixels, test.labels):
        digest.update(part.numpy())
    mean, std = _channel_statistics(train.pixels)
    return Dataset(name, classes_of({"name": name}), train, test, mean, std, digest.hexdigest())


def check_dataset(name):
    """Raise ConfigError, naming the known ones, unless `name` is a known data set."""
    known = ("digits", *CIFAR, *TREES)
    if name not in known:
        raise ConfigError(f"unknown dataset {name!r}; choose one of {', '.join(known)}")


def classes_of(summary):
    """How many classes a data set has, by what a record says of it."""
    name = summary["name"]
    return summary["classes"] if name in TREES else 10 if name == "digits" else CIFAR[name].num_classes


def normalize(pixels, mean, std):
    """uint8 pixels to float32 with zero mean and unit standard deviation per channel, channels-last in memory."""
    mean, std = (torch.tensor(v, dtype=torch.float32, device=pixels.device).view(1, 3, 1, 1) for v in (mean, std))
    return ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)


def _channel_statistics(pixels):
    """(mean, standard deviation) per channel, in float64, from the counts of the 256 values: no large temporary."""
    values = torch.arange(256, dtype=torch.float64)
    counts = torch.stack([channel.flatten().bincount(minlength=256) for channel in pixels.unbind(1)])
    shares = counts.double() / counts.sum(1, keepdim=True)
    mean = shares @ values
    variance = (shares * (values - mean[:, None]) ** 2).sum(1)
    return tuple(mean.tolist()), tuple(variance.sqrt().tolist())


def _tree(name):
    """A tree of image folders; its validation images are the test set."""
    with extra("data"):
        from psp.data import folders  # imports torchvision, which takes seconds, and most runs do without it

    train, val, classes, sha256, noticed = folders.load_tree(name)
    return Dataset(name, classes, train, val, folders.MEAN, folders.STD, sha256, {"classes": classes, **noticed})


def _digits():
    """(train, test): 8×8 digits in 0…16, each pixel repeated 4×4, in three channels; the last fifth is the test set."""
    with extra("data"):
        from sklearn.datasets import load_digits

    digits = load_digits()
    gray = torch.from_numpy((digits.images * (255 / 16)).round().astype(np.uint8))
    pixels = gray.repeat_interleave(4, 1).repeat_interleave(4, 2).unsqueeze(1).repeat(1, 3, 1, 1)
    images = Images(pixels, torch.from_numpy(digits.target).long())
    split = len(images) * 4 // 5
    return images.rows(slice(None, split)), images.rows(slice(split, None))
