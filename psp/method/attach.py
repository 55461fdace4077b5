"""Structure parameters put on the layers of a network, and found there again.

The parametrization of a layer is registered on its weight, by torch's own parametrize. Where α stands on the
normalizations that follow (`psp.method.place`), γ and β of these are parametrized instead, and what holds α is a
child of the layer, called `structure`.
"""

import math

import torch
from torch.nn.utils import parametrize

from psp.errors import ConfigError
from psp.method.choose import check_bypass, check_network, choose_structures
from psp.method.coupling import meeting
from psp.method.heads import projections
from psp.method.place import normalizations, sharing
from psp.method.structures import HEAD, alpha_shape, is_one_structure, is_transposed
from psp.method.threshold import Coupled, OnNormalization

PLACES = ("auto", "weight")


def attach(model, structure, skip, make_scale, place="weight", couple=False, join_branches=False):
    """Put `make_scale(weight, structure, transposed, heads)` on every chosen layer, or on the normalizations behind it.

    `structure` and `skip` choose as in `psp.method.choose.choose_structures`, `place` and `couple` as in
    `psp.parameterize`. With `join_branches`, whole layers of one branch share what prunes them also where place is
    "weight". Everything that can be wrong is found before the first layer is touched.
    Returns `model`.
    """
    check_place(place)
    chosen = choose_structures(model, structure, skip)
    layers = {name: model.get_submodule(name) for name in chosen}
    for name, layer in layers.items():
        check_plain(name, layer)
    earlier = [name for name, (_, pruner) in parametrizations(model).items() if pruner.structure == "layer"]
    if earlier and "layer" in chosen.values():
        check_bypass(model, [*earlier, *(name for name, own in chosen.items() if own == "layer")])
    spanning = spans(layers, chosen)
    if place == "weight":
        spanning = {name: own for name, own in spanning.items() if join_branches and own == "layer"}
    behind = normalizations(model, spanning, warn=place != "weight")
    if place != "weight":
        whole = [name for name in behind if chosen[name] == "layer"]
        check_bypass(model, whole, zeroed(model, behind, whole))
    followers = sharing(behind, spanning)
    heads = {name: block.heads for name, block in projections(model).items() if chosen.get(name) == HEAD}
    made = {name: _made(name, layer, chosen[name], make_scale, heads.get(name)) for name, layer in layers.items()}
    leaders = followers | (coupled(model, chosen) if couple else {})
    for name in leaders:
        leader = leaders[name]
        while leader in leaders:
            leader = leaders[leader]
        made[name] = Coupled(made[leader], layers[name], chosen[name])
    for name, layer in layers.items():
        if place == "weight" or name not in behind:
            parametrize.register_parametrization(layer, "weight", made[name])
            continue
        layer.add_module("structure", made[name].train(layer.training))
        for norm, first, count in behind[name] if name not in followers else ():
            scale_behind(model.get_submodule(norm)).add(first, count, made[name])
    return model


def zeroed(model, behind, names):
    """Pairs (layer, normalization) of those of `behind` whose γ and β are all that one layer's α multiplies."""
    for name in names:
        for norm, first, count in behind[name]:
            if (first, count) == (0, len(model.get_submodule(norm).weight)):
                yield name, norm


def spans(layers, chosen):
    """{layer name: structure}, "layer" for what is the whole layer by another name, as a shape of a 1×1 convolution.

    Without layers of which one α is that of several output channels, the same one in each group, and without heads.
    """
    found = {}
    for name, layer in layers.items():
        if chosen[name] == HEAD:
            continue
        transposed = is_transposed(layer)
        whole = is_one_structure(weight_shape(layer), chosen[name], transposed)
        if whole or not transposed or layer.groups == 1:
            found[name] = "layer" if whole else chosen[name]
    return found


def check_place(place):
    """Raise ConfigError, naming the known ones, unless `place` is one where α can stand."""
    if place not in PLACES:
        raise ConfigError(f"unknown place {place!r}; choose one of {', '.join(PLACES)}")


