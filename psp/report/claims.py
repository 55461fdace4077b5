"""The claims of the paper's Figure 3, each with a tolerance that was fixed before any run.

A claim about numbers of the paper's network is tested on that network at a full schedule only; a claim about
the order of the methods on any network, on CIFAR-10. Such a claim holds if the difference is above the tolerance and
its 95 % interval over seeds leaves out 0, and does not hold if the interval leaves out all that is above the tolerance.
In between it is undecided, and so it is by one seed, which has no interval. How many seeds there are is fixed before
the runs; while some of a sweep are still to come, all claims are open, whatever the first ones say. Differences are
taken within a seed, from the same initial weights and order of images. The intervals of the claims are each of 95 %,
with no correction for their number. Errors between two points of a series are linear, which is above a curve that is
convex, so that series whose sparsity is not prescribed are rather a little better than is said here.

What was brought in when is said in results/README.md, "What was fixed when".
"""

import numpy as np
import pandas as pd

from psp.method.methods import PRESCRIBED
from psp.report.intervals import half_width, holm, interval, p_value, seeds_to_decide
from psp.report.tables import SERIES, baseline_error, figure_3_points, figure_3_reference

ERROR_TOLERANCE = 0.5  # points of error
SPARSITY_TOLERANCE = 10.0  # points of sparsity
ABOUT_BASELINE = 0.2  # points of error; it separates the paper's own marks at 40, 50 and 76 %
HIGH_SPARSITY = (70.0, 80.0)  # where the paper prescribes a sparsity of 70 % and above
FULL_SCHEDULE = 100  # epochs
BETTER_WORSE = (
    ("psp_weight_decay", "psp_fixed_sparsity"),
    ("psp_fixed_sparsity", "l1_norm"),
    ("psp_weight_decay", "l1_norm"),
    ("psp_weight_decay", "psp_l1"),
)
PAPER_BASELINE_ERROR = 6.36
PAPER_LARGEST_SPARSITY = {"l1_norm": 40.0, "psp_fixed_sparsity": 50.0, "psp_weight_decay": 76.0}
NOT_TESTED = "not tested at this profile"
OPEN = "open until all runs are in"


def figure_3_claims(runs, configs, complete=True):
    """Table of claims: what the paper says, what came out, the tolerance, and whether the claim holds.

    Of an order also the 95 % interval of the difference, and the p of no difference, corrected for the number of the
    orders by Holm; the verdict is without that correction.

    Args:
        runs: of `psp.report.tables.figure_3_runs`.
        configs: the RunConfigs of the profile, which decide what it can test.
        complete: whether these are all runs of the profile; where some are still to come, no claim is decided.
    """
    points = figure_3_points(runs)
    same_network = all((c.model, c.dataset) == ("resnet56", "cifar10") and c.epochs >= FULL_SCHEDULE for c in configs)
    rows = [_baseline_claim(points, same_network)]
    rows += [_largest_sparsity_claim(points, s, value, same_network) for s, value in PAPER_LARGEST_SPARSITY.items()]
    cifar = all(c.dataset == "cifar10" for c in configs)
    of_numbers = len(rows)
    claimed, seeds = orders(), runs["seed"].nunique()
    errors = [errors_by_seed(runs, series, level) for *series, level in claimed]
    rows += [_order_claim(*order, own, seeds, cifar) for order, own in zip(claimed, errors, strict=True)]
    margins = [_margins(own) for own in errors]
    table = pd.DataFrame(rows, columns=["claim", "paper", "ours", "tolerance", "verdict"])
    table.insert(3, "95 % interval", ["–"] * of_numbers + [interval(m) for m in margins])
    table.insert(4, "p, by Holm", np.append([np.nan] * of_numbers, holm([p_value(m) for m in margins])))
    if not complete:
        tested = [same_network] * of_numbers + [cifar] * (len(rows) - of_numbers)
        table["verdict"] = np.where(tested, OPEN, NOT_TESTED)
    return table


def orders():
    """(better, worse, sparsity in percent) of the series that the paper has more than the tolerance apart there."""
    paper = figure_3_reference()
    leads = {
        (better, worse, level): error_at(paper, worse, level) - error_at(paper, better, level)
        for level in HIGH_SPARSITY
        for better, worse in BETTER_WORSE
    }
    return [claimed for claimed, lead in leads.items() if lead > ERROR_TOLERANCE]


def largest_sparsity(points, series):
    """Largest sparsity in percent of a measured point whose `above_baseline` is at most `ABOUT_BASELINE`.

    Smaller ones may be above it: of the paper's own points some are, and its marks are these.
    """
    good = points[(points["series"] == series) & (points["above_baseline"] <= ABOUT_BASELINE + 1e-9)]
    return good["column_sparsity_pct"].max() if len(good) else float("nan")


