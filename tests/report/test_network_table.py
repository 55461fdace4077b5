"""The tables of networks: which rows they have, means over seeds, what was timed, and what is known of the paper."""

import copy

import pandas as pd
import pytest

from psp.errors import ConfigError
from psp.files import sealed, write_json
from psp.pipeline.profiles import Profile, in_table, load_profile
from psp.report.network_table import network_table, read_table
from psp.report.paper_tables import DENSE
from psp.runs.config import RunConfig
from psp.runs.record import SCHEMA, with_place
from psp.timing.networks import masks_sha256
from psp.timing.settings import NO_GPU, TimingConfig

NO_RECORD = {"unavailable": NO_GPU}


def record(method, seed, error, structure="column", sparsity=0.0):
    config = {"dataset": "imagenette", "model": "resnet18", "method": method, "structure": structure, "seed": seed}
    config |= {"sparsity": None, "structure_decay": 0.0 if method == "baseline" else 0.002}
    errors = {"test_error_pct": error, "test_top5_error_pct": error / 10}
    return {"config": config, "sparsity": {"structures": sparsity}, "masks": {}, **errors}


def timing(network, seconds, macs):
    times = {"median_s": seconds, "low_s": seconds, "high_s": seconds, "values": 10, "macs": macs}
    return {"network": network, "batch": 64, "backend": "eager", "precision": "float32", **times}


def timing_record(*names, seconds=0.5):
    cost = {"dense": {"params": 1000, "macs": 800}, "extracted": {"params": 300, "macs": 200}}
    networks = [
        {"name": name, "model": "resnet18", "structure": "column", "masks": "trained", "batches": [64], "cost": cost}
        | {"nonzero_macs": 200, "masks_sha256": masks_sha256({"masks": {}})}
        | {"sparsity": {"structures": 0.7}, "timings": [timing("dense", 1.0, 800), timing("extracted", seconds, 200)]}
        for name in names
    ]
    limits = {"bytes_per_s": 1e9, "flops": {"float32": 1e9}}
    return {"networks": networks, "settings": {"precisions": ["float32"]}, "limits": limits}


RECORDS = {
    "baseline-s0": record("baseline", 0, 20.0),
    "baseline-s1": record("baseline", 1, 22.0),
    "column-s0": record("psp_weight_decay", 0, 23.0, sparsity=0.7),
    "channel-s0": record("psp_weight_decay", 0, 30.0, "channel", 0.5),
}


def test_errors_are_means_over_seeds_and_costs_those_of_the_extracted_network():
    table = network_table(RECORDS, timing_record("column-s0"), NO_RECORD, 64).set_index("structure")
    assert list(table.index) == [DENSE, "column"], "channels were not timed"
    dense, column = (table.loc[name] for name in table.index)
    assert (dense["seeds"], dense["top1_error_pct"], dense["top5_error_pct"]) == (2, 21.0, pytest.approx(2.1))
    assert dense["top1_error_sd"] == pytest.approx(2**0.5)
    assert pd.isna(column["top1_error_sd"])
    assert (dense["above_dense"], column["above_dense"]) == (0.0, 3.0), "of the same seed, not of the mean"
    assert (dense["params"], dense["macs"]) == (1000, 800)
    assert (column["params"], column["macs"], column["mac_reduction"]) == (300, 200, 4.0)
    assert (column["cpu_speed_up"], column["cpu_realised"]) == (2.0, 0.5)
    assert set(table["gpu_speed_up"]) == {NO_GPU}


