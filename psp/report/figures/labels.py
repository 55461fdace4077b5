"""Labels beside points, where they cover neither each other nor a point."""

from matplotlib.transforms import Bbox

# Where a label may stand: right or left of its point, above or below, in points of 1/72 inch. The first is liked best.
PLACES = [(side * 8, height) for height in (4, -11, 16, -23) for side in (1, -1)]


def label_points(axes, labels):
    """Write `labels`, rows (text, x, y, color), beside their points, each in its first place that is free.

    Where none is, in that which covers least. Each point is drawn by a call of its own, whose artists say where it is.
    Call this last: what the axes show, and their limits, must be settled.
    """
    axes.figure.draw_without_rendering()  # places are in pixels, which the layout decides
    taken = [artist.get_window_extent() for artist in (*axes.lines, *axes.collections)]
    for text, x, y, color in labels:
        label = axes.annotate(text, (x, y), PLACES[0], textcoords="offset points", fontsize=9, color=color)
        place = min(PLACES, key=lambda place: _covered(_moved(label, place), taken))
        taken.append(_moved(label, place))


def _moved(label, place):
    """Where a label is once it stands at one of PLACES."""
    label.xyann = place
    label.set_horizontalalignment("left" if place[0] > 0 else "right")
    return label.get_window_extent()


def _covered(box, taken):
    """How much of `taken` a box covers, in square pixels."""
    overlaps = [Bbox.intersection(box, other) for other in taken]
    return sum(overlap.width * overlap.height for overlap in overlaps if overlap)
