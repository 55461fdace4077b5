"""Tables as pure functions of committed run records."""

import pandas as pd

from psp.config import PRESCRIBED
from psp.profiles import ROOT
from psp.records import read_record

REFERENCE = ROOT / "results" / "reference"
SERIES = {
    "baseline": "baseline",
    "l1_norm": "ℓ1 norm",
    "psp_fixed_sparsity": "PSP (fixed sparsity)",
    "psp_l1": "PSP (ℓ1 regularization)",
    "psp_weight_decay": "PSP (weight decay)",
}


def figure_3_runs(profile):
    """One row a run of the profile: series, setting, seed, column sparsity and final-epoch test error in percent."""
    return pd.DataFrame([_run_row(run, read_record(profile.record_path(run))) for run in profile.runs])


def _run_row(run, record):
    config = record["config"]
    prescribed = config["method"] in PRESCRIBED
    return {
        "series": config["method"],
        "setting": config["sparsity"] if prescribed else config["structure_decay"],
        "seed": config["seed"],
        "column_sparsity_pct": 100 * record["sparsity"]["structures"],
        "test_error_pct": record["test_error_pct"],
        "run": run,
    }


def figure_3_points(runs):
    """Mean and spread over seeds of every series and setting, by series and sparsity.

    `setting` is the prescribed sparsity of ℓ1 norm and fixed sparsity, λ of the others. `error_sd` is the sample
    standard deviation over seeds, in points of error; it is missing where there is one seed.
    """
    groups = runs.groupby(["series", "setting"], as_index=False)
    points = groups.agg(
        column_sparsity_pct=("column_sparsity_pct", "mean"),
        test_error_pct=("test_error_pct", "mean"),
        error_sd=("test_error_pct", "std"),
        seeds=("seed", "nunique"),
    )
    order = points["series"].map(list(SERIES).index)
    return (
        points.assign(order=order)
        .sort_values(["order", "column_sparsity_pct"], ignore_index=True)
        .drop(columns="order")
    )


def figure_3_reference():
    """The paper's points: series, column_sparsity_pct, test_error_pct (the paper says validation error)."""
    table = pd.read_csv(REFERENCE / "figure3.csv", comment="#")
    return table.rename(columns={"validation_error_pct": "test_error_pct"})


def write_table(table, path, title, formats=None):
    """Write a table as CSV in full precision and as Markdown for reading, under a title; returns the Markdown text.

    `path` has no suffix; `formats` maps columns to format strings, "{:.1f}" where none is given for a number.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path.with_suffix(".csv"), index=False, float_format="%.10g")
    shown = table.copy()
    for column in table.columns:
        if pd.api.types.is_float_dtype(table[column]):
            form = (formats or {}).get(column, "{:.1f}")
            shown[column] = [form.format(value) if pd.notna(value) else "–" for value in table[column]]
    text = f"{title}\n\n{shown.to_markdown(index=False, disable_numparse=True)}\n"
    path.with_suffix(".md").write_text(text)
    return text


def write_figure_3_tables(points, claims, folder, title):
    """Write the plotted points and the claims of Figure 3 into `folder`."""
    formats = {"setting": "{:g}", "test_error_pct": "{:.2f}", "error_sd": "{:.2f}"}
    write_table(points, folder / "figure_3", f"# Figure 3, {title}", formats)
    write_table(claims, folder / "figure_3_claims", f"# Claims of Figure 3, {title}")
