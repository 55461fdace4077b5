"""Claims and tables on the paper's own points, where every verdict is known."""

import numpy as np
import pandas as pd
import pytest

from psp.errors import ConfigError
from psp.pipeline.profiles import Profile
from psp.report.claims import (
    NOT_TESTED,
    OPEN,
    error_at,
    errors_by_seed,
    figure_3_claims,
    half_width,
    largest_sparsity,
    orders,
    seeds_to_decide,
)
from psp.report.tables import figure_3_points, figure_3_reference, figure_3_runs, rounded, write_table
from psp.runs.config import RunConfig

PAPER = [RunConfig(dataset="cifar10", model="resnet56", epochs=160, seed=seed) for seed in (0, 1)]
LAPTOP = [RunConfig(dataset="cifar10", model="resnet20", epochs=3)]
DIGITS = [RunConfig()]


def paper_runs(seed=0):
    """The paper's points as if each were a run."""
    points = figure_3_reference()
    return points.assign(
        sparsity=points["column_sparsity_pct"], structure_decay=0.0, threshold=0.1, prune_at=0.5, seed=seed
    )


def shifted(series, points_of_error, seed=0):
    runs = paper_runs(seed)
    runs.loc[runs["series"] == series, "test_error_pct"] += points_of_error
    dense = runs.loc[runs["series"] == "baseline", "test_error_pct"].item()
    return runs.assign(above_baseline=runs["test_error_pct"] - dense)


def verdicts(runs, configs):
    """{claim: verdict} where every seed of the configs measured the same, unless `runs` has several seeds."""
    if runs["seed"].nunique() == 1:
        runs = pd.concat([runs.assign(seed=config.seed) for config in configs])
    table = figure_3_claims(runs, configs)
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
    found = verdicts(paper_runs(), PAPER)
    assert len(found) == 4 + 7
    table = figure_3_claims(paper_runs(), PAPER)
    assert table["ours"].tolist()[-7:] == table["paper"].tolist()[-7:]
    assert table["paper"].tolist()[-7] == "6.42, 7.18"  # 6.37 + (6.45 − 6.37)·(70 − 66.7)/(72.5 − 66.7), and 7.18
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


def test_no_order_is_claimed_that_the_paper_has_within_the_tolerance():
    """At 70 % its weight decay is 0.64 points ahead of ℓ1 regularization, at 80 % 0.17."""
    assert ("psp_weight_decay", "psp_l1", 70.0) in orders()
    assert ("psp_weight_decay", "psp_l1", 80.0) not in orders()


WD_FIXED_70 = "PSP (weight decay) < PSP (fixed sparsity) at 70 %, errors in %"


def test_a_difference_is_taken_within_a_seed():
    """A seed that moves all series by five points moves no difference; 0.76 points is the paper's own."""
    runs = pd.concat(
        [paper_runs(seed).assign(test_error_pct=lambda t, s=seed: t["test_error_pct"] + 5 * s) for seed in (0, 1, 2)]
    )
    row = figure_3_claims(runs, PAPER).set_index("claim").loc[WD_FIXED_70]
    assert row["verdict"] == "holds"
    assert row["ours"] == "11.42, 12.18; difference 0.76 ± 0.00"


def test_a_difference_that_seeds_could_have_made_decides_nothing():
    """Margins 0.76 + (0, 0.4, −0.4): mean 0.76, s = 0.4, half of the interval 4.303·0.4/√3 = 0.99."""
    shifts = (0.0, 0.4, -0.4)
    runs = pd.concat([shifted("psp_fixed_sparsity", by, seed) for seed, by in enumerate(shifts)])
    row = figure_3_claims(runs, PAPER).set_index("claim").loc[WD_FIXED_70]
    assert row["ours"].endswith("difference 0.76 ± 0.40")
    assert row["verdict"] == "undecided: inside the 95 % interval; about 4 seeds would decide it"
    assert half_width(np.array([0.76, 1.16, 0.36])) == pytest.approx(4.3027 * 0.4 / 3**0.5, rel=1e-4)
    steady = pd.concat([shifted("psp_fixed_sparsity", by / 4, seed) for seed, by in enumerate(shifts)])
    assert verdicts(steady, PAPER)[WD_FIXED_70] == "holds"


