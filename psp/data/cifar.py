"""CIFAR-10 and CIFAR-100 from either official layout.

The binary version (`cifar-10-batches-bin`, `cifar-100-binary`) is read here; the python version by torchvision,
which also downloads it (`python -m psp.data.cifar cifar10`) and checks every file by md5.
"""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from psp.data.images import PIXELS, SIDE, Images
from psp.errors import DataError, extra
from psp.files import ROOT

TRAIN, TEST = 50_000, 10_000  # images


def read_binary(path, records, label_bytes, num_classes):
    """`Images` of one file of the official binary layout: label bytes, then 3·32·32 pixel bytes, per record.

    The last label byte counts (CIFAR-100 has a coarse label before the fine one).
    Raises DataError for a file of another size or a label out of range.
    """
    expected = records * (label_bytes + PIXELS)
    size = path.stat().st_size
    if size != expected:
        raise DataError(
            f"{path} has {size:,} bytes, expected {expected:,} for {records:,} images: it is truncated or another "
            "file; get it anew"
        )
    rows = np.fromfile(path, np.uint8).reshape(records, -1)
    labels = torch.from_numpy(rows[:, label_bytes - 1].astype(np.int64))
    if int(labels.max()) >= num_classes:
        bad = int((labels >= num_classes).nonzero()[0])
        raise DataError(
            f"{path}: image {bad} has label {int(labels[bad])}, expected 0…{num_classes - 1}; the file is damaged"
        )
    pixels = np.ascontiguousarray(rows[:, label_bytes:]).reshape(records, 3, SIDE, SIDE)
    return Images(torch.from_numpy(pixels), labels)


@dataclass(frozen=True)
class Cifar:
    """Where one of the two CIFAR sets lies and how it is read."""

    name: str
    num_classes: int
    binary_folder: str
    train_files: tuple
    test_file: str
    label_bytes: int
    python_folder: str

    def load(self):
        """(train, test) from the first folder that holds the set; the binary layout is tried first."""
        for folder in data_folders():
            if (folder / self.binary_folder).is_dir():
                return self._load_binary(folder / self.binary_folder)
            if (folder / self.python_folder).is_dir():
                return self._load_python(folder)
        places = " or ".join(
            str(folder / layout) for folder in data_folders() for layout in (self.binary_folder, self.python_folder)
        )
        raise DataError(
            f"{self.name} not found: looked for {places}. Put it there, point PSP_DATA at the folder that holds it, "
            f"or download it with: python -m psp.data.cifar {self.name}"
        )

    def _load_binary(self, folder):
        missing = [f for f in (*self.train_files, self.test_file) if not (folder / f).is_file()]
        if missing:
            raise DataError(f"{folder} lacks {', '.join(missing)}; unpack the official archive there again")
        records = TRAIN // len(self.train_files)
        parts = [read_binary(folder / f, records, self.label_bytes, self.num_classes) for f in self.train_files]
        train = Images(torch.cat([p.pixels for p in parts]), torch.cat([p.labels for p in parts]))
        return train, read_binary(folder / self.test_file, TEST, self.label_bytes, self.num_classes)

    def _load_python(self, folder):
        try:
            return tuple(_from_torchvision(self.torchvision(folder, train)) for train in (True, False))
        except RuntimeError as error:
            raise DataError(
                f"{folder / self.python_folder}: {error}; download it with: python -m psp.data.cifar {self.name}"
            ) from error

    def torchvision(self, folder, train, download=False):
        """torchvision's reader of the python layout, which checks every file's md5."""
        with extra("data"):
            from torchvision import datasets  # takes seconds to import, and most runs do without it

        reader = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[self.name]
        return reader(folder, train=train, download=download)


CIFAR = {
    "cifar10": Cifar(
        name="cifar10",
        num_classes=10,
        binary_folder="cifar-10-batches-bin",
        train_files=tuple(f"data_batch_{k}.bin" for k in range(1, 6)),
        test_file="test_batch.bin",
        label_bytes=1,
        python_folder="cifar-10-batches-py",
    ),
    "cifar100": Cifar(
        name="cifar100",
        num_classes=100,
        binary_folder="cifar-100-binary",
        train_files=("train.bin",),
        test_file="test.bin",
        label_bytes=2,
        python_folder="cifar-100-python",
    ),
}


def data_folders():
    """Where CIFAR is looked for, in this order."""
    chosen = os.environ.get("PSP_DATA")
    return ([Path(chosen)] if chosen else []) + [ROOT / "data"]


def _from_torchvision(reader):
    pixels = np.ascontiguousarray(reader.data.transpose(0, 3, 1, 2))
    return Images(torch.from_numpy(pixels), torch.tensor(reader.targets))


def main():
    """Download a CIFAR set in the python layout, md5 checked, into the first data folder."""
    parser = argparse.ArgumentParser(prog="python -m psp.data.cifar", description=main.__doc__)
    parser.add_argument("dataset", choices=CIFAR)
    name = parser.parse_args().dataset
    folder = data_folders()[0]
    folder.mkdir(parents=True, exist_ok=True)
    CIFAR[name].torchvision(folder, train=True, download=True)
    print(f"{name} is in {folder / CIFAR[name].python_folder}")


if __name__ == "__main__":
    main()
