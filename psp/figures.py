"""Figures as pure functions of tables."""

import math

import matplotlib
import seaborn as sns
from matplotlib.figure import Figure

from psp.claims import PAPER_LARGEST_SPARSITY, baseline_error
from psp.tables import SERIES

# Text in an SVG as text, and the same file for the same numbers: no date (see `save_figure`), no random ids.
matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "psp"})

COLORS = dict(zip(SERIES, ["#555555", *sns.color_palette("colorblind", 4).as_hex()], strict=True))
COLUMNS = ["column_sparsity_pct", "test_error_pct", "error_sd"]
MARKERS = dict(zip(SERIES, "Ds^vo", strict=True))


def figure_3(points, reference, title):
    """Error over column sparsity, and the same above each baseline; filled: this replication, hollow: the paper.

    `points` as of `psp.tables.figure_3_points`, `reference` as of `figure_3_reference`.
    The bars are one standard deviation over seeds, where there is more than one.
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


def save_figure(figure, path):
    """Write a figure as `path`.svg and `path`.png; `path` has no suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    figure.savefig(path.with_suffix(".png"), dpi=110)


def _draw(axes, points, reference, above_baseline):
    ours, theirs = (_shifted(table, above_baseline) for table in (points, reference))
    for series, label in SERIES.items():
        style = {"color": COLORS[series], "marker": MARKERS[series]}
        x, y, _ = theirs[theirs["series"] == series][COLUMNS].to_numpy().T
        axes.plot(x, y, **style, markerfacecolor="white", alpha=0.45, linewidth=1, markersize=5, zorder=1)
        x, y, spread = ours[ours["series"] == series][COLUMNS].to_numpy().T
        axes.errorbar(
            x,
            y,
            yerr=spread if spread.any() else None,
            **style,
            label=label,
            linewidth=2,
            markersize=7,
            capsize=3,
            zorder=2,
        )
    axes.set(xlabel="column sparsity, %", xlim=(-3, 100))


def _shifted(table, above_baseline):
    """The table by sparsity, with a spread (0 where there is none), its errors above the baseline's if asked for."""
    zero = baseline_error(table) if above_baseline else 0.0
    spread = table["error_sd"].fillna(0.0) if "error_sd" in table else 0.0
    shifted = table.assign(test_error_pct=table["test_error_pct"] - zero, error_sd=spread)
    return shifted.sort_values("column_sparsity_pct")


def training_curve(record):
    """Loss, errors and share of pruned structures over the epochs of one run."""
    curve = record["curve"]
    epochs = [point["epoch"] for point in curve]
    with sns.axes_style("whitegrid"):
        figure = Figure(figsize=(11, 3), layout="constrained")
        axes = figure.subplots(1, 3)
    axes[0].plot(epochs, [p["loss"] for p in curve], marker="o")
    axes[0].set(title="training loss", xlabel="epoch")
    axes[1].plot(epochs, [p["train_error_pct"] for p in curve], marker="o", label="training")
    if "validation_error_pct" in curve[0]:
        axes[1].plot(epochs, [p["validation_error_pct"] for p in curve], marker="s", label="held out")
    axes[1].set(title="error, %", xlabel="epoch")
    axes[1].legend()
    axes[2].plot(epochs, [100 * p["sparsity"] for p in curve], marker="o")
    axes[2].set(title="pruned structures, %", xlabel="epoch", ylim=(-2, 102))
    for panel in axes:
        panel.xaxis.get_major_locator().set_params(integer=True)
    return figure


def alpha_histogram(record):
    """Distribution of |α| after the first, the middle and the last epoch, with the threshold ε; None without α."""
    curve = [point for point in record["curve"] if point["log10_alpha_counts"]]
    if not curve:
        return None
    low, high, bins = (record["log10_alpha"][key] for key in ("low", "high", "bins"))
    centers = [low + (i + 0.5) * (high - low) / bins for i in range(bins)]
    with sns.axes_style("whitegrid"):
        figure = Figure(figsize=(7, 3.2), layout="constrained")
        axes = figure.subplots()
    for point in (curve[i] for i in sorted({0, len(curve) // 2, len(curve) - 1})):
        axes.step(centers, point["log10_alpha_counts"], where="mid", label=f"after epoch {point['epoch']}")
    config = record["config"]
    if config["method"] in ("psp_l1", "psp_weight_decay") and config["threshold"] > 0:
        axes.axvline(math.log10(config["threshold"]), color="black", linestyle="--", label="threshold ε")
    axes.set(xlabel="log10 |α|", ylabel="structures", title="structure parameters")
    axes.legend()
    return figure
