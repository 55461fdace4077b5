"""The last resort: where more is left than the masks leave, zeros are not stored."""

from psp.kernels.spread import LAYERS, as_matrix, spread


def store_nonzero(network):
    """Replace in place every layer with zero rows or columns by one that stores only the others.

    Such zeros are left where a dense kernel is faster with them, and in layers called by code that is not known.
    """
    for name, layer in list(network.named_modules()):
        if isinstance(layer, LAYERS) and "weight" in layer._parameters and _is_worth_it(as_matrix(layer).ne(0)):
            network.set_submodule(name, spread(layer))


def _is_worth_it(nonzero):
    """Whether a matrix has more numbers in its zero rows and columns than it takes to say which ones are left."""
    left = [int(nonzero.any(axis).sum()) for axis in (1, 0)]
    indices = sum(count for count, length in zip(left, nonzero.shape, strict=True) if count < length)
    return nonzero.numel() - left[0] * left[1] > indices
