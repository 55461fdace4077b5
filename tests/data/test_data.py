"""Readers and augmentation against independent references; damaged and missing data."""

import pickle
import sys

import numpy as np
import pytest
import torch
from torchvision import datasets

from psp.data.cifar import CIFAR, read_binary
from psp.data.cifar import main as download
from psp.data.images import PIXELS, Images, augment
from psp.data.sets import load, normalize
from psp.errors import ConfigError, DataError


def write_binary(path, labels, rng, label_bytes=1):
    """A file of the official binary layout; returns its pixels, N×3×32×32."""
    pixels = rng.integers(0, 256, (len(labels), PIXELS), dtype=np.uint8)
    rows = np.concatenate([np.asarray(labels, np.uint8).reshape(len(labels), label_bytes), pixels], axis=1)
    rows.tofile(path)
    return pixels.reshape(-1, 3, 32, 32)


def test_read_binary_takes_the_last_label_byte(tmp_path):
    path = tmp_path / "train.bin"
    pixels = write_binary(path, [(0, 7), (1, 99)], np.random.default_rng(0), label_bytes=2)
    images = read_binary(path, records=2, label_bytes=2, num_classes=100)
    assert images.labels.tolist() == [7, 99]
    assert np.array_equal(images.pixels.numpy(), pixels)


def test_a_truncated_file_is_named_with_both_sizes(tmp_path):
    path = tmp_path / "data_batch_1.bin"
    write_binary(path, [1, 2, 3], np.random.default_rng(0))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"data_batch_1\.bin has 9,218 bytes, expected 9,219 for 3 images"):
        read_binary(path, records=3, label_bytes=1, num_classes=10)


def test_a_label_out_of_range_is_named_with_its_image(tmp_path):
    path = tmp_path / "data_batch_1.bin"
    write_binary(path, [1, 10, 3], np.random.default_rng(0))
    with pytest.raises(DataError, match="image 1 has label 10, expected 0…9"):
        read_binary(path, records=3, label_bytes=1, num_classes=10)


@pytest.mark.parametrize("name", sorted(CIFAR))
def test_a_missing_set_says_where_it_was_looked_for_and_how_to_get_it(name, tmp_path, monkeypatch):
    monkeypatch.setenv("PSP_DATA", str(tmp_path))
    monkeypatch.setattr("psp.data.cifar.ROOT", tmp_path / "repository")
    with pytest.raises(DataError) as error:
        load(name)
    for part in (
        tmp_path / CIFAR[name].binary_folder,
        tmp_path / "repository" / "data",
        f"python -m psp.data.cifar {name}",
    ):
        assert str(part) in str(error.value)


def test_without_psp_data_only_the_repository_is_searched(tmp_path, monkeypatch):
    monkeypatch.delenv("PSP_DATA", raising=False)
    monkeypatch.setattr("psp.data.cifar.ROOT", tmp_path)
    with pytest.raises(DataError) as error:
        load("cifar10")
    assert str(error.value).count("cifar-10-batches-bin") == 1
    assert str(tmp_path / "data" / "cifar-10-batches-bin") in str(error.value)


