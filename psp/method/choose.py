"""Which layers of a network are parameterized, and by which structure."""

import warnings
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from torch import nn

from psp.errors import ConfigError
from psp.method.bypass import check_bypass
from psp.method.graph import LAYERS
from psp.method.heads import check_heads, projections
from psp.method.structures import HEAD, check_structure

# What wraps a network to train or run it, and the attribute that is the network itself.
WRAPPERS = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "FullyShardedDataParallel": "module",
    "OptimizedModule": "_orig_mod",  # of torch.compile
}


def choose_structures(model, structure, skip=()):
    """{layer name: structure} of the convolution and linear layers of `model` that are to be parameterized.

    Args:
        model: any nn.Module.
        structure: one structure for all layers, or a mapping of layer names or patterns to a structure or None
            (left as it is). Where several patterns match a layer, the last one counts; a layer that none
            matches is left as it is. Structure "head" matches output projections of attention blocks alone, by their
            names or those of the blocks.
        skip: layer names or patterns that are left as they are.

    Raises:
        ConfigError: an unknown structure; structure "head" for what is no attention; a pattern that matches no layer,
            or none that later patterns leave to it; no layer left; a layer without a bypass that would get structure
            "layer"; a layer without a shape yet.
    """
    check_network(model)
    names, extracted = candidates(model)
    rules = dict(structure) if isinstance(structure, Mapping) else {"*": structure}
    skip = patterns(skip)
    for wanted in rules.values():
        if wanted is not None:
            check_structure(wanted)
    patterns(rules)
    if not names:
        raise ConfigError(f"no convolution or linear layer left to parameterize in {type(model).__name__}")
    deciding = deciding_patterns(model, names, rules, skip)
    chosen = {name: rules[pattern] for name, pattern in deciding.items() if rules[pattern] is not None}
    for name in _left_out(chosen, skip, extracted):
        del chosen[name]
    if not chosen:
        raise ConfigError(
            f"no convolution or linear layer left to parameterize in {type(model).__name__} by structure={structure!r} "
            f"and skip={skip!r}"
        )
    check_initialized(model, chosen)
    check_bypass(model, [name for name, wanted in chosen.items() if wanted == "layer"])
    return chosen


def candidates(model):
    """(names of all layers that a pattern may mean, those among them that psp.extract made, which come last)."""
    extracted = [name for name, m in model.named_modules() if hasattr(m, "made_by_extract") and hasattr(m, "weight")]
    layers = [name for name, module in model.named_modules() if isinstance(module, LAYERS)]
    return [*(name for name in layers if name not in extracted), *extracted], extracted


def deciding_patterns(model, names, rules, skip):
    """{name: the last pattern of `rules` that matches it} of the layers `names` that any does.

    Raises ConfigError for a pattern that matches no layer, and for one of `rules` that decides of none.
    """
    blocks = projections(model) if HEAD in rules.values() else {}

    def matches(name, pattern):
        if rules.get(pattern) != HEAD:
            return fnmatchcase(name, pattern)
        return name in blocks and (fnmatchcase(name, pattern) or fnmatchcase(blocks[name].name, pattern))

    check_heads(model, blocks, rules, matches)
    for kind, pattern in [("structure", p) for p in rules] + [("skip", p) for p in skip]:
        if not any(matches(name, pattern) for name in names):
            raise ConfigError(f"{kind} pattern {pattern!r} matches no layer; the layers are: {', '.join(names)}")
    deciding = {name: [p for p in rules if matches(name, p)][-1:] for name in names}
    for pattern in rules:
        if [pattern] not in deciding.values():
            raise ConfigError(f"structure pattern {pattern!r} decides nothing: later ones match all of its layers")
    return {name: found[0] for name, found in deciding.items() if found}


def _left_out(chosen, skip, extracted):
    """Those of the layers `chosen` that are to be skipped, and with a warning those that psp.extract made."""
    skipped = [name for name in chosen if any(fnmatchcase(name, pattern) for pattern in skip)]
    made = [name for name in extracted if name in chosen and name not in skipped]
    if made:
        warnings.warn(
            f"{', '.join(made)} have nothing but weights that were kept, and stay as they are: to prune more, go on "
            "from the network that psp.extract was given",
            stacklevel=5,
        )
    return skipped + made


def check_network(model):
    """Raise ConfigError unless `model` is an nn.Module."""
    if not isinstance(model, nn.Module):
        raise ConfigError(f"a network is an nn.Module, got {model!r:.60}")


def check_unwrapped(model):
    """Raise ConfigError for what torch made of a network to train or run it: that does not know of new parameters."""
    if type(model).__name__ in WRAPPERS:
        raise ConfigError(
            f"a network is parameterized before it is wrapped, not as {type(model).__name__}: parameterize it, then "
            "wrap or compile it, then make the optimizer"
        )


def patterns(skip):
    """Names or patterns of layers as a tuple: one, several, or None. Raises ConfigError for anything else."""
    found = (skip,) if isinstance(skip, str) else tuple(skip or ()) if isinstance(skip, Iterable | None) else (skip,)
    for pattern in found:
        if not isinstance(pattern, str):
            raise ConfigError(f"layers are chosen by names or patterns, such as 'layer1.*', got {pattern!r}")
    return found


def check_initialized(model, names):
    """Raise ConfigError, naming the layer, for one whose weight has no shape before it has seen an input."""
    for name in names:
        if nn.parameter.is_lazy(model.get_submodule(name).weight):
            raise ConfigError(f"layer {name!r} has no shape yet; run the network once on an example first")
