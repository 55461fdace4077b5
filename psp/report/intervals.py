"""What seeds say of a difference: Student's interval of its mean, p, and how many seeds would decide it."""

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
MOST_SEEDS = 100  # beyond which nobody will ask for more


def half_width(values):
    """Of the 95 % interval of their mean, by Student's t: t·s/√n. NaN of one value."""
    return _half_width(values.std(ddof=1), len(values)) if len(values) > 1 else float("nan")


def _half_width(deviation, count):
    return stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * deviation / count**0.5


def interval(values):
    """The 95 % interval of their mean in words; of one value there is none."""
    mean, half = (values.mean(), half_width(values)) if len(values) > 1 else (0, float("nan"))
    return "–" if np.isnan(half) else f"{mean - half:.2f} to {mean + half:.2f}"


def p_value(values):
    """Of Student's two-sided test that their mean is 0; NaN of one value."""
    return float(stats.ttest_1samp(values, 0.0).pvalue) if len(values) > 1 else float("nan")


def holm(p_values):
    """Holm's correction of a list of p for their number; NaN stands for no test, and stays.

    The k-th smallest of m is multiplied by m − k + 1, and none is smaller than one before it (Holm 1979).
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)[: np.isfinite(p).sum()]
    corrected = np.full(len(p), np.nan)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return corrected


def seeds_to_decide(distance, deviation):
    """So many seeds, in words, would leave what is at `distance` from the mean out of the interval.

    If mean and standard deviation stayed as they are; as these vary, with about even odds.
    """
    found = (n for n in range(2, MOST_SEEDS + 1) if _half_width(deviation, n) < distance)
    wanted = next(found, None)
    return f"more than {MOST_SEEDS} seeds" if wanted is None else f"about {wanted} seeds"
