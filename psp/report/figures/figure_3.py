"""Figure 3: error over column sparsity."""

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

from psp.report.claims import PAPER_LARGEST_SPARSITY
from psp.report.figures import COLORS, MARKERS
from psp.report.tables import SERIES


def figure_3(points, reference, title):
    """Error over column sparsity, and the same above each baseline; filled: this replication, hollow: the paper.

    `points` as of `psp.report.tables.figure_3_points`, `reference` as of `figure_3_reference`.
    The bands are one standard deviation over seeds to either side, and end where a point has one seed; on the right
    that of the difference to the baseline of the same seed.
    """
    with sns.axes_style("whitegrid"), sns.plotting_context("notebook"):
        figure = Figure(figsize=(12.5, 5.6), layout="constrained")
        absolute, relative = figure.subplots(1, 2, sharex=True)
    _draw(absolute, points, reference, "test_error_pct", "error_sd")
    _draw(relative, points, reference, "above_baseline", "above_baseline_sd")
    absolute.set(title="test error", ylabel="final-epoch test error, %")
    relative.set(title="test error above its own baseline", ylabel="points of error above the baseline")
    for series, sparsity in PAPER_LARGEST_SPARSITY.items():
        relative.axvline(sparsity, color=COLORS[series], linestyle="--", linewidth=1, zorder=0)
    handles, labels = absolute.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(
        f"Figure 3, column pruning — {title}\nhollow: the paper (ResNet-56, CIFAR-10), read off its figure; "
        "dashed: its largest sparsities at baseline error",
        fontsize=12,
    )
    return figure


def _draw(axes, points, reference, value, deviation):
    ours, theirs = (table.sort_values("column_sparsity_pct") for table in (points, reference))
    for series, label in SERIES.items():
        style = {"color": COLORS[series], "marker": MARKERS[series]}
        x, y = theirs.loc[theirs["series"] == series, ["column_sparsity_pct", value]].to_numpy().T
        axes.plot(x, y, **style, markerfacecolor="white", alpha=0.45, linewidth=1, markersize=5, zorder=1)
        x, y, spread = ours.loc[ours["series"] == series, ["column_sparsity_pct", value, deviation]].to_numpy().T
        if not len(x):
            continue
        axes.plot(x, y, **style, label=label, linewidth=2, markersize=7, zorder=2)
        known = ~np.isnan(spread)
        lone = known & ~beside(known)  # such as the baseline: a band without a width is a bar
        if (known & ~lone).any():
            axes.fill_between(x, y - spread, y + spread, color=style["color"], alpha=0.15, linewidth=0, zorder=1)
        if lone.any():
            bars = {"linestyle": "none", "color": style["color"], "capsize": 3, "zorder": 2}
            axes.errorbar(x[lone], y[lone], yerr=spread[lone], **bars)
    axes.set(xlabel="column sparsity, %", xlim=(-3, 100))


def beside(known):
    """Of an array of truths, where the one before or behind is true."""
    around = np.pad(known, 1)
    return around[:-2] | around[2:]
