"""ILSVRC2012 from its official tars: python -m psp.data.ilsvrc

They lie in the folder ilsvrc2012 of the first data folder; train/ and val/ are made beside them.
"""

import sys
from pathlib import Path

from psp.data.cifar import data_folders
from psp.data.folders import list_files
from psp.errors import DataError

IMAGES = {"train": 1_281_167, "val": 50_000}


def unpack(root):
    """Check ILSVRC2012's official tars in a folder by torchvision's md5 and unpack them to train/ and val/ there.

    Raises DataError for missing or wrong tars, and for a split that was not unpacked to its end.
    """
    from torchvision.datasets import imagenet

    try:
        imagenet.parse_devkit_archive(root)
        for split, parse in (("train", imagenet.parse_train_archive), ("val", imagenet.parse_val_archive)):
            if not (Path(root) / split).is_dir():
                parse(root)
    except RuntimeError as error:  # missing, or another md5
        raise DataError(f"{root}: {error}") from error
    for split, images in IMAGES.items():
        found = sum(map(len, list_files(Path(root) / split).values()))
        if found != images:
            raise DataError(
                f"{Path(root) / split} has {found:,} images, expected {images:,}; delete it and start again"
            )
    return root


def main():
    """Check and unpack the tars."""
    try:
        print(f"ilsvrc2012 is in {unpack(data_folders()[0] / 'ilsvrc2012')}")
    except DataError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
