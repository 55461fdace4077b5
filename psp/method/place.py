"""Where the α of a layer stand, by what follows it in the network.

A network is scale-invariant in weights before a normalization. Batch normalization divides each channel by its own
standard deviation: an α that multiplies the channel before it cancels, (α·x − α·m)/(α·s) = (x − m)/s. The loss does not
see it, and weight decay shrinks all such α alike. So does the α of a whole layer before any normalization. Multiplied
into γ and β, behind the normalization, it is seen; and since γ and β decay too, the product γ·α has the penalty of the
group lasso again (notebooks/why_weight_decay_prunes.ipynb).

There it can be hidden again: γ and β of a normalization, all times α, go through ReLU and the next convolution into the
next normalization, which divides by α; and so do those of one channel through a depthwise convolution. So α goes on to
the last normalization that would hide it, which in a branch is the one before the sum or the concatenation. Layers
whose α get the same place, of which none is of use without the others, share them and are pruned together.

A pruned channel is then 0 behind its normalization. Where a ReLU follows, whose gradient at 0 is 0, it gets none and
does not come back; where the channel goes into a sum first, it can.

Where a dense block concatenates a layer's output and each reader normalizes it anew, α stands on γ and β of all
readers.
"""

import warnings

from psp.errors import ConfigError
from psp.method.graph import traced
from psp.method.tried import takes_scale_out
from psp.method.walk import Walk


def normalizations(model, structures, warn=True):
    """{layer name: [(normalization's name, first, count)]} of the layers whose α would cancel: `count` entries of γ.

    `structures` is {layer name: structure}. A layer is listed if structure is "channel" or "layer" and all that its
    output goes to, concatenated or not, are normalizations with γ in which its α cancels. A linear layer has its
    channels along the last axis and BatchNorm1d along the second, which are taken for the same where they are equally
    long: N×C, and not N×C×C. A normalization is not listed that other layers' output goes to, too. Of layers whose α
    are hidden all the same it warns.
    """
    wanted = {name for name, structure in structures.items() if structure in ("channel", "layer")}
    if not wanted:
        return {}
    try:
        graph = traced(model)
    except ConfigError as error:
        warnings.warn(
            f"{error}: the α of channels stand on weights, where a normalization would hide them", stacklevel=4
        )
        return {}
    found, hidden = {}, []
    for name in sorted(wanted):
        whole, layer = structures[name] == "layer", model.get_submodule(name)
        walk = Walk(model, whole, layer)
        nodes = [node for node in graph.nodes if node.op == "call_module" and node.target == name]
        targets = [walk.targets(node) for node in nodes]
        if targets and all(targets) and not _are_others(norm for one in targets for norm, _, _ in one):
            found[name] = list(dict.fromkeys((norm.target, *span) for one in targets for norm, *span in one))
        elif (nodes and all(walk.is_hidden(node) for node in nodes)) or takes_scale_out(layer):
            hidden.append(name)
    if hidden and warn:
        warnings.warn(
            f"the α of {', '.join(hidden)} stand on weights, where a normalization hides them: none that follows has a "
            "γ that could take them, one entry a channel (affine=True) and no other layer's",
            stacklevel=4,
        )
    return found


def sharing(places, structures):
    """{layer name: the first one's} of layers of one structure, of `structures`, with the same place, of `places`.

    `places` is what `normalizations` found. The first of those that share one is not listed.
    """
    first, followers = {}, {}
    for name in structures:
        if name in places:
            leader = first.setdefault((structures[name], *places[name]), name)
            if leader != name:
                followers[name] = leader
    return followers


def _are_others(norms):
    """Whether one of the normalizations that a layer's output goes to, nodes, is called elsewhere, too."""
    reached = set(norms)
    return any(node not in reached for norm in reached for node in norm.graph.nodes if node.target == norm.target)
