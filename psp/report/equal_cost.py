"""Errors at equal cost: what a user pays for is what is left to compute, not the share of structures that is gone.

Equal shares are not equal costs. Where all columns that read a channel are pruned, the filter that computes it goes,
too, and with some methods that happens more often than with others. By how much multiply-accumulates are reduced is
known after a run, so that the error at a given reduction is interpolated, within a seed, over its logarithm between the
runs of a method.
"""

import numpy as np
import pandas as pd

from psp.errors import ConfigError
from psp.method.methods import THRESHOLDED
from psp.report.claims import half_width
from psp.report.paper_tables import DENSE
from psp.report.tables import SERIES, above_dense, check_seeds, setting, structure_of
from psp.timing.networks import cost_left

BUDGET = ("dataset", "model", "epochs", "batch_size", "learning_rate", "momentum", "weight_decay", "holdout")
REDUCTIONS = (2, 4, 6)  # at which the series of Figure 3 are compared


def check_budget(records):
    """Raise ConfigError unless all records, {name: record}, are of one network, data set and schedule."""
    (first, reference), *others = ((name, record["config"]) for name, record in records.items())
    for name, config in others:
        for key in BUDGET:
            if config[key] != reference[key]:
                raise ConfigError(
                    f"{name!r} has {key} {config[key]!r}, {first!r} {reference[key]!r}: compare what has one budget"
                )


def run_rows(records):
    """A table for `at_equal_cost` of run records, {run: record}, in a fifth of a second each.

    `setting` is the sparsity or λ over which a method's curve is drawn, `beside` what its runs have besides;
    `parameters` and `mac_reduction` are of what `psp.extract` leaves, as `psp.timing.networks.cost_left` says.
    """
    return pd.DataFrame([_run_row(run, record) for run, record in records.items()])


def _run_row(run, record):
    config = record["config"]
    beside = f"ε = {config['threshold']:g}" if config["method"] in THRESHOLDED else ""
    beside = f"pruning at {config['prune_at']:g}" if config["method"] == "l1_norm" else beside
    left = cost_left(record)
    return {
        "run": run,
        "method": DENSE if config["method"] == "baseline" else f"{SERIES[config['method']]}, {structure_of(config)}",
        "beside": beside,
        "setting": setting(config),
        "seed": config["seed"],
        "mac_reduction": left.mac_reduction,
        "parameters": left.params,
        "test_error_pct": record["test_error_pct"],
    }


def with_points_above(rows):
    """`rows` with a column `above_dense`: points of error above the dense network of the same seed, if there is one."""
    dense = rows[rows["method"] == DENSE]
    return rows.assign(above_dense=above_dense(rows, dense, "test_error_pct", ["seed"]))


def at_equal_cost(rows, reductions):
    """One row for each method, seed and reduction of MACs: error, points above the dense network's, parameters.

    `rows` are a table of `run_rows` and of `psp.report.peers.peer_rows`. All of it is interpolated over the logarithm
    of `mac_reduction` between the runs of a method and seed, the dense one among them; a method whose runs of a seed do
    not reach a reduction has no row of that seed there. Raises ConfigError for two runs of a method with one setting
    and seed, and for a method with runs of several settings beside λ or the sparsity, which are no one curve.
    """
    check_seeds(rows, ["method", "setting"])
    for method, own in rows.groupby("method", sort=False)["beside"]:
        if own.nunique() > 1:
            raise ConfigError(f"{method} has runs of {' and '.join(own.unique())}: leave all but one out")
    dense = rows[rows["method"] == DENSE]
    found = []
    for (method, seed), own in rows[rows["method"] != DENSE].groupby(["method", "seed"], sort=False):
        base = dense[dense["seed"] == seed]
        curve = pd.concat([base, own]).sort_values("mac_reduction")
        for reduction in reductions:
            if len(base) and reduction <= curve["mac_reduction"].max():
                error, parameters = (_at(curve, column, reduction) for column in ("test_error_pct", "parameters"))
                above = error - base["test_error_pct"].item()
                found.append((method, seed, reduction, error, above, parameters))
    columns = ["method", "seed", "mac_reduction", "test_error_pct", "above_dense", "parameters"]
    return pd.DataFrame(found, columns=columns)


def _at(curve, column, reduction):
    return float(np.interp(np.log(reduction), np.log(curve["mac_reduction"]), curve[column]))


def equal_cost_table(equal):
    """Means over seeds of `at_equal_cost`'s rows, the best method of each reduction first."""
    table = equal.groupby(["mac_reduction", "method"], as_index=False).agg(
        seeds=("seed", "nunique"),
        test_error_pct=("test_error_pct", "mean"),
        above_dense=("above_dense", "mean"),
        above_dense_sd=("above_dense", "std"),
        parameters=("parameters", "mean"),
    )
    return table.sort_values(["mac_reduction", "above_dense"], ignore_index=True)


def differences(equal, ours):
    """Points by which `ours`, a method, is below each other one at equal cost, over the seeds that have both.

    `below_by_sd` is the sample standard deviation over seeds, `half_width` that of the 95 % interval of the mean, by
    Student's t; both are missing where there is one seed.
    """
    rows = []
    for reduction, table in equal.groupby("mac_reduction"):
        errors = table.pivot(index="seed", columns="method", values="test_error_pct")
        for other in errors.columns.drop(ours) if ours in errors else ():
            margins = (errors[other] - errors[ours]).dropna().to_numpy()
            if len(margins):
                spread = (margins.std(ddof=1), half_width(margins)) if len(margins) > 1 else (np.nan, np.nan)
                rows.append((reduction, f"{ours} against {other}", len(margins), margins.mean(), *spread))
    columns = ["mac_reduction", "compared", "seeds", "below_by", "below_by_sd", "half_width"]
    return pd.DataFrame(rows, columns=columns)
