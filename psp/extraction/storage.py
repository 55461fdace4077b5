"""The last resort: where more is left than the masks leave, zeros are not stored."""

from psp.kernels.spread import LAYERS, spread


def store_nonzero(network):
    """Replace in place every layer with zero rows or columns by one that stores only the others.

    Such zeros are left where a dense kernel is faster with them, and in layers called by code that is not known.
    """
    for name, layer in list(network.named_modules()):
        if isinstance(layer, LAYERS) and "weight" in layer._parameters and _has_zeros(layer.weight.detach().flatten(1)):
            network.set_submodule(name, spread(layer))


def _has_zeros(matrix):
    return not (matrix.ne(0).any(0).all() and matrix.ne(0).any(1).all())
