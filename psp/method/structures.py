"""The structures of a weight tensor: which weights share one structure parameter α.

A convolution's weight is K×C×R×S (output channels, input channels, kernel height and width); Conv1d has
one kernel axis, Conv3d three, a Linear layer none. Seen as the matrix K×(C·R·S) that multiplies the
im2col matrix, a *column* is what one row of the im2col matrix meets: pruning it removes that row too.

Where there is but one kernel position, in 1×1 convolutions and Linear layers, a *shape* is the whole layer: skip these
layers unless that is meant.

In a grouped convolution C counts the input channels of one group, and a column or a kernel position is the
same one in all groups: in a depthwise convolution the two are the same thing.

A transposed convolution's weight is C×K×R×S, and a structure is there what it is in a convolution, by what it is for:
a *channel* is all weights of one output channel, an *input_channel* all of one input channel, a *column* those of one
input channel at one kernel position, which for each input pixel add to one output pixel of all channels. In a grouped
one K counts the output channels of one group, and a channel is the same one in all groups.

α has one entry per structure and keeps an axis of length 1 wherever the structure spans the axis, so
that w · α is a plain broadcast. A new granularity is one line in `ALPHA_SHAPE`.

A *head* is no part of a weight's shape alone: it is all columns of an attention block's output projection that read one
of its heads, neighbours of each other, so that α, of shape 1×heads, repeats along them (`psp.method.heads`).
"""

import math

from psp.errors import ConfigError

ALPHA_SHAPE = {
    "weight": lambda k, c, taps: (k, c, *taps),  # fine-grained: the unstructured reference
    "column": lambda k, c, taps: (1, c, *taps),
    "channel": lambda k, c, taps: (k, 1, *(1 for _ in taps)),  # an output channel, also called filter
    "input_channel": lambda k, c, taps: (1, c, *(1 for _ in taps)),  # all that a layer reads of one channel
    "shape": lambda k, c, taps: (1, 1, *taps),  # one kernel position across all filters
    "layer": lambda k, c, taps: (1, 1, *(1 for _ in taps)),  # the whole weight; only where a bypass exists (choose.py)
}
# Of the output projection of an attention block: not in `ALPHA_SHAPE`, since no other layer has it.
HEAD = "head"


def alpha_shape(weight_shape, structure, transposed=False, heads=None):
    """Shape of α for a weight of shape K×C×kernel…, or C×K×kernel… if `transposed`: α broadcasts against the weight.

    With structure "head", 1×`heads`, of which each stands for C/heads neighbouring columns.

    Raises ConfigError for a structure that is not known, and for heads of what is no attention.
    """
    check_structure(structure)
    if structure == HEAD:
        if heads is None:
            raise ConfigError("structure 'head' is for attention blocks alone")
        return (1, heads)
    first, second, *taps = weight_shape
    if not transposed:
        return ALPHA_SHAPE[structure](first, second, taps)
    k, c, *taps = ALPHA_SHAPE[structure](second, first, taps)
    return (c, k, *taps)


def is_one_structure(weight_shape, structure, transposed=False, heads=None):
    """Whether a weight of that shape is a single structure: pruned, nothing of its layer is left."""
    return math.prod(alpha_shape(weight_shape, structure, transposed, heads)) == 1


def is_transposed(layer):
    """Whether a layer's weight is C×K×kernel…, input channels first, as that of a transposed convolution."""
    return getattr(layer, "transposed", False)


def check_structure(structure):
    """Raise ConfigError, naming the known ones, unless `structure` is a known granularity."""
    if not isinstance(structure, str) or structure not in (*ALPHA_SHAPE, HEAD):
        raise ConfigError(f"unknown structure {structure!r}; choose one of {', '.join((*ALPHA_SHAPE, HEAD))}")
