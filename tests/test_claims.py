"""Claims and tables on the paper's own points, where every verdict is known."""

import pandas as pd
import pytest

from psp.claims import NOT_TESTED, error_at, figure_3_claims, largest_sparsity
from psp.config import RunConfig
from psp.profiles import Profile
from psp.tables import figure_3_points, figure_3_reference, write_table

PAPER = [RunConfig(dataset="cifar10", model="resnet56", epochs=160, seed=seed) for seed in (0, 1)]
LAPTOP = [RunConfig(dataset="cifar10", model="resnet20", epochs=3)]
DIGITS = [RunConfig()]


def shifted(series, points_of_error):
    points = figure_3_reference()
    points.loc[points["series"] == series, "test_error_pct"] += points_of_error
    return points


def verdicts(points, configs):
    table = figure_3_claims(points, configs)
    return dict(zip(table["claim"], table["verdict"], strict=True))


def test_the_reference_holds_the_five_series_of_the_figure():
    counts = figure_3_reference().groupby("series").size()
    assert counts.to_dict() == {
        "baseline": 1,
        "l1_norm": 7,
        "psp_fixed_sparsity": 9,
        "psp_l1": 11,
        "psp_weight_decay": 15,
    }


def test_every_claim_holds_on_the_papers_own_points():
    found = verdicts(figure_3_reference(), PAPER)
    assert len(found) == 8
    table = figure_3_claims(figure_3_reference(), PAPER)
    assert table["ours"].str.split(", ").tolist()[-4:] == table["paper"].str.split(", ").tolist()[-4:]
    assert table["paper"].tolist()[-4] == "6.42, 7.18"  # 6.37 + (6.45 − 6.37)·(70 − 66.7)/(72.5 − 66.7), and 7.18
    assert set(found.values()) == {"holds"}


@pytest.mark.parametrize(
    ("series", "sparsity"), [("l1_norm", 40), ("psp_fixed_sparsity", 50), ("psp_weight_decay", 76.2)]
)
def test_the_papers_marks_follow_from_its_points(series, sparsity):
    assert largest_sparsity(figure_3_reference(), series) == sparsity


def test_a_claim_that_does_not_come_out_says_so():
    worse = verdicts(shifted("psp_weight_decay", 3.0), PAPER)
    assert worse["PSP (weight decay) < PSP (fixed sparsity) at 70 %, errors in %"] == "does not hold"
    assert worse["largest sparsity at about baseline error (+0.2), PSP (weight decay), %"] == "does not hold"
    assert worse["PSP (fixed sparsity) < ℓ1 norm at 70 %, errors in %"] == "holds"
    assert verdicts(shifted("baseline", 1.0), PAPER)["error of the baseline, %"] == "does not hold"


def test_a_difference_within_the_tolerance_decides_nothing():
    points = shifted("psp_weight_decay", 0.6)
    assert verdicts(points, PAPER)["PSP (weight decay) < PSP (fixed sparsity) at 70 %, errors in %"].startswith(
        "undecided"
    )


def test_what_a_profile_cannot_test():
    laptop = verdicts(figure_3_reference(), LAPTOP)
    assert [v for c, v in laptop.items() if "largest" in c or "baseline" in c] == [NOT_TESTED] * 4
    assert [v for c, v in laptop.items() if "<" in c] == ["holds (one seed)"] * 4
    assert set(verdicts(figure_3_reference(), DIGITS).values()) == {NOT_TESTED}


def test_nothing_is_extrapolated():
    points = figure_3_reference()
    points = points[~((points["series"] == "psp_weight_decay") & (points["column_sparsity_pct"] > 75))]
    found = verdicts(points, PAPER)
    assert found["PSP (weight decay) < PSP (fixed sparsity) at 70 %, errors in %"] == "holds"
    assert found["PSP (weight decay) < PSP (fixed sparsity) at 80 %, errors in %"] == NOT_TESTED


def test_errors_between_points_are_linear():
    points = pd.DataFrame({"series": "psp_l1", "column_sparsity_pct": [80.0, 60.0], "test_error_pct": [9.0, 7.0]})
    assert error_at(points, "psp_l1", 70.0) == pytest.approx(8.0)
    assert pd.isna(error_at(points, "psp_l1", 50.0))
    assert pd.isna(error_at(points, "l1_norm", 70.0))


def test_mean_and_spread_over_seeds_by_hand():
    runs = pd.DataFrame(
        {
            "series": ["psp_l1", "psp_l1", "baseline"],
            "sparsity": [None, None, None],
            "structure_decay": [0.1, 0.1, 0.0],
            "seed": [0, 1, 0],
            "column_sparsity_pct": [50.0, 52.0, 0.0],
            "test_error_pct": [8.0, 10.0, 7.0],
        }
    )
    points = figure_3_points(runs)
    assert points["series"].tolist() == ["baseline", "psp_l1"]
    assert points.loc[1, ["column_sparsity_pct", "test_error_pct", "seeds"]].tolist() == [51.0, 9.0, 2]
    assert points.loc[1, "error_sd"] == pytest.approx(2**0.5)
    assert pd.isna(points.loc[0, "error_sd"])


def test_two_settings_are_not_taken_for_two_seeds():
    runs = pd.DataFrame(
        {
            "series": "psp_fixed_sparsity",
            "sparsity": 0.5,
            "structure_decay": [0.1, 0.2],
            "seed": 0,
            "column_sparsity_pct": 50.0,
            "test_error_pct": [8.0, 10.0],
        }
    )
    assert figure_3_points(runs)["test_error_pct"].tolist() == [8.0, 10.0]


def test_a_figure_shows_only_the_runs_of_its_kind():
    both = Profile("p", {"a": RunConfig(), "b": RunConfig(structure="channel"), "c": RunConfig(seed=1)})
    assert list(both.only(structure="column").runs) == ["a", "c"]
    assert list(both.only(structure="column", seed=1).runs) == ["c"]


def test_tables_are_written_in_full_and_for_reading(tmp_path):
    table = pd.DataFrame({"network": ["a"], "error": [7.123456], "spread": [float("nan")]})
    text = write_table(table, tmp_path / "t" / "x", "# Title", {"error": "{:.2f}"})
    assert text.splitlines()[0] == "# Title"
    assert "| a         | 7.12    | –        |" in text
    assert pd.read_csv(tmp_path / "t" / "x.csv").loc[0, "error"] == 7.123456
