"""Pruners under one budget: error over what is left to compute."""

import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from psp.report.paper_tables import DENSE

TICKS = (1, 1.5, 2, 3, 4, 6, 8, 12)


def peers_figure(rows, reductions, title):
    """Points above the dense network of the same seed over the reduction of MACs: a line a method and seed.

    `rows` are a table of `psp.report.peers.run_row` and `peer_row` with a column `above_dense`. Vertical lines stand at
    the `reductions` at which methods are compared.
    """
    with sns.axes_style("whitegrid"):
        figure = Figure(figsize=(9, 5.5), layout="constrained")
        axes = figure.subplots()
    pruned = rows[rows["method"] != DENSE].sort_values(["method", "seed", "mac_reduction"])
    how = {"hue": "method", "style": "method", "markers": True, "dashes": False, "units": "seed", "estimator": None}
    sns.lineplot(pruned, x="mac_reduction", y="above_dense", **how, palette="colorblind", alpha=0.8, ax=axes)
    axes.axhline(0, color="black", linewidth=1)
    for reduction in reductions:
        axes.axvline(reduction, color="gray", linestyle="--", linewidth=1, zorder=0)
    axes.set(xscale="log", xlabel="reduction of multiply-accumulates, times", xlim=(1, None))
    axes.set(ylabel="points of final-epoch test error above the dense network")
    axes.xaxis.set_major_locator(FixedLocator(TICKS))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda times, _: f"{times:g}×"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.legend(title=None)
    axes.set_title(title, fontsize=12)
    return figure