def test_the_download_goes_through_torchvision_into_the_first_folder(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setenv("PSP_DATA", str(tmp_path / "new"))
    monkeypatch.setattr(sys, "argv", ["psp.data.cifar", "cifar100"])
    monkeypatch.setattr(datasets, "CIFAR100", lambda folder, train, download: asked.append((folder, train, download)))
    download()
    assert asked == [(tmp_path / "new", True, True)]
    assert (tmp_path / "new").is_dir()
    assert "cifar-100-python" in capsys.readouterr().out


def test_a_missing_file_of_a_set_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PSP_DATA", str(tmp_path))
    (tmp_path / "cifar-100-binary").mkdir()
    (tmp_path / "cifar-100-binary" / "train.bin").touch()
    with pytest.raises(DataError, match=r"lacks test\.bin"):
        load("cifar100")


def test_a_damaged_python_layout_is_found_by_its_md5(tmp_path, monkeypatch):
    monkeypatch.setenv("PSP_DATA", str(tmp_path))
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for k in range(1, 6):
        (folder / f"data_batch_{k}").write_bytes(b"not a batch")
    with pytest.raises(DataError, match=r"corrupted.*python -m psp\.data\.cifar cifar10"):
        load("cifar10")


@pytest.mark.parametrize(("name", "label_bytes"), [("cifar10", 1), ("cifar100", 2)])
def test_the_binary_layout_gives_the_images_it_was_written_from(name, label_bytes, tmp_path, monkeypatch):
    """A small set, in files as they are described: the label that counts is the last byte before the pixels."""
    monkeypatch.setenv("PSP_DATA", str(tmp_path))
    monkeypatch.setattr("psp.data.cifar.TRAIN", 20)
    monkeypatch.setattr("psp.data.cifar.TEST", 6)
    kind, rng = CIFAR[name], np.random.default_rng(0)
    (tmp_path / kind.binary_folder).mkdir()
    counts = dict.fromkeys(kind.train_files, 20 // len(kind.train_files)) | {kind.test_file: 6}
    written = {}
    for file_name, count in counts.items():
        pixels, labels = rng.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8), rng.integers(0, 10, count)
        coarse = rng.integers(100, 256, (count, label_bytes - 1))
        rows = np.concatenate([coarse, labels[:, None], pixels.reshape(count, -1)], 1).astype(np.uint8)
        (tmp_path / kind.binary_folder / file_name).write_bytes(rows.tobytes())
        written[file_name] = pixels, labels
    data = load(name)
    train = [written[file_name] for file_name in kind.train_files]
    assert np.array_equal(data.train.pixels.numpy(), np.concatenate([pixels for pixels, _ in train]))
    assert data.train.labels.tolist() == [label for _, labels in train for label in labels]
    assert np.array_equal(data.test.pixels.numpy(), written[kind.test_file][0])
    assert data.test.labels.tolist() == written[kind.test_file][1].tolist()


@pytest.mark.parametrize(
    ("name", "train_files", "test_file", "meta", "label_key", "meta_key"),
    [
        ("cifar10", [f"data_batch_{k}" for k in range(1, 6)], "test_batch", "batches.meta", "labels", "label_names"),
        ("cifar100", ["train"], "test", "meta", "fine_labels", "fine_label_names"),
    ],
)
def test_the_python_layout_gives_the_images_it_was_written_from(
    name, train_files, test_file, meta, label_key, meta_key, tmp_path, monkeypatch
):
    """A small set in torchvision's layout, its md5 check set aside."""
    monkeypatch.setenv("PSP_DATA", str(tmp_path))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    folder = tmp_path / CIFAR[name].python_folder
    folder.mkdir()
    rng = np.random.default_rng(0)
    written = {}
    for file_name in (*train_files, test_file):
        pixels, labels = rng.integers(0, 256, (4, PIXELS), dtype=np.uint8), rng.integers(0, 10, 4).tolist()
        written[file_name] = pixels.reshape(-1, 3, 32, 32), labels
        (folder / file_name).write_bytes(pickle.dumps({"data": pixels, label_key: labels}))
    (folder / meta).write_bytes(pickle.dumps({meta_key: list("abcdefghij")}))
    data = load(name)
    train = [written[file_name] for file_name in train_files]
    assert np.array_equal(data.train.pixels.numpy(), np.concatenate([pixels for pixels, _ in train]))
    assert data.train.labels.tolist() == [label for _, labels in train for label in labels]
    assert np.array_equal(data.test.pixels.numpy(), written[test_file][0])
    assert data.test.labels.tolist() == written[test_file][1]


def test_channel_statistics_by_numpy():
    data = load("digits")
    pixels = data.train.pixels.numpy().astype(np.float64)
    assert data.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist())
    assert data.std == pytest.approx(pixels.std((0, 2, 3)).tolist())


def test_real_cifar10_has_the_published_counts_and_statistics(cifar10):
    assert cifar10.train.labels.bincount().tolist() == [5000] * 10
    assert cifar10.test.labels.bincount().tolist() == [1000] * 10
    assert [v / 255 for v in cifar10.mean] == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-4)
    assert [v / 255 for v in cifar10.std] == pytest.approx([0.2470, 0.2435, 0.2616], abs=1e-4)


