"""What the figures show, read back from their axes."""

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from psp.errors import ConfigError
from psp.method.masks import encode
from psp.method.structures import ALPHA_SHAPE, alpha_shape
from psp.report.claims_figure_2 import closest_pairs
from psp.report.figures import save_figure
from psp.report.figures.figure_1 import figure_1, weight_and_mask
from psp.report.figures.figure_2 import clipped, figure_2
from psp.report.figures.figure_3 import figure_3
from psp.report.figures.labels import PLACES, label_points
from psp.report.figures.networks import networks_figure
from psp.report.figures.run import alpha_histogram, training_curve
from psp.report.figures.timing import speed_up_figure
from psp.report.paper_tables import DENSE
from psp.report.tables import SERIES, figure_2_table, figure_3_reference
from psp.runs.config import RunConfig


def points(error_sd=0.3):
    """The paper's points twenty points of error higher, as if they were ours."""
    table = figure_3_reference()
    return table.assign(test_error_pct=table["test_error_pct"] + 20, error_sd=error_sd, above_baseline_sd=error_sd / 3)


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
    def spreads(table, panel=0):
        axes = figure_3(table, figure_3_reference(), "t").axes[panel]
        bars = [c.lines[2][0].get_segments() for c in axes.containers]
        drawn = [path for c in axes.collections if isinstance(c, PolyCollection) for path in c.get_paths()]
        bands = [path.vertices[:, 1] for path in drawn]
        return bars, [band.max() - band.min() for band in bands]

    bars, bands = spreads(points(0.3))
    assert np.ptp(bars[0][0][:, 1]) == pytest.approx(0.6), "the baseline's"
    assert len(bars) == 1
    table = points().query("series != 'baseline'").groupby("series")["test_error_pct"]
    assert sorted(bands) == pytest.approx(sorted(table.max() - table.min() + 0.6))
    assert sorted(spreads(points(0.3), panel=1)[1]) == pytest.approx(sorted(table.max() - table.min() + 0.2))
    assert spreads(points(float("nan"))) == ([], [])
    some = points(0.3)
    own = some[some["series"] == "l1_norm"].sort_values("column_sparsity_pct").index
    some.loc[own[1], "error_sd"] = np.nan  # of seven points the second: a bar, none, and a band over the other five
    bars, bands = spreads(some)
    assert [len(segments) for segments in bars] == [1, 1]
    rest = some.loc[own[2:], "test_error_pct"]
    assert min(abs(np.array(bands) - (np.ptp(rest) + 0.6))) == pytest.approx(0)


def test_a_series_without_points_is_not_in_the_legend():
    table = points().query("series == 'baseline'")
    figure = figure_3(table, figure_3_reference(), "t")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [SERIES["baseline"]]


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


def pruned_record(structure, layer="a"):
    """A record whose excerpt is a 4×2×3×3 weight with the first structure pruned."""
    torch.manual_seed(0)
    weight = torch.randn(4, 2, 3, 3)
    kept = torch.ones(alpha_shape(weight.shape, structure), dtype=torch.bool)
    kept.view(-1)[0] = False
    return {
        "excerpt": {"layer": layer, "weight": encode(weight * kept)},
        "masks": {layer: encode(kept)},
        "sparsity": {"structures": 0.1, "weights": 0.2},
    }


def test_figure_1_draws_the_masks_as_they_are():
    records = {structure: pruned_record(structure) for structure in ALPHA_SHAPE}
    figure = figure_1(records, "some profile")
    assert "some profile" in figure.get_suptitle()
    for axes, structure in zip(figure.axes, ALPHA_SHAPE, strict=True):
        weight, kept = weight_and_mask(records[structure])
        pruned, values = (image.get_array() for image in axes.get_images())
        assert values.shape == (4, 18)
        assert np.array_equal(~np.ma.getmaskarray(values), kept.reshape(4, 18))
        assert np.array_equal(~np.ma.getmaskarray(pruned), ~kept.reshape(4, 18))
        assert np.array_equal(values.compressed(), weight.reshape(4, 18)[kept.reshape(4, 18)])
        of_all = {"weight": 72, "column": 18, "channel": 4, "input_channel": 2, "shape": 9, "layer": 1}[structure]
        assert axes.get_title() == f"{structure}: {100 / of_all:.0f} % of this layer's weights pruned, 20 % of all"


