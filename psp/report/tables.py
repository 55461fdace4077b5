"""Tables as pure functions of committed run records."""

import math
from functools import partial

import pandas as pd

from psp.errors import ConfigError
from psp.files import ROOT
from psp.method.methods import THRESHOLDED
from psp.report.bimodality import median, separability, share_below, share_near
from psp.runs.record import record_of

DIFFERENCES = dict.fromkeys(("below_by", "below_by_sd", "half_width"), "{:.2f}")  # how their columns are written
REFERENCE = ROOT / "results" / "reference"
# What the seeds of a point of Figure 3 have in common.
POINT = ["series", "sparsity", "structure_decay", "threshold", "prune_at"]
SERIES = {
    "baseline": "baseline",
    "l1_norm": "ℓ1 norm",
    "psp_fixed_sparsity": "PSP (fixed sparsity)",
    "psp_l1": "PSP (ℓ1 regularization)",
    "psp_weight_decay": "PSP (weight decay)",
}


def read_records(profile):
    """{run: record} of a profile. Raises ConfigError for a run without a record, and for one of other settings."""
    return {run: record_of(profile, run) for run in profile.runs}


def setting(config):
    """What a run's sparsity was set by: the prescribed share, or else λ."""
    return config["sparsity"] if config["sparsity"] is not None else config["structure_decay"]


def if_used(config):
    """What a run's method makes use of: {"threshold": its ε, "prune_at": when the norm prunes}, NaN if it does not."""
    users = {"threshold": THRESHOLDED, "prune_at": ("l1_norm",)}
    return {name: config[name] if config["method"] in methods else float("nan") for name, methods in users.items()}


def structure_of(config):
    """A run's structure in words; of channels and layers also if their α stood on weights (see `psp.method.place`).

    There a normalization hides them; all records that do not say where α stood are of such runs. And of channels
    whether those that meet in a sum had one α.
    """
    on_weights = config["method"].startswith("psp_") and config.get("place") == "weight"
    hidden = on_weights and config["structure"] in ("channel", "layer")
    return config["structure"] + " (coupled)" * config.get("couple", False) + " (α on weights)" * hidden


def check_seeds(runs, settings):
    """Raise ConfigError for two rows of `runs` with the same settings and seed, which a mean over seeds would pool."""
    twice = runs[runs.duplicated([*settings, "seed"], keep=False)]
    if len(twice):
        raise ConfigError(
            f"runs {', '.join(twice['run'])} differ by neither what a table calls their setting nor their seed; "
            "leave all but one out"
        )


def above_dense(runs, dense, error, key):
    """Points of `error` by which each of `runs` lies above the row of `dense` with the same `key`; NaN without one."""
    known = dense.set_index(key)[error].rename("dense")
    return runs[error] - runs.join(known, on=key)["dense"]


def mean_of_all(values):
    """Missing where one of them is."""
    return values.mean(skipna=False)


def deviation_of_all(values):
    """Sample standard deviation; missing where one of them is."""
    return values.std(skipna=False)


def figure_2_table(records):
    """One row for each run that learns α: how clearly its |α| fall into two groups.

    `separability` as of `psp.report.bimodality` for all layers together, `cut` the |α| that parts the groups best,
    `below_cut_pct` the share of α below it (a fraction of a percent are stragglers, not a group),
    `near_threshold_pct` the share of α with ε/3 < |α| < 3ε, `median_log10` the median of log10|α|. What says something
    of ε is missing of fixed sparsity, which has none.
    """
    rows = []
    for run, record in records.items():
        config, bins = record["config"], record["log10_alpha"]
        counts = record["curve"][-1]["log10_alpha_counts"]
        share, cut = separability(counts, bins["low"], bins["high"])
        threshold = if_used(config)["threshold"]
        rows.append(
            {
                "run": run,
                "series": SERIES[config["method"]],
                "seed": config["seed"],
                "structure_decay": config["structure_decay"],
                "threshold": threshold,
                "sparsity_pct": 100 * record["sparsity"]["structures"],
                "test_error_pct": record["test_error_pct"],
                "separability": share,
                "cut": 10**cut,
                "below_cut_pct": 100 * share_below(counts, bins["low"], bins["high"], cut),
                "near_threshold_pct": 100 * share_near(counts, bins["low"], bins["high"], threshold),
                "median_log10": median(counts, bins["low"], bins["high"]),
            }
        )
    return pd.DataFrame(rows)


def figure_3_runs(records):
    """One row a run: series, settings, seed, column sparsity and final-epoch test error in percent.

    `above_baseline` is the error minus that of the dense network of the same seed, in points; missing without one.
    Raises ConfigError for two runs of one setting and one seed, and for a series of several ε or times of pruning.
    """
    runs = pd.DataFrame([_run_row(run, record) for run, record in records.items()])
    check_seeds(runs, POINT)
    check_lines(runs)
    dense = runs[runs["series"] == "baseline"]
    return runs.assign(above_baseline=above_dense(runs, dense, "test_error_pct", ["seed"]))