def error_at(points, series, sparsity):
    """Error of a series at a sparsity, linear between its neighbouring points; NaN outside their range."""
    rows = points[points["series"] == series].sort_values("column_sparsity_pct")
    x, y = rows["column_sparsity_pct"].to_numpy(), rows["test_error_pct"].to_numpy()
    # Prescribed sparsities are met up to the rounding of a layer's column count.
    beyond = 0.5 if series in PRESCRIBED else 0.0
    inside = len(x) > 0 and x[0] - beyond <= sparsity <= x[-1] + beyond
    return float(np.interp(sparsity, x, y)) if inside else float("nan")


def _baseline_claim(points, tested):
    ours = baseline_error(points)
    tested = tested and not np.isnan(ours)
    verdict = _verdict(abs(ours - PAPER_BASELINE_ERROR) <= ERROR_TOLERANCE, tested, _seeds(points, "baseline"))
    return ("error of the baseline, %", f"{PAPER_BASELINE_ERROR}", _number(ours, 2), f"± {ERROR_TOLERANCE}", verdict)


def _largest_sparsity_claim(points, series, paper, tested):
    ours = largest_sparsity(points, series)
    above = points.loc[points["series"] == series, "above_baseline"]
    tested = tested and len(above) > 0 and above.notna().all()
    verdict = _verdict(abs(ours - paper) <= SPARSITY_TOLERANCE, tested, _seeds(points, series))
    claim = f"largest sparsity at about baseline error (+{ABOUT_BASELINE}), {SERIES[series]}, %"
    return (claim, f"{paper:.0f}", _number(ours, 1), f"± {SPARSITY_TOLERANCE:.0f}", verdict)


def _order_claim(better, worse, level, ours, seeds, tested):
    """Whether `better` is better than `worse` at a sparsity: by `ours`, their `errors_by_seed`, and the rule above.

    `seeds` is how many there are, of which some may not have measured both.
    """
    claim = f"{SERIES[better]} < {SERIES[worse]} at {level:.0f} %, errors in %"
    theirs, margins = errors_by_seed(figure_3_reference(), (better, worse), level), _margins(ours)
    text = _pair(ours) + difference(margins)
    if 0 < len(margins) < seeds:
        text += f" ({len(margins)} of {seeds} seeds)"
    verdict = order_verdict(margins, ERROR_TOLERANCE) if tested else NOT_TESTED
    if tested and 0 < len(margins) < seeds:  # which ones reach a sparsity is part of what comes out
        verdict = f"undecided: {len(margins)} of {seeds} seeds have both at this sparsity"
    return (claim, _pair(theirs), text, f"{ERROR_TOLERANCE} points", verdict)


def _margins(errors):
    """By how many points the first of two series has less error, of each seed, by their `errors_by_seed`."""
    return errors[:, 1] - errors[:, 0]


def errors_by_seed(runs, series, level):
    """Array seeds × series of the errors at a sparsity; a seed that has not measured them all is left out."""
    seeds = [rows for _, rows in runs.groupby("seed")] if "seed" in runs else [runs]
    errors = np.array([[error_at(rows, s, level) for s in series] for rows in seeds])
    return errors[~np.isnan(errors).any(1)]


def difference(margins):
    """Mean and deviation of `margins` in words; empty for one seed."""
    return f"; difference {margins.mean():.2f} ± {margins.std(ddof=1):.2f}" if len(margins) > 1 else ""


def _pair(errors):
    return ", ".join(_number(value, 2) for value in (errors.mean(0) if len(errors) else (np.nan, np.nan)))


def order_verdict(margins, tolerance):
    """Whether a claim about a difference holds, by `margins`, an array: that by which it comes out, of each seed."""
    seeds = len(margins)
    if seeds < 2:
        return "undecided: one seed" if seeds else NOT_TESTED
    margin = margins.mean()
    claimed = margin > tolerance
    distance, half = abs(margin - (0.0 if claimed else tolerance)), half_width(margins)
    if distance <= half:
        return f"undecided: inside the 95 % interval; {seeds_to_decide(distance, margins.std(ddof=1))} would decide it"
    if abs(margin) + half < tolerance:
        return "does not hold: level, within the tolerance"
    return "holds" if claimed else "does not hold"


def _seeds(points, series):
    """The fewest seeds that a point of the series has."""
    return points.loc[points["series"] == series, "seeds"].min()


def _verdict(holds, tested, seeds):
    """In words, of a claim about one number."""
    if not tested:
        return NOT_TESTED
    return f"{'holds' if holds else 'does not hold'}{' (one seed)' if seeds == 1 else ''}"


def _number(value, digits):
    return "–" if np.isnan(value) else f"{value:.{digits}f}"
