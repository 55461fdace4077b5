"""Errors at equal shares of columns: every two series of Figure 3, also where the paper claims nothing of them."""

import pandas as pd

from psp.report.claims import error_at
from psp.report.tables import SERIES

SHARES = (55.0, 60.0, 70.0, 80.0)  # percent; below, no two series of the laptop profile have a run


def at_equal_share(runs, shares=SHARES):
    """A row for each series, seed and share that it reaches, its error linear between the runs of the seed.

    `runs` is of `psp.report.tables.figure_3_runs`. Columns method, seed, column_sparsity_pct, test_error_pct.
    """
    found = [
        (SERIES[series], seed, share, error_at(own, series, share))
        for (series, seed), own in runs[runs["series"] != "baseline"].groupby(["series", "seed"])
        for share in shares
    ]
    columns = ["method", "seed", "column_sparsity_pct", "test_error_pct"]
    return pd.DataFrame(found, columns=columns).dropna(ignore_index=True)
