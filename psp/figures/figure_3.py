"""Figure 3: error over column sparsity."""

import seaborn as sns
from matplotlib.figure import Figure

from psp.claims import PAPER_LARGEST_SPARSITY, baseline_error
from psp.figures import COLORS
from psp.tables import SERIES

COLUMNS = ["column_sparsity_pct", "test_error_pct", "error_sd"]
MARKERS = dict(zip(SERIES, "Ds^vo", strict=True))


def figure_3(points, reference, title):
    """Error over column sparsity, and the same above each baseline; filled: this replication, hollow: the paper.

    `points` as of `psp.tables.figure_3_points`, `reference` as of `figure_3_reference`.
    The bands are one standard deviation over seeds to either side, where there is more than one seed.
    """
    with sns.axes_style("whitegrid"), sns.plotting_context("notebook"):
        figure = Figure(figsize=(12.5, 5.6), layout="constrained")
        absolute, relative = figure.subplots(1, 2, sharex=True)
    _draw(absolute, points, reference, above_baseline=False)
    _draw(relative, points, reference, above_baseline=True)
    absolute.set(title="test error", ylabel="final-epoch test error, %")
    relative.set(title="test error above the own baseline", ylabel="points of error above the baseline")
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


def _draw(axes, points, reference, above_baseline):
    ours, theirs = (_shifted(table, above_baseline) for table in (points, reference))
    for series, label in SERIES.items():
        style = {"color": COLORS[series], "marker": MARKERS[series]}
        x, y, _ = theirs[theirs["series"] == series][COLUMNS].to_numpy().T
        axes.plot(x, y, **style, markerfacecolor="white", alpha=0.45, linewidth=1, markersize=5, zorder=1)
        x, y, spread = ours[ours["series"] == series][COLUMNS].to_numpy().T
        axes.plot(x, y, **style, label=label, linewidth=2, markersize=7, zorder=2)
        if spread.any():
            axes.fill_between(x, y - spread, y + spread, color=style["color"], alpha=0.15, linewidth=0, zorder=1)
            if len(x) == 1:  # the baseline: a band without a width is a bar
                axes.errorbar(x, y, yerr=spread, color=style["color"], capsize=3, zorder=2)
    axes.set(xlabel="column sparsity, %", xlim=(-3, 100))


def _shifted(table, above_baseline):
    """The table by sparsity, with a spread (0 where there is none), its errors above the baseline's if asked for."""
    zero = baseline_error(table) if above_baseline else 0.0
    spread = table["error_sd"].fillna(0.0) if "error_sd" in table else 0.0
    shifted = table.assign(test_error_pct=table["test_error_pct"] - zero, error_sd=spread)
    return shifted.sort_values("column_sparsity_pct")
