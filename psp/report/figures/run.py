"""One run: its training curve and its structure parameters."""

import math

import seaborn as sns
from matplotlib.figure import Figure

from psp.report.bimodality import centers


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
    places = centers(*(record["log10_alpha"][key] for key in ("low", "high", "bins")))
    with sns.axes_style("whitegrid"):
        figure = Figure(figsize=(7, 3.2), layout="constrained")
        axes = figure.subplots()
    for point in (curve[i] for i in sorted({0, len(curve) // 2, len(curve) - 1})):
        axes.step(places, point["log10_alpha_counts"], where="mid", label=f"after epoch {point['epoch']}")
    config = record["config"]
    if config["method"] in ("psp_l1", "psp_weight_decay") and config["threshold"] > 0:
        axes.axvline(math.log10(config["threshold"]), color="black", linestyle="--", label="threshold ε")
    axes.set(xlabel="log10 |α|", ylabel="structures", title="structure parameters")
    axes.legend()
    return figure
