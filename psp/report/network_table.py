"""The paper's tables of networks, as a function of run records and timing records.

One row for each dense network and for each setting (data set, network, structure, method, decay or sparsity) of which
at least one run was timed: errors over all of its seeds; size, cost and speed of the extracted network. The paper's own
numbers stand beside them in a table of `psp.report.paper_tables`.
"""

import pandas as pd

from psp.report.paper_tables import DENSE, KEYS
from psp.report.tables import (
    SERIES,
    above_dense,
    check_seeds,
    deviation_of_all,
    mean_of_all,
    read_records,
    setting,
    structure_of,
)
from psp.report.timing_tables import summary_table
from psp.timing.record import read_timing
from psp.timing.settings import NO_GPU

SETTING = [*KEYS, "method", "setting"]
ERRORS = {"top1_error_pct": ("top1_error_pct", "mean"), "top1_error_sd": ("top1_error_pct", "std")}
ERRORS |= {"above_dense": ("above_dense", mean_of_all), "above_dense_sd": ("above_dense", deviation_of_all)}
ERRORS["top5_error_pct"] = ("top5_error_pct", mean_of_all)  # not in every record
TIMED = ["params", "macs", "mac_reduction", "cpu_speed_up", "cpu_realised", "cpu_speed_up_others", "gpu_speed_up"]
# Of the timed run itself, beside what it costs: other seeds may have pruned another share.
OWN = {"timed_pruned_pct": "structures_pruned_pct", "timed_above_dense": "above_dense"}
COLUMNS = [*SETTING, "seeds", "structures_pruned_pct", *ERRORS, *OWN, *TIMED]


def read_table(profiles):
    """(`network_table` of each of `profiles`, one below the other; device and batch of their speed-ups, in words).

    Raises ConfigError for a run without a record.
    """
    tables, where = [], []
    for profile in profiles:
        cpu, gpu = (read_timing(profile, kind) for kind in ("cpu", "cuda"))
        batch = profile.timing.random_batch
        tables.append(network_table(read_records(profile), cpu, gpu, batch))
        where.append(f"{cpu['provenance']['device']}, batch {batch}")
    return pd.concat(tables, ignore_index=True), " / ".join(dict.fromkeys(where))


def network_table(records, cpu, gpu, batch):
    """The table of one profile.

    Args:
        records: {run: record}.
        cpu, gpu: timing records; the GPU's may say that there was none.
        batch: at which the speed-ups hold.

    Errors are means over seeds, `…_sd` their sample standard deviation; `above_dense` is the difference to the dense
    network of the same seed, in points, missing unless every seed has one. Parameters, multiply-accumulates and
    speed-ups are those of the timed runs, and so are the share that is pruned and the points above the dense network in
    `timed_…`. Raises ConfigError for two runs of one setting and one seed.
    """
    runs = pd.DataFrame([_row(run, record) for run, record in records.items()])
    check_seeds(runs, SETTING)
    is_dense = runs["structure"] == DENSE
    runs["above_dense"] = above_dense(runs, runs[is_dense], "top1_error_pct", ["dataset", "network", "seed"])
    runs = runs.join(_timed(cpu, gpu, batch), on="run").join(_dense_costs(cpu), on="run")
    timed = runs["cpu_speed_up"].notna()
    runs = runs.assign(**{name: runs[column].where(timed) for name, column in OWN.items()})
    for column in ("params", "macs"):
        known = runs.groupby(["dataset", "network"])[f"dense_{column}"].transform("first")
        runs[column] = runs[column].where(~is_dense, known)
    runs = runs[is_dense | timed.groupby([runs[column] for column in SETTING]).transform("any")]
    measured = [column for column in TIMED if column != "gpu_speed_up" or "networks" in gpu]
    table = runs.groupby(SETTING, sort=False, as_index=False).agg(
        seeds=("seed", "nunique"),
        structures_pruned_pct=("structures_pruned_pct", "mean"),
        **ERRORS,
        **{column: (column, "mean") for column in (*OWN, *measured)},
    )
    if "networks" not in gpu:
        table["gpu_speed_up"] = NO_GPU
    return table[COLUMNS]


def _row(run, record):
    config = record["config"]
    return {
        "run": run,
        "dataset": config["dataset"],
        "network": config["model"],
        "structure": DENSE if config["method"] == "baseline" else structure_of(config),
        "method": SERIES[config["method"]],
        "setting": setting(config),
        "seed": config["seed"],
        "structures_pruned_pct": 100 * record["sparsity"]["structures"],
        "top1_error_pct": record["test_error_pct"],
        "top5_error_pct": record.get("test_top5_error_pct", float("nan")),
    }


def _timed(cpu, gpu, batch):
    """Size, cost and speed of the timed runs, by their names."""
    return summary_table(cpu, gpu, batch).set_index("name")[TIMED]


def _dense_costs(cpu):
    """Parameters and multiply-accumulates of the dense network that each timed one was compared with, by its name."""
    costs = {network["name"]: network["cost"]["dense"] for network in cpu["networks"]}
    return pd.DataFrame.from_dict(costs, orient="index").add_prefix("dense_")
