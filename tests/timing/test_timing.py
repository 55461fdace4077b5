"""Timing: the networks that are timed, and the record of it."""

import json
from dataclasses import replace

import pandas as pd
import pytest
import torch
from machine import needs_c
from timed import CPU, SETTINGS, on

import psp
from psp.errors import ConfigError
from psp.files import write_json
from psp.pipeline.commands import write_timing
from psp.pipeline.profiles import Profile, load_profile, with_sections
from psp.report.timing_tables import speed_ups, summary_table
from psp.runs.record import read_record
from psp.timing.networks import cost_left, left_by, lively, masks_sha256, networks, random_masks, trained_masks
from psp.timing.record import DenseNetworks, read_timing, timing_record, without_gpu
from psp.timing.settings import NO_GPU, TimingConfig


def test_the_dense_network_has_no_zeros_that_lanes_would_leave_out():
    masked = random_masks("resnet20", "channel", 0.8, skip=("conv1", "fc"))
    network = DenseNetworks(SETTINGS).network(("resnet20", 10), masked)
    assert all(parameter.all() for parameter in network.parameters())


@needs_c
def test_the_dense_network_is_timed_in_every_variant_of_the_extracted_one():
    """A variant that only the extracted network has would make its speed-up one over a slower dense network."""
    about = {"name": "n", "model": "resnet20", "structure": "channel", "masks": "random", "batches": [2], "side": 16}
    about |= {"classes": 10}
    masked = random_masks("resnet20", "channel", 0.8, skip=("conv1", "fc"))
    settings = {"backends": ["eager", "lanes"], "precisions": ["float32"]}
    (network,) = timing_record([(about, masked)], settings, CPU)["networks"]
    variants = {
        name: {t["backend"] for t in network["timings"] if t["network"] == name} for name in ("dense", "extracted")
    }
    assert variants["dense"] == variants["extracted"] == {"eager", "lanes"}
    assert network["unavailable"] == network["dense_unavailable"] == []


def test_networks_with_other_classes_are_compared_with_a_dense_network_of_their_own(monkeypatch):
    monkeypatch.setattr("psp.timing.measure.ROUNDS", 2)
    monkeypatch.setattr("psp.timing.measure.BLOCK_SECONDS", 0.0)
    monkeypatch.setattr("psp.timing.work.PRODUCT_SIDE", 64)
    monkeypatch.setattr("psp.timing.work.COPY_MIB", 1)
    about = {"model": "densenet16", "structure": "channel", "masks": "random", "batches": [1], "side": 8}
    pairs = (
        ({**about, "name": str(n), "classes": n}, random_masks("densenet16", "channel", 0.5, ("conv1", "fc"), n))
        for n in (10, 100, 10)
    )
    made = timing_record(pairs, {"backends": ["eager"], "precisions": ["float32"]}, CPU)["networks"]
    ten, hundred, again = (network["cost"]["dense"]["params"] for network in made)
    assert (hundred - ten, again) == (90 * (160 + 1), ten)


@pytest.mark.parametrize("structure", ["weight", "column", "channel", "shape"])
@pytest.mark.parametrize("sparsity", [0.25, 0.9])
def test_random_masks_have_their_sparsity_in_every_layer(structure, sparsity):
    model = random_masks("resnet20", structure, sparsity, skip=("conv1", "fc"))
    for layer in psp.sparsity(model).layers.values():
        assert layer.structures == pytest.approx(sparsity, abs=0.5 / layer.count + 1e-9)


def test_what_is_left_of_a_run_is_its_network_without_what_its_masks_prune():
    profile, image = load_profile("laptop"), torch.randn(1, 3, 32, 32)
    dense, pruned = (left_by(read_record(profile.record_path(run))) for run in ("baseline-s0", "l1_norm-70-s0"))
    whole = psp.create_model("resnet20").eval()
    assert psp.cost(dense, image).macs == psp.cost(whole, image).macs
    conv1, fc = 27 * 16 * 32 * 32, 640
    kept = psp.cost(pruned, image).macs - conv1 - fc
    # 30 % of the columns, rounded in each layer; fewer where no later layer reads a channel
    assert kept <= 0.3 * (psp.cost(whole, image).macs - conv1 - fc) * 1.01
    assert kept >= 0.2 * (psp.cost(whole, image).macs - conv1 - fc)


