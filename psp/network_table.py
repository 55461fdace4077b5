"""The paper's tables of networks, as a pure function of run records, timing records and what is known of the paper.

One row for each network, data set, method and structure: errors over seeds; size, cost and speed of the extracted
network where it was timed; beside them the paper's own numbers, where `results/reference/paper_tables.csv` has them.
"""

import pandas as pd

from psp.tables import REFERENCE, SERIES
from psp.timing.settings import NO_GPU
from psp.timing.tables import summary_table

UNKNOWN = "not available to us"
KEYS = ["dataset", "network", "structure"]
COMPARED = ("top1_error_pct", "top5_error_pct", "params", "macs")
COMPARISON = [f"{whose}_{column}" for column in COMPARED for whose in ("paper", "difference")]
ERRORS = {"top1_error_pct": ("top1_error_pct", "mean"), "top1_error_sd": ("top1_error_pct", "std")}
ERRORS["top5_error_pct"] = ("top5_error_pct", "mean")
TIMED = ["params", "macs", "mac_reduction", "cpu_speed_up", "cpu_realised", "gpu_speed_up"]
OURS = [*KEYS, "method", "setting", "seeds", "structures_pruned_pct", *ERRORS, *TIMED]
DENSE = "none (dense)"


def network_table(records, cpu, gpu, batch, paper):
    """The table.

    Args:
        records: {run: record}.
        cpu, gpu: timing records; the GPU's may say that there was none.
        batch: at which the speed-ups hold.
        paper: of `paper_values`.

    Errors are means over seeds, `…_sd` their sample standard deviation. Parameters, multiply-accumulates and speed-ups
    are those of the timed runs. `paper_…` is what the paper says, `difference_…` ours minus that.
    """
    runs = pd.DataFrame([_row(run, record) for run, record in records.items()])
    runs = runs.join(_timed(cpu, gpu, batch), on="run")
    dense = {network["model"]: network["cost"]["dense"] for network in cpu["networks"]}
    for column in ("params", "macs"):
        known = runs["network"].map(lambda model, c=column: dense.get(model, {}).get(c))
        runs[column] = runs[column].where(runs["structure"] != DENSE, known)
    measured = [column for column in TIMED if column != "gpu_speed_up" or "networks" in gpu]
    table = runs.groupby([*KEYS, "method", "setting"], sort=False, as_index=False).agg(
        seeds=("seed", "nunique"),
        structures_pruned_pct=("structures_pruned_pct", "mean"),
        **ERRORS,
        **{column: (column, "mean") for column in measured},
    )
    if "networks" not in gpu:
        table["gpu_speed_up"] = NO_GPU
    return beside_the_paper(table, paper)


def split(table):
    """(our numbers, those of the paper and the differences): the two halves in which the table is shown."""
    return table[OURS], table[[*KEYS, *COMPARISON]]


def _row(run, record):
    config = record["config"]
    setting = config["sparsity"] if config["sparsity"] is not None else config["structure_decay"]
    return {
        "run": run,
        "dataset": config["dataset"],
        "network": config["model"],
        "structure": DENSE if config["method"] == "baseline" else config["structure"],
        "method": SERIES[config["method"]],
        "setting": setting,
        "seed": config["seed"],
        "structures_pruned_pct": 100 * record["sparsity"]["structures"],
        "top1_error_pct": record["test_error_pct"],
        "top5_error_pct": record.get("test_top5_error_pct"),
    }


def _timed(cpu, gpu, batch):
    """Size, cost and speed of the timed runs, by their names."""
    return summary_table(cpu, gpu, batch).set_index("name")[TIMED]


def paper_values():
    """The paper's tables as far as they are known: columns dataset, network, structure and those of `COMPARED`."""
    return pd.read_csv(REFERENCE / "paper_tables.csv", comment="#")


def beside_the_paper(table, paper):
    """`table` with the paper's value and the difference for each column of `COMPARED`, or that it is not known."""
    known = table[KEYS].merge(paper, on=KEYS, how="left", validate="many_to_one")
    for column in COMPARED:
        theirs = known[column].astype(float).to_numpy()
        table[f"paper_{column}"] = pd.Series(theirs).astype(object).where(pd.notna(theirs), UNKNOWN)
        difference = table[column].astype(float) - theirs
        table[f"difference_{column}"] = difference.astype(object).where(difference.notna(), UNKNOWN)
    return table
