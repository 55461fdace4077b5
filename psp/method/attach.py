"""Structure parameters put on the layers of a network.

The parametrization of a layer is registered on its weight, by torch's own parametrize. Where α stands on the
normalizations that follow (`psp.method.place`), γ and β of these are parametrized instead, and what holds α is a
child of the layer, called `structure`.
"""

import math

from torch.nn.utils import parametrize

from psp.errors import ConfigError
from psp.method.bypass import check_bypass
from psp.method.choose import check_unwrapped, choose_structures
from psp.method.coupling import meeting
from psp.method.heads import projections
from psp.method.place import normalizations, sharing
from psp.method.pruners import affine, parametrizations, pruner_of, scaling_of, weight_shape
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
    check_unwrapped(model)
    chosen = choose_structures(model, structure, skip)
    check_layers(model, chosen)
    spanning = spans(model, chosen)
    if place == "weight":
        spanning = {name: own for name, own in spanning.items() if join_branches and own == "layer"}
    places = normalizations(model, spanning, warn=place != "weight")
    if place != "weight":
        whole = [name for name in places if chosen[name] == "layer"]
        check_bypass(model, whole, zeroed(model, places, whole))
    followers = sharing(places, spanning)
    scales = make_scales(model, chosen, make_scale, followers | (coupled(model, chosen) if couple else {}))
    put(model, scales, places if place != "weight" else {}, followers)
    return model


def check_layers(model, chosen):
    """Raise ConfigError unless each of the layers `chosen` can be given α, beside what others of `model` have."""
    for name in chosen:
        check_plain(name, model.get_submodule(name))
    earlier = [name for name, (_, pruner) in parametrizations(model).items() if pruner.structure == "layer"]
    if earlier and "layer" in chosen.values():
        check_bypass(model, [*earlier, *(name for name, own in chosen.items() if own == "layer")])


def make_scales(model, chosen, make_scale, leaders):
    """{layer name: what it is multiplied by} of the layers `chosen`; of those in `leaders` what their leader has."""
    heads = {name: block.heads for name, block in projections(model).items() if chosen.get(name) == HEAD}
    layers = {name: model.get_submodule(name) for name in chosen}
    scales = {name: _made(name, layer, chosen[name], make_scale, heads.get(name)) for name, layer in layers.items()}
    for name in leaders:
        leader = leaders[name]
        while leader in leaders:
            leader = leaders[leader]
        scales[name] = Coupled(scales[leader], layers[name], chosen[name])
    return scales


def put(model, scales, places, followers):
    """Put each layer's scale at its place of `places`, where those of `followers` are already, or on its weight."""
    for name, scale in scales.items():
        layer = model.get_submodule(name)
        if name not in places:
            parametrize.register_parametrization(layer, "weight", scale)
            continue
        layer.add_module("structure", scale.train(layer.training))
        for norm, first, count in places[name] if name not in followers else ():
            scale_behind(model.get_submodule(norm)).add(first, count, scale)


def zeroed(model, places, names):
    """Pairs (layer, normalization) of those of `places` whose γ and β are all that one layer's α multiplies."""
    for name in names:
        for norm, first, count in places[name]:
            if (first, count) == (0, len(model.get_submodule(norm).weight)):
                yield name, norm


def spans(model, chosen):
    """{layer name: structure}, "layer" for what is the whole layer by another name, as a shape of a 1×1 convolution.

    Without layers of which one α is that of several output channels, the same one in each group, and without heads.
    """
    found = {}
    for name, own in chosen.items():
        if own == HEAD:
            continue
        layer = model.get_submodule(name)
        transposed = is_transposed(layer)
        whole = is_one_structure(weight_shape(layer), own, transposed)
        if whole or not transposed or layer.groups == 1:
            found[name] = "layer" if whole else own
    return found


def check_place(place):
    """Raise ConfigError, naming the known ones, unless `place` is one where α can stand."""
    if place not in PLACES:
        raise ConfigError(f"unknown place {place!r}; choose one of {', '.join(PLACES)}")


def check_plain(name, layer):
    """Raise ConfigError unless a layer has a weight of its own, of real numbers, and nothing that prunes it yet."""
    if pruner_of(layer) is not None:
        raise ConfigError(f"layer {name!r} is parameterized already; psp.fold(model) makes it plain again")
    if hasattr(layer, "structure"):
        raise ConfigError(f"layer {name!r} has an attribute `structure` already, where its α would be; skip the layer")
    if "weight" not in layer._parameters and not parametrize.is_parametrized(layer, "weight"):
        raise ConfigError(
            f"the weight of layer {name!r} is no parameter, as after torch.nn.utils.weight_norm, spectral_norm or "
            "prune; use those of torch.nn.utils.parametrizations, remove it (prune.remove), or skip the layer"
        )
    if not layer.weight.is_floating_point():
        raise ConfigError(f"the weight of layer {name!r} is {layer.weight.dtype}, where α needs real numbers; skip it")


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


def scale_behind(norm):
    """The `OnNormalization` of a normalization, which gets one where it has none."""
    scaling = scaling_of(norm)
    if scaling is None:
        scaling = OnNormalization()
        for name in affine(norm):
            parametrize.register_parametrization(norm, name, scaling)
    return scaling
