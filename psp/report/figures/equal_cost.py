"""Error over what is left to compute."""

import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from psp.report.paper_tables import DENSE

MARKERS = "osvD^Pdp"
TICKS = (1, 1.5, 2, 3, 4, 6, 8, 12)


def equal_cost_figure(rows, reductions, title):
    """Points above the dense network of the same seed over the reduction of MACs: a line for each method.

    `rows` are of `psp.report.equal_cost.with_points_above`; a marker stands for the mean over the seeds of a setting,
    its bar for one standard deviation to either side. Vertical lines are at the `reductions` at which methods are
    compared.
    """
    with sns.axes_style("whitegrid"), sns.plotting_context("notebook"):
        figure = Figure(figsize=(9, 5.5), layout="constrained")
        axes = figure.subplots()
    pruned = rows[rows["method"] != DENSE].dropna(subset="above_dense")
    colors = sns.color_palette("colorblind", pruned["method"].nunique())
    for (method, own), color, marker in zip(pruned.groupby("method", sort=False), colors, MARKERS, strict=False):
        groups = own.groupby("setting")
        points = groups[["mac_reduction", "above_dense"]].mean().assign(spread=groups["above_dense"].std().fillna(0))
        x, y, spread = points.sort_values("mac_reduction").to_numpy().T
        axes.errorbar(x, y, spread, color=color, marker=marker, markersize=7, linewidth=2, capsize=3, label=method)
    axes.axhline(0, color="black", linewidth=1)
    for reduction in reductions:
        axes.axvline(reduction, color="gray", linestyle="--", linewidth=1, zorder=0)
    axes.set(xscale="log", xlabel="reduction of multiply-accumulates after extraction", xlim=(1, None))
    axes.set(ylabel="points of test error above the dense network")
    axes.xaxis.set_major_locator(FixedLocator(TICKS))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda times, _: f"{times:g}×"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.legend()
    axes.set_title(title, fontsize=12)
    return figure
