"""Choices made on held-out training images: a table of trial runs, and the rule by which λ is chosen among them.

The test set has no part in it: a trial trains without `holdout` images of the training set and is judged by these.
"""

import pandas as pd

from psp.errors import ConfigError
from psp.tables import SERIES, setting

COST = 3.0  # points of held-out error that pruning may cost; fixed before the trials


def trials_table(records):
    """One row for each trial, {name: record}: settings, share pruned, final-epoch error on the held-out images.

    `above_dense` is that error minus the dense trial's of the same data, network and schedule, in points.
    Raises ConfigError for a record without held-out images.
    """
    table = pd.DataFrame([_row(name, record) for name, record in records.items()])
    schedule = ["dataset", "network", "epochs", "seed"]
    dense = table[table["method"] == SERIES["baseline"]].set_index(schedule)["held_out_error_pct"].rename("dense")
    table = table.join(dense, on=schedule)
    return table.assign(above_dense=table["held_out_error_pct"] - table["dense"]).drop(columns="dense")


def chosen(table, epochs):
    """Of weight decay's trials with so many epochs, one for each structure: the most pruned of those within `COST`.

    A structure whose trials all cost more, or prune nothing, is missing.
    """
    rows = table[(table["method"] == SERIES["psp_weight_decay"]) & (table["epochs"] == epochs)]
    rows = rows[(rows["above_dense"] <= COST) & (rows["structures_pruned_pct"] > 0)]
    return rows.loc[rows.groupby("structure")["structures_pruned_pct"].idxmax()]


def _row(name, record):
    config, last = record["config"], record["curve"][-1]
    if not config["holdout"]:
        raise ConfigError(f"trial {name!r} holds no training images out: set holdout, and judge it by these")
    return {
        "trial": name,
        "dataset": config["dataset"],
        "network": config["model"],
        "method": SERIES[config["method"]],
        "structure": config["structure"],
        "epochs": config["epochs"],
        "seed": config["seed"],
        "setting": setting(config),
        "threshold": config["threshold"],
        "structures_pruned_pct": 100 * record["sparsity"]["structures"],
        "held_out_error_pct": last["validation_error_pct"],
    }
