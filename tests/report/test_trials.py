"""Choices by held-out images, on made-up records."""

import pytest

from psp.errors import ConfigError
from psp.pipeline.profiles import ROOT
from psp.report.trials import against_norm, chosen, read_trials, trials_table
from psp.runs.config import RunConfig
from psp.runs.record import with_place


def record(method, error, structure="column", decay=0.0, pruned=0.0, **settings):
    config = {
        "dataset": "cifar10",
        "model": "resnet20",
        "method": method,
        "structure": structure,
        "epochs": 3,
        "seed": 0,
    }
    config |= {"sparsity": None, "structure_decay": decay, "threshold": 0.1, "holdout": 5000, "prune_at": 0.5}
    config |= {"batch_size": 128, "learning_rate": 0.2, "weight_decay": 0.002, **settings}
    curve = [{"validation_error_pct": 99.0}, {"validation_error_pct": error}]
    return {"config": config, "curve": curve, "sparsity": {"structures": pruned}, "test_error_pct": 0.0}


RECORDS = {
    "dense": record("baseline", 25.0),
    "dense-long": record("baseline", 15.0, epochs=12),
    "gentle": record("psp_weight_decay", 26.0, decay=0.001, pruned=0.4),
    "right": record("psp_weight_decay", 28.0, decay=0.002, pruned=0.6),
    "harsh": record("psp_weight_decay", 28.5, decay=0.003, pruned=0.8),
    "long": record("psp_weight_decay", 16.0, decay=0.003, pruned=0.9, epochs=12),
    "l1": record("psp_l1", 25.0, decay=0.003, pruned=0.95),
    "channels": record("psp_weight_decay", 40.0, "channel", 0.002, 0.9),
    "layers": record("psp_weight_decay", 25.0, "layer", 0.002, 0.0),
}


def test_held_out_errors_of_the_last_epoch_are_compared_with_the_dense_trial_of_that_schedule():
    table = trials_table(RECORDS).set_index("trial")
    assert table["held_out_error_pct"].tolist() == [25.0, 15.0, 26.0, 28.0, 28.5, 16.0, 25.0, 40.0, 25.0]
    assert table["above_dense"].tolist() == [0.0, 0.0, 1.0, 3.0, 3.5, 1.0, 0.0, 15.0, 0.0]


def test_the_most_pruned_trial_that_costs_at_most_three_points_is_chosen():
    assert chosen(trials_table(RECORDS), epochs=3)["trial"].tolist() == ["right"]
    assert chosen(trials_table(RECORDS), epochs=12)["trial"].tolist() == ["long"]


@pytest.mark.parametrize(
    ("settings", "called"),
    [
        ({"place": "auto"}, "channel"),
        ({"place": "auto", "couple": True}, "channel (coupled)"),
        ({"place": "weight"}, "channel (α on weights)"),
        ({}, "channel (α on weights)"),  # before records said where
    ],
)
def test_channels_are_called_by_where_their_alpha_stand(settings, called):
    read = with_place(record("psp_weight_decay", 20.0, "channel", **settings))
    assert trials_table({"trial": read})["structure"].tolist() == [called]


def test_psp_stands_beside_the_norm_of_its_seed_at_equal_cost():
    records = {
        "dense": record("baseline", 10.0),
        "norm": record("l1_norm", 14.0, "channel", sparsity=0.5),
        "columns by norm": record("l1_norm", 99.0, sparsity=0.5),
        "norm at another time": record("l1_norm", 99.0, "channel", sparsity=0.5, prune_at=0.25),
        "halfway": record("psp_weight_decay", 11.5, "channel", 0.002, 0.3, place="auto"),
        "beyond": record("psp_weight_decay", 20.0, "channel", 0.004, 0.9, place="auto"),
        "other seed": record("psp_weight_decay", 11.0, "channel", 0.002, 0.3, place="auto", seed=1),
    }
    table = trials_table(records).assign(mac_reduction=[1.0, 4.0, 4.0, 3.0, 2.0, 5.0, 2.0])
    beside = against_norm(table, "channel").set_index("trial")
    assert beside["norm_error_pct"].fillna(0).to_dict() == {"halfway": 12.0, "beyond": 0.0, "other seed": 0.0}
    assert beside.loc["halfway", "above_norm"] == -0.5


def test_a_trial_is_compared_with_no_dense_one_of_another_schedule():
    for change in ({"weight_decay": 0.0005}, {"holdout": 1000}, {"model": "resnet56"}, {"seed": 1}):
        other = {"dense": record("baseline", 20.0, **change), "column": RECORDS["right"]}
        assert trials_table(other)["above_dense"].isna().tolist() == [False, True]
    both = {**RECORDS, "other": record("baseline", 20.0, weight_decay=0.0005)}
    assert trials_table(both).set_index("trial")["above_dense"]["right"] == 3.0
    with pytest.raises(ConfigError, match="runs dense, again differ by neither"):
        trials_table({**RECORDS, "again": record("baseline", 20.0)})


def test_each_network_on_each_data_set_has_its_own_choice():
    more = {"dense100": record("baseline", 70.0, dataset="cifar100")}
    more["column100"] = record("psp_weight_decay", 71.0, decay=0.003, pruned=0.9, dataset="cifar100")
    assert set(chosen(trials_table({**RECORDS, **more}), epochs=3)["trial"]) == {"right", "column100"}


def test_a_trial_that_was_judged_by_test_images_is_refused():
    with pytest.raises(ConfigError, match="trial 'x' holds no training images out"):
        trials_table({"x": record("baseline", 25.0, holdout=0)})


def test_every_committed_trial_held_5000_images_out():
    records = read_trials(ROOT / "results" / "trials")
    assert len(records) >= 4
    assert {record["config"]["holdout"] for record in records.values()} == {5000}


def test_every_committed_trial_can_be_repeated_from_its_settings():
    """Those from before there was a choice of where α stands, too: on the weights."""
    records = read_trials(ROOT / "results" / "trials")
    configs = {name: RunConfig.of(record["config"]) for name, record in records.items()}
    assert configs["channel-2e-3-3-epochs"].place == "weight"
    assert configs["channel-3e-3-12-epochs"].place == "auto"
