"""Methods at equal cost, on made-up records whose numbers are easy to interpolate; and what is recorded of peers."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from psp.errors import ConfigError
from psp.files import sealed, write_json
from psp.report.equal_cost import (
    BUDGET,
    at_equal_cost,
    check_budget,
    differences,
    equal_cost_table,
    run_rows,
    with_points_above,
)
from psp.report.figures.equal_cost import equal_cost_figure
from psp.report.paper_tables import DENSE
from psp.report.peers import latency_table, peer_rows, read_peers, searched_table
from psp.report.tables import SERIES, write_equal_cost_tables
from psp.timing.networks import CostLeft


@pytest.fixture(autouse=True)
def costs(monkeypatch):
    """Of made-up records, which say it themselves."""
    monkeypatch.setattr("psp.report.equal_cost.cost_left", lambda record: record["left"])


def run(method, error, seed, reduction=1.0, params=1000, threshold=0.1, decay=0.0):
    config = {
        "method": method,
        "structure": "channel",
        "seed": seed,
        "place": "auto",
        "threshold": threshold,
        "prune_at": 0.25,
    }
    config |= {"sparsity": None, "structure_decay": decay or reduction}
    return {"config": config, "test_error_pct": error, "left": CostLeft(params, reduction)}


def peer(error, seed, reduction, parameters=300):
    record = {
        "pruner": "slimming",
        "regularization": 1e-4,
        "prune_at": 0.5,
        "reduction": reduction,
        "config": {"seed": seed},
        "test_error_pct": error,
    }
    return record | {"mac_reduction": reduction, "parameters": parameters}


def named(records):
    return {str(number): record for number, record in enumerate(records)}


def rows_of(ours=(), peers=()):
    """One table of runs and peers, named by their numbers."""
    made = ((run_rows, ours), (peer_rows, peers))
    return pd.concat([make(named(records)) for make, records in made if records], ignore_index=True)


OURS = "PSP (weight decay), channel"
RUNS = [
    run("baseline", 10.0, 0),
    run("baseline", 11.0, 1),
    run("psp_weight_decay", 12.0, 0, 2.0, 600),
    run("psp_weight_decay", 16.0, 0, 8.0, 200),
    run("psp_weight_decay", 13.0, 1, 2.0, 600),
    run("psp_weight_decay", 15.0, 1, 4.0, 400),
]
PEERS = [peer(13.0, 0, 2.0), peer(14.0, 1, 2.0), peer(17.0, 1, 4.0)]


@pytest.fixture
def rows():
    return rows_of(RUNS, PEERS)


def test_errors_at_equal_cost_lie_between_the_runs_of_a_seed(rows):
    found = at_equal_cost(rows, (2, 4)).set_index(["method", "seed", "mac_reduction"])
    errors = {(OURS, 0, 2): 12.0, (OURS, 0, 4): 14.0, (OURS, 1, 2): 13.0, (OURS, 1, 4): 15.0}
    errors |= {("network slimming", 0, 2): 13.0, ("network slimming", 1, 2): 14.0, ("network slimming", 1, 4): 17.0}
    assert found["test_error_pct"].to_dict() == pytest.approx(errors)
    assert found.loc[(OURS, 0, 4), "parameters"] == pytest.approx(400)
    assert found["above_dense"].to_dict() == pytest.approx({key: e - 10.0 - key[1] for key, e in errors.items()})


def test_a_method_that_begins_beyond_a_reduction_has_no_row_there_but_if_it_is_near():
    """Between the dense network and a run at 2.1 times, 2 is log(2) / log(2.1) of the way; at 2.3 it is too far."""
    rows = rows_of([RUNS[0], run("psp_l1", 12.1, 0, 2.1), run("l1_norm", 13.0, 0, 2.3), run("l1_norm", 14.0, 0, 2.5)])
    (found,) = at_equal_cost(rows, (2, 3)).itertuples(index=False)
    assert found.method == "PSP (ℓ1 regularization), channel"
    assert found.above_dense == pytest.approx(2.1 * np.log(2) / np.log(2.1))


def test_a_run_that_prunes_nothing_is_no_other_network_than_the_dense_one():
    rows = rows_of([RUNS[0], run("psp_l1", 10.5, 0, 1.0), run("psp_l1", 12.0, 0, 4.0)])
    assert at_equal_cost(rows, (2,))["test_error_pct"].tolist() == pytest.approx([11.25])


def test_a_method_that_fewer_seeds_reach_stands_behind_those_of_all():
    """Of seed 1 alone, which is the easy one: its mean is lower than that of the other method, and not better."""
    made = [run("l1_norm", 20.0, 0, 4.0), run("l1_norm", 12.0, 1, 4.0), run("psp_l1", 13.0, 1, 4.0)]
    table = equal_cost_table(at_equal_cost(rows_of([*RUNS[:2], *made]), (4,)))
    assert table["method"].tolist() == ["ℓ1 norm, channel", "PSP (ℓ1 regularization), channel"]
    assert table["above_dense"].tolist() == pytest.approx([5.5, 2.0])


def test_the_figure_takes_no_two_runs_of_a_seed_for_two_seeds(rows):
    with pytest.raises(ConfigError, match="differ by neither what a table calls their setting nor their seed"):
        equal_cost_figure(pd.concat([with_points_above(rows)] * 2), (), "a title")


def test_means_over_seeds_best_first(rows):
    table = equal_cost_table(at_equal_cost(rows, (2, 4)))
    assert table["method"].tolist() == [OURS, "network slimming"] * 2
    assert table["seeds"].tolist() == [2, 2, 2, 1]
    assert table["above_dense"].tolist() == pytest.approx([2.0, 3.0, 4.0, 6.0])
    assert table["above_dense_sd"].fillna(-1).tolist() == pytest.approx([0.0, 0.0, 0.0, -1])


def test_differences_are_of_common_seeds_with_students_interval():
    rows = rows_of([*RUNS, run("baseline", 12.0, 2)], [peer(13.5, 0, 2.0), *PEERS[1:], peer(20.0, 2, 2.0)])
    at_two, at_four = differences(at_equal_cost(rows, (2, 4))).itertuples(index=False)
    assert at_two.compared == f"network slimming against {OURS}"
    assert (at_two.seeds, at_two.below_by) == (2, pytest.approx(-1.25))
    assert at_two.below_by_sd == pytest.approx(np.std([1.5, 1.0], ddof=1))
    assert at_two.half_width == pytest.approx(stats.t.ppf(0.975, 1) * np.std([1.5, 1.0], ddof=1) / 2**0.5)
    assert (at_four.seeds, at_four.below_by) == (1, pytest.approx(-2.0))
    assert np.isnan(at_four.half_width)


def test_where_nothing_reaches_a_reduction_tables_and_figure_are_empty(rows, tmp_path):
    equal = at_equal_cost(rows, (99,))
    costs, compared = equal_cost_table(equal).round(2), differences(equal).round(2)
    assert costs.empty
    assert compared.empty
    write_equal_cost_tables(costs, compared, tmp_path, "a title")
    assert (tmp_path / "figure_3_cost.csv").read_text().startswith("mac_reduction,method,seeds,")
    (axes,) = equal_cost_figure(with_points_above(rows[rows["method"] == DENSE]), (2,), "a title").axes
    assert not axes.containers


def test_all_pairs_of_methods_are_compared_the_later_one_first():
    made = [run(method, 10.0 + k, 0, 4.0) for k, method in enumerate(("l1_norm", "psp_l1", "psp_weight_decay"))]
    table = differences(at_equal_cost(rows_of([RUNS[0], *made]), (4,)))
    names = [f"{SERIES[method]}, channel" for method in ("psp_weight_decay", "psp_l1", "l1_norm")]
    assert table["compared"].tolist() == [f"{a} against {b}" for a, b in combinations(names, 2)]
    assert table["below_by"].tolist() == pytest.approx([-1.0, -2.0, -1.0])


def searched(made, **changes):
    return {
        f"{pruner}-{decay:g}": peer(error, 0, 4.0)
        | {"pruner": pruner, "regularization": decay}
        | {"config": dict.fromkeys(BUDGET, 12) | {"seed": 0, "holdout": 5000}}
        | {"curve": [{"validation_error_pct": 90.0}, {"validation_error_pct": error}]}
        | changes
        for pruner, decay, error in made
    }


def test_the_search_shows_the_best_decay_of_each_pruner_first():
    made = [("slimming", 1e-4, 15.0), ("group_norm", 1e-3, 14.0), ("slimming", 1e-5, 13.0)]
    table = searched_table(searched(made))
    assert table["method"].tolist() == ["group norm", "network slimming", "network slimming"]
    assert table["regularization"].tolist() == [1e-3, 1e-5, 1e-4]
    assert table["held_out_error_pct"].tolist() == [14.0, 13.0, 15.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reduction": 2.0}, "'group_norm-0.001' has another reduction than 'slimming-0.0001'"),
        ({"config": dict.fromkeys(BUDGET, 12) | {"holdout": 0}}, "'group_norm-0.001' has holdout 0, "),
        ({"config": dict.fromkeys(BUDGET, 12) | {"holdout": 5000, "epochs": 18}}, "'group_norm-0.001' has epochs 18"),
    ],
)
def test_a_search_is_over_runs_of_one_cost_and_schedule(change, message):
    records = searched([("slimming", 1e-4, 15.0)]) | searched([("group_norm", 1e-3, 14.0)], **change)
    with pytest.raises(ConfigError, match=message):
        searched_table(records)


def test_a_search_without_held_out_images_is_refused():
    config = dict.fromkeys(BUDGET, 12) | {"holdout": 0}
    with pytest.raises(ConfigError, match=r"'slimming-0\.0001' holds no training images out: set --holdout"):
        searched_table(searched([("slimming", 1e-4, 15.0)], config=config))


def test_a_network_is_as_fast_as_its_fastest_variant():
    rows = [
        ("narrow", 1, "eager", 3e-3),
        ("narrow", 1, "lanes", 1e-3),
        ("dense", 1, "eager", 4e-3),
        ("dense", 1, "lanes", 5e-3),
        ("narrow", 64, "eager", 5e-2),
        ("dense", 64, "eager", 2e-1),
        ("dense", 64, "lanes", 3e-1),
    ]
    names = ("network", "batch", "backend", "median_s")
    timings = [dict(zip(names, row, strict=True)) | {"precision": "float32"} for row in rows]
    costs = {"dense": {"macs": 64, "params": 1000}, "narrow": {"macs": 16, "params": 300}}
    left = {"dense": 64, "narrow": 12}
    table = latency_table({"cost": costs, "nonzero_macs": left, "timings": timings}).set_index(["network", "batch"])
    assert table["variant"]["narrow", 1] == "psp.freeze, float32"
    assert table["ms"].to_dict() == pytest.approx(
        {("dense", 1): 4.0, ("narrow", 1): 1.0, ("dense", 64): 200.0, ("narrow", 64): 50.0}
    )
    assert table["speed_up"].to_dict() == pytest.approx(
        {("dense", 1): 1.0, ("narrow", 1): 4.0, ("dense", 64): 1.0, ("narrow", 64): 4.0}
    )
    assert table["mac_reduction"]["narrow", 1] == pytest.approx(64 / 12)
    assert table["others_variant"]["narrow", 1] == "eager, float32"
    assert table["others_ms"]["narrow", 1] == pytest.approx(3.0)
    assert table["others_speed_up"].tolist() == pytest.approx([1.0, 4 / 3, 1.0, 4.0]), "dense first"
    without = {"cost": costs, "nonzero_macs": left, "timings": timings[1:]}
    assert latency_table(without)["others_speed_up"].isna().tolist() == [False, True, False, False]
    with pytest.raises(ConfigError, match="'narrow' has no time at batch 64"):
        latency_table({"cost": costs, "nonzero_macs": left, "timings": [t for t in timings if t != timings[4]]})


def test_the_figure_has_a_mark_for_each_setting_and_a_bar_for_its_seeds(rows):
    rows = rows.assign(test_error_pct=rows["test_error_pct"].replace({12.0: 13.0}))
    (axes,) = equal_cost_figure(with_points_above(rows), (2, 4), "a title").axes
    drawn = {container.get_label(): container.lines for container in axes.containers}
    assert list(drawn) == [OURS, "network slimming"]
    marks, _, (bars,) = drawn[OURS]
    assert marks.get_xydata() == pytest.approx(np.array([[2.0, 2.5], [4.0, 4.0], [8.0, 6.0]]))
    heights = [np.ptp(segment[:, 1]) for segment in bars.get_segments() if len(segment)]
    assert heights == pytest.approx([2 * np.std([2.0, 3.0], ddof=1)]), "of the setting that has two seeds"
    assert axes.get_title() == "a title"


def test_nothing_is_no_comparison():
    with pytest.raises(ConfigError, match="no records to compare"):
        check_budget({})


def test_what_is_compared_has_one_budget():
    same = dict.fromkeys(BUDGET, 1)
    records = {name: {"config": same | {"seed": seed}} for seed, name in enumerate(("ours", "theirs"))}
    check_budget(records)
    records["longer"] = {"config": same | {"epochs": 2}}
    with pytest.raises(ConfigError, match=r"'longer' has epochs 2, 'ours' 1"):
        check_budget(records)


def test_runs_that_differ_in_more_than_what_varies_along_a_curve_are_several_methods():
    """λ does; ε, or a pruner's decay, does not."""
    other = run("psp_weight_decay", 14.0, 0, 4.0, threshold=0.3)
    peers = [*PEERS, PEERS[2] | {"regularization": 1e-3}]
    assert list(dict.fromkeys(rows_of([*RUNS, other], peers)["method"])) == [
        DENSE,
        f"{OURS}, ε = 0.1",
        f"{OURS}, ε = 0.3",
        "network slimming, regularization 0.0001, pruning at 0.5",
        "network slimming, regularization 0.001, pruning at 0.5",
    ]


def test_two_runs_of_one_setting_and_seed_are_an_error():
    with pytest.raises(ConfigError, match="runs 2, 6 differ by neither"):
        at_equal_cost(rows_of([*RUNS, RUNS[2]]), (2,))


def test_a_damaged_record_is_named(tmp_path):
    write_json(sealed({"pruner": "slimming"}), tmp_path / "whole.json")
    assert set(read_peers(tmp_path)) == {"whole"}
    write_json(sealed({"pruner": "slimming"}) | {"test_error_pct": 1.0}, tmp_path / "mended.json")
    with pytest.raises(ConfigError, match=r"mended\.json is damaged"):
        read_peers(tmp_path)


def test_a_seed_without_a_dense_network_is_left_out(rows):
    assert at_equal_cost(rows[rows["method"] != DENSE], (2,)).empty
