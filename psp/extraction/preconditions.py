"""What a network and an example must be to be extracted, or frozen: said before work begins."""

import torch

from psp.errors import ExtractError
from psp.extraction.examples import all_tensors
from psp.method import choose
from psp.method.pruners import parametrizations

# Weights' averages wrap a network, too, whose own psp.parameterize may be given.
WRAPPERS = {**choose.WRAPPERS, "AveragedModel": "module"}


def check(model):
    """Raise ExtractError unless `model` is a parameterized network of one type that can be looked into."""
    check_plain(model)
    if not parametrizations(model):
        raise ExtractError(
            f"{type(model).__name__} has no parameterized layer, so nothing in it is pruned; call "
            "psp.parameterize(model) and train it first, and do not call psp.fold before psp.extract"
        )
    check_evaluation(model)
    kinds = {}
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():
            kinds.setdefault(parameter.dtype, name.partition(".parametrizations.")[0])
    if len(kinds) > 1:
        named = ", ".join(f"{name!r} in {str(dtype).removeprefix('torch.')}" for dtype, name in kinds.items())
        raise ExtractError(f"the weights are of several types: {named}; bring them to one, as by model.float(), first")


def check_plain(model):
    """Raise ExtractError, naming what is in the way, for a wrapped network and for one with forward hooks."""
    kind = type(model).__name__
    if kind in WRAPPERS:
        raise ExtractError(f"{kind} wraps the network: give model.{WRAPPERS[kind]} instead")
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise ExtractError(
                f"{_named(name, model)} has a forward hook, which a new network would not have; remove it first, by "
                "handle.remove() or, if torch put it there, as torch.nn.utils.remove_spectral_norm does"
            )


def check_evaluation(model):
    """Raise ExtractError, naming the module, if any module of `model` is in training mode."""
    for name, module in model.named_modules():
        pruning = hasattr(module, "kept") or "parametrizations" in name.split(".")  # their mode changes nothing
        if module.training and not pruning:
            raise ExtractError(f"{_named(name, model)} is in training mode; call model.eval() first")


def _named(name, model):
    return f"module {name!r} of {type(model).__name__}" if name else type(model).__name__


def as_inputs(example_input):
    """The arguments of `forward` as a tuple, in float64. Raises ExtractError if there is anything but tensors."""
    inputs = all_tensors(example_input)
    return tuple(x.detach().to("cpu", torch.float64 if x.is_floating_point() else x.dtype) for x in inputs)
