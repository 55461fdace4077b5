"""What the figures show, read back from their axes."""

import numpy as np
import pytest

from psp.config import RunConfig
from psp.figures import alpha_histogram, figure_3, save_figure, training_curve
from psp.tables import SERIES, figure_3_reference


def points(error_sd=0.3):
    """The paper's points twenty points of error higher, as if they were ours."""
    table = figure_3_reference()
    return table.assign(test_error_pct=table["test_error_pct"] + 20, error_sd=error_sd)


def curves(axes):
    """{(series, is the paper's): (x, y)} of the lines with markers."""
    found = {}
    for line in axes.get_lines():
        if line.get_marker() in "Ds^vo":
            series = next(s for s, marker in zip(SERIES, "Ds^vo", strict=True) if marker == line.get_marker())
            found[series, line.get_markerfacecolor() == "white"] = line.get_data()
    return found


@pytest.mark.parametrize(("panel", "ours", "theirs"), [(0, 20.0, 0.0), (1, -6.36, -6.36)])
def test_all_five_series_lie_before_the_papers_points(panel, ours, theirs):
    """Left: the errors. Right: the errors above each one's own baseline, in which both are the same here."""
    reference = figure_3_reference()
    axes = figure_3(points(), reference, "test").axes[panel]
    drawn = curves(axes)
    assert set(drawn) == {(series, paper) for series in SERIES for paper in (False, True)}
    for (series, paper), (x, y) in drawn.items():
        expected = reference[reference["series"] == series].sort_values("column_sparsity_pct")
        assert np.allclose(x, expected["column_sparsity_pct"])
        assert np.allclose(y, expected["test_error_pct"] + (theirs if paper else ours))


def test_the_face_says_what_is_shown():
    figure = figure_3(points(), figure_3_reference(), "some profile")
    assert "some profile" in figure.get_suptitle()
    assert "the paper (ResNet-56, CIFAR-10)" in figure.get_suptitle()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(SERIES.values())


def test_the_spread_is_drawn_where_there_is_one():
    def bars(table):
        return sum(len(c.lines[2]) for c in figure_3(table, figure_3_reference(), "t").axes[0].containers)

    assert bars(points()) == len(SERIES)
    assert bars(points(float("nan"))) == 0


def test_the_same_numbers_give_the_same_svg(tmp_path):
    for name in ("a", "b"):
        save_figure(figure_3(points(), figure_3_reference(), "t"), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert "column sparsity, %" in (tmp_path / "a.svg").read_text()
    assert (tmp_path / "a.png").stat().st_size > 10_000


def record(method, counts):
    curve = [
        {"epoch": e, "loss": 2.0 / e, "train_error_pct": 90.0 / e, "sparsity": 0.1 * e, "log10_alpha_counts": counts}
        for e in (1, 2, 3)
    ]
    config = RunConfig(method=method).as_dict()
    return {"config": config, "curve": curve, "log10_alpha": {"low": -2.0, "high": 1.0, "bins": 3, "counts": {}}}


def test_training_curve():
    loss, error, sparsity = training_curve(record("baseline", [])).axes
    assert loss.get_lines()[0].get_xydata().tolist() == [[1, 2.0], [2, 1.0], [3, 2.0 / 3]]
    assert error.get_lines()[0].get_ydata().tolist() == [90.0, 45.0, 30.0]
    assert sparsity.get_lines()[0].get_ydata() == pytest.approx([10.0, 20.0, 30.0])


def test_alpha_histogram_has_its_bins_and_the_threshold():
    axes = alpha_histogram(record("psp_weight_decay", [4, 0, 6])).axes[0]
    *epochs, threshold = axes.get_lines()
    assert len(epochs) == 3
    assert epochs[-1].get_xydata().tolist() == [[-1.5, 4], [-0.5, 0], [0.5, 6]]
    assert threshold.get_xdata() == pytest.approx([-1.0, -1.0])  # log10 of ε = 0.1


def test_a_run_without_alpha_has_no_histogram():
    assert alpha_histogram(record("baseline", [])) is None