@pytest.mark.parametrize(
    ("lead", "spread", "verdict"),
    [
        (0.16, 0.1, "does not hold: level, within the tolerance"),  # 0.16 ± 0.25
        (0.16, 0.2, "undecided: inside the 95 % interval; about 4 seeds would decide it"),  # 0.16 ± 0.50; 3.182·0.2/2
        (-0.5, 0.3, "does not hold"),  # −0.50 ± 0.75
        (-0.5, 0.5, "undecided: inside the 95 % interval; about 4 seeds would decide it"),  # −0.50 ± 1.24
    ],
)
def test_a_claim_does_not_hold_where_seeds_leave_out_a_lead_above_the_tolerance(lead, spread, verdict):
    """Weight decay leads by 0.76 points in the paper; here by `lead`, with deviation `spread` over three seeds."""
    shifts = (lead - 0.76 + by * spread for by in (0.0, 1.0, -1.0))
    runs = pd.concat([shifted("psp_fixed_sparsity", by, seed) for seed, by in enumerate(shifts)])
    assert verdicts(runs, PAPER)[WD_FIXED_70] == verdict


@pytest.mark.parametrize("shift", [0.6, 0.0, 9.0])
def test_one_seed_decides_no_order(shift):
    assert verdicts(shifted("psp_weight_decay", shift), [LAPTOP[0]])[WD_FIXED_70] == "undecided: one seed"


def test_nothing_is_decided_while_runs_are_still_to_come():
    """Also what was not measured yet, but will be, is open; what the profile never tests is not."""
    runs = paper_runs()
    runs = pd.concat([runs.assign(seed=seed) for seed in (0, 1)])
    runs = runs[~runs["series"].isin(("psp_l1", "baseline"))]
    claims = figure_3_claims(runs, LAPTOP, complete=False).set_index("claim")["verdict"]
    assert {claim: verdict for claim, verdict in claims.items() if "<" in claim} == dict.fromkeys(
        claims.index[4:], OPEN
    )
    assert set(claims[:4]) == {NOT_TESTED}
    assert set(figure_3_claims(runs, PAPER, complete=False)["verdict"]) == {OPEN}


def test_a_number_that_was_not_measured_refutes_nothing():
    runs = paper_runs()
    assert verdicts(runs[runs["series"] != "baseline"], PAPER)["error of the baseline, %"] == NOT_TESTED


def test_the_seeds_that_would_decide_by_the_table_of_students_t():
    """t(0.975) is 4.303 with 2 degrees of freedom, 3.182 with 3, 2.776 with 4, 2.262 with 9, 2.228 with 10."""
    assert seeds_to_decide(0.76, 0.4) == "about 4 seeds"  # 3.182·0.4/2 = 0.636; with three 0.994
    assert seeds_to_decide(0.76, 0.6) == "about 5 seeds"  # 2.776·0.6/√5 = 0.745; with four 0.955
    assert seeds_to_decide(0.7, 1.0) == "about 11 seeds"  # 2.228/√11 = 0.672; with ten 0.715
    assert seeds_to_decide(0.1, 1.0) == "more than 100 seeds"


def test_a_seed_without_a_measurement_is_left_out_and_the_row_says_so():
    runs = pd.concat([paper_runs(0), shifted("psp_fixed_sparsity", 9.0, 1)])
    runs = runs[(runs["seed"] == 0) | (runs["series"] != "psp_weight_decay")]
    assert errors_by_seed(runs, ("psp_weight_decay", "psp_fixed_sparsity"), 70.0).shape == (1, 2)
    row = figure_3_claims(runs, PAPER).set_index("claim").loc[WD_FIXED_70]
    assert row["ours"] == "6.42, 7.18 (1 of 2 seeds)"
    assert row["verdict"] == "undecided: 1 of 2 seeds have both at this sparsity"


def test_what_a_profile_cannot_test():
    laptop = verdicts(paper_runs(), LAPTOP)
    assert [v for c, v in laptop.items() if "largest" in c or "baseline" in c] == [NOT_TESTED] * 4
    assert [v for c, v in laptop.items() if "<" in c] == ["undecided: one seed"] * 7
    assert set(verdicts(paper_runs(), DIGITS).values()) == {NOT_TESTED}


def test_a_series_that_was_not_run_has_no_claim_that_fails():
    runs = paper_runs()
    found = verdicts(runs[runs["series"] != "l1_norm"], PAPER)
    assert {verdict for claim, verdict in found.items() if "ℓ1 norm" in claim} == {NOT_TESTED}
    assert {verdict for claim, verdict in found.items() if "ℓ1 norm" not in claim} == {"holds"}


