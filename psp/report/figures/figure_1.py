"""Figure 1: the structures, as trained networks were pruned by them."""

import numpy as np
import seaborn as sns
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from psp.errors import ConfigError
from psp.method.masks import decode
from psp.method.structures import ALPHA_SHAPE

PRUNED = ListedColormap(["#e4e4e4"])


def figure_1(records, title):
    """The same layer of one trained network per structure, as the matrix K×(C·R·S) that meets the im2col matrix.

    `records` maps each structure to the record of its run. Colours are pruned weights w · ν(α) out of the record's
    excerpt, grey is pruned; lines part the kernels of different input channels.
    """
    structures = [s for s in ALPHA_SHAPE if s in records]
    layers = {records[s]["excerpt"]["layer"] for s in structures}
    if len(layers) != 1:
        raise ConfigError(f"Figure 1 shows one layer, the records have excerpts of {', '.join(sorted(layers))}")
    with sns.axes_style("white"):
        figure = Figure(figsize=(12.5, 1.75 * len(structures) + 0.6), layout="constrained")
        axes = np.atleast_1d(figure.subplots(len(structures), 1, sharex=True))
    for panel, structure in zip(axes, structures, strict=True):
        _draw(panel, records[structure], structure)
    axes[-1].set_xlabel("column of the weight matrix: input channel, then kernel position")
    figure.suptitle(f"Figure 1, structures of {layers.pop()} — {title}\ngrey: pruned", fontsize=12)
    return figure


def weight_and_mask(record):
    """(pruned weight, whether each weight is kept) of a record's excerpt, both K×C×R×S arrays."""
    excerpt = record["excerpt"]
    weight = decode(excerpt["weight"]).numpy()
    kept = decode(record["masks"][excerpt["layer"]]).numpy()
    return weight, np.broadcast_to(kept, weight.shape)


def _draw(axes, record, structure):
    weight, kept = weight_and_mask(record)
    filters, taps = weight.shape[0], int(np.prod(weight.shape[2:]))
    matrix, mask = weight.reshape(filters, -1), kept.reshape(filters, -1)
    limit = np.abs(matrix).max() or 1.0
    axes.imshow(np.ma.masked_where(mask, np.zeros_like(matrix)), cmap=PRUNED, aspect="auto")
    axes.imshow(np.ma.masked_where(~mask, matrix), cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    for edge in range(taps, matrix.shape[1], taps):
        axes.axvline(edge - 0.5, color="white", linewidth=1.2)
    here, overall = 100 * (1 - mask.mean()), 100 * record["sparsity"]["weights"]
    axes.set_title(f"{structure}: {here:.0f} % of this layer's weights pruned, {overall:.0f} % of all", fontsize=10)
    axes.set(ylabel="filter", xticks=[], yticks=[])
