"""Crops of images of any size: at random for training, the middle for a test; by a DataLoader's workers or here."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as TF

from psp.data.limits import cores_of_one
from psp.errors import DataError

# Width over height of a training crop lies between this and its reciprocal, as in Szegedy et al. 2015.
NARROWEST = 3 / 4
# A test image is scaled so that its shorter side is this much longer than the crop of its middle: 256 for 224.
MARGIN = 8 / 7
PLAIN_BATCH = 100
DRAWS = 5
# Of an image that is longer than so many times its shorter side, a test looks at the middle of that length: scaled as
# a whole, a thin line of an image would fill the memory.
LONGEST = 8
# Modes of Pillow whose values have no known range.
NO_RANGE = ("I", "F")


def decode(path):
    """The image in a file as uint8 RGB, 3×H×W; greyscale, CMYK and palettes are converted, 16 bits cut to 8.

    Raises DataError, naming the file, where it cannot be read any more (psp.data.folders left out what never could).
    """
    try:
        with Image.open(path) as image:
            pixels = np.array(eight_bits(image).convert("RGB"))
    except Exception as error:  # Pillow raises many kinds, by the file format
        raise DataError(f"{path} cannot be read as an image any more ({error}); restore it and start again") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)  # in memory H×W×3, for which resizing is fast


def eight_bits(image):
    """`image`, of 16 bits a pixel the upper 8: Pillow itself clips them. Raises ValueError for values of 32 bits."""
    if image.mode in NO_RANGE:
        raise ValueError(f"pixels of mode {image.mode!r} have no range that is known")
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image


@dataclass(frozen=True)
class Cropped:
    """Crops that are made (uint8 pixels N×3×S×S) and int64 labels N, fed as they are: steps without a loader."""

    pixels: torch.Tensor
    labels: torch.Tensor

    def __len__(self):
        return len(self.labels)

    def draws(self, count, generator):
        """None are needed, count×0."""
        return torch.empty(count, 0)

    def feed(self, parts, config, epoch):
        """Pairs of pixels and labels for pairs of an index and its draws."""
        return ((self.pixels[index], self.labels[index]) for index, _ in parts)


class Crops(Dataset):
    """Crops by items (row, draws): at random by its five numbers in 0…1, or of the middle where draws is None."""

    def __init__(self, files, side, crop_area):
        self.files, self.side, self.crop_area = files, side, crop_area

    def __getitem__(self, item):
        row, draws = item
        image = self.files.image(row)
        crop = middle(image, self.side) if draws is None else at_random(image, self.side, self.crop_area, draws)
        return crop, self.files.labels[row]


def at_random(image, side, crop_area, draws):
    """A crop of 3×H×W scaled to 3×side×side: its area, shape and place, and whether it is flipped, are drawn.

    Area is uniform from `crop_area` to all of the image's, width over height log-uniform from 3/4 to 4/3; a side that
    is longer than the image's is cut to it.
    """
    area, shape, down, right, flip = draws.tolist()
    height, width = image.shape[1:]
    ratio = math.exp((2 * shape - 1) * -math.log(NARROWEST))
    pixels = (crop_area + area * (1 - crop_area)) * height * width
    h = min(height, max(1, round(math.sqrt(pixels / ratio))))
    w = min(width, max(1, round(math.sqrt(pixels * ratio))))
    top, left = int(down * (height - h + 1)), int(right * (width - w + 1))
    crop = TF.resized_crop(image, top, left, h, w, [side, side], antialias=True)
    return TF.horizontal_flip(crop) if flip < 0.5 else crop


def middle(image, side):
    """The middle side×side of an image that is scaled to a shorter side of 8/7 of that."""
    height, width = image.shape[1:]
    longest = LONGEST * min(height, width)
    if max(height, width) > longest:
        image = TF.center_crop(image, [min(height, longest), min(width, longest)])
    return TF.center_crop(TF.resize(image, [round(MARGIN * side)], antialias=True), [side, side])


def crops(files, items, side, crop_area=1.0):
    """Pairs of uint8 pixels N×3×side×side and labels N, one for each list of items.

    Raises DataError, naming the file, for one that cannot be read any more.
    """
    # Cropping alone, of decoded images, is left to workers where it would keep a GPU waiting; a CPU is busy anyway.
    workers = 0 if files.decoded is not None and not torch.cuda.is_available() else cores_of_one()
    loader = DataLoader(
        Crops(files, side, crop_area),
        batch_sampler=items,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
    )
    try:
        yield from loader
    except DataError as error:  # from a worker it comes with that one's traceback, its last line being the error
        raise DataError(str(error).strip().splitlines()[-1].removeprefix("psp.errors.DataError: ")) from error