def test_nothing_is_extrapolated():
    runs = paper_runs()
    runs = runs[~((runs["series"] == "psp_weight_decay") & (runs["column_sparsity_pct"] > 75))]
    found = verdicts(runs, PAPER)
    assert found["PSP (weight decay) < PSP (fixed sparsity) at 70 %, errors in %"] == "holds"
    assert found["PSP (weight decay) < PSP (fixed sparsity) at 80 %, errors in %"] == NOT_TESTED


def test_errors_between_points_are_linear():
    points = pd.DataFrame({"series": "psp_l1", "column_sparsity_pct": [80.0, 60.0], "test_error_pct": [9.0, 7.0]})
    assert error_at(points, "psp_l1", 70.0) == pytest.approx(8.0)
    assert pd.isna(error_at(points, "psp_l1", 50.0))
    assert pd.isna(error_at(points, "l1_norm", 70.0))


def test_a_largest_sparsity_is_by_differences_within_a_seed():
    """Three seeds, each 0.9 points above its own dense network: the mean of five dense networks is no comparison."""
    dense = pd.DataFrame({"series": "baseline", "column_sparsity_pct": 0.0, "seed": range(5)})
    dense["test_error_pct"] = [6.0, 6.0, 6.0, 8.0, 8.0]
    decayed = pd.DataFrame({"series": "psp_weight_decay", "column_sparsity_pct": 80.0, "seed": range(3)})
    runs = pd.concat([dense.assign(above_baseline=0.0), decayed.assign(test_error_pct=6.9, above_baseline=0.9)])
    points = figure_3_points(runs.assign(sparsity=None, structure_decay=0.1, threshold=0.1, prune_at=0.5))
    assert np.isnan(largest_sparsity(points, "psp_weight_decay"))


def test_a_largest_sparsity_of_seeds_without_a_dense_network_is_not_refuted():
    runs = paper_runs(0)
    runs = pd.concat([runs, runs[runs["series"] == "l1_norm"].assign(seed=1, above_baseline=np.nan)])
    found = verdicts(runs, PAPER)
    assert found["largest sparsity at about baseline error (+0.2), ℓ1 norm, %"] == NOT_TESTED
    assert found["largest sparsity at about baseline error (+0.2), PSP (weight decay), %"].startswith("holds")


def test_mean_and_spread_over_seeds_by_hand():
    runs = pd.DataFrame(
        {
            "series": ["psp_l1", "psp_l1", "baseline"],
            "sparsity": [None, None, None],
            "structure_decay": [0.1, 0.1, 0.0],
            "threshold": 0.1,
            "prune_at": 0.5,
            "seed": [0, 1, 0],
            "column_sparsity_pct": [50.0, 52.0, 0.0],
            "test_error_pct": [8.0, 10.0, 7.0],
            "above_baseline": [1.0, 4.0, 0.0],
        }
    )
    points = figure_3_points(runs)
    assert points["series"].tolist() == ["baseline", "psp_l1"]
    assert points.loc[1, ["column_sparsity_pct", "test_error_pct", "seeds"]].tolist() == [51.0, 9.0, 2]
    assert points.loc[1, "error_sd"] == pytest.approx(2**0.5)
    assert points.loc[1, ["above_baseline", "above_baseline_sd"]].tolist() == pytest.approx([2.5, 4.5**0.5])
    assert pd.isna(points.loc[0, "error_sd"])


def test_a_run_is_compared_with_the_dense_network_of_its_seed():
    def record(method, seed, error):
        config = {
            "method": method,
            "sparsity": None,
            "structure_decay": 0.0,
            "threshold": 0.1,
            "prune_at": 0.5,
            "seed": seed,
        }
        return {"config": config, "sparsity": {"structures": 0.0}, "test_error_pct": error}

    seeds = ((0, 25.0), (1, 22.0))
    records = {f"b{s}": record("baseline", s, e) for s, e in seeds} | {
        f"w{s}": record("psp_l1", s, e + 1 + s) for s, e in seeds
    }
    records["w2"] = record("psp_l1", 2, 30.0)
    above = figure_3_runs(records).set_index("run")["above_baseline"]
    assert above.drop("w2").to_dict() == {"b0": 0.0, "b1": 0.0, "w0": 1.0, "w1": 2.0}
    assert pd.isna(above["w2"])


