"""Trees of image folders, `train/<class>/*` and `val/<class>/*`, as ILSVRC2012 has them.

All files are decoded once, and what cannot be read is left out and named, so that training never stumbles over it. Sets
that fit in memory stay there decoded; the others are read again for every crop.
"""

import hashlib
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image
from tqdm import tqdm

from psp.data.cifar import data_folders
from psp.data.crops import DRAWS, PLAIN_BATCH, Cropped, crops, decode, eight_bits
from psp.data.drawings import draw_tree
from psp.data.limits import cores_of_one, memory_limit
from psp.errors import ConfigError, DataError
from psp.files import is_sealed, read_json, sealed, write_json
from psp.native import cache_folder

# Means and standard deviations of ILSVRC2012's pixels, as all torchvision networks take them, in 0…255.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
SUFFIXES = {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".pgm", ".ppm", ".tif", ".tiff"}
# Share of the memory we may use that decoded images may take.
MEMORY_SHARE = 0.25
NAMED = 20
LOOKED = 2  # version of what is looked at in a file
TARS = "; or put the official tars there and unpack them with: python -m psp.data.ilsvrc"
# So many files at a time are handed to threads: a list of all of ILSVRC2012's takes gigabytes.
CHUNK = 10_000


@dataclass(frozen=True)
class Files:
    """Image files and int64 labels N; for training decoded images, too (uint8, 3×H×W), where all `fits` in memory.

    `names` are relative to `tree`, as an array of bytes: one object, which worker processes share without copying it.
    """

    tree: Path
    names: np.ndarray
    labels: torch.Tensor
    fits: bool = False
    decoded: list | None = None

    def __len__(self):
        return len(self.labels)

    def to(self, device):
        """Itself, decoded if that fits in memory: images go to the device by the batch."""
        return self.in_memory() if self.fits else self

    def rows(self, index):
        rows = torch.arange(len(self))[index]
        decoded = None if self.decoded is None else [self.decoded[k] for k in rows.tolist()]
        return Files(self.tree, self.names[rows.numpy()], self.labels[index], self.fits, decoded)

    def in_memory(self):
        """The same images, all of them decoded."""
        if self.decoded is not None:
            return self
        return replace(self, decoded=list(in_threads(self.image, range(len(self)))))

    def cropped(self, config):
        """One random crop of each image, of the first epoch's size, as a set that feeds these and no others."""
        rows = torch.arange(len(self))
        ((pixels, labels),) = self.feed([(rows, self.draws(len(self), torch.Generator()))], config, 0)
        return Cropped(pixels, labels)

    def image(self, row):
        return decode(self.tree / os.fsdecode(self.names[row])) if self.decoded is None else self.decoded[row]

    def draws(self, count, generator):
        """Random numbers in 0…1 for `psp.data.crops.at_random`, count×5."""
        return torch.rand(count, DRAWS, generator=generator)

    def feed(self, parts, config, epoch):
        """Pairs of random crops and labels for pairs of an index and its draws."""
        items = (list(zip(index.tolist(), draws, strict=True)) for index, draws in parts)
        return crops(self, items, config.train_side(epoch), config.crop_area)

    def plain(self, rows, config):
        """Pairs of the middles of the images at `rows` and their labels, by the batch."""
        # No rows are split into one empty batch.
        items = ([(row, None) for row in batch.tolist()] for batch in rows.split(PLAIN_BATCH) if len(batch))
        return crops(self, items, config.test_side)


def load_tree(name):
    """(training files, validation files, number of classes, sha256 over names and sizes, `summary`) of a tree.

    It is looked for in $PSP_DATA, then in `data/` beside this package. Raises DataError for one that is missing, lacks
    images of a class, or has other classes in val than in train.
    """
    tree = find_tree(name)
    listed = {split: list_files(tree / split) for split in ("train", "val")}
    classes = sorted(listed["train"])
    if classes != sorted(listed["val"]):
        odd = sorted(set(listed["train"]) ^ set(listed["val"]))
        raise DataError(f"{tree}: train and val have different classes ({', '.join(odd[:5])}); complete the tree")
    empty = [f"{split}/{folder}" for split in listed for folder in classes if not listed[split][folder]]
    if empty:
        raise DataError(f"{tree}: {', '.join(empty[:5])} has no image; complete the tree, or take the class out of it")
    digest = hashlib.sha256()
    for split, folders in listed.items():
        for folder in classes:
            for name, size in folders[folder]:
                digest.update(os.fsencode(f"{split}/{folder}/{name} {size}\n"))
    noticed = look_at_all(tree, listed, digest.hexdigest())
    train, val = (readable(tree, split, listed[split], classes, noticed) for split in ("train", "val"))
    return train, val, len(classes), digest.hexdigest(), summary(noticed)


