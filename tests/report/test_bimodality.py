"""Otsu's separability against its known values and against a search over all cuts."""

import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from psp.report.bimodality import median, separability, share_near


def test_two_spikes_are_separable_and_the_cut_lies_amid_the_gap():
    counts = [0, 5, 0, 0, 0, 7, 0]
    share, cut = separability(counts, 0.0, 7.0)
    assert share == pytest.approx(1.0)
    assert cut == pytest.approx(3.5)  # spikes at 1.5 and 5.5


def test_known_values_of_a_uniform_and_a_gaussian_distribution():
    uniform, _ = separability(np.ones(4000), -1.0, 1.0)
    assert uniform == pytest.approx(0.75, abs=1e-3)
    x = np.linspace(-6, 6, 4001)[:-1] + 6 / 4000
    gaussian, cut = separability(np.exp(-(x**2) / 2), -6.0, 6.0)
    assert gaussian == pytest.approx(2 / math.pi, abs=1e-3)
    assert cut == pytest.approx(0.0, abs=0.01)


@hypothesis.given(counts=st.lists(st.integers(0, 9), min_size=2, max_size=12).filter(lambda c: np.count_nonzero(c) > 1))
@hypothesis.settings(deadline=None)
def test_against_a_search_over_all_cuts(counts):
    values = np.repeat(np.arange(len(counts)) + 0.5, counts)
    best = 0.0
    for cut in range(1, len(counts)):
        below, above = values[values < cut], values[values > cut]
        if len(below) and len(above):
            within = below.var() * len(below) + above.var() * len(above)
            best = max(best, 1 - within / (values.var() * len(values)))
    assert separability(counts, 0.0, len(counts)).share == pytest.approx(best)


@pytest.mark.parametrize("scale", [1, 3, 7, 6240])
def test_empty_bins_at_the_edges_are_no_groups(scale):
    """The shape of a real histogram of log10|α|: 70 bins, most of them empty, counts whose shares are not exact."""
    counts = np.zeros(70)
    counts[44:57] = scale * np.array([1, 2, 3, 11, 13, 17, 19, 23, 17, 7, 5, 3, 1])
    share, cut = separability(counts, -6.0, 1.0)
    assert share == pytest.approx(separability(counts[44:57], 0.0, 1.3).share)
    assert 0.5 < share < 0.75
    assert -6 + 0.1 * 44 < cut < -6 + 0.1 * 57


def test_one_bin_has_no_groups():
    assert all(math.isnan(x) for x in separability([0, 4, 0], 0.0, 3.0))


def test_share_near_the_threshold_by_hand():
    """Bins of a decade around 1e-3 … 1e0; only centres within a factor 3 of ε = 0.03 count: 10^-1.5 = 0.0316."""
    counts = [1, 5, 2, 4]  # centres 10^-2.5, 10^-1.5, 10^-0.5, 10^0.5
    assert share_near(counts, -3.0, 1.0, 0.03) == pytest.approx(5 / 12)
    assert share_near([1, 1], -3.0, 1.0, 100.0) == 0.0


def test_the_median_is_the_middle_of_the_bin_that_holds_it():
    assert median([1, 0, 0, 1, 3], -5.0, 0.0) == -0.5
    assert median([3, 0, 1, 0, 1], -5.0, 0.0) == -4.5
    assert math.isnan(median([0, 0], -1.0, 1.0))
