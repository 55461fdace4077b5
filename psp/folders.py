"""Trees of image folders, `train/<class>/*` and `val/<class>/*`, as ILSVRC2012 has them.

All files are decoded once, and what cannot be read is left out and named, so that training never stumbles over it. Sets
that fit in memory stay there decoded; the others are read again for every crop.
"""

import argparse
import hashlib
import json
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from psp.cifar import data_folders
from psp.crops import DRAWS, PLAIN_BATCH, cores_of_one, crops, decode
from psp.drawings import draw_tree
from psp.errors import DataError
from psp.native import cache_folder

# Means and standard deviations of ILSVRC2012's pixels, as all torchvision networks take them, in 0…255.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff"}
# Share of the machine's memory that decoded images may take.
MEMORY_SHARE = 0.25
NAMED = 20
TARS = "; or put the official tars there and unpack them with: python -m psp.folders ilsvrc2012"


@dataclass(frozen=True)
class Files:
    """Image files and int64 labels N; decoded images (uint8, 3×H×W) where all of them fit in memory."""

    paths: list
    labels: torch.Tensor
    decoded: list | None = None

    def __len__(self):
        return len(self.labels)

    def to(self, device):
        """Itself: images go to the device by the batch."""
        return self

    def rows(self, index):
        rows = torch.arange(len(self))[index].tolist()
        decoded = None if self.decoded is None else [self.decoded[k] for k in rows]
        return Files([self.paths[k] for k in rows], self.labels[index], decoded)

    def image(self, row):
        return decode(self.paths[row]) if self.decoded is None else self.decoded[row]

    def draws(self, count, generator):
        """Random numbers in 0…1 for `psp.crops.at_random`, count×5."""
        return torch.rand(count, DRAWS, generator=generator)

    def feed(self, parts, config, epoch):
        """Pairs of random crops and labels for pairs of an index and its draws."""
        items = (list(zip(index.tolist(), draws, strict=True)) for index, draws in parts)
        return crops(self, items, config.train_side(epoch), config.crop_area)

    def plain(self, rows, config):
        """Pairs of the middles of the images at `rows` and their labels, by the batch."""
        items = ([(row, None) for row in batch.tolist()] for batch in rows.split(PLAIN_BATCH))
        return crops(self, items, config.test_side)


def load_tree(name):
    """(training files, validation files, number of classes, sha256 over names and sizes, `summary`) of a tree.

    It is looked for in $PSP_DATA, then in `data/` beside this package. Raises DataError for one that is missing, lacks
    images, or has other classes in val than in train.
    """
    tree = find_tree(name)
    listed = {split: list_files(tree / split) for split in ("train", "val")}
    classes = sorted(listed["train"])
    if classes != sorted(listed["val"]):
        odd = sorted(set(listed["train"]) ^ set(listed["val"]))
        raise DataError(f"{tree}: train and val have different classes ({', '.join(odd[:5])}); complete the tree")
    digest = hashlib.sha256()
    for split, folders in listed.items():
        for folder in classes:
            for path, size in folders[folder]:
                digest.update(f"{split}/{folder}/{path.name} {size}\n".encode())
    noticed = look_at_all(tree, listed, digest.hexdigest())
    train, val = (readable(tree, listed[split], classes, noticed) for split in ("train", "val"))
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
    """{class: [(path, size in bytes)]} of the image files in a split's folders, in order."""
    found = {}
    for folder in sorted(entry.path for entry in os.scandir(split) if entry.is_dir()):
        images = [e for e in os.scandir(folder) if Path(e.name).suffix.lower() in SUFFIXES and e.is_file()]
        found[Path(folder).name] = sorted((Path(e.path), e.stat().st_size) for e in images)
    if not any(found.values()):
        raise DataError(f"{split} has no image in any folder; unpack the set there again")
    return found


def look_at_all(tree, listed, sha256):
    """Decode every file once: {"unreadable": {name: reason}, "converted": {mode: count}, "values": 3·H·W in all}.

    What was found is kept in the user's cache folder by the tree's sha256, so that it is looked for only once.
    """
    kept = cache_folder() / f"images-{sha256[:32]}.json"
    if kept.is_file():
        return json.loads(kept.read_text(encoding="utf-8"))
    paths = [path for folders in listed.values() for files in folders.values() for path, _ in files]
    unreadable, modes, values = {}, Counter(), 0
    with ThreadPoolExecutor(cores_of_one()) as pool:
        looked = tqdm(pool.map(look, paths), f"decoding {tree.name} once", len(paths), unit="image", mininterval=1)
        for path, (mode, count) in zip(paths, looked, strict=True):
            if count:
                modes[mode] += 1
                values += count
            else:
                unreadable[path.relative_to(tree).as_posix()] = mode
    modes.pop("RGB", None)
    found = {"unreadable": unreadable, "converted": dict(sorted(modes.items())), "values": values}
    kept.write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")
    return found


def look(path):
    """(mode of the image in a file, 3·height·width), or (why it cannot be decoded, 0)."""
    try:
        with Image.open(path) as image:
            image.load()
            return image.mode, 3 * image.width * image.height
    except Exception as error:  # Pillow raises many kinds, by the file format
        return f"{type(error).__name__}: {error}".replace(str(path), path.name), 0


def readable(tree, folders, classes, noticed):
    """The `Files` of a split that can be read, decoded if the whole tree fits in memory."""
    bad = noticed["unreadable"]
    pairs = [(p, k) for k, c in enumerate(classes) for p, _ in folders[c] if p.relative_to(tree).as_posix() not in bad]
    paths, labels = [path for path, _ in pairs], torch.tensor([label for _, label in pairs])
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * MEMORY_SHARE
    if noticed["values"] > memory / int(os.environ.get("LOCAL_WORLD_SIZE", "1")):
        return Files(paths, labels)
    with ThreadPoolExecutor(cores_of_one()) as pool:
        return Files(paths, labels, list(pool.map(decode, paths)))


def summary(noticed):
    """What a record says of files that were left out or converted; nothing where there were none."""
    unreadable, converted = noticed["unreadable"], noticed["converted"]
    named = dict(list(unreadable.items())[:NAMED])
    return {
        **({"unreadable": {"count": len(unreadable), "files": named}} if unreadable else {}),
        **({"converted_to_rgb": converted} if converted else {}),
    }


def unpack(root):
    """Check ILSVRC2012's official tars in a folder by torchvision's md5 and unpack them to train/ and val/ there."""
    from torchvision.datasets import imagenet

    try:
        imagenet.parse_devkit_archive(root)
        for split, parse in (("train", imagenet.parse_train_archive), ("val", imagenet.parse_val_archive)):
            if not (Path(root) / split).is_dir():
                parse(root)
    except RuntimeError as error:  # missing, or another md5
        raise DataError(f"{root}: {error}") from error
    return root


def main():
    """Check and unpack the official tars of ILSVRC2012 in the first data folder."""
    parser = argparse.ArgumentParser(prog="python -m psp.folders", description=main.__doc__)
    parser.add_argument("dataset", choices=["ilsvrc2012"])
    root = data_folders()[0] / parser.parse_args().dataset
    try:
        print(f"ilsvrc2012 is in {unpack(root)}")
    except DataError as error:
        parser.exit(1, f"error: {error}\n")


if __name__ == "__main__":
    main()