def check_lines(runs):
    """Raise ConfigError for a series whose runs are not one line of Figure 3, of one ε and one time of pruning."""
    for column in ("threshold", "prune_at"):
        for series, values in runs.groupby("series")[column].unique().items():
            if len(values) > 1:
                raise ConfigError(
                    f"runs of {SERIES[series]} have {column} {' and '.join(map(str, values))}: leave all but one out, "
                    "as Figure 3 draws one line through them"
                )


def _run_row(run, record):
    config = record["config"]
    return {
        "series": config["method"],
        "sparsity": config["sparsity"],
        "structure_decay": config["structure_decay"],
        **if_used(config),
        "seed": config["seed"],
        "column_sparsity_pct": 100 * record["sparsity"]["structures"],
        "test_error_pct": record["test_error_pct"],
        "run": run,
    }


def figure_3_points(runs):
    """Mean and spread over seeds of every series and setting, by series and sparsity.

    `error_sd` and `above_baseline_sd` are sample standard deviations over seeds, in points of error; they are missing
    where there is one seed. The second is the smaller one where a seed moves a series and the dense network together.
    `above_baseline` is missing unless every seed has a dense network.
    """
    groups = runs.groupby(POINT, as_index=False, dropna=False)
    points = groups.agg(
        column_sparsity_pct=("column_sparsity_pct", "mean"),
        test_error_pct=("test_error_pct", "mean"),
        error_sd=("test_error_pct", "std"),
        above_baseline=("above_baseline", mean_of_all),
        above_baseline_sd=("above_baseline", deviation_of_all),
        seeds=("seed", "nunique"),
    )
    order = points["series"].map(list(SERIES).index)
    return (
        points.assign(order=order)
        .sort_values(["order", "column_sparsity_pct"], ignore_index=True)
        .drop(columns="order")
    )


def figure_3_plotted(points, reference):
    """All numbers of the figure in one table: `source` tells ours from the paper's, read off its figure."""
    ours = points.assign(source="this replication", seeds=points["seeds"].astype("Int64"))
    return pd.concat([ours, reference.assign(source="paper, read off its figure")], ignore_index=True)


def figure_3_reference():
    """The paper's points: series, column_sparsity_pct, test_error_pct (it says validation error), above_baseline."""
    table = pd.read_csv(REFERENCE / "figure3.csv", comment="#").rename(
        columns={"validation_error_pct": "test_error_pct"}
    )
    return table.assign(above_baseline=table["test_error_pct"] - baseline_error(table))


def baseline_error(points):
    """Error of the dense network in percent."""
    return points.loc[points["series"] == "baseline", "test_error_pct"].mean()


def rounded(table):
    """`table` as a notebook shows it: floating numbers to four significant digits, but all of their whole part."""
    return table.map(lambda value: _significant(value) if isinstance(value, float) else value)


def _significant(value, digits=4):
    if not value or not math.isfinite(value):
        return value
    return round(value, max(0, digits - 1 - math.floor(math.log10(abs(value)))))


def write_table(table, path, title, formats=None):
    """Write a table as CSV in full precision and as Markdown for reading, under a title; returns the Markdown text.

    `path` has no suffix; `formats` maps columns to format strings, "{:.1f}" where none is given for a number.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path.with_suffix(".csv"), index=False, float_format="%.10g")
    shown = table.astype(object)
    for column in table.columns:
        form = (formats or {}).get(column, "{:.1f}")
        shown[column] = shown[column].map(partial(_cell, form=form), na_action="ignore")
    shown = shown.where(shown.notna(), "–")
    text = f"{title}\n\n{shown.to_markdown(index=False, disable_numparse=True)}\n"
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    return text


def _cell(value, form):
    """A number as `form` says, in a column of words as well; anything else as it is."""
    return form.format(value) if isinstance(value, float) else value


def write_equal_cost_tables(costs, compared, folder, title):
    """Write what `psp.report.equal_cost` says of the runs of Figure 3 into `folder`."""
    formats = dict.fromkeys(("test_error_pct", "above_dense", "above_dense_sd"), "{:.2f}") | {"parameters": "{:.0f}"}
    write_table(costs, folder / "figure_3_cost", f"# Errors at equal cost, {title}", formats)
    write_table(compared, folder / "figure_3_cost_differences", f"# Differences at equal cost, {title}", DIFFERENCES)


def write_figure_3_tables(plotted, claims, compared, folder, title):
    """Write all plotted numbers, the claims and the differences of every two series of Figure 3 into `folder`."""
    errors = ("test_error_pct", "error_sd", "above_baseline", "above_baseline_sd")
    formats = dict.fromkeys(("sparsity", "structure_decay", "threshold", "prune_at"), "{:g}")
    formats |= dict.fromkeys(errors, "{:.2f}")
    write_table(plotted, folder / "figure_3", f"# Figure 3, {title}", formats)
    write_table(claims, folder / "figure_3_claims", f"# Claims of Figure 3, {title}", {"p, by Holm": "{:.3f}"})
    formats = DIFFERENCES | {"column_sparsity_pct": "{:.0f}"}
    write_table(compared, folder / "figure_3_differences", f"# Differences at equal shares, {title}", formats)
