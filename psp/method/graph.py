"""A network's graph as torch.fx traces it, for what has to look behind a layer, and the kinds of module in it."""

import copy
import operator
import traceback
from contextlib import suppress
from pathlib import Path

import torch
from torch import fx, nn

from psp.errors import ConfigError

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
        plain = plain or getattr(module, "made_by_extract", False)
        return plain or isinstance(module, NORMALIZATIONS) or super().is_leaf_module(module, name)


def as_it_is(model):
    """A copy with the same parameters, so that what `forward` writes while it is traced does not stay in `model`."""
    try:
        return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    except Exception:  # one that cannot be copied, as for a tensor with a gradient that it keeps
        return model


def queries_shape(node):
    if node.op == "call_method":
        return node.target in SHAPE_QUERIES
    return node.op == "call_function" and node.target is getattr and node.args[1] in SHAPE_QUERIES