def test_runs_that_are_not_one_line_of_the_figure_are_refused():
    config = {"method": "psp_l1", "sparsity": None, "structure_decay": 1e-3, "prune_at": 0.5, "seed": 0}
    records = {
        str(threshold): {
            "config": config | {"threshold": threshold},
            "sparsity": {"structures": 0.5},
            "test_error_pct": 9.0,
        }
        for threshold in (0.1, 0.3)
    }
    with pytest.raises(ConfigError, match=r"of PSP \(ℓ1 regularization\) have threshold 0\.1 and 0\.3: leave all"):
        figure_3_runs(records)
    for record, prune_at in zip(records.values(), (0.25, 0.5), strict=True):
        record["config"] |= {"method": "l1_norm", "prune_at": prune_at}
    with pytest.raises(ConfigError, match=r"of ℓ1 norm have prune_at 0\.25 and 0\.5: leave all"):
        figure_3_runs(records)


def test_numbers_are_shown_to_four_digits_but_whole_parts_in_full():
    table = pd.DataFrame({"a": [0.000125, 12.3456, 95034.4, np.nan], "b": ["x", 0.0, 1234567, 2]})
    assert rounded(table)["a"].tolist()[:3] == [0.000125, 12.35, 95034.0]
    assert rounded(table)["b"].tolist() == ["x", 0.0, 1234567, 2]
    assert rounded(table).loc[3].isna().tolist() == [True, False]


def test_two_settings_are_not_taken_for_two_seeds():
    runs = pd.DataFrame(
        {
            "series": "psp_fixed_sparsity",
            "sparsity": 0.5,
            "structure_decay": [0.1, 0.2],
            "threshold": 0.1,
            "prune_at": 0.5,
            "seed": 0,
            "column_sparsity_pct": 50.0,
            "test_error_pct": [8.0, 10.0],
            "above_baseline": 0.0,
        }
    )
    assert figure_3_points(runs)["test_error_pct"].tolist() == [8.0, 10.0]


def test_the_mean_above_the_dense_network_is_of_all_seeds_or_missing():
    runs = paper_runs(0)
    runs = pd.concat([runs, runs.assign(seed=1, above_baseline=np.nan)])
    points = figure_3_points(runs)
    assert points["test_error_pct"].notna().all()
    assert points[["above_baseline", "above_baseline_sd"]].isna().all(axis=None)


def test_two_thresholds_are_not_taken_for_two_seeds():
    runs = pd.concat([paper_runs(0), paper_runs(1).assign(threshold=0.3)])
    assert set(figure_3_points(runs)["seeds"]) == {1}


def test_two_runs_of_one_setting_and_seed_are_refused():
    record = {
        "config": {
            "method": "baseline",
            "sparsity": None,
            "structure_decay": 0.0,
            "threshold": 0.1,
            "prune_at": 0.5,
            "seed": 0,
        }
    }
    record |= {"sparsity": {"structures": 0.0}, "test_error_pct": 20.0}
    with pytest.raises(ConfigError, match="runs a, b differ by neither"):
        figure_3_runs({"a": record, "b": record})


def test_a_figure_shows_only_the_runs_of_its_kind():
    both = Profile("p", {"a": RunConfig(), "b": RunConfig(structure="channel"), "c": RunConfig(seed=1)})
    assert list(both.only(structure="column").runs) == ["a", "c"]
    assert list(both.only(structure="column", seed=1).runs) == ["c"]


def test_a_title_says_up_to_how_many_seeds_a_setting_has():
    runs = {f"{decay}-{seed}": RunConfig(structure_decay=decay, seed=seed) for decay in (0.1, 0.2) for seed in (0, 1)}
    assert Profile("small", runs, None).title().endswith(", 2 seeds")
    del runs["0.2-1"]
    assert Profile("small", runs, None).title().endswith(", up to 2 seeds")


def test_runs_with_a_record_can_be_shown_before_all_have_one(tmp_path, monkeypatch):
    monkeypatch.setattr("psp.pipeline.profiles.ROOT", tmp_path)
    long = Profile("long", {f"dense-s{seed}": RunConfig(seed=seed) for seed in (0, 1)})
    with pytest.raises(ConfigError, match="no run of profile 'long' has a record yet"):
        long.so_far()
    long.record_path("dense-s1").parent.mkdir(parents=True)
    long.record_path("dense-s1").touch()
    assert list(long.so_far().runs) == ["dense-s1"]
    assert long.so_far().title().endswith(", 1 seed, 1 of 2 runs so far")


def test_tables_are_written_in_full_and_for_reading(tmp_path):
    table = pd.DataFrame({"network": ["a"], "error": [7.123456], "spread": [float("nan")]})
    text = write_table(table, tmp_path / "t" / "x", "# Title", {"error": "{:.2f}"})
    assert text.splitlines()[0] == "# Title"
    assert "| a         | 7.12    | –        |" in text
    assert pd.read_csv(tmp_path / "t" / "x.csv").loc[0, "error"] == 7.123456
