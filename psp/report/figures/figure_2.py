"""Figure 2: the distribution of α under ℓ1 and under weight decay, over the epochs and over the layers."""

import math

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

from psp.report.bimodality import centers
from psp.report.figures import COLORS
from psp.report.tables import SERIES

EPOCHS_SHOWN = 8
DECADES = (-3.0, 0.5)  # of |α|; what lies beyond is counted at the edges


def figure_2(records, title):
    """For each record a ridge of log10|α| over the epochs, and below it the share of every layer's structures.

    `records` are of runs by "psp_l1" and "psp_weight_decay"; the dashed line is the threshold ε, where there is one.
    """
    with sns.axes_style("whitegrid"):
        figure = Figure(figsize=(6.25 * len(records), 8.5), layout="constrained")
        axes = figure.subplots(2, len(records), sharex=True, squeeze=False, height_ratios=(1, 1.1))
    for (ridge, layers), record in zip(axes.T, records, strict=True):
        _ridge(ridge, record)
        image = _layers(layers, record)
        config = record["config"]
        pruned = 100 * record["sparsity"]["structures"]
        ridge.set_title(f"{SERIES[config['method']]}, λ = {config['structure_decay']:g}: {pruned:.0f} % pruned")
        for panel in (ridge, layers):
            if config["threshold"] > 0:
                panel.axvline(math.log10(config["threshold"]), color="black", linestyle="--", linewidth=1)
    axes[0, 0].set_ylabel("structures, by epoch")
    axes[1, 0].set_ylabel("layer")
    figure.colorbar(image, ax=axes[1].tolist(), label="share of the layer's structures", extend="max")
    figure.suptitle(
        f"Figure 2, structure parameters — {title}\n"
        f"dashed: the threshold ε; |α| below {10 ** DECADES[0]:g} and above {10 ** DECADES[1]:.2g} count at the "
        "edges; each curve is scaled to its own maximum",
        fontsize=12,
    )
    return figure


def clipped(counts, bins):
    """(bin centres, counts) within `DECADES`, what lies outside counted in the first and the last bin."""
    within = centers(bins["low"], bins["high"], bins["bins"]).clip(*DECADES)
    kept, where = np.unique(within.round(6), return_inverse=True)
    return kept, np.bincount(where, weights=counts)


def _ridge(axes, record):
    curve = record["curve"]
    shown = [curve[i] for i in np.unique(np.linspace(0, len(curve) - 1, EPOCHS_SHOWN).round().astype(int))]
    color = COLORS[record["config"]["method"]]
    for row, point in enumerate(shown):
        x, y = clipped(point["log10_alpha_counts"], record["log10_alpha"])
        height = 1.6 * y / y.max()
        axes.fill_between(x, -row, height - row, color=color, alpha=0.55, zorder=row, linewidth=0)
        axes.plot(x, height - row, color="white", linewidth=1, zorder=row)
    axes.set_yticks([-row for row in range(len(shown))], [f"epoch {point['epoch']}" for point in shown])
    axes.grid(axis="y", visible=False)


def _layers(axes, record):
    counts = record["log10_alpha"]["counts"]
    x, _ = clipped(np.zeros(record["log10_alpha"]["bins"]), record["log10_alpha"])
    rows = np.stack([clipped(values, record["log10_alpha"])[1] / sum(values) for values in counts.values()])
    image = axes.pcolormesh(x, np.arange(len(rows)), rows, cmap="magma_r", vmin=0, vmax=0.5, shading="nearest")
    step = math.ceil(len(rows) / 20)
    axes.set_yticks(range(0, len(rows), step), list(counts)[::step], fontsize=7)
    axes.invert_yaxis()
    axes.set(xlabel="log10 |α|")
    axes.grid(visible=False)
    return image