def find_tree(name):
    """The folder of a tree; the drawings are made where they are missing. Raises DataError if there is none."""
    if name == "drawings":
        return draw_tree(cache_folder())
    for folder in data_folders():
        if (folder / name / "train").is_dir() and (folder / name / "val").is_dir():
            return folder / name
    places = " or ".join(str(folder / name) for folder in data_folders())
    raise DataError(
        f"{name} not found: looked for train/<class>/* and val/<class>/* in {places}. Put the tree there or point "
        f"PSP_DATA at the folder that holds it{TARS if name == 'ilsvrc2012' else ''}"
    )


def list_files(split):
    """{class: [(name, size in bytes)]} of the image files in a split's folders, hidden ones aside, in order.

    Links that lead nowhere are listed, with size 0: they are named later among the files that cannot be read.
    """
    found = {}
    for folder in sorted(e.name for e in os.scandir(split) if e.is_dir() and not e.name.startswith(".")):
        entries = [e for e in os.scandir(split / folder) if os.path.splitext(e.name)[1].lower() in SUFFIXES]
        found[folder] = sorted((e.name, file_size(e.path)) for e in entries if not os.path.isdir(e.path))
    if not any(found.values()):
        raise DataError(
            f"{split} has no image in any folder. It needs a folder for each class, with that one's images: sort them "
            f"into such folders, or unpack the set there again{TARS if split.parent.name == 'ilsvrc2012' else ''}"
        )
    return found


def file_size(path):
    """Bytes of a file; 0 if it is a link that leads nowhere."""
    return os.path.getsize(path) if os.path.exists(path) else 0


def look_at_all(tree, listed, sha256):
    """Decode every file once: {"unreadable": {name: reason}, "converted": {mode: count}, "values": 3·H·W in all}.

    What was found is kept in the user's cache folder by the tree's sha256, so that it is looked for only once; files
    that could not be read are looked at again.
    """
    kept = cache_folder() / f"images-{LOOKED}-{sha256[:32]}-pillow-{PIL.__version__}.json"
    found = read_kept(kept)
    if found:
        names = list(found["unreadable"])
    else:
        found = {"converted": {}, "values": 0}
        names = [f"{s}/{c}/{name}" for s, folders in listed.items() for c in folders for name, _ in folders[c]]
    unreadable, modes, values = {}, Counter(found["converted"]), found["values"]
    looked = in_threads(lambda name: look(tree / name), names)
    if len(names) > NAMED:
        looked = tqdm(looked, f"decoding {tree.name} once", len(names), unit="image", mininterval=1)
    for name, (mode, count) in zip(names, looked, strict=True):
        if count:
            modes[mode] += mode != "RGB"
            values += count
        else:
            unreadable[name] = mode
    converted = {mode: count for mode, count in sorted(modes.items()) if count}
    found = {"unreadable": unreadable, "converted": converted, "values": values}
    if names:
        write_json(sealed(found), kept)
    return found


def read_kept(path):
    """What an earlier look found; None where there was none or its file is damaged."""
    try:
        found = read_json(path, "look again")
    except (OSError, ConfigError):
        return None
    return found if is_sealed(found) else None


def look(path):
    """(mode of the image in a file, 3·height·width), or (why it cannot be decoded, 0).

    Raises DataError where the disk or the system is at fault, not the file.
    """
    try:
        with Image.open(path) as image:
            image.load()
            eight_bits(image)
            return image.mode, 3 * image.width * image.height
    except Exception as error:  # Pillow raises many kinds, by the file format
        if path.is_symlink() and not os.path.exists(path):
            return "a link that leads nowhere", 0
        if getattr(error, "errno", None):
            raise DataError(f"{path} cannot be opened ({error}); nothing was left out, start again") from error
        return f"{type(error).__name__}: {error}".replace(str(path), path.name), 0


def in_threads(function, items):
    """function(item) of all items, in order."""
    with ThreadPoolExecutor(cores_of_one()) as pool:
        for first in range(0, len(items), CHUNK):
            yield from pool.map(function, items[first : first + CHUNK])


def readable(tree, split, folders, classes, noticed):
    """The `Files` of a split that can be read."""
    bad = noticed["unreadable"]
    pairs = [(f"{split}/{c}/{name}", k) for k, c in enumerate(classes) for name, _ in folders[c]]
    pairs = [(name, label) for name, label in pairs if name not in bad]
    if not pairs:
        raise DataError(f"{tree / split} has no image that can be read; unpack the set there again")
    names = np.array([os.fsencode(name) for name, _ in pairs])
    fits = noticed["values"] <= MEMORY_SHARE * memory_limit() / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return Files(tree, names, torch.tensor([label for _, label in pairs]), fits)


def summary(noticed):
    """What a record says of files that were left out or converted; nothing where there were none."""
    unreadable, converted = noticed["unreadable"], noticed["converted"]
    named = dict(list(unreadable.items())[:NAMED])
    return {
        **({"unreadable": {"count": len(unreadable), "files": named}} if unreadable else {}),
        **({"converted_to_rgb": converted} if converted else {}),
    }
