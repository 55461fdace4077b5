"""A small tree of image folders that is drawn here: coloured figures on noise, as JPEGs of several sizes.

It shows that folders, decoding and cropping work where no data set is at hand; one greyscale and one CMYK file are
among them, as in ILSVRC2012.
"""

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

VERSION = 1  # of what is drawn
COUNTS = {"train": 40, "val": 20}
SEED = 2019


def draw_tree(parent):
    """The folder of the drawings inside `parent`, made if it is not there, complete or not at all."""
    tree = Path(parent) / f"drawings-{VERSION}"
    if not tree.is_dir():
        aside = Path(tempfile.mkdtemp(dir=parent))
        for split, count in COUNTS.items():
            for name in FIGURES:
                (aside / split / name).mkdir(parents=True)
                for number in range(count):
                    draw(aside / split / name / f"{number:03d}.jpg", name, split, number)
        try:
            os.rename(aside, tree)
        except OSError:  # another process was faster
            shutil.rmtree(aside)
    return tree


def draw(path, name, split, number):
    """One drawing: a figure of random size, place and colour."""
    rng = np.random.default_rng([SEED, list(COUNTS).index(split), list(FIGURES).index(name), number])
    width, height = rng.integers(56, 97, 2).tolist()
    image = Image.fromarray(rng.integers(0, 120, (height, width, 3), dtype=np.uint8))
    radius = float(rng.uniform(0.2, 0.4)) * min(width, height)
    x, y = (float(rng.uniform(radius, side - radius)) for side in (width, height))
    colour = tuple(rng.integers(140, 256, 3).tolist())
    FIGURES[name](ImageDraw.Draw(image), x, y, radius, colour)
    if split == "train" and number == 0:
        image = image.convert({"circle": "L", "square": "CMYK"}.get(name, "RGB"))
    image.save(path, quality=90)


def circle(canvas, x, y, radius, colour):
    canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def square(canvas, x, y, radius, colour):
    canvas.rectangle((x - radius, y - radius, x + radius, y + radius), fill=colour)


def triangle(canvas, x, y, radius, colour):
    canvas.polygon([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], fill=colour)


def cross(canvas, x, y, radius, colour):
    for corner in (1, -1):
        ends = (x - radius, y - corner * radius, x + radius, y + corner * radius)
        canvas.line(ends, fill=colour, width=max(3, int(radius / 3)))


FIGURES = {figure.__name__: figure for figure in (circle, cross, square, triangle)}
