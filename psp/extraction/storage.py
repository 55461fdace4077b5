"""The last resort: where more is left than the masks leave, zeros are not stored."""

from operator import attrgetter

from psp.kernels.spread import SpreadWeight, outputs_first, spread
from psp.method.graph import LAYERS

# Fewer zeros than these in a weight are not worth saying where they are.
WORTH = 8


def store_nonzero(network):
    """Have `network` store no weight's zero rows and columns, in place.

    Such zeros are left where a dense kernel is faster with them, and in what code reads that is not known.
    """
    for name, layer in list(network.named_modules()):
        if isinstance(layer, LAYERS) and "weight" in layer._parameters and _is_worth_it(outputs_first(layer)):
            network.set_submodule(name, spread(layer))
    for node in [node for node in network.graph.nodes if node.op == "get_attr"]:
        owner, _, name = node.target.rpartition(".")
        weight = network.get_submodule(owner)._parameters.get(name)
        if weight is not None and weight.ndim > 1 and _is_worth_it(weight):
            # In its place, so that every node that reads it calls the same module.
            delattr(network.get_submodule(owner), name)
            network.get_submodule(owner).add_module(name, SpreadWeight(weight))
        if isinstance(attrgetter(node.target)(network), SpreadWeight):
            node.op = "call_module"
    network.recompile()


def _is_worth_it(weight):
    nonzero = weight.detach().ne(0).flatten(1)
    left = int(nonzero.any(1).sum()) * int(nonzero.any(0).sum())
    return nonzero.numel() - left >= WORTH