def test_figure_1_shows_one_layer():
    with pytest.raises(ConfigError, match="excerpts of a, b"):
        figure_1({"column": pruned_record("column"), "channel": pruned_record("channel", "b")}, "t")


def alpha_record(method, counts, structures):
    run = record(method, counts)
    run["log10_alpha"] |= {"counts": {"first": counts, "second": counts}}
    return run | {"sparsity": {"structures": structures}, "test_error_pct": 10.0}


def test_figure_2_shows_both_regularizers_with_the_threshold():
    pair = [alpha_record("psp_l1", [4, 0, 6], 0.4), alpha_record("psp_weight_decay", [8, 2, 0], 0.5)]
    figure = figure_2(pair, "some profile")
    ridges, layers = figure.axes[:2], figure.axes[2:4]
    assert [axes.get_title() for axes in ridges] == [
        "PSP (ℓ1 regularization), λ = 0: 40 % pruned",
        "PSP (weight decay), λ = 0: 50 % pruned",
    ]
    for axes in (*ridges, *layers):
        assert axes.get_lines()[-1].get_xdata() == pytest.approx([-1.0, -1.0])
    shares = layers[0].collections[0].get_array()
    assert shares.shape == (2, 3)
    assert shares[0].tolist() == pytest.approx([0.4, 0.0, 0.6])


def test_what_lies_outside_the_decades_is_counted_at_their_edge():
    x, y = clipped([1, 2, 4, 8], {"low": -5.0, "high": 3.0, "bins": 4})  # centres −4, −2, 0, 2
    assert x.tolist() == [-3.0, -2.0, 0.0, 0.5]
    assert y.tolist() == [1.0, 2.0, 4.0, 8.0]
    assert clipped([1, 2, 4, 8], {"low": -11.0, "high": 5.0, "bins": 4})[1].tolist() == [3.0, 4.0, 8.0]


def test_the_settings_of_closest_sparsities_are_compared_seed_by_seed():
    def made(method, decay, seed, structures):
        run = alpha_record(method, [1, 1, 1], structures)
        return run | {"config": run["config"] | {"structure_decay": decay, "seed": seed}}

    far, near = ([made("psp_l1", decay, seed, s) for seed in (1, 0)] for decay, s in ((1e-4, 0.1), (2e-4, 0.6)))
    decayed = [made("psp_weight_decay", 1e-3, seed, 0.3 + 0.3 * seed) for seed in (0, 1, 2)]
    assert closest_pairs([*far, *near, *decayed]) == [(near[1], decayed[0]), (near[0], decayed[1])]
    with pytest.raises(ConfigError, match=r"Figure 2 has two runs of psp_l1, 0\.0001, 0\.1 and seed 1"):
        closest_pairs([*far, *near, *decayed, far[0]])
    for alone in ([*far, *near], [*far[:1], decayed[0]]):
        with pytest.raises(ConfigError, match="no seed has a run of both"):
            closest_pairs(alone)


def test_without_a_threshold_none_is_drawn_and_nothing_is_near_it():
    run = alpha_record("psp_weight_decay", [4, 0, 6], 0.0)
    run["config"]["threshold"] = 0.0
    panels = figure_2([run], "t").axes[:2]
    assert not [line for panel in panels for line in panel.lines if line.get_linestyle() == "--"]
    fixed = alpha_record("psp_l1", [4, 0, 6], 0.4)
    fixed["config"]["method"] = "psp_fixed_sparsity"
    table = figure_2_table({"none": run, "fixed": fixed}).set_index("run")
    assert table["near_threshold_pct"].isna().all()
    assert np.isnan(table.loc["fixed", "threshold"])


