"""How clearly a distribution of |α| falls into two groups.

Otsu's separability (Otsu 1979): the largest share of the variance that lies between two groups, over all ways to
cut the distribution in two, here of log10|α|, from the histogram in a run record. 1 is two separate
spikes; a uniform distribution has 0.75, a Gaussian 2/π = 0.64.
"""

from typing import NamedTuple

import numpy as np


class Separability(NamedTuple):
    """Share of the variance between the groups, 0…1, and the value of log10|α| that parts them best."""

    share: float
    cut: float


def separability(counts, low, high):
    """`Separability` of a histogram: `counts` in equal bins from `low` to `high`. NaN where all lie in one bin."""
    counts = np.asarray(counts, dtype=float)
    edges, places = np.linspace(low, high, len(counts) + 1), centers(low, high, len(counts))
    total, mean = counts.sum(), (counts * places).sum() / max(counts.sum(), 1)
    variance = (counts * (places - mean) ** 2).sum() / max(total, 1)
    if variance == 0:
        return Separability(float("nan"), float("nan"))
    below = counts.cumsum()[:-1]  # whole numbers: a cut with nothing on one side is told from rounding
    proper = (below > 0) & (below < total)
    moment = (counts * (places - mean)).cumsum()[:-1]
    between = np.zeros(len(below))
    between[proper] = moment[proper] ** 2 / (below * (total - below))[proper]
    best = np.flatnonzero(np.isclose(between, between.max(), rtol=1e-9))
    return Separability(float(between.max() / variance), float(edges[1 + best].mean()))  # empty bins: amid the gap


def median(counts, low, high):
    """Of log10|α|: the centre of the bin that holds the middle one. NaN where there are no counts."""
    counts = np.asarray(counts)
    places = centers(low, high, len(counts))
    return float(places[np.searchsorted(counts.cumsum(), counts.sum() / 2)]) if counts.sum() else float("nan")


def share_near(counts, low, high, threshold, factor=3.0):
    """Share of the counts whose bin centre lies between threshold/factor and threshold·factor.

    NaN where the threshold is missing or 0.
    """
    if not threshold > 0:
        return float("nan")
    near = np.abs(centers(low, high, len(counts)) - np.log10(threshold)) <= np.log10(factor)
    return float(np.asarray(counts)[near].sum() / max(np.sum(counts), 1))


def share_below(counts, low, high, cut):
    """Share of the counts whose bin centre lies below `cut`, a log10|α|; NaN where that is missing."""
    below = centers(low, high, len(counts)) < cut
    return float(np.asarray(counts)[below].sum() / max(np.sum(counts), 1)) if np.isfinite(cut) else float("nan")


def centers(low, high, bins):
    """The middle of each of so many equal bins from `low` to `high`."""
    edges = np.linspace(low, high, bins + 1)
    return (edges[:-1] + edges[1:]) / 2
