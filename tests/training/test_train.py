"""Training: the schedule, each method's effect, the record and the weights it ends in."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

import psp
from psp.data.images import Images
from psp.data.sets import load
from psp.errors import ConfigError
from psp.files import SEAL
from psp.method.methods import METHODS, before_step, build_model, groups
from psp.method.pruners import parametrizations
from psp.runs.config import RunConfig
from psp.training.epoch import learning_rate
from psp.training.evaluate import errors_pct

pytestmark = pytest.mark.usefixtures("few_digits")

QUICK = {"epochs": 1, "batch_size": 32, "structure_decay": 0.001}
PRESCRIBED = {"l1_norm": 0.5, "psp_fixed_sparsity": 0.7}


def settings(method):
    return {**QUICK, "method": method, "sparsity": PRESCRIBED.get(method)}


def quick(config, folder):
    """Everything on the CPU: the tests compare numbers exactly."""
    return psp.train(config, checkpoints=folder, device="cpu", progress=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, few_digits):
    """(folder, {method: record}) of one quick run a method."""
    folder = tmp_path_factory.mktemp("runs")
    return folder, {m: quick(settings(m), folder) for m in METHODS}


def test_learning_rate_rises_for_a_tenth_and_falls_to_zero_along_half_a_cosine():
    rates = [learning_rate(step, 100, 0.2) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (k + 1) / 11 for k in range(10)])
    assert rates[10] == 0.2
    assert rates[55] == pytest.approx(0.1)
    assert rates[99] == pytest.approx(0.1 * (1 - math.cos(math.pi / 90)))
    assert rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.parametrize("method", METHODS)
def test_the_record_says_what_was_run_and_what_came_out(method, finished):
    record = finished[1][method]
    assert json.loads(json.dumps(record)) == record
    assert RunConfig.of(record["config"]) == RunConfig.of(settings(method))
    assert record["data"] == {"name": "digits", "train": 128, "test": 32, "sha256": load("digits").sha256}
    assert 0 <= record["test_error_pct"] <= 100
    assert len(record["curve"]) == 1
    assert "validation_error_pct" not in record["curve"][0]
    assert {"git_commit", "code_sha256", "versions", "device", "threads"} <= set(record["provenance"])
    assert record["seconds"] > 0
    columns = {name: layer["count"] for name, layer in record["layers"].items()}
    assert len(columns) == (0 if method == "baseline" else 18)
    for name, counts in record["log10_alpha"]["counts"].items():
        assert sum(counts) == columns[name]


@pytest.mark.parametrize("method", sorted(PRESCRIBED))
def test_prescribed_sparsities_are_met_in_every_layer(method, finished):
    for layer in finished[1][method]["layers"].values():
        assert layer["structures"] == pytest.approx(PRESCRIBED[method], abs=0.5 / layer["count"] + 1e-9)


def test_saved_weights_give_the_recorded_error(finished):
    folder, records = finished
    data = load("digits")
    seen = 0
    for path in folder.glob("*/weights.safetensors"):
        record = json.loads((path.parent / "record.json").read_text())
        model = build_model(RunConfig.of(record["config"]), data.num_classes)
        model.load_state_dict(load_file(path))
        errors = errors_pct(model.to(memory_format=torch.channels_last), data.test, data, RunConfig())
        assert errors == (record["test_error_pct"], record["test_top5_error_pct"])
        assert psp.sparsity(model).structures == record["sparsity"]["structures"]
        seen += 1
    assert seen == len(records)


def test_held_out_images_give_a_validation_error_every_epoch(tmp_path, monkeypatch):
    """That of the weights after it, on just these images, none of which is trained on."""
    fed, feed = [], Images.feed
    monkeypatch.setattr(Images, "feed", lambda images, *rest: fed.append(images.pixels) or feed(images, *rest))
    record = quick({**settings("baseline"), "epochs": 2, "holdout": 50}, tmp_path)
    data, config = load("digits"), RunConfig.of(record["config"])
    training, held_out = data.hold_out(50)
    model = build_model(config, data.num_classes)
    model.load_state_dict(load_file(next(tmp_path.glob("*/weights.safetensors"))))
    errors = errors_pct(model.to(memory_format=torch.channels_last), held_out, data, config)
    assert [0 <= point["validation_error_pct"] <= 100 for point in record["curve"]] == [True, True]
    assert record["curve"][-1]["validation_error_pct"] == errors.top1
    assert len(fed) == 2
    assert all(torch.equal(pixels, training.pixels) for pixels in fed)


def test_another_seed_gives_another_run(finished, tmp_path):
    other = quick({**settings("baseline"), "seed": 1}, tmp_path)
    assert other["curve"][0]["loss"] != finished[1]["baseline"]["curve"][0]["loss"]


def test_l1_norm_prunes_once_after_its_share_of_the_steps():
    config = RunConfig.of({**settings("l1_norm"), "prune_at": 0.3})
    model = build_model(config, 10)
    for step in range(100):
        before_step(model, config, step, 100)
        assert (psp.sparsity(model).structures > 0) == (step >= 30)
        if step == 30:
            masks = [pruner.kept().clone() for _, pruner in parametrizations(model).values()]
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter))
    assert all(torch.equal(m, p.kept()) for m, (_, p) in zip(masks, parametrizations(model).values(), strict=True))


@pytest.mark.parametrize(
    ("method", "weight_decay", "l1"),
    [("psp_weight_decay", 0.001, 0.0), ("psp_fixed_sparsity", 0.001, 0.0), ("psp_l1", 0.0, 0.001)],
)
def test_every_method_uses_its_own_regularizer_on_alpha_and_plain_decay_on_weights(method, weight_decay, l1):
    config = RunConfig.of({**settings(method), "weight_decay": 0.002})
    weights, plain, alphas = groups(build_model(config, 10), config)
    assert (alphas["weight_decay"], alphas["psp_l1"]) == (weight_decay, l1)
    assert (weights["weight_decay"], plain["weight_decay"]) == (0.002, 0.0)


def test_a_batch_larger_than_the_data_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="batch_size 2000 exceeds the 128 images of digits"):
        quick({**QUICK, "batch_size": 2000}, tmp_path)


def test_determinism_is_asked_for_while_training_and_only_then(tmp_path, monkeypatch):
    seen = []

    def look(*arguments):
        seen.append(torch.are_deterministic_algorithms_enabled())

    monkeypatch.setattr("psp.training.epoch.before_step", look)
    quick(settings("baseline"), tmp_path)
    assert len(seen) == 4
    assert all(seen)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_record_that_cannot_be_read_is_made_again_from_the_checkpoint(tmp_path):
    first = quick(settings("baseline"), tmp_path)
    path = next(tmp_path.glob("*/record.json"))
    path.write_text("{")
    again = quick(settings("baseline"), tmp_path)
    assert {**again, "provenance": 0, SEAL: 0} == {**first, "provenance": 0, SEAL: 0}
    assert json.loads(path.read_text()) == again
