"""Choices made on held-out training images: a table of trial runs, and the rule by which λ is chosen among them.

The test set has no part in it: a trial trains without `holdout` images of the training set and is judged by these.
"""

import numpy as np
import pandas as pd

from psp.errors import ConfigError
from psp.files import read_json
from psp.report.equal_cost import at_reduction
from psp.report.tables import SERIES, above_dense, check_seeds, if_used, setting, structure_of
from psp.runs.config import RunConfig
from psp.runs.record import with_place

TRAINED = ["epochs", "batch_size", "learning_rate", "weight_decay", "holdout"]
SCHEDULE = ["dataset", "network", *TRAINED]  # what a trial and the dense one it is compared with share, and the seed
COST = 3.0  # points of held-out error that pruning may cost; fixed before the trials


def read_trials(folder):
    """{name: record} of the trials in a folder, of whatever schema: what is read of them has been in all.

    Raises ConfigError for a file that is no record.
    """
    paths = sorted(folder.glob("*.json"))
    return {path.stem: with_place(read_json(path, "restore it by git")) for path in paths}


def trials_table(records):
    """One row for each trial, {name: record}: settings, share pruned, final-epoch error on the held-out images.

    `above_dense` is that error minus the dense trial's of the same `SCHEDULE` and seed, in points; missing without one.
    Raises ConfigError for a record without held-out images and for two dense trials of one schedule and seed.
    """
    table = pd.DataFrame([_row(name, record) for name, record in records.items()])
    dense = table[table["method"] == SERIES["baseline"]]
    check_seeds(dense.rename(columns={"trial": "run"}), SCHEDULE)
    return table.assign(above_dense=above_dense(table, dense, "held_out_error_pct", [*SCHEDULE, "seed"]))


def chosen(table, epochs):
    """Of weight decay's trials with so many epochs, one for each network and structure: the most pruned within `COST`.

    A structure whose trials all cost more, or prune nothing, is missing.
    """
    rows = table[(table["method"] == SERIES["psp_weight_decay"]) & (table["epochs"] == epochs)]
    rows = rows[(rows["above_dense"] <= COST) & (rows["structures_pruned_pct"] > 0)]
    return rows.loc[rows.groupby(["dataset", "network", "structure"])["structures_pruned_pct"].idxmax()]


def against_norm(table, structure):
    """The PSP trials in `table`, each beside the ℓ1 norm of `structure` at equal cost: `norm_error_pct`, `above_norm`.

    `table` is `trials_table`'s and has the column `mac_reduction`, dense MACs over those left. The norm's error there
    is interpolated over the logarithm of `mac_reduction` between its trials of the same `SCHEDULE` and seed, among
    which the dense one counts as 0 % pruned; missing beyond them. Trials of the norm that prune at another time than
    the default have no part in it.
    """
    dense = table[table["method"] == SERIES["baseline"]]
    norm = table[(table["method"] == SERIES["l1_norm"]) & (table["structure"] == structure)]
    norm = norm[norm["prune_at"] == RunConfig.prune_at]
    curves = dict(list(pd.concat([dense, norm]).groupby([*SCHEDULE, "seed"])))
    trials = table[table["method"].str.startswith("PSP")]
    errors = [
        at_reduction([curves[key]], "held_out_error_pct", row["mac_reduction"]) if key in curves else np.nan
        for key, row in ((tuple(row[[*SCHEDULE, "seed"]]), row) for _, row in trials.iterrows())
    ]
    trials = trials.assign(norm_error_pct=np.array(errors, dtype=float))
    return trials.assign(above_norm=trials["held_out_error_pct"] - trials["norm_error_pct"])


def _row(name, record):
    config, last = record["config"], record["curve"][-1]
    if not config["holdout"]:
        raise ConfigError(f"trial {name!r} holds no training images out: set holdout, and judge it by these")
    return {
        "trial": name,
        "dataset": config["dataset"],
        "network": config["model"],
        "method": SERIES[config["method"]],
        "structure": structure_of(config),
        **{name: config[name] for name in (*TRAINED, "seed")},
        "setting": setting(config),
        "structure_decay": config["structure_decay"] if config["method"].startswith("psp_") else np.nan,
        **if_used(config),
        "structures_pruned_pct": 100 * record["sparsity"]["structures"],
        "held_out_error_pct": last["validation_error_pct"],
    }
