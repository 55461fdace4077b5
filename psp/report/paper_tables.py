"""What a reader has put into `results/reference/paper_tables.csv`, beside our numbers.

The cells of the paper's tables are not available to us; whoever has the paper fills in what it says.
"""

import csv

import pandas as pd

from psp.errors import ConfigError
from psp.report.tables import REFERENCE

PATH = REFERENCE / "paper_tables.csv"
UNKNOWN = "not available to us"
NOT_RUN = "no such row here"
DENSE = "none (dense)"
KEYS = ["dataset", "network", "structure"]
PERCENT, WHOLE = ("top1_error_pct", "top5_error_pct"), ("params", "macs")
COMPARED = (*PERCENT, *WHOLE)
DATASETS = ("cifar10", "cifar100", "ilsvrc2012")
WHOSE = ("paper", "difference")
STRUCTURES = (DENSE, "column", "channel", "shape", "layer")


def paper_values(path=PATH):
    """The paper's tables as far as they are known: columns `KEYS` and `COMPARED`, empty cells NaN.

    Raises ConfigError, naming the line and what is expected, for another heading, a row of more or fewer cells, an
    unknown data set or structure, an error that is no percentage, a count that is no whole number, a second row of the
    same name.
    """
    heading, *lines = _lines(path)
    if heading[1] != [*KEYS, *COMPARED]:
        raise ConfigError(f"{path}, line {heading[0]}: the heading must be {','.join((*KEYS, *COMPARED))}")
    rows = {}
    for number, cells in lines:
        where = f"{path}, line {number}"
        row = _row(cells, where)
        key = tuple(row[name] for name in KEYS)
        if key in rows:
            raise ConfigError(f"{where}: {', '.join(key)} has a row already; keep one of them")
        rows[key] = row
    table = pd.DataFrame(list(rows.values()), columns=heading[1])
    return table.astype(dict.fromkeys(COMPARED, float))


def beside_the_paper(ours, paper):
    """The paper's numbers, and ours minus these: a row for each of ours, then the paper's that we have no row for.

    Args:
        ours: of `psp.report.network_table`.
        paper: of `paper_values`.

    Columns are `KEYS`, our `setting`, and `paper_…` and `difference_…` of all `COMPARED`: in points for errors.
    """
    table = ours[[*KEYS, "setting", *COMPARED]].merge(paper, on=KEYS, how="left", suffixes=("", "_paper"))
    more = paper[~paper.set_index(KEYS).index.isin(ours.set_index(KEYS).index)]
    rows = [_compared(row) for _, row in table.iterrows()]
    rows += [_paper_alone(row) for _, row in more.iterrows()]
    return pd.DataFrame(rows, columns=[*KEYS, "setting", *(f"{w}_{c}" for c in COMPARED for w in WHOSE)])


def _compared(row):
    shown = dict(row[[*KEYS, "setting"]])
    for column in COMPARED:
        theirs = row[f"{column}_paper"]
        shown[f"paper_{column}"] = UNKNOWN if pd.isna(theirs) else theirs
        shown[f"difference_{column}"] = UNKNOWN if pd.isna(theirs) else row[column] - theirs
    return shown


def _paper_alone(row):
    values = {f"paper_{c}": UNKNOWN if pd.isna(row[c]) else row[c] for c in COMPARED}
    return {**row[KEYS], "setting": NOT_RUN, **values, **{f"difference_{c}": NOT_RUN for c in COMPARED}}


def _lines(path):
    """(line number, cells) of the heading and of every row; comments and empty lines are left out."""
    text = path.read_text(encoding="utf-8-sig").splitlines()
    kept = [(n, line) for n, line in enumerate(text, 1) if line.strip() and not line.startswith("#")]
    return [(n, [cell.strip() for cell in next(csv.reader([line]))]) for n, line in kept] or [(1, [])]


def _row(cells, where):
    names = [*KEYS, *COMPARED]
    if len(cells) != len(names):
        raise ConfigError(
            f"{where} has {len(cells)} cells, expected {len(names)}; write numbers without commas and leave cells that "
            "are not known empty"
        )
    row = dict(zip(names, cells, strict=True))
    for name, known in (("dataset", DATASETS), ("structure", STRUCTURES)):
        if row[name] not in known:
            raise ConfigError(f"{where}: unknown {name} {row[name]!r}; choose one of {', '.join(known)}")
    return row | {name: _number(row[name], name, where) for name in COMPARED}


def _number(cell, name, where):
    """NaN for an empty cell. An error below 1 % or a count below 1,000 was meant in another unit."""
    if not cell:
        return float("nan")
    wanted = "in percent, such as 6.5" if name in PERCENT else "a whole number, such as 850000"
    try:
        value = float(cell)
    except ValueError:
        value = float("nan")
    good = 1 <= value <= 100 if name in PERCENT else value >= 1000 and value.is_integer()
    if not good:
        raise ConfigError(f"{where}: {name} is {cell!r}, expected {wanted}")
    return value
