"""Figures as pure functions of tables and run records, and how they are written."""

import matplotlib
import seaborn as sns
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from psp.report.tables import SERIES

COLORS = dict(zip(SERIES, ["#555555", *sns.color_palette("colorblind", 4).as_hex()], strict=True))
MARKERS = dict(zip(SERIES, "Ds^vo", strict=True))
# Text in an SVG as text, and the same file for the same numbers: no date (see `save_figure`), no random ids.
matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "psp"})


def log_ticks(axis, form, places=None):
    """Ticks of a logarithmic axis, written by `form(value)`: at 1, 2 and 5 times powers of ten, or at `places` only."""
    axis.set_major_locator(FixedLocator(places) if places else LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: form(value)))
    axis.set_minor_locator(NullLocator())


def save_figure(figure, path):
    """Write a figure as `path`.svg and `path`.png; `path` has no suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    figure.savefig(path.with_suffix(".png"), dpi=110)
