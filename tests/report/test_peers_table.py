"""Pruners at equal cost, on made-up records whose numbers are easy to interpolate."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from psp.errors import ConfigError
from psp.files import sealed, write_json
from psp.report.figures.peers import peers_figure
from psp.report.paper_tables import DENSE
from psp.report.peers import (
    at_equal_cost,
    check_budget,
    differences,
    latency_table,
    peer_row,
    peers_table,
    read_peers,
    run_row,
    searched_table,
)
from psp.report.tables import above_dense

WHOLE = SimpleNamespace(macs=64, params=1000)


def run(method, error, seed, macs=64, params=1000, threshold=0.1):
    config = {"method": method, "structure": "channel", "seed": seed, "place": "auto", "threshold": threshold}
    return run_row({"config": config, "test_error_pct": error}, SimpleNamespace(macs=macs, params=params), WHOLE)


def peer(error, seed, reduction, parameters=300):
    record = {
        "pruner": "slimming",
        "regularization": 1e-4,
        "prune_at": 0.5,
        "config": {"seed": seed},
        "test_error_pct": error,
    }
    return peer_row(record | {"mac_reduction": reduction, "parameters": parameters})


ROWS = pd.DataFrame(
    [
        run("baseline", 10.0, 0),
        run("baseline", 11.0, 1),
        run("psp_weight_decay", 12.0, 0, macs=32, params=600),
        run("psp_weight_decay", 16.0, 0, macs=8, params=200),
        run("psp_weight_decay", 15.0, 1, macs=16, params=400),
        peer(13.0, 0, 2.0),
        peer(14.0, 1, 2.0),
        peer(17.0, 1, 4.0),
    ]
)
OURS = "PSP (weight decay), channel"


def test_errors_at_equal_cost_lie_between_the_runs_of_a_seed():
    found = at_equal_cost(ROWS, (2, 4)).set_index(["method", "seed", "mac_reduction"])
    errors = {(OURS, 0, 2): 12.0, (OURS, 0, 4): 14.0, (OURS, 1, 2): 13.0, (OURS, 1, 4): 15.0}
    errors |= {("network slimming", 0, 2): 13.0, ("network slimming", 1, 2): 14.0, ("network slimming", 1, 4): 17.0}
    assert found["test_error_pct"].to_dict() == pytest.approx(errors)
    assert found.loc[(OURS, 0, 4), "parameters"] == pytest.approx(400)
    assert found["above_dense"].to_dict() == pytest.approx({key: e - 10.0 - key[1] for key, e in errors.items()})


def test_means_over_seeds_best_first():
    table = peers_table(at_equal_cost(ROWS, (2, 4)))
    assert table["method"].tolist() == [OURS, "network slimming"] * 2
    assert table["seeds"].tolist() == [2, 2, 2, 1]
    assert table["above_dense"].tolist() == pytest.approx([2.0, 3.0, 4.0, 6.0])
    assert table["above_dense_sd"].fillna(-1).tolist() == pytest.approx([0.0, 0.0, 0.0, -1])


def test_differences_are_of_common_seeds_with_students_interval():
    rows = pd.concat([ROWS, pd.DataFrame([run("baseline", 12.0, 2), peer(20.0, 2, 2.0)])])
    rows.loc[rows["test_error_pct"] == 13.0, "test_error_pct"] = 13.5
    at_two, at_four = differences(at_equal_cost(rows, (2, 4)), OURS).itertuples(index=False)
    assert (at_two.seeds, at_two.below_by) == (2, pytest.approx(1.25))
    assert at_two.half_width == pytest.approx(stats.t.ppf(0.975, 1) * np.std([1.5, 1.0], ddof=1) / 2**0.5)
    assert (at_four.seeds, at_four.below_by) == (1, pytest.approx(2.0))
    assert np.isnan(at_four.half_width)


def test_the_search_shows_the_best_decay_of_each_pruner_first():
    made = [("slimming", 1e-4, 15.0), ("group_norm", 1e-3, 14.0), ("slimming", 1e-5, 13.0)]
    records = {
        f"{pruner}-{decay:g}": {"pruner": pruner, "regularization": decay, "mac_reduction": 4.0, "parameters": 300}
        | {"prune_at": 0.5}
        | {"curve": [{"validation_error_pct": 90.0}, {"validation_error_pct": error}]}
        for pruner, decay, error in made
    }
    table = searched_table(records)
    assert table["method"].tolist() == ["group norm", "network slimming", "network slimming"]
    assert table["regularization"].tolist() == [1e-3, 1e-5, 1e-4]
    assert table["held_out_error_pct"].tolist() == [14.0, 13.0, 15.0]


def test_a_network_is_as_fast_as_its_fastest_variant():
    rows = [
        ("narrow", 1, "eager", 3e-3),
        ("narrow", 1, "lanes", 1e-3),
        ("dense", 1, "eager", 4e-3),
        ("narrow", 64, "eager", 5e-2),
        ("dense", 64, "eager", 2e-1),
        ("dense", 64, "lanes", 3e-1),
    ]
    names = ("network", "batch", "backend", "median_s")
    timings = [dict(zip(names, row, strict=True)) | {"precision": "float32"} for row in rows]
    costs = {"dense": {"macs": 64, "params": 1000}, "narrow": {"macs": 16, "params": 300}}
    table = latency_table({"cost": costs, "timings": timings}).set_index(["network", "batch"])
    assert table["variant"]["narrow", 1] == "psp.freeze, float32"
    assert table["ms"].to_dict() == pytest.approx(
        {("dense", 1): 4.0, ("narrow", 1): 1.0, ("dense", 64): 200.0, ("narrow", 64): 50.0}
    )
    assert table["speed_up"].to_dict() == pytest.approx(
        {("dense", 1): 1.0, ("narrow", 1): 4.0, ("dense", 64): 1.0, ("narrow", 64): 4.0}
    )
    assert table["mac_reduction"]["narrow", 1] == 4.0


def test_the_figure_has_a_line_for_each_method_and_seed():
    dense = ROWS[ROWS["method"] == DENSE]
    rows = ROWS.assign(above_dense=above_dense(ROWS, dense, "test_error_pct", ["seed"]))
    (axes,) = peers_figure(rows, (2, 4), "a title").axes
    drawn = {tuple(map(tuple, line.get_xydata())) for line in axes.get_lines() if len(line.get_xydata())}
    assert {((2.0, 2.0), (8.0, 6.0)), ((4.0, 4.0),), ((2.0, 3.0), (4.0, 6.0)), ((2.0, 3.0),)} <= drawn
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [OURS, "network slimming"]
    assert axes.get_title() == "a title"


def test_what_is_compared_has_one_budget():
    same = dict.fromkeys(("dataset", "model", "epochs", "batch_size", "learning_rate", "momentum", "weight_decay"), 1)
    records = {name: {"config": same | {"seed": seed}} for seed, name in enumerate(("ours", "theirs"))}
    check_budget(records)
    records["longer"] = {"config": same | {"epochs": 2}}
    with pytest.raises(ConfigError, match=r"'longer' has epochs 2, 'ours' 1"):
        check_budget(records)


def test_runs_of_several_settings_are_no_one_curve():
    """λ is what a curve is drawn over; ε, or a pruner's decay, is not."""
    other = run("psp_weight_decay", 14.0, 0, macs=16, threshold=0.3)
    with pytest.raises(ConfigError, match=r"PSP \(weight decay\), channel has runs of ε = 0\.1 and ε = 0\.3"):
        at_equal_cost(pd.concat([ROWS, pd.DataFrame([other])]), (2,))


def test_a_damaged_record_is_named(tmp_path):
    write_json(sealed({"pruner": "slimming"}), tmp_path / "whole.json")
    assert set(read_peers(tmp_path)) == {"whole"}
    write_json(sealed({"pruner": "slimming"}) | {"test_error_pct": 1.0}, tmp_path / "mended.json")
    with pytest.raises(ConfigError, match=r"mended\.json is damaged"):
        read_peers(tmp_path)


def test_a_seed_without_a_dense_network_is_left_out():
    assert at_equal_cost(ROWS[ROWS["method"] != DENSE], (2,)).empty
