"""Errors at equal cost: what a user pays for is what is left to compute, not the share of structures that is gone.

Equal shares are not equal costs. Where all columns that read a channel are pruned, the filter that computes it goes,
too, and with some methods that happens more often than with others. By how much multiply-accumulates are reduced is
known after a run, so that the error at a given reduction is interpolated, within a seed, over its logarithm between the
runs of a method.
"""

from itertools import combinations

import numpy as np
import pandas as pd

from psp.errors import ConfigError
from psp.report.intervals import half_width
from psp.report.paper_tables import DENSE
from psp.report.tables import SERIES, above_dense, check_seeds, if_used, setting, structure_of
from psp.timing.networks import cost_left

BUDGET = ("dataset", "model", "epochs", "batch_size", "learning_rate", "momentum", "weight_decay", "holdout")
REDUCTIONS = (3, 4, 6)  # at which the series of Figure 3 are compared
# By this factor a method's first pruned run may lie beyond a reduction, which is then between the dense network and it.
NEAR = 1.1


def check_budget(records):
    """Raise ConfigError unless all records, {name: record}, are of one network, data set and schedule."""
    if not records:
        raise ConfigError("there are no records to compare")
    (first, reference), *others = ((name, record["config"]) for name, record in records.items())
    for name, config in others:
        for key in BUDGET:
            if config[key] != reference[key]:
                raise ConfigError(
                    f"{name!r} has {key} {config[key]!r}, {first!r} {reference[key]!r}: compare what has one budget"
                )


def run_rows(records):
    """A table for `at_equal_cost` of run records, {run: record}, in a fifth of a second each.

    `setting` is the sparsity or λ that varies from run to run of a method; runs that also differ in ε, or in when the
    norm prunes, are of several methods, and called so. `parameters` and `mac_reduction` are of what `psp.extract`
    leaves, as `psp.timing.networks.cost_left` says.
    """
    return told_apart(pd.DataFrame([_run_row(run, record) for run, record in records.items()]))


def told_apart(rows):
    """`rows` without their column `fixed`, which is part of a method's name where its runs have several."""
    several = rows.groupby("method")["fixed"].transform("nunique") > 1
    names = rows["method"].where(~several, rows["method"] + ", " + rows["fixed"])
    return rows.assign(method=names).drop(columns="fixed")


def _run_row(run, record):
    config, left = record["config"], cost_left(record)
    used = zip(("ε =", "pruning at"), if_used(config).values(), strict=True)
    return {
        "run": run,
        "method": DENSE if config["method"] == "baseline" else f"{SERIES[config['method']]}, {structure_of(config)}",
        "fixed": ", ".join(f"{name} {value:g}" for name, value in used if not np.isnan(value)),
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
    of `mac_reduction` between the runs of a method and seed, before which the dense network stands. A method whose runs
    of a seed do not reach a reduction, or begin beyond it by more than `NEAR`, has no row of that seed there. Raises
    ConfigError for two runs of a method with one setting and seed.
    """
    check_seeds(rows, ["method", "setting"])
    dense, found = rows[rows["method"] == DENSE], []
    for (method, seed), own in rows[rows["method"] != DENSE].groupby(["method", "seed"], sort=False):
        base = dense[dense["seed"] == seed]
        first, last = own["mac_reduction"].min(), own["mac_reduction"].max()
        for reduction in (r for r in reductions if len(base) and first / NEAR <= r <= last):
            error, parameters = (at_reduction([base, own], c, reduction) for c in ("test_error_pct", "parameters"))
            found.append((method, seed, reduction, error, error - base["test_error_pct"].item(), parameters))
    columns = ["method", "seed", "mac_reduction", "test_error_pct", "above_dense", "parameters"]
    return pd.DataFrame(found, columns=columns)


def at_reduction(tables, column, reduction):
    """A column of `tables`, joined, over the logarithm of their `mac_reduction`; NaN beyond them."""
    curve = pd.concat(tables).sort_values("mac_reduction", kind="stable")
    known = np.log(curve["mac_reduction"]), curve[column]
    return float(np.interp(np.log(reduction), *known, left=np.nan, right=np.nan))


def equal_cost_table(equal):
    """Means over seeds of `at_equal_cost`'s rows: of each reduction the best method first, among those of all seeds.

    Those of fewer seeds follow, as their means are over other networks than the first ones'.
    """
    table = equal.groupby(["mac_reduction", "method"], as_index=False).agg(
        seeds=("seed", "nunique"),
        test_error_pct=("test_error_pct", "mean"),
        above_dense=("above_dense", "mean"),
        above_dense_sd=("above_dense", "std"),
        parameters=("parameters", "mean"),
    )
    fewer = (table["seeds"] < equal["seed"].nunique()).rename("fewer")
    order = table.assign(fewer=fewer).sort_values(["mac_reduction", "fewer", "above_dense"]).index
    return table.loc[order].reset_index(drop=True)


def differences(equal, at="mac_reduction"):
    """Points by which one method's error is below another's at equal cost, over the seeds that have both.

    A row for each pair of methods and value of the column `at`, by default their reduction; of two methods the later
    one in `equal` is the first of a pair. `below_by_sd` is the sample standard deviation over seeds, `half_width` that
    of the 95 % interval of the mean, by Student's t; both are missing where there is one seed.
    """
    methods, rows = list(dict.fromkeys(equal["method"]))[::-1], []
    for value, table in equal.groupby(at):
        errors = table.pivot(index="seed", columns="method", values="test_error_pct").reindex(columns=methods)
        for one, other in combinations(methods, 2):
            margins = (errors[other] - errors[one]).dropna().to_numpy()
            if len(margins):
                spread = (margins.std(ddof=1) if len(margins) > 1 else np.nan, half_width(margins))
                rows.append((value, f"{one} against {other}", len(margins), margins.mean(), *spread))
    columns = [at, "compared", "seeds", "below_by", "below_by_sd", "half_width"]
    return pd.DataFrame(rows, columns=columns)
