"""Pruners under one budget: their errors at equal cost, as a function of run records and of records of peers.

Records of peers are those of benchmarks/peers.py, which removes channels until the multiply-accumulates are down by the
factor asked for. PSP's sparsity follows from λ, so that its error at that factor is interpolated, within a seed, over
the logarithm of the factor between its runs; the ℓ1 norm's as well.
"""

import numpy as np
import pandas as pd

from psp.errors import ConfigError
from psp.files import SEAL, is_sealed, read_json
from psp.method.methods import THRESHOLDED
from psp.report.claims import half_width
from psp.report.paper_tables import DENSE
from psp.report.tables import SERIES, structure_of
from psp.report.timing_tables import fastest, variant

BUDGET = ("dataset", "model", "epochs", "batch_size", "learning_rate", "momentum", "weight_decay")
DAMAGED = "restore it by git, or make it again by benchmarks/peers.py"
# As benchmarks/peers.py calls them.
PRUNERS = {"slimming": "network slimming", "group_norm": "group norm"}


def read_peers(folder):
    """{name: record} of the records of benchmarks/peers.py in a folder. Raises ConfigError for one that is damaged."""
    records = {path.stem: read_json(path, DAMAGED) for path in sorted(folder.glob("*.json"))}
    for name, record in records.items():
        if not is_sealed(record):
            raise ConfigError(f"{folder / name}.json is damaged: it does not fit its {SEAL}; {DAMAGED}")
    return records


def run_row(record, cost, dense):
    """A row for `at_equal_cost` from a run record; `cost` is what `psp.cost` says of what is left, `dense` of all."""
    config = record["config"]
    method = DENSE if config["method"] == "baseline" else f"{SERIES[config['method']]}, {structure_of(config)}"
    reduction = 1.0 if method == DENSE else dense.macs / cost.macs
    beside = f"ε = {config['threshold']:g}" if config["method"] in THRESHOLDED else ""
    beside = f"pruning at {config['prune_at']:g}" if config["method"] == "l1_norm" else beside
    return _row(method, beside, record, reduction, cost.params)


def peer_row(record):
    """A row for `at_equal_cost` from a record of a peer."""
    beside = f"regularization {record['regularization']:g}, pruning at {record['prune_at']:g}"
    return _row(PRUNERS[record["pruner"]], beside, record, record["mac_reduction"], record["parameters"])


def searched_table(records):
    """The search for a peer's decay, {name: record of a run with images held out}: the best of each pruner first."""
    rows = [
        {
            "method": PRUNERS[record["pruner"]],
            "regularization": record["regularization"],
            "prune_at": record["prune_at"],
            "mac_reduction": record["mac_reduction"],
            "parameters": record["parameters"],
            "held_out_error_pct": record["curve"][-1]["validation_error_pct"],
        }
        for record in records.values()
    ]
    return pd.DataFrame(rows).sort_values(["method", "held_out_error_pct"], ignore_index=True)


def latency_table(timed):
    """The fastest variant of each network and batch in a record of benchmarks/peers_time.py, and its speed-up.

    Milliseconds a batch; the speed-up is that over the fastest variant of the network named "dense".
    """
    rows = []
    for batch in dict.fromkeys(timing["batch"] for timing in timed["timings"]):
        own = [timing for timing in timed["timings"] if timing["batch"] == batch]
        best = {name: fastest(t for t in own if t["network"] == name) for name in timed["cost"]}
        dense = best["dense"]["median_s"]
        for name, timing in best.items():
            rows.append(
                {
                    "network": name,
                    "batch": batch,
                    "variant": variant(timing),
                    "mac_reduction": timed["cost"]["dense"]["macs"] / timed["cost"][name]["macs"],
                    "parameters": timed["cost"][name]["params"],
                    "ms": 1e3 * timing["median_s"],
                    "speed_up": dense / timing["median_s"],
                }
            )
    return pd.DataFrame(rows)


def _row(method, beside, record, reduction, parameters):
    """`beside` is what its runs were set by but the one setting over which their curve is drawn."""
    return {
        "method": method,
        "beside": beside,
        "seed": record["config"]["seed"],
        "mac_reduction": reduction,
        "parameters": parameters,
        "test_error_pct": record["test_error_pct"],
    }


def check_budget(records):
    """Raise ConfigError unless all records, {name: record}, are of one network, data set and schedule."""
    (first, reference), *others = ((name, record["config"]) for name, record in records.items())
    for name, config in others:
        for key in BUDGET:
            if config[key] != reference[key]:
                raise ConfigError(
                    f"{name!r} has {key} {config[key]!r}, {first!r} {reference[key]!r}: compare what has one budget"
                )


def at_equal_cost(rows, reductions):
    """One row for each method, seed and reduction of MACs: error, points above the dense network's, parameters.

    `rows` are a table of `run_row` and `peer_row`. All of it is interpolated over the logarithm of `mac_reduction`
    between the runs of a method and seed, the dense one among them; a method whose runs of a seed do not reach a
    reduction has no row of that seed there. Raises ConfigError for a method with runs of several settings beside λ or
    the sparsity, which are no one curve.
    """
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


def peers_table(equal):
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
    """Points by which `ours`, a method, is below each other one at equal cost: mean over common seeds and ± of 95 %.

    The interval is Student's t; with one common seed there is none, and it is missing.
    """
    errors = equal.pivot(index=["mac_reduction", "seed"], columns="method", values="test_error_pct")
    rows = []
    for reduction, table in errors.groupby("mac_reduction"):
        for other in table.columns.drop(ours):
            margins = (table[other] - table[ours]).dropna().to_numpy()
            if len(margins):
                half = half_width(margins) if len(margins) > 1 else np.nan
                rows.append((reduction, other, len(margins), margins.mean(), half))
    return pd.DataFrame(rows, columns=["mac_reduction", "other", "seeds", "below_by", "half_width"])
