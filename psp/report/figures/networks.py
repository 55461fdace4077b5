"""What pruning costs and saves at one look: error over parameters and over speed, of dense and pruned networks."""

import seaborn as sns
from matplotlib.figure import Figure

from psp.report.figures import log_ticks
from psp.report.figures.labels import label_points
from psp.report.figures.timing import STRUCTURE_COLORS
from psp.report.paper_tables import DENSE

MARKERS = "os^D"
SPEEDS = (0.5, 0.7, 1, 1.2, 1.5, 2, 3, 5, 7, 10, 15, 20)


def networks_figure(table, title):
    """Top-1 error over parameters, and over the speed-up on the CPU; a row of panels for each data set.

    `table` as of `psp.report.network_table.network_table`. Bars are one standard deviation over seeds to either side,
    where there are several; numbers beside the points are the share of structures pruned. A dense network has speed 1.
    """
    sets, networks = (list(dict.fromkeys(table[column])) for column in ("dataset", "network"))
    with sns.axes_style("whitegrid"):
        figure = Figure(figsize=(12.5, 1.6 + 3.8 * len(sets)), layout="constrained")
        panels = figure.subplots(len(sets), 2, squeeze=False, sharey="row")
    labels = {}
    for (over_parameters, over_speed), dataset in zip(panels, sets, strict=True):
        rows = table[table["dataset"] == dataset].assign(speed=lambda t: t["cpu_speed_up"].fillna(1.0))
        for axes, x in ((over_parameters, "params"), (over_speed, "speed")):
            labels[axes] = _draw(axes, rows, x, networks)
        over_parameters.set(title=dataset, ylabel="final-epoch top-1 test error, %", xlabel="parameters", xscale="log")
        over_speed.set(xlabel="speed-up over the fastest dense network on the CPU", xscale="log")
        log_ticks(over_parameters.xaxis, lambda count: f"{count / 1e6:g} M")
        log_ticks(over_speed.xaxis, "{:g}×".format, SPEEDS)
    handles = {
        label: handle for axes in panels[:, 0] for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=12)
    for axes, points in labels.items():
        label_points(axes, points)
    return figure


def _draw(axes, rows, x, networks):
    """Draw the points of a panel, a marker for each of `networks`; returns their labels, for `label_points`."""
    labels = []
    for row in rows.to_dict("records"):
        dense = row["structure"] == DENSE
        color = "black" if dense else STRUCTURE_COLORS[row["structure"].partition(" ")[0]]
        label = row["structure"] + (f", {row['network']}" if len(networks) > 1 else "")
        style = {"color": color, "marker": MARKERS[networks.index(row["network"]) % len(MARKERS)], "markersize": 8}
        spread = row["top1_error_sd"] if row["seeds"] > 1 else None
        axes.errorbar(row[x], row["top1_error_pct"], yerr=spread, **style, capsize=4, linestyle="none", label=label)
        if not dense:
            labels.append((f"{row['structures_pruned_pct']:.0f} %", row[x], row["top1_error_pct"], color))
    axes.margins(0.12)
    return labels