def check_plain(name, layer):
    """Raise ConfigError unless a layer has a weight of its own and nothing that prunes it yet."""
    if pruner_of(layer) is not None:
        raise ConfigError(f"layer {name!r} is parameterized already; psp.fold(model) makes it plain again")
    if hasattr(layer, "structure"):
        raise ConfigError(f"layer {name!r} has an attribute `structure` already, where its α would be; skip the layer")
    if "weight" not in layer._parameters and not parametrize.is_parametrized(layer, "weight"):
        raise ConfigError(
            f"the weight of layer {name!r} is no parameter, as after torch.nn.utils.weight_norm, spectral_norm or "
            "prune; use those of torch.nn.utils.parametrizations, remove it (prune.remove), or skip the layer"
        )


def _made(name, layer, structure, make_scale, heads):
    try:
        return make_scale(layer.weight, structure, is_transposed(layer), heads)
    except ConfigError as error:
        raise ConfigError(f"layer {name!r}: {error}") from error


def coupled(model, chosen):
    """{layer name: the first one's} of all but the first, in the order of `chosen`, of layers that meet in a sum.

    Of those with as many α: one channel that is added to all of many, or the α of a grouped transposed convolution,
    each of several channels, are no partners of another layer's channels one by one.
    """
    groups = meeting(model, {name for name, structure in chosen.items() if structure == "channel"})
    leaders, found = {}, {}
    for group in groups:
        for name in (name for name in chosen if name in group):
            layer = model.get_submodule(name)
            count = math.prod(alpha_shape(weight_shape(layer), "channel", is_transposed(layer)))
            leader = leaders.setdefault((tuple(group), count), name)
            if leader != name:
                found[name] = leader
    if not found:
        raise ConfigError(
            "couple=True, but no outputs of two layers with structure 'channel' meet in a sum; leave it out"
        )
    return found


def scaling_of(norm):
    """The `OnNormalization` that multiplies γ and β of a normalization, or None."""
    if not parametrize.is_parametrized(norm, "weight"):
        return None
    return next((p for p in norm.parametrizations.weight if isinstance(p, OnNormalization)), None)


def scale_behind(norm):
    """The `OnNormalization` of a normalization, which gets one where it has none."""
    scaling = scaling_of(norm)
    if scaling is None:
        scaling = OnNormalization()
        for name in affine(norm):
            parametrize.register_parametrization(norm, name, scaling)
    return scaling


def affine(norm):
    """The names of the parameters that a normalization multiplies by and adds."""
    return [name for name in ("weight", "bias") if getattr(norm, name, None) is not None]


def pruner_of(layer):
    """What decides which structures of `layer` are kept, on its weight or behind it, or None."""
    behind = layer._modules.get("structure")
    if hasattr(behind, "kept"):
        return behind
    if not parametrize.is_parametrized(layer, "weight"):
        return None
    return next((p for p in layer.parametrizations.weight if hasattr(p, "kept")), None)


def parametrizations(model):
    """{layer name: (layer, its parametrization)} of every layer that PSP or one of the baselines prunes.

    Raises ConfigError for what is no nn.Module.
    """
    check_network(model)
    found = ((name, layer, pruner_of(layer)) for name, layer in model.named_modules())
    return {name: (layer, pruner) for name, layer, pruner in found if pruner is not None}


def behind(model):
    """{name: normalization} of those whose γ and β the α of layers multiply."""
    return {name: norm for name, norm in model.named_modules() if scaling_of(norm) is not None}


def originals(module, name="weight"):
    """The parameters that hold a module's weight (or bias), parametrized or not; torch's weight_norm has two."""
    if parametrize.is_parametrized(module, name):
        return list(module.parametrizations[name].parameters(recurse=False))
    return [getattr(module, name)]


def weight_shape(layer):
    """Shape of a layer's weight without computing it."""
    return max(originals(layer), key=torch.Tensor.numel).shape


def kept_weights(layer, pruner):
    """Boolean tensor in the shape of a layer's weight: True where the structure of a weight survives."""
    return pruner.kept().repeat_interleave(getattr(pruner, "columns", 1), 1).expand(weight_shape(layer))


def pruned_weight(layer, pruner):
    """w · ν(α) of a layer, wherever its α stand."""
    return pruner(layer.weight) if layer._modules.get("structure") is pruner else layer.weight
