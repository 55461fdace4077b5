"""Networks against published counts and an independent author's weights."""

from dataclasses import replace

import pytest
import torch

import psp
from psp.data.sets import normalize
from psp.errors import ConfigError
from psp.models import create_model
from psp.runs.config import RunConfig
from psp.training.evaluate import errors_pct

IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


@pytest.mark.parametrize(
    ("name", "parameters"),
    # As counted by akamaster/pytorch_resnet_cifar10; He et al. 2016 give 0.27, 0.46, 0.66, 0.85 and 1.7 M.
    [
        ("resnet20", 269_722),
        ("resnet32", 464_154),
        ("resnet44", 658_586),
        ("resnet56", 853_018),
        ("resnet110", 1_727_962),
        # By hand. A layer with c inputs has 2c of normalization and 108c weights, so the layers with 16, 28, 40, 52,
        # 64 … 100 and 112 … 148 inputs have 110·(136 + 328 + 520); transitions 2·64 + 64² and 2·112 + 112²; conv1 432;
        # the last normalization 320 and fc 1610.
        ("densenet16", 127_594),
        # Huang et al. 2017 give 1.0 M (k = 12, depth 40) and 0.8 M (BC, k = 12, depth 100).
        ("densenet40", 1_019_722),
        ("densenet_bc100", 769_162),
    ],
)
def test_parameter_counts(name, parameters):
    assert sum(p.numel() for p in create_model(name).parameters()) == parameters


@pytest.mark.parametrize("name", ["resnet20", "densenet16", "densenet40", "densenet_bc100"])
def test_shapes_and_classes(name):
    net = create_model(name, num_classes=100)
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 100)


def test_a_dense_layer_keeps_its_input_and_adds_twelve_channels():
    layer = create_model("densenet_bc100").block1[0]
    x = torch.randn(2, 24, 8, 8)
    out = layer(x)
    assert out.shape == (2, 36, 8, 8)
    assert torch.equal(out[:, :24], x)
    assert create_model("densenet_bc100").fc.in_features == 342
    assert create_model("densenet40").fc.in_features == 448


def test_shortcut_is_subsampled_and_padded_on_both_sides():
    shortcut = create_model("resnet20").layer2[0].shortcut
    x = torch.arange(16 * 16, dtype=torch.float32).view(1, 16, 4, 4) + 1
    out = shortcut(x)
    assert out.shape == (1, 32, 2, 2)
    assert torch.equal(out[:, 8:24], x[:, :, [0, 2]][..., [0, 2]])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


@pytest.mark.parametrize("classes", [0, "ten", 2.0, None])
def test_a_number_of_classes_that_is_none(classes):
    with pytest.raises(ConfigError, match="num_classes must be a whole number of at least 1, got"):
        psp.create_model("resnet20", classes)


def test_an_unknown_model_is_named():
    with pytest.raises(ConfigError, match="unknown model 'resnet21'; choose one of resnet20"):
        psp.create_model("resnet21")


@pytest.mark.parametrize(("name", "published_error"), [("resnet20", 8.27), ("resnet56", 6.61)])
def test_an_independent_authors_weights_score_their_published_error(name, published_error, cifar10, reference_weights):
    """Checks model and data reader at once: the file's tensors are in the order in which the network defines them."""
    theirs = torch.load(reference_weights / f"{name}.th", map_location="cpu", weights_only=True)["state_dict"]
    net = create_model(name)
    # Saved before batch normalization counted its batches; the counts play no part in evaluation.
    ours = [name for name in net.state_dict() if not name.endswith("num_batches_tracked")]
    renamed = dict(zip(ours, theirs.values(), strict=True))
    assert net.load_state_dict(renamed, strict=False).unexpected_keys == []
    net.to(memory_format=torch.channels_last)
    data = replace(cifar10, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    assert errors_pct(net, data.test, data, RunConfig()).top1 == pytest.approx(published_error, abs=0.005)


def test_normalize_gives_zero_mean_and_unit_deviation(cifar10):
    pixels = normalize(cifar10.train.pixels[:5000], cifar10.mean, cifar10.std)
    assert pixels.mean((0, 2, 3)).abs().max() < 0.05
    assert (pixels.std((0, 2, 3)) - 1).abs().max() < 0.05
