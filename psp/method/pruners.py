"""What prunes the layers of a network, found again on them: on a layer's weight, or on the normalizations behind it."""

import torch
from torch.nn.utils import parametrize

from psp.errors import ConfigError
from psp.method.choose import check_network
from psp.method.threshold import OnNormalization


def pruner_of(layer):
    """What decides which structures of `layer` are kept, on its weight or behind it, or None."""
    child = layer._modules.get("structure")
    if hasattr(child, "kept"):
        return child
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


def scaling_of(norm):
    """The `OnNormalization` that multiplies γ and β of a normalization, or None."""
    if not parametrize.is_parametrized(norm, "weight"):
        return None
    return next((p for p in norm.parametrizations.weight if isinstance(p, OnNormalization)), None)


def leading(scale):
    """What holds the α, or the mask, of a scale: another layer's, or itself."""
    return getattr(scale, "leader", (scale,))[0]


def scaled_normalizations(model):
    """{name: normalization} of those whose γ and β the α of layers multiply."""
    return {name: norm for name, norm in model.named_modules() if scaling_of(norm) is not None}


def check_together(model):
    """Raise ConfigError where `model` holds the normalizations that the α of a layer multiply without it, or it alone.

    So it is of a part of a network, and where a module was replaced, or copied by itself, since.
    """
    own, placed, apart = {id(module) for module in model.modules()}, set(), []
    for name, norm in scaled_normalizations(model).items():
        scales = scaling_of(norm).scales()
        placed |= {id(leading(scale)) for scale in scales}
        apart += [name] if any(id(scale) not in own for scale in scales) else []
    for name, (layer, pruner) in parametrizations(model).items():
        if layer._modules.get("structure") is pruner and id(leading(pruner)) in own - placed:
            apart.append(name)
    if apart:
        named = ", ".join(repr(name) if name else type(model).__name__ for name in apart)
        raise ConfigError(
            f"the α at {named} are of a layer and a normalization of which only one is part of this "
            f"{type(model).__name__}: give the network as a whole; replace modules before psp.parameterize, and copy "
            "none by itself"
        )


def affine(norm):
    """The names of the parameters that a normalization multiplies by and adds."""
    return [name for name in ("weight", "bias") if getattr(norm, name, None) is not None]


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
