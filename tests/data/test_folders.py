"""Trees of image folders: what is read, what is left out and named, and the crops that training and tests are fed."""

import io
import json
import os
import re
import tarfile
from dataclasses import replace
from hashlib import md5
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets import imagenet
from torchvision.transforms.v2 import functional as TF

import psp
from psp.data import folders, ilsvrc
from psp.data.crops import at_random, decode, middle
from psp.data.drawings import draw_tree
from psp.data.sets import load
from psp.errors import ConfigError, DataError
from psp.files import is_sealed, write_json
from psp.pipeline.profiles import load_profile
from psp.runs.config import RunConfig

TREE = {"dataset": "imagenette", "model": "resnet18", "sides": [32, 48, 48]}


def save(path, mode="RGB", size=(40, 30), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return path


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """An imagenette of two classes, with three images each in train and two in val; PSP_DATA points to it."""
    monkeypatch.setenv("PSP_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for split, count in (("train", 3), ("val", 2)):
        for wnid in ("n01440764", "n02102040"):
            for number in range(count):
                save(tmp_path / "imagenette" / split / wnid / f"{wnid}_{number}.JPEG", size=(40 + number, 30))
    return tmp_path / "imagenette"


def test_classes_are_the_folders_in_order(tree):
    (tree / "train" / "n01440764" / "readme.txt").write_text("no image")
    data = load("imagenette")
    assert (data.num_classes, len(data.train), len(data.test)) == (2, 6, 4)
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.summary() == {"name": "imagenette", "train": 6, "test": 4, "sha256": data.sha256, "classes": 2}
    assert torch.equal(data.train.image(4), decode(tree / "train" / "n02102040" / "n02102040_1.JPEG"))


def test_the_sha256_tells_names_sizes_and_splits(tree):
    before = load("imagenette").sha256
    file = tree / "val" / "n01440764" / "n01440764_0.JPEG"
    file.rename(file.with_name("renamed.JPEG"))
    renamed = load("imagenette").sha256
    save(file.with_name("renamed.JPEG"), size=(90, 80))
    assert len({before, renamed, load("imagenette").sha256}) == 3


def test_what_cannot_be_read_is_left_out_named_and_counted_and_the_rest_converted(tree):
    train = tree / "train" / "n01440764"
    whole = save(train / "truncated.JPEG", size=(64, 64)).read_bytes()
    (train / "truncated.JPEG").write_bytes(whole[: len(whole) // 2])
    (train / "empty.JPEG").touch()
    (train / "text.png").write_text("no image")
    save(train / "grey.JPEG", "L")
    save(train / "cmyk.JPEG", "CMYK")
    save(train / "palette.png", "P")
    data = load("imagenette")
    noticed = data.summary()
    assert noticed["unreadable"]["count"] == 3
    reasons = noticed["unreadable"]["files"]
    assert set(reasons) == {f"train/n01440764/{n}" for n in ("truncated.JPEG", "empty.JPEG", "text.png")}
    assert "truncated" in reasons["train/n01440764/truncated.JPEG"]
    assert noticed["converted_to_rgb"] == {"CMYK": 1, "L": 1, "P": 1}
    assert noticed["train"] == len(data.train) == 9
    assert all(data.train.image(k).shape[0] == 3 for k in range(9))


def test_of_16_bits_a_pixel_the_upper_8_are_kept_and_unknown_ranges_are_left_out(tree):
    train = tree / "train" / "n01440764"
    ramp = np.arange(0, 256, 2, dtype=np.uint16).repeat(2).reshape(8, 32) * 257  # of 8 bits each 257 of 65,535
    Image.fromarray(ramp).save(train / "a-deep.png")
    Image.fromarray(np.float32([[0.25, 0.5]])).save(train / "float.tif")
    Image.fromarray(np.int32([[7, 2**20]])).save(train / "int.tif")
    data = load("imagenette")
    assert data.about["converted_to_rgb"] == {"I;16": 1}
    assert torch.equal(data.train.image(0), torch.from_numpy((ramp // 257).astype(np.uint8)).expand(3, 8, 32))
    reasons = data.about["unreadable"]["files"]
    assert set(reasons) == {"train/n01440764/float.tif", "train/n01440764/int.tif"}
    assert reasons["train/n01440764/float.tif"] == "ValueError: pixels of mode 'F' have no range that is known"


def test_converted_images_keep_their_colours(tree):
    """By hand: greyscale in all channels, red of CMYK and of a palette."""
    train = tree / "train" / "n01440764"
    Image.new("L", (9, 9), 90).save(train / "a-grey.png")
    Image.new("CMYK", (9, 9), (0, 255, 255, 0)).save(train / "b-cmyk.JPEG", quality=100)
    Image.new("RGB", (9, 9), (200, 0, 0)).convert("P").save(train / "c-palette.png")
    files = load("imagenette").train
    for row, colour in enumerate([(90, 90, 90), (255, 0, 0), (200, 0, 0)]):
        assert files.image(row)[:, 4, 4].tolist() == pytest.approx(colour, abs=8)


def test_names_that_are_not_utf_8_and_links_that_lead_nowhere(tree):
    train = tree / "train" / "n01440764"
    name = os.fsdecode(b"caf\xe9.JPEG")
    save(train / name)
    (train / "loop.JPEG").symlink_to("loop.JPEG")
    (train / "gone.JPEG").symlink_to("nowhere.JPEG")
    (train / "folder.JPEG").mkdir()
    (train / os.fsdecode(b"broken-\xe9.JPEG")).touch()
    for _ in range(2):  # also where what was found is read from its note
        data = load("imagenette")
        assert len(data.train) == 7
        assert data.about["unreadable"]["count"] == 3
        files = data.about["unreadable"]["files"]
        assert files["train/n01440764/loop.JPEG"] == files["train/n01440764/gone.JPEG"] == "a link that leads nowhere"
    (tree / "val" / "n01440764" / "n01440764_0.JPEG").rename(tree / "val" / "n01440764" / name)
    write_json(load("imagenette").summary(), tree / "record.json")
    assert json.loads((tree / "record.json").read_text(encoding="utf-8")) == load("imagenette").summary()


def test_hidden_folders_are_no_classes(tree):
    (tree / "train" / ".ipynb_checkpoints").mkdir()
    assert load("imagenette").num_classes == 2


def test_a_class_without_images_is_an_error(tree):
    for split in ("train", "val"):
        (tree / split / "n03000684").mkdir()
    with pytest.raises(DataError, match=r"train/n03000684, val/n03000684 has no image; complete the tree, or take"):
        load("imagenette")


def test_the_files_are_looked_at_once(tree, monkeypatch):
    first = load("imagenette").summary()
    monkeypatch.setattr(folders, "look", None)
    assert load("imagenette").summary() == first


def test_a_file_that_breaks_while_training_is_named(tree, monkeypatch):
    monkeypatch.setattr(folders, "MEMORY_SHARE", 0)
    files = load("imagenette").to("cpu").train
    assert files.decoded is None
    (tree / "train" / "n01440764" / "n01440764_1.JPEG").write_bytes(b"")
    said = r"^\S*n01440764_1\.JPEG cannot be read as an image any more \(.*\); restore it and start again$"
    with pytest.raises(DataError, match=said):
        files.image(1)
    with pytest.raises(DataError, match=said):  # and through a DataLoader's worker
        list(files.plain(torch.arange(6), RunConfig.of(TREE)))


def test_a_disk_that_fails_leaves_no_image_out(tree, monkeypatch):
    def failing(*arguments):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", failing)
        with pytest.raises(DataError, match=r"cannot be opened .*nothing was left out, start again"):
            load("imagenette")
    assert len(load("imagenette").train) == 6


def test_a_file_that_was_repaired_to_its_old_size_is_read_again(tree):
    path = tree / "train" / "n01440764" / "n01440764_1.JPEG"
    whole = path.read_bytes()
    path.write_bytes(bytes(len(whole)))
    assert load("imagenette").summary()["unreadable"]["count"] == 1
    path.write_bytes(whole)
    data = load("imagenette")
    assert len(data.train) == 6
    assert "unreadable" not in data.summary()
    assert load("imagenette").summary() == data.summary()


def test_a_torn_note_of_what_was_found_is_made_anew(tree):
    first = load("imagenette").summary()
    (note,) = (tree.parent / "cache" / "psp").glob("images-*.json")
    for torn in ("{", note.read_text().replace('"values": ', '"values": 1')):
        note.write_text(torn)
        assert load("imagenette").summary() == first
        assert is_sealed(json.loads(note.read_text()))


def test_a_missing_tree_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("PSP_DATA", str(tmp_path))
    with pytest.raises(DataError, match=re.escape(str(tmp_path / "ilsvrc2012")) + ".*python -m psp.data.ilsvrc"):
        load("ilsvrc2012")


def test_other_classes_in_val_than_in_train_are_an_error(tree):
    (tree / "val" / "n02102040").rename(tree / "val" / "n03000684")
    with pytest.raises(DataError, match=r"different classes \(n02102040, n03000684\)"):
        load("imagenette")


def test_a_split_without_images_is_an_error(tree):
    for file in (tree / "val").glob("*/*"):
        file.unlink()
    with pytest.raises(DataError, match=r"val has no image in any folder\. It needs a folder for each class"):
        load("imagenette")
    for folder in (tree / "val").iterdir():
        (folder / "broken.png").write_text("no image")
    with pytest.raises(DataError, match="val has no image that can be read"):
        load("imagenette")


def test_images_in_memory_and_images_from_files_feed_the_same(tree, monkeypatch):
    config = RunConfig.of({**TREE, "crop_area": 0.3, "epochs": 2})
    fed = {}
    for where, share in (("memory", 1.0), ("files", 0.0)):
        monkeypatch.setattr(folders, "MEMORY_SHARE", share)
        files = load("imagenette").to("cpu").train
        assert (files.decoded is None) == (where == "files")
        index = torch.tensor([5, 0, 3])
        draws = files.draws(3, torch.Generator().manual_seed(0))
        trained = list(files.feed([(index, draws), (index.flip(0), draws)], config, 1))
        fed[where] = [*trained, *files.plain(torch.arange(6), config)]
    for (pixels, labels), (others, also) in zip(fed["memory"], fed["files"], strict=True):
        assert pixels.dtype == torch.uint8
        assert pixels.shape[1:] == (3, 48, 48)
        assert torch.equal(pixels, others)
        assert torch.equal(labels, also)
    assert [labels.tolist() for _, labels in fed["files"]] == [[1, 0, 1], [1, 0, 1], [0, 0, 0, 1, 1, 1]]


@given(
    height=st.integers(1, 60), width=st.integers(1, 60), side=st.integers(2, 40), seed=st.integers(0, 99),
    area=st.floats(0.01, 1),
)  # fmt: skip
def test_a_random_crop_lies_in_the_image_and_has_its_side(height, width, side, seed, area):
    """On a ramp, a crop's values stay within the image's; whatever the numbers drawn, also 0 and nearly 1."""
    image = torch.linspace(10, 200, width).byte().expand(3, height, width).contiguous()
    generator = torch.Generator().manual_seed(seed)
    for draws in (torch.rand(5, generator=generator), torch.zeros(5), torch.full((5,), 1 - 2**-24)):
        crop = at_random(image, side, area, draws)
        assert crop.shape == (3, side, side)
        assert 10 <= crop.min() <= crop.max() <= 200


def test_random_crops_have_the_areas_and_shapes_that_were_asked_for():
    """Of a large image that is its row, then its column number, the crop's corners can be read off."""
    rows = torch.arange(200, dtype=torch.uint8).view(1, -1, 1).expand(1, 200, 200)
    image = torch.cat([rows, rows.mT, rows])
    draws = torch.rand(2000, 5, generator=torch.Generator().manual_seed(0))
    areas, shapes, flipped = [], [], 0
    for row in draws:
        crop = at_random(image, 100, 0.25, row).int()
        height = int(crop[0, -1, 0] - crop[0, 0, 0])
        width = int(crop[1, 0, -1] - crop[1, 0, 0])
        flipped += width < 0
        areas.append(height * abs(width) / 200**2)
        shapes.append(abs(width) / height)
    assert 0.23 < min(areas) < 0.27
    assert np.mean([a < 0.5 for a in areas]) == pytest.approx(1 / 3, abs=0.05)
    assert (min(shapes), max(shapes)) == pytest.approx((3 / 4, 4 / 3), abs=0.03)
    assert flipped / 2000 == pytest.approx(0.5, abs=0.05)


def test_the_middle_of_an_image_by_hand():
    image = torch.zeros(3, 80, 240, dtype=torch.uint8)
    image[:, 20:60, 100:140] = 255
    crop = middle(image, 70)  # scaled by one, 70×70 of the middle: rows 5 to 75, columns 85 to 155
    assert torch.equal(crop, image[:, 5:75, 85:155])


def test_a_test_looks_at_the_middle_of_a_very_long_image():
    """And not at 40 million pixels of it."""
    image = torch.zeros(3, 1, 20_000, dtype=torch.uint8)
    image[:, :, 9_996:10_004] = 255
    resize, sizes = TF.resize, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TF, "resize", lambda image, *rest, **options: resize(note(image), *rest, **options))

        def note(image):
            sizes.append(image.shape)
            return image

        crop = middle(image, 14)
    assert sizes == [(3, 1, 8)]
    assert crop.shape == (3, 14, 14)
    assert crop.min() == 255


def test_crops_that_are_made_are_fed_as_they_are(tree):
    config = RunConfig.of(TREE)
    files = load("imagenette").train
    crops = files.cropped(config)
    draws = crops.draws(2, torch.Generator())
    ((pixels, labels),) = crops.feed([(torch.tensor([4, 1]), draws)], config, 7)
    assert pixels.shape == (2, 3, 32, 32)
    assert labels.tolist() == [1, 0]
    assert torch.equal(pixels, crops.pixels[[4, 1]])
    assert len(crops) == len(files) == 6


def test_no_images_make_no_batch(tree, monkeypatch):
    """As of a process that has none of a small set."""
    for share in (1.0, 0.0):
        monkeypatch.setattr(folders, "MEMORY_SHARE", share)
        assert list(load("imagenette").to("cpu").train.plain(torch.arange(0), RunConfig.of(TREE))) == []


def test_a_set_that_is_larger_than_the_memory_limit_stays_on_disk(tree, monkeypatch):
    values = 3 * 30 * (2 * (40 + 41 + 42) + 2 * (40 + 41))
    for limit, decoded in ((4 * values, True), (4 * values - 1, False)):
        monkeypatch.setattr(folders, "memory_limit", lambda limit=limit: limit)
        data = load("imagenette")
        assert data.train.decoded is None, "to count images, none need be decoded"
        assert (data.to("cpu").train.decoded is not None) == decoded


def test_sides_grow_in_equally_long_steps():
    config = RunConfig.of({**TREE, "sides": [64, 112, 128], "epochs": 8})
    assert [config.train_side(epoch) for epoch in range(8)] == [64, 64, 80, 80, 96, 96, 112, 112]
    assert config.test_side == 128
    odd = RunConfig.of({**TREE, "sides": [64, 40, 64], "epochs": 3})
    assert [odd.train_side(epoch) for epoch in range(3)] == [64, 48, 40]
    assert RunConfig.of({**TREE, "sides": [64, 64, 64], "epochs": 1}).train_side(0) == 64
    short = RunConfig.of({**TREE, "sides": [64, 112, 128], "epochs": 3})
    assert [short.train_side(epoch) for epoch in range(3)] == [64, 80, 112], "the last side is always reached"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sides": [64, 64]}, r"sides must be three whole numbers above 0, got \[64, 64\]"),
        ({"sides": [64, 64, 0]}, "sides must be three"),
        ({"crop_area": 0}, "crop_area must be above 0 and at most 1"),
        ({"dataset": "cifar10"}, "cifar10 has images of 32×32: leave sides out"),
        ({"dataset": "digits", "sides": [32, 32, 32], "crop_area": 0.5}, "crop_area is of image folders, and digits"),
        ({"batch_size": 64, "micro_batches": 3}, "batch_size 64 is no multiple of micro_batches 3"),
        ({"micro_batches": 0}, "micro_batches must be above 0"),
    ],
)
def test_settings_of_a_tree_are_checked(settings, said):
    with pytest.raises(ConfigError, match=said):
        RunConfig.of({**TREE, **settings})


@pytest.mark.usefixtures("plain_steps")
def test_a_network_of_torchvision_trains_on_the_drawings(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    settings = {"dataset": "drawings", "model": "resnet18", "structure": "channel", "structure_decay": 0.01}
    settings |= {"sides": [32, 32, 48], "batch_size": 32, "epochs": 1}
    record = psp.train(settings, checkpoints=tmp_path / "checkpoints", device="cpu", progress=False)
    assert record["data"]["converted_to_rgb"] == {"CMYK": 1, "L": 1}
    assert (record["data"]["train"], record["data"]["test"]) == (160, 80)
    assert record["test_top5_error_pct"] == 0, "among four classes the right one is always in the five best"
    assert 0 < record["test_error_pct"] <= 100
    assert len(record["layers"]) == 19


@pytest.mark.usefixtures("plain_steps")
@pytest.mark.parametrize(
    "run",
    [
        "psp_weight_decay-resnet18-column-2e-5-s0",
        "psp_weight_decay-resnet50-channel-56e-6-s0",
        "psp_weight_decay-densenet121-layer-47e-6-s0",
    ],
)
def test_the_paper_profile_starts(run, tmp_path, monkeypatch):
    """Two steps of each network at full resolution, on a few drawings in an ILSVRC2012 tree, two micro-batches each."""
    monkeypatch.setenv("PSP_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    drawn = draw_tree(tmp_path)
    for file in [*drawn.glob("train/*/00[0-3].jpg"), *drawn.glob("val/*/000.jpg")]:
        copy = tmp_path / "ilsvrc2012" / file.relative_to(drawn)
        copy.parent.mkdir(parents=True, exist_ok=True)
        file.rename(copy)
    config = replace(load_profile("paper/ilsvrc").config(run), epochs=1, batch_size=8, micro_batches=2)
    record = psp.train(config, checkpoints=tmp_path / "checkpoints", device="cpu", progress=False)
    assert (record["data"]["classes"], record["data"]["train"], record["data"]["test"]) == (4, 16, 4)
    assert np.isfinite(record["curve"][0]["loss"])
    assert len(record["layers"]) == {"resnet18": 19, "resnet50": 52, "densenet121": 116}[config.model]


def tar(path, files):
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path.read_bytes()


def test_official_tars_are_checked_by_their_md5(tmp_path):
    for name, _ in imagenet.ARCHIVE_META.values():
        tar(tmp_path / name, {"wrong": b"x"})
    with pytest.raises(DataError, match="archive"):
        ilsvrc.unpack(tmp_path)


def test_tars_that_are_right_become_a_tree(tmp_path, monkeypatch):
    """Small tars built as the official ones are; their md5 and the devkit, which holds MATLAB files, are replaced."""
    image = save(tmp_path / "image.JPEG").read_bytes()
    inner = tar(tmp_path / "inner.tar", {"n01440764_1.JPEG": image})
    made = {
        "train": tar(tmp_path / "ILSVRC2012_img_train.tar", {"n01440764.tar": inner}),
        "val": tar(tmp_path / "ILSVRC2012_img_val.tar", {"ILSVRC2012_val_00000001.JPEG": image}),
    }
    for kind, content in made.items():
        monkeypatch.setitem(imagenet.ARCHIVE_META, kind, (imagenet.ARCHIVE_META[kind][0], md5(content).hexdigest()))
    monkeypatch.setattr(imagenet, "parse_devkit_archive", lambda root: None)
    monkeypatch.setattr(imagenet, "load_meta_file", lambda root: ({}, ["n01440764"]))
    with pytest.raises(DataError, match="train has 1 images, expected 1,281,167; delete it and start again"):
        ilsvrc.unpack(str(tmp_path))
    monkeypatch.setattr(ilsvrc, "IMAGES", {"train": 1, "val": 1})
    ilsvrc.unpack(str(tmp_path))
    found = {p.relative_to(tmp_path).as_posix() for s in ("train", "val") for p in Path(tmp_path, s).glob("*/*")}
    assert found == {"train/n01440764/n01440764_1.JPEG", "val/n01440764/ILSVRC2012_val_00000001.JPEG"}