@pytest.mark.parametrize("run", ["baseline-s0", "l1_norm-80-s0", "psp_weight_decay-13e-4-s0"])
def test_the_cost_that_is_left_of_pruned_columns_counted_from_their_masks(run):
    """A filter of a block is gone where the block's second convolution reads nothing of it; nothing else is."""
    profile = load_profile("laptop")
    record = read_record(profile.record_path(run))
    network = trained_masks(profile.config(run), 10, record)
    macs = 27 * 16 * 32**2 + 640
    for stage, side in ((network.layer1, 32), (network.layer2, 16), (network.layer3, 8)):
        for block in stage:
            first, second = (conv.weight.any(0) for conv in (block.conv1, block.conv2))  # kept columns
            read = int(second.flatten(1).any(1).sum())
            macs += side**2 * (int(first.sum()) * read + int(second.sum()) * len(block.conv2.weight))
    assert cost_left(record).mac_reduction == pytest.approx(40_551_040 / macs)


def test_random_masks_of_layers_and_lively_normalization():
    model = random_masks("resnet20", "layer", 0.5, skip=("conv1", "fc"))
    assert psp.sparsity(model).structures == 0.5
    assert not model.training
    assert model.bn1.bias.abs().min() > 0
    assert lively(psp.create_model("resnet20")).bn1.running_var.std() > 0.1


def test_the_record_of_another_machine_stays_in_a_file_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(Profile, "results", tmp_path)
    profile = Profile("p", {}, None)
    for kind in ("cpu", "cuda"):
        path = profile.timing_path(kind)
        write_timing(on("A new one"), on("An old CPU, 2 cores"), path)
        for earlier in (on("A new one"), {"unavailable": NO_GPU}, {}):
            write_timing(on("A new one"), earlier, path)
    folder = tmp_path / "timing" / "machines"
    assert sorted(path.name for path in folder.iterdir()) == [
        "cpu-an-old-cpu-2-cores.json",
        "cuda-an-old-cpu-2-cores.json",
    ]
    assert profile.other_machines() == [folder / "cpu-an-old-cpu-2-cores.json"]
    assert json.loads(profile.other_machines()[0].read_text()) == on("An old CPU, 2 cores")
    again, path = on("An old CPU, 2 cores", 0.001), profile.timing_path("cpu")
    write_timing(again, json.loads(path.read_text()), path)
    assert json.loads(path.read_text()) == again
    assert profile.other_machines() == [folder / "cpu-a-new-one.json"], "and not a machine beside itself"


def test_a_timing_record_that_is_missing_or_damaged_is_named_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(Profile, "results", tmp_path)
    profile = Profile("p", {}, None)
    with pytest.raises(ConfigError, match=r"no timing record .*cpu\.json; run: python -m psp\.pipeline timing p$"):
        read_timing(profile, "cpu")
    write_timing(on("A"), {}, profile.timing_path("cpu"))
    assert read_timing(profile, "cpu") == on("A")
    profile.timing_path("cpu").write_text("{")
    with pytest.raises(ConfigError, match=r"cpu\.json is no JSON file .*; run: python -m psp\.pipeline timing p$"):
        read_timing(profile, "cpu")


def test_times_of_earlier_masks_are_refused(monkeypatch, tmp_path):
    masks = {"masks": {"a": {"shape": [1], "bits": "gA=="}}}
    monkeypatch.setattr("psp.timing.record.record_of", lambda *_: masks)
    monkeypatch.setattr("psp.pipeline.profiles.ROOT", tmp_path)
    profile = Profile("p", {"r": None})
    network = {"name": "r", "masks": "trained", "masks_sha256": masks_sha256(masks)}
    write_json({"networks": [network, {"name": "random", "masks": "random"}]}, profile.timing_path("cpu"))
    assert read_timing(profile, "cpu")["networks"][0] == network
    write_json({"networks": [network | {"masks_sha256": "earlier"}]}, profile.timing_path("cpu"))
    with pytest.raises(ConfigError, match=r"has times of earlier masks of r; run: python -m psp\.pipeline timing p$"):
        read_timing(profile, "cpu")