def test_a_timed_setting_has_all_of_its_seeds_and_others_of_the_sweep_no_row():
    records = {
        **RECORDS,
        "column-s1": record("psp_weight_decay", 1, 25.0, sparsity=0.6),
        "more-s0": record("psp_weight_decay", 0, 40.0, sparsity=0.9),
        "l1-s0": record("psp_l1", 0, 40.0, sparsity=0.7),
        "other-network-s0": record("psp_weight_decay", 0, 40.0, sparsity=0.7),
        "other-data-s0": record("baseline", 0, 50.0),
    }
    records["more-s0"]["config"]["structure_decay"] = 0.003
    records["other-network-s0"]["config"]["model"] = "resnet50"
    records["other-data-s0"]["config"]["dataset"] = "ilsvrc2012"
    del records["column-s0"]["test_top5_error_pct"]
    table = network_table(records, timing_record("column-s0"), NO_RECORD, 64)
    assert list(zip(table["dataset"], table["structure"], table["seeds"], strict=True)) == [
        ("imagenette", DENSE, 2),
        ("imagenette", "column", 2),
        ("ilsvrc2012", DENSE, 1),
    ]
    dense, column, other = (table.loc[i] for i in range(3))
    assert (column["top1_error_pct"], column["structures_pruned_pct"]) == (24.0, 65.0)
    assert (column["above_dense"], column["above_dense_sd"]) == (3.0, 0.0)
    assert (column["params"], column["cpu_speed_up"]) == (300, 2.0), "of the timed run alone"
    assert pd.isna(column["top5_error_pct"]), "not of all seeds"
    assert dense["params"] == 1000
    assert pd.isna(other["params"]), "nothing on these data was timed"


def test_a_seed_without_its_dense_network_leaves_the_difference_open():
    alone = {**RECORDS, "column-s2": record("psp_weight_decay", 2, 25.0, sparsity=0.6)}
    table = network_table(alone, timing_record("column-s0"), NO_RECORD, 64).set_index("structure")
    assert table.loc["column", "top1_error_pct"] == 24.0
    assert pd.isna(table.loc["column", "above_dense"])


def test_the_rows_of_the_main_profile_stand_before_those_of_its_section(tmp_path, monkeypatch):
    monkeypatch.setattr("psp.pipeline.profiles.ROOT", tmp_path)
    settings = dict.fromkeys(("batches", "backends", "precisions", "runs", "skip", "structures", "sparsities"), ())
    config, profiles = TimingConfig(**settings, model="resnet18", random_batch=64), []
    for name, dataset, seconds in (("small", "cifar10", 0.5), ("small/cifar", "cifar100", 0.25)):
        placed = {run: with_place(copy.deepcopy(own))["config"] for run, own in RECORDS.items()}
        runs = {run: RunConfig.of({**own, "dataset": dataset}) for run, own in placed.items()}
        profile = Profile(name, runs, config)
        profiles.append(profile)
        for run, own in RECORDS.items():
            elsewhere = {**own, "schema": SCHEMA, "config": {**own["config"], "dataset": dataset}}
            write_json(sealed(elsewhere), profile.record_path(run))
        cpu = {**timing_record("column-s0", seconds=seconds), "provenance": {"device": "a CPU"}}
        write_json(cpu, profile.timing_path("cpu"))
        write_json(NO_RECORD, profile.timing_path("cuda"))
    table, where = read_table(profiles)
    assert list(table["dataset"]) == ["cifar10", "cifar10", "cifar100", "cifar100"]
    assert list(table["structure"]) == [DENSE, "column"] * 2
    assert list(table["cpu_speed_up"].dropna()) == [2.0, 4.0], "each has its own times"
    assert where == "a CPU, batch 64"
    assert len(read_table(profiles[1:])[0]) == 2


def test_only_the_table_of_cifar_begins_with_the_main_profile():
    names = {name: [p.name for p in in_table(load_profile(name))] for name in ("laptop/cifar", "laptop/ilsvrc")}
    assert names == {"laptop/cifar": ["laptop", "laptop/cifar"], "laptop/ilsvrc": ["laptop/ilsvrc"]}


def test_times_of_a_gpu_are_shown_where_there_was_one():
    gpu = timing_record("column-s0", seconds=0.25)
    table = network_table(RECORDS, timing_record("column-s0"), gpu, 64).set_index("structure")
    assert table.loc["column", "gpu_speed_up"] == 4.0
    assert table.loc["column", "cpu_speed_up"] == 2.0


def test_two_runs_of_one_setting_and_one_seed_are_not_averaged():
    """λ of fixed sparsity is no part of the table's setting."""
    again = {**RECORDS, "column-again-s0": record("psp_weight_decay", 0, 24.0, sparsity=0.7)}
    with pytest.raises(ConfigError, match="runs column-s0, column-again-s0 differ by neither"):
        network_table(again, timing_record("column-s0"), NO_RECORD, 64)