def test_real_cifar100_has_the_published_counts_and_statistics(cifar100):
    assert cifar100.train.labels.bincount().tolist() == [500] * 100
    assert cifar100.test.labels.bincount().tolist() == [100] * 100
    assert [v / 255 for v in cifar100.mean] == pytest.approx([0.5071, 0.4865, 0.4409], abs=1e-4)
    assert [v / 255 for v in cifar100.std] == pytest.approx([0.2673, 0.2564, 0.2762], abs=1e-4)


def test_digits_are_scikit_learns():
    data = load("digits")
    assert (len(data.train), len(data.test), data.num_classes) == (1437, 360, 10)
    assert data.train.pixels.shape == (1437, 3, 32, 32)
    assert data.train.pixels.dtype == torch.uint8
    assert data.train.labels[:10].tolist() == list(range(10))
    assert data.train.pixels.max() == 255
    assert torch.equal(data.train.pixels[:, 0, ::4, ::4], data.train.pixels[:, 2, 3::4, 3::4])


def test_an_unknown_data_set_is_named():
    with pytest.raises(ConfigError, match="unknown dataset 'mnist'; choose one of digits, cifar10, cifar100"):
        load("mnist")


def test_augmentation_against_one_image_at_a_time():
    """Every output is one of the 81 crops of the padded image, as it is or mirrored: the one that was drawn."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(1, 256, (16, 3, 32, 32), dtype=torch.uint8, generator=generator)
    state = generator.get_state()
    out = augment(pixels, Images(pixels, None).draws(16, generator))
    generator.set_state(state)
    rows, columns = torch.randint(9, (2, 16), generator=generator).tolist()
    flips = (torch.rand(16, generator=generator) < 0.5).tolist()
    for image, result, row, column, flip in zip(pixels.numpy(), out.numpy(), rows, columns, flips, strict=True):
        crop = np.pad(image, ((0, 0), (4, 4), (4, 4)))[:, row : row + 32, column : column + 32]
        assert np.array_equal(result, crop[:, :, ::-1] if flip else crop)
    assert out.dtype == torch.uint8


def test_augmentation_draws_every_shift_and_both_flips():
    """On an image that is its row index, then its column index, the shift can be read off."""
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    image[0, 0] = torch.arange(1, 33, dtype=torch.uint8).view(-1, 1)
    image[0, 1] = torch.arange(1, 33, dtype=torch.uint8)
    draws = Images(image, None).draws(4000, torch.Generator().manual_seed(0))
    out = augment(image.repeat(4000, 1, 1, 1), draws).long()
    flipped = out[:, 1, 16, 12] > out[:, 1, 16, 20]
    assert 0.45 < flipped.float().mean() < 0.55
    shifts = {
        (int(row) - 17, int(column) - 17)
        for row, column in zip(out[~flipped, 0, 16, 16], out[~flipped, 1, 16, 16], strict=True)
    }
    assert shifts == {(r, c) for r in range(-4, 5) for c in range(-4, 5)}


def test_normalize_by_hand():
    pixels = torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 3, 1, 1)
    out = normalize(pixels, (5.0, 20.0, 40.0), (2.5, 1.0, 5.0))
    assert out.flatten().tolist() == [2.0, 0.0, -2.0]


def test_hold_out_splits_the_training_set_the_same_way_every_time():
    data = load("digits")
    training, held_out = data.hold_out(400)
    assert (len(training), len(held_out)) == (1037, 400)
    pixels = torch.cat([training.pixels, held_out.pixels]).flatten(1).sum(1).sort().values
    assert torch.equal(pixels, data.train.pixels.flatten(1).sum(1).sort().values)
    assert torch.equal(data.hold_out(400)[1].pixels, held_out.pixels)
    assert data.hold_out(0)[0].labels.equal(data.train.labels)
    with pytest.raises(ConfigError, match="holdout must lie in 0…1436"):
        data.hold_out(1437)


@pytest.mark.parametrize("split", [0, 1])
@pytest.mark.parametrize("part", ["pixels", "labels"])
def test_the_sha256_tells_every_pixel_and_label(split, part, monkeypatch):
    before = load("digits")
    assert before.sha256 == load("digits").sha256
    images = before.train, before.test
    getattr(images[split], part).view(-1)[-1] += 1
    monkeypatch.setattr("psp.data.sets._digits", lambda: images)
    assert load("digits").sha256 != before.sha256
