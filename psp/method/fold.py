"""A network with structure parameters made plain again, with the same outputs: pruned structures become zeros."""

from collections import Counter

import torch
from torch import nn
from torch.nn.utils import parametrize

from psp.errors import ConfigError
from psp.method.choose import check_network
from psp.method.graph import traced
from psp.method.pruners import affine, check_together, originals, parametrizations, scaled_normalizations


@torch.no_grad()
def fold(model):
    """Write w · ν(α) into the plain weights and drop the parametrization, in place; returns `model`.

    Where α stands on γ and β of a normalization it is written into these, and the filters that it prunes become zero,
    too, unless `forward` uses them for something else. Outputs stay the same. Other parametrizations on the same weight
    are folded with it; a weight that several modules of the model share becomes each one's own. Raises ConfigError for
    what is no nn.Module, and for a part of a network whose α are of another part, or was replaced.
    """
    check_network(model)
    check_together(model)
    holding, norms = holders(model), scaled_normalizations(model)
    used = weights_read(model) if norms else set()
    for norm in norms.values():
        for name in affine(norm):
            _make_plain(norm, name, holding)
    for name, (layer, pruner) in parametrizations(model).items():
        if parametrize.is_parametrized(layer, "weight"):
            _make_plain(layer, "weight", holding)
        if layer._modules.get("structure") is pruner:
            # What γ and β of a BatchNorm1d multiply may be the tokens of N×C×C, of which no linear layer has filters.
            tokens = isinstance(layer, nn.Linear) and pruner.kept().any()
            if f"{name}.weight" not in used and not tokens:
                _zero(layer, pruner.kept(), holding)
            del layer.structure
    return model


def _make_plain(module, name, holding):
    """Write a parametrized weight or bias into a plain one that is the module's own."""
    _own_class(module)
    parametrized = module.parametrizations[name]
    for held, parameter in list(parametrized.named_parameters(recurse=False)):
        if holding[id(parameter)] > 1:  # torch writes the new weight into it
            setattr(parametrized, held, nn.Parameter(parameter.detach().clone(), parameter.requires_grad))
    with torch.enable_grad():  # of several originals, weight_norm's two, torch looks at the result for requires_grad
        parametrize.remove_parametrizations(module, name, leave_parametrized=True)


def _zero(layer, kept, holding):
    """Zero the filters of a layer that are not `kept`: what is behind them is multiplied by zero already."""
    if kept.all():
        return
    for name in affine(layer):
        (parameter,) = originals(layer, name)
        if holding[id(parameter)] > 1:
            parameter = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
            setattr(layer, name, parameter)
        parameter.mul_(kept if parameter.ndim > 1 else kept.flatten())


def weights_read(model):
    """The names of parameters that the network's `forward` reads itself; its layers read theirs by being called."""
    try:
        return {node.target for node in traced(model).nodes if node.op == "get_attr"}
    except ConfigError:  # cannot be traced: then no α stands on a normalization, unless the network was changed since
        return set()


def holders(model):
    """By the id of a parameter, how many modules of `model` hold it."""
    held = (module.parameters(recurse=False) for module in model.modules())
    return Counter(id(parameter) for parameters in held for parameter in parameters)


def _own_class(layer):
    """A class of its own for a parametrized layer.

    torch keeps the parametrized `weight` as a property of the class it injects, which a deep copy shares and from
    which removal deletes it: folding one of the two would break the other.
    """
    shared = type(layer)
    members = {name: value for name, value in vars(shared).items() if name not in ("__dict__", "__weakref__")}
    layer.__class__ = type(shared.__name__, shared.__bases__, members)