def test_a_gpu_record_from_elsewhere_stays_as_long_as_its_networks_do(monkeypatch):
    masks = {"masks": {"a": {"shape": [1], "bits": "gA=="}}}
    monkeypatch.setattr("psp.timing.record.record_of", lambda *_: masks)
    profile = Profile("p", {"r": None}, TimingConfig.of(SETTINGS | {"runs": ["r"]}, ["r"]))
    earlier = {
        "settings": profile.timing.as_dict(),
        "networks": [{"name": "r", "masks": "trained", "masks_sha256": masks_sha256(masks)}],
    }
    assert without_gpu(earlier, profile) is earlier
    nothing = {"schema": 2, "kind": "cuda", "unavailable": NO_GPU}
    assert without_gpu({}, profile) == without_gpu(nothing, profile) == nothing
    assert without_gpu(earlier | {"settings": {}}, profile) == nothing
    masks["masks"]["a"]["bits"] = "AA=="
    assert without_gpu(earlier, profile) == nothing


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batches": [0]}, "timing.batches and random_batch are whole numbers of at least 1, got 0"),
        ({"backends": ["tensorrt"]}, "timing.backends: unknown 'tensorrt'; choose of eager"),
        ({"precisions": ["int8"]}, "timing.precisions: unknown 'int8'"),
        ({"runs": ["x"]}, "timing.runs: the profile has no run 'x'; its runs are a"),
        ({"structures": ["row"]}, "unknown structure 'row'"),
        ({"sparsities": [2]}, "sparsity must lie in 0…1"),
        ({"threads": 2}, "timing must set batches, backends"),
        ({"runs": ["a"], "random_batch": 8}, "timing.random_batch 8 must be one of timing.batches"),
    ],
)
def test_bad_settings(change, message):
    with pytest.raises(ConfigError, match=message):
        TimingConfig.of(SETTINGS | change, ["a"])


def test_from_networks_to_tables(monkeypatch, tmp_path):
    """Everything but the length of it: two networks, one variant, tables and the notebook's numbers."""
    monkeypatch.setattr("psp.timing.measure.ROUNDS", 2)
    monkeypatch.setattr("psp.timing.measure.BLOCK_SECONDS", 0.0)
    monkeypatch.setattr("psp.timing.work.PRODUCT_SIDE", 64)
    monkeypatch.setattr("psp.timing.work.COPY_MIB", 1)
    config = TimingConfig.of(SETTINGS | {"structures": ["channel", "layer"]}, [])
    made = timing_record(networks(load_profile("demo"), config), config.as_dict(), CPU)
    made = json.loads(json.dumps(made))
    assert [n["name"] for n in made["networks"]] == ["resnet20-channel-50", "resnet20-layer-50"]
    for network in made["networks"]:
        assert network["difference"] <= 1e-5
        assert network["cost"]["extracted"]["macs"] < 0.75 * network["cost"]["dense"]["macs"]
    table = speed_ups(made)
    assert len(table) == 2 * 2  # networks, float32 and any
    assert (table["speed_up"] > 0).all()
    assert isinstance(summary_table(made, {"unavailable": NO_GPU}, 4), pd.DataFrame)


PROFILES = [part for name in ("demo", "laptop", "next", "paper") for part in with_sections(name)]  # that time something


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_can_prune_its_network_by_the_structures_it_times(profile):
    config = load_profile(profile).timing
    for structure in config.structures:
        psp.parameterize(psp.create_model(config.model), structure, skip=config.skip)


def test_a_structure_that_the_network_cannot_have_is_an_error_before_anything_is_timed():
    config = replace(load_profile("demo").timing, model="resnet18", structures=("column", "layer"), runs=())
    with pytest.raises(ConfigError, match=r"needs a bypass, and nothing leads around layer2\.0\.downsample\.0"):
        next(networks(load_profile("demo"), config))
