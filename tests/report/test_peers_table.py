"""Pruners at equal cost, on made-up records whose numbers are easy to interpolate."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from psp.report.paper_tables import DENSE
from psp.report.peers import at_equal_cost, differences, peer_row, peers_table, run_row

WHOLE = SimpleNamespace(macs=64, params=1000)


def run(method, error, seed, macs=64, params=1000, structure="channel"):
    config = {"method": method, "structure": structure, "seed": seed, "place": "auto"}
    return run_row({"config": config, "test_error_pct": error}, SimpleNamespace(macs=macs, params=params), WHOLE)


def peer(error, seed, reduction, parameters=300):
    record = {"pruner": "slimming", "config": {"seed": seed}, "test_error_pct": error}
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


def test_a_seed_without_a_dense_network_is_left_out():
    assert at_equal_cost(ROWS[ROWS["method"] != DENSE], (2,)).empty
