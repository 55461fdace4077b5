"""Weights that several modules of a network share, and that the smaller one's should share, too."""

from collections import defaultdict

import torch

from psp.extraction.names import free_name


def tie(smaller, model):
    """Have modules of `smaller` share a parameter, in place, where those of `model` do and both are still the same.

    As an embedding and the classifier behind it: tracing gives each module a copy of its own.
    """
    left = dict(smaller.named_modules())
    for names in shared(model):
        first = None
        for owner, key in names:
            module = left.get(free_name(owner))
            parameter = None if module is None else module._parameters.get(key)
            if parameter is None:
                continue
            if first is None:
                first = parameter
            elif first.shape == parameter.shape and torch.equal(first, parameter):
                module._parameters[key] = first


def shared(model):
    """Of each parameter that several modules hold: pairs of a module's name and what the parameter is called there.

    Of one that a parametrization holds, what it is called without.
    """
    holding = defaultdict(list)
    for name, module in model.named_modules():
        owner, parametrized, tensor = name.partition(".parametrizations.")
        for key, parameter in module.named_parameters(recurse=False):
            holding[id(parameter)].append((owner, tensor if parametrized else key))
    return [names for names in holding.values() if len(names) > 1]
