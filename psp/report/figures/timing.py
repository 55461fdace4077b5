"""What pruning saves in time: speed-up over sparsity, and where the networks lie under the device's roof."""

from itertools import product

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

from psp.method.structures import ALPHA_SHAPE
from psp.report.figures import log_ticks
from psp.report.timing_tables import fastest

PALETTE = sns.color_palette("colorblind").as_hex()
# The palette's blue for layers, as its brown is hard to tell from the orange of columns.
STRUCTURE_COLORS = {name: PALETTE[k] for name, k in zip(ALPHA_SHAPE, (7, 1, 2, 3, 4, 0), strict=True)}
MARKERS = {"random": "o", "trained": "*"}


def speed_up_figure(table, batches, title):
    """Speed-up over the share of pruned structures, with the ideal 1/(1 − sparsity), and over the MAC reduction.

    `table` as of `psp.report.timing_tables.speed_ups`, in any precision; a row of panels for each architecture and
    each of `batches`.
    """
    table = table[table["precision"] == "any"]
    rows = list(product(dict.fromkeys(table["model"]), batches))
    with sns.axes_style("whitegrid"):
        figure = Figure(figsize=(12.5, 0.6 + 4.4 * len(rows)), layout="constrained")
        panels = figure.subplots(len(rows), 2, squeeze=False)
    for (model, batch), row in zip(rows, panels, strict=True):
        _draw_row(row, table[(table["model"] == model) & (table["batch"] == batch)], f"{model}, batch {batch}")
    figure.suptitle(
        f"Speed-up over the fastest dense variant — {title}\ncircles: random masks, stars: trained ones", fontsize=12
    )
    return figure


def _draw_row(panels, rows, of):
    over_sparsity, over_macs = panels
    for structure in [s for s in ALPHA_SHAPE if s in set(rows["structure"])]:
        own = rows[rows["structure"] == structure].sort_values("structures_pruned_pct")
        for axes, x in ((over_sparsity, "structures_pruned_pct"), (over_macs, "mac_reduction")):
            _draw(axes, own, x, structure)
    ideal = np.linspace(0, 92, 93)
    over_sparsity.plot(ideal, 100 / (100 - ideal), color="black", linestyle="--", linewidth=1, label="1/(1 − sparsity)")
    limit = max(2.0, rows["mac_reduction"].max(), rows["speed_up"].max())
    over_macs.plot([1, limit], [1, limit], color="black", linestyle="--", linewidth=1, label="the MAC reduction")
    over_sparsity.set(xlabel="structures pruned, %", ylabel=f"speed-up of {of}", yscale="log")
    over_macs.set(xlabel="MAC reduction, times", xscale="log", yscale="log")
    for axis in (over_sparsity.yaxis, over_macs.xaxis, over_macs.yaxis):
        log_ticks(axis, "{:g}×".format)
    for axes in (over_sparsity, over_macs):
        axes.axhline(1.0, color="#888888", linewidth=1)
        axes.legend(fontsize=9)


def _draw(axes, rows, x, structure):
    color = STRUCTURE_COLORS[structure]
    for masks, marker in MARKERS.items():
        some = rows[rows["masks"] == masks]
        style = {"marker": marker, "color": color, "markersize": 11 if masks == "trained" else 6}
        line = "-" if masks == "random" else "none"
        axes.plot(some[x], some["speed_up"], linestyle=line, **style)
    axes.plot([], [], "o-", color=color, label=structure)


def roofline(record, batch, title):
    """GFLOP/s over FLOP/byte of every network's fastest variant a precision.

    The lines are what a large copy and a large matrix product reach on the device; other code may beat the latter.
    """
    limits = record["limits"]
    with sns.axes_style("whitegrid"):
        figure = Figure(figsize=(8.5, 5.5), layout="constrained")
        axes = figure.subplots()
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte that must move", ylabel="GFLOP/s")
    for network in record["networks"]:
        for precision, size in (("float32", 4), ("bfloat16", 2)):
            for name, face in (("dense", "white"), ("extracted", STRUCTURE_COLORS[network["structure"]])):
                key = (name, batch, precision)
                best = fastest(t for t in network["timings"] if (t["network"], t["batch"], t["precision"]) == key)
                if best:
                    point = 2 * best["macs"] / (size * best["values"]), 2 * best["macs"] / best["median_s"] / 1e9
                    edge = STRUCTURE_COLORS[network["structure"]]
                    marker = "o" if precision == "float32" else "^"
                    axes.plot(*point, marker=marker, markerfacecolor=face, markeredgecolor=edge, linestyle="none")
    intensity = np.geomspace(axes.get_xlim()[0] / 4, 4 * axes.get_xlim()[1], 100)
    for precision, flops in limits["flops"].items():
        roof, line = np.minimum(flops, intensity * limits["bytes_per_s"]) / 1e9, "-" if precision == "float32" else ":"
        axes.plot(intensity, roof, color="black", linestyle=line, label=f"copy and product of {precision}, measured")
    for structure in {n["structure"]: None for n in record["networks"]}:
        axes.plot([], [], marker="o", color=STRUCTURE_COLORS[structure], linestyle="none", label=structure)
    axes.legend(fontsize=9)
    figure.suptitle(
        f"Roofline, batch {batch} — {title}\nhollow: dense; circles: float32, triangles: bfloat16", fontsize=12
    )
    return figure
