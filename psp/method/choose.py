"""Which layers of a network are parameterized, and by which structure.

A whole layer can be pruned only where a bypass exists, such as the shortcut of a residual block or the
concatenation of a dense block: what the bypass carries must still get from the input to the output.
"""

import copy
import operator
import traceback
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import fx, nn

from psp.errors import ConfigError
from psp.method.heads import check_heads, projections
from psp.method.structures import HEAD, check_structure

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (*CONVOLUTIONS, nn.Linear)
# Each channel by itself; and all channels of an image together, in which only the α of a whole layer cancels.
BY_CHANNEL = (nn.modules.batchnorm._NormBase,)
BY_IMAGE = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
NORMALIZATIONS = BY_CHANNEL + BY_IMAGE
# What only looks at a tensor's shape passes none of its values on.
SHAPE_QUERIES = ("size", "dim", "shape", "numel")
PRODUCTS = (operator.mul, torch.mul, "mul")
# Folders of code that calls a network's when it is traced.
NOT_THE_USERS = (Path(torch.__file__).parent, Path(__file__).parent, Path(__file__).parents[1] / "extraction")
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
    gone = [name for name, module in model.named_modules() if getattr(module, "without_zeros", False)]
    layers = [name for name, module in model.named_modules() if isinstance(module, LAYERS)]
    names = [*(name for name in layers if name not in gone), *gone]
    rules = dict(structure) if isinstance(structure, Mapping) else {"*": structure}
    skip = patterns(skip)
    for wanted in rules.values():
        if wanted is not None:
            check_structure(wanted)
    patterns(rules)
    if not names:
        raise ConfigError(f"no convolution or linear layer left to parameterize in {type(model).__name__}")
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
    chosen = {name: rules[p[0]] for name, p in deciding.items() if p and not any(fnmatchcase(name, s) for s in skip)}
    chosen = {name: wanted for name, wanted in chosen.items() if wanted is not None}
    if left_out := [name for name in gone if chosen.pop(name, None)]:
        warnings.warn(
            f"{', '.join(left_out)} have nothing but weights that were kept, and stay as they are: to prune more, go "
            "on from the network that psp.extract was given",
            stacklevel=4,
        )
    if not chosen:
        raise ConfigError(
            f"no convolution or linear layer left to parameterize in {type(model).__name__} by structure={structure!r} "
            f"and skip={skip!r}"
        )
    check_initialized(model, chosen)
    check_bypass(model, [name for name, wanted in chosen.items() if wanted == "layer"])
    return chosen


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


def check_bypass(model, names, behind=()):
    """Raise ConfigError, naming the layers at fault, unless input reaches output with all of `names` removed.

    `behind` is as of `without_bypass`.
    """
    blocking = without_bypass(model, names, behind) if names else []
    if blocking:
        raise ConfigError(
            f"structure 'layer' needs a bypass, and nothing leads around {', '.join(blocking)} once the other layers "
            "are pruned; skip these layers or give them another structure"
        )


def without_bypass(model, names, behind=()):
    """The layers of `names`, in the order of execution, whose removal after the others' would cut input from output.

    `behind` has pairs (layer, normalization) of which the second puts out 0, too, once the first is removed.
    """
    graph, calls = traced(model, "structure 'layer' has to see the branches of the network"), {}
    for node in graph.nodes:
        name = _layer_called(model, node)
        if name in names:
            calls.setdefault(name, set()).add(node)
        elif node.op == "get_attr" and node.target.endswith(".weight"):  # a weight that is used without its layer
            name = node.target.removesuffix(".weight")
            if name in names:
                calls.setdefault(name, set()).update(node.users)
    zeros = {node for name, nodes in calls.items() if model.get_submodule(name).bias is None for node in nodes}
    for name, norm in behind:
        nodes = {node for node in graph.nodes if node.op == "call_module" and node.target == norm}
        calls[name], zeros = calls.get(name, set()) | nodes, zeros | nodes
    removed, blocking = set(), []
    for name, nodes in calls.items():
        if _output_is_reached(graph, removed | nodes, zeros & (removed | nodes)):
            removed |= nodes
        else:
            blocking.append(name)
    return blocking


def _layer_called(model, node):
    """The name of the layer whose output a node puts out: that which it calls, of attention its output projection."""
    if node.op != "call_module":
        return None
    attention = isinstance(model.get_submodule(node.target), nn.MultiheadAttention)
    return f"{node.target}.out_proj" if attention else node.target


def traced(model, why="where α stands depends on what follows a layer"):
    """The network's graph, that of evaluation mode where training has code that torch.fx cannot trace.

    Raises ConfigError, saying `why` it is needed and naming the line that is in the way, where that cannot be, either.
    """
    other = as_it_is(model)
    try:
        return Tracer().trace(other)
    except Exception as error:  # whatever the model's forward raises when it meets a symbolic value
        if model.training and other is not model:
            with suppress(Exception):
                return Tracer().trace(as_it_is(model).eval())
        raise ConfigError(
            f"{why}, and torch.fx cannot trace {type(model).__name__}{line_of(error)}: {error}"
        ) from error


def line_of(error):
    """Where in the user's code an error of tracing comes from: the innermost line that is neither torch's nor ours."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not any(Path(f.filename).is_relative_to(folder) for folder in NOT_THE_USERS)]
    own = [f for f in own if Path(f.filename).is_file()]
    return f" at {own[-1].filename}:{own[-1].lineno}, {own[-1].line!r}" if own else ""


class Tracer(fx.Tracer):
    """One for which layers and normalizations of the user's own are as torch's, whose subclasses they are."""

    def is_leaf_module(self, module, name):
        inside = [name for name, _ in module.named_children() if name not in ("structure", "parametrizations")]
        plain = isinstance(module, LAYERS) and not inside
        plain = plain or getattr(module, "without_zeros", False) or getattr(module, "selects_channels", False)
        return plain or isinstance(module, NORMALIZATIONS) or super().is_leaf_module(module, name)


def as_it_is(model):
    """A copy with the same parameters, so that what `forward` writes while it is traced does not stay in `model`."""
    try:
        return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    except Exception:  # one that cannot be copied, as for a tensor with a gradient that it keeps
        return model


def _output_is_reached(graph, removed, zeros):
    """Whether input reaches output beside the nodes `removed`, of which `zeros` put out 0, and others constants."""
    reached = set()
    for node in graph.nodes:  # in order of execution: a node's inputs come before it
        if node.target in PRODUCTS and zeros.intersection(node.all_input_nodes):
            zeros = zeros | {node}
            continue
        fed = node.op == "placeholder" or any(source in reached for source in node.all_input_nodes)
        if fed and node not in removed and not queries_shape(node):
            reached.add(node)
    return any(node.op == "output" for node in reached)


def queries_shape(node):
    if node.op == "call_method":
        return node.target in SHAPE_QUERIES
    return node.op == "call_function" and node.target is getattr and node.args[1] in SHAPE_QUERIES
