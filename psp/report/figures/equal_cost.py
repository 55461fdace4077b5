"""Error over what is left to compute."""

from itertools import cycle

import seaborn as sns
from matplotlib.figure import Figure

from psp.report.figures import COLORS, MARKERS, log_ticks
from psp.report.paper_tables import DENSE
from psp.report.tables import SERIES, check_seeds

# Column pruning as in Figure 3, whatever is beside it in other colours.
OWN = {f"{label}, column": (COLORS[series], MARKERS[series]) for series, label in SERIES.items()}
DARK = sns.color_palette("dark").as_hex()
# Without the palette's orange and red, the color of columns by weight decay.
OTHERS = list(zip([DARK[k] for k in (0, 2, 4, 7, 9, 5)], "PXd*p<", strict=True))
TICKS = (1, 1.5, 2, 3, 4, 6, 8, 12)


def equal_cost_figure(rows, reductions, title):
    """Points above the dense network of the same seed over the reduction of MACs: a line for each method.

    `rows` are of `psp.report.equal_cost.with_points_above`; a marker stands for the mean over the seeds of a setting,
    its bar for one standard deviation to either side, where there are several seeds. A thin line leads from the dense
    network to a method's first marker. Vertical lines are at the `reductions` at which methods are compared. Raises
    ConfigError for two runs of a method with one setting and seed.
    """
    with sns.axes_style("whitegrid"), sns.plotting_context("notebook"):
        figure = Figure(figsize=(9, 5.8), layout="constrained")
        axes = figure.subplots()
    check_seeds(rows, ["method", "setting"])
    others = cycle(OTHERS)
    pruned = rows[rows["method"] != DENSE].dropna(subset="above_dense")
    for method, own in pruned.groupby("method", sort=False):
        color, marker = OWN.get(method) or next(others)
        groups = own.groupby("setting")
        points = groups[["mac_reduction", "above_dense"]].mean().assign(spread=groups["above_dense"].std())
        x, y, spread = points.sort_values("mac_reduction").to_numpy().T
        axes.errorbar(x, y, spread, color=color, marker=marker, markersize=7, linewidth=2, capsize=3, label=method)
        axes.plot([1, x[0]], [0, y[0]], color=color, linewidth=1, alpha=0.5)
    axes.axhline(0, color="black", linewidth=1)
    for reduction in reductions:
        axes.axvline(reduction, color="gray", linestyle="--", linewidth=1, zorder=0)
    axes.set(xscale="log", xlabel="reduction of multiply-accumulates after extraction", xlim=(1, None))
    axes.set(ylabel="points of error above the dense network")
    log_ticks(axes.xaxis, "{:g}×".format, TICKS)
    if len(pruned):
        axes.legend()
    axes.set_title(title, fontsize=12)
    return figure
