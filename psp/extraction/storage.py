"""The last resort: where more is left than the masks leave, zeros are not stored."""

from psp.kernels.spread import LAYERS, as_matrix, spread

# Fewer zeros than these in a layer are not worth saying where they are.
WORTH = 8


def store_nonzero(network):
    """Replace in place every layer with zero rows or columns by one that stores only the others.

    Such zeros are left where a dense kernel is faster with them, and in layers called by code that is not known.
    """
    for name, layer in list(network.named_modules()):
        if isinstance(layer, LAYERS) and "weight" in layer._parameters and _is_worth_it(as_matrix(layer).ne(0)):
            network.set_submodule(name, spread(layer))


def _is_worth_it(nonzero):
    left = int(nonzero.any(1).sum()) * int(nonzero.any(0).sum())
    return nonzero.numel() - left >= WORTH