def test_the_table_of_figure_2_by_hand():
    """Two spikes, at 10^-1.5 and 10^0.5, in bins of a decade: separable in full, the cut amid the gap at 10^-0.5."""
    table = figure_2_table({"run": alpha_record("psp_weight_decay", [4, 0, 6], 0.4)})
    row = table.iloc[0]
    assert row["separability"] == pytest.approx(1.0)
    assert row["cut"] == pytest.approx(10**-0.5)
    assert row["near_threshold_pct"] == 0.0
    assert (row["run"], row["sparsity_pct"], row["test_error_pct"]) == ("run", 40.0, 10.0)


def test_networks_stand_at_their_size_speed_and_error_by_data_set():
    row = {"network": "resnet20", "top1_error_sd": 0.5, "seeds": 3, "structures_pruned_pct": 60.0}
    table = pd.DataFrame(
        [
            {**row, "dataset": "cifar10", "structure": DENSE, "top1_error_pct": 10.0, "params": 2e5},
            {**row, "dataset": "cifar10", "structure": "column", "top1_error_pct": 12.0, "params": 1e5}
            | {"cpu_speed_up": 3.0},
            {**row, "dataset": "cifar100", "structure": DENSE, "top1_error_pct": 40.0, "params": 2.1e5},
        ]
    )
    figure = networks_figure(table, "a title")
    sizes, speeds, _, alone = figure.axes
    points = [[tuple(*bar[0].get_xydata()) for bar in axes.containers] for axes in (sizes, speeds, alone)]
    assert points == [[(2e5, 10.0), (1e5, 12.0)], [(1.0, 10.0), (3.0, 12.0)], [(1.0, 40.0)]]
    (bar,) = sizes.containers[1][2][0].get_segments()
    assert bar[:, 1].tolist() == [11.5, 12.5]
    assert [text.get_text() for text in sizes.texts] == ["60 %"], "of the pruned one"
    assert figure.get_suptitle() == "a title"


def test_speed_ups_of_each_architecture_and_batch_have_panels_of_their_own():
    row = {"structure": "column", "masks": "trained", "structures_pruned_pct": 50.0, "mac_reduction": 2.0}
    ratios = {("resnet20", 1): 1.5, ("resnet20", 64): 1.8, ("densenet16", 1): 1.1, ("densenet16", 64): 1.2}
    rows = [{**row, "model": m, "batch": b, "precision": "any", "speed_up": ratio} for (m, b), ratio in ratios.items()]
    table = pd.DataFrame([*rows, {**rows[0], "precision": "float32", "speed_up": 9.0}])
    panels = speed_up_figure(table, [1, 64], "a title").axes
    drawn = [[x for line in axes.get_lines() if line.get_marker() == "*" for x in line.get_ydata()] for axes in panels]
    assert drawn == [[ratio] for ratio in ratios.values() for _ in range(2)]
    assert [axes.get_ylabel() for axes in panels[::2]] == [f"speed-up of {m}, batch {b}" for m, b in ratios]


def test_labels_cover_neither_points_nor_each_other():
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    places = [(0.5, 0.5), (0.51, 0.5), (0.52, 0.49), (0.9, 0.1)]
    for place in places:
        axes.errorbar(*place, yerr=0.05, fmt="o")
    label_points(axes, [(f"{x:.0%}", x, y, "black") for x, y in places])
    marks = [Bbox.from_bounds(*(axes.transData.transform(place) - 3), 6, 6) for place in places]
    assert [text.get_text() for text in axes.texts] == ["50%", "51%", "52%", "90%"]
    boxes = [text.get_window_extent() for text in axes.texts]
    for index, box in enumerate(boxes):
        assert not any(Bbox.intersection(box, other) for other in [*marks, *boxes[:index]])
    assert axes.texts[3].xyann == PLACES[0], "a point by itself has its label where all would like to stand"
