"""The example and others like it, of other sizes: what depends on the size shows by being another there.

Larger ones are run without numbers before anything is changed, some others with numbers at the end.
"""

import logging
from contextlib import contextmanager

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from psp.errors import ExtractError

# Axes of a batch for each.
NORMALIZATIONS = {nn.BatchNorm1d: (2, 3), nn.BatchNorm2d: (4,), nn.BatchNorm3d: (5,)}


def as_arguments(example_input):
    """The arguments of a `forward` as a tuple, of which anything else is the first and only one."""
    return example_input if isinstance(example_input, tuple) else (example_input,)


def all_tensors(example_input):
    """The arguments of a `forward` as a tuple of tensors. Raises ExtractError if there is anything else."""
    inputs = as_arguments(example_input)
    if not all(isinstance(x, torch.Tensor) for x in inputs):
        raise ExtractError(
            f"example_input must be a tensor, such as images N×channels×height×width, or a tuple of tensors, got "
            f"{example_input!r:.60}"
        )
    return inputs


@contextmanager
def without_numbers(mode=None):
    """torch's fake tensors, which have a shape and no values; yields their mode. What torch logs of them stays away."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        with mode or FakeTensorMode(allow_non_fake_inputs=True) as mode:
            yield mode
    finally:
        log.disabled = before


class Interpreter(fx.Interpreter):
    """Runs a graph; without numbers, a batch normalization costs more than all else, and only has to fit."""

    def call_module(self, target, args, kwargs):
        layer, x = self.fetch_attr(target), args[0] if args else None
        if isinstance(x, FakeTensor) and type(layer) in NORMALIZATIONS and not layer.training:
            axes = NORMALIZATIONS[type(layer)]
            if x.ndim in axes and x.shape[1] == layer.num_features:
                return torch.empty_like(x)
        return super().call_module(target, args, kwargs)


def larger(inputs):
    """Inputs that a network may take, too: a batch twice as long, with images twice as large, one pixel larger, or not.

    Yields tuples of tensors; which of them the network takes is to be tried.
    """
    many = [twice_as_many(x) for x in inputs]
    large = [_resized(x, _space(x), _twice) for x in many]
    yield tuple(large)
    yield tuple(_resized(x, _space(x), _one_more) for x in large)
    yield tuple(many)


def other_sizes(inputs):
    """Inputs of other sizes that a network may take, as tuples: one more and half as many pixels, or steps.

    Pixels along all axes, then along the first and the last of them alone; steps of sequences, N×steps×features or
    N×tokens; and of whatever else axis 1 is, twice as many, too, for a network that takes multiples of some length.
    """
    ways = [(axes, length) for axes in (_space, _steps, _second) for length in (_one_more, _half)]
    ways.append((_second, _twice))
    tried = [tuple(x.shape for x in inputs)]
    for axes, length in (*ways, (_height, _one_more), (_width, _one_more)):
        others = tuple(_resized(x, axes(x), length) for x in inputs)
        shapes = tuple(x.shape for x in others)
        if shapes not in tried:
            tried.append(shapes)
            yield others


def twice_the_size(inputs):
    """Inputs with twice as many pixels, or steps, along each axis: for a network that takes multiples of some size."""
    if any(_space(x) or _steps(x) for x in inputs):
        yield tuple(_resized(x, _space(x) or _steps(x), _twice) for x in inputs)


def another_batch(inputs):
    """One image of several, or one twice: of those inputs that are as many as the first."""
    count = len(inputs[0]) if inputs and inputs[0].ndim else 0
    return tuple(x if not x.ndim or len(x) != count else x[:1] if count > 1 else twice_as_many(x) for x in inputs)


def twice_as_many(x):
    """A batch of the same twice; numbers stay as they are."""
    return torch.cat([x, x]) if x.ndim else x


def _one_more(n):
    return n + 1


def _half(n):
    return -(-n // 2)


def _twice(n):
    return 2 * n


def _space(x):
    return range(2, x.ndim) if x.is_floating_point() else ()


def _height(x):
    return _space(x)[:1] if len(_space(x)) > 1 else ()


def _width(x):
    return _space(x)[-1:] if len(_space(x)) > 1 else ()


def _second(x):
    return (1,) if x.ndim > 1 else ()


def _steps(x):
    return (1,) if x.ndim == (3 if x.is_floating_point() else 2) else ()


def _resized(x, axes, length):
    """A tensor that is `length(n)` long where it was n along some axes, its numbers over again where it is longer."""
    for axis in axes:
        if x.shape[axis]:
            x = x.index_select(axis, torch.arange(length(x.shape[axis])) % x.shape[axis])
    return x
