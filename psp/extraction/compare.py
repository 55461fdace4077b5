"""Whether the smaller network gives the outputs of the masked one, in whatever form they come."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass

import torch

from psp.errors import ExtractError

# In float64, relative to the largest output: rounding alone, after a hundred layers.
TOLERANCE = 1e-9
# In the network's own type: what two ways to compute the same may be apart at most, and two functions are.
ROUNDED = {torch.float64: 1e-6, torch.float32: 1e-2}


def with_noise(inputs):
    """The inputs with normal noise added to what is not whole numbers: an example of zeros would hide much."""
    noise = torch.Generator().manual_seed(0)
    return tuple(
        x + torch.randn(x.shape, generator=noise, dtype=x.dtype) if x.is_floating_point() else x for x in inputs
    )


def check_finite(outputs):
    """Raise ExtractError if any tensor of the outputs has a value that is not finite."""
    if not all(tensor.isfinite().all() for tensor in _tensors(outputs)):
        raise ExtractError(
            "the network's outputs for example_input are not finite; look at its weights and the example"
        )


def compare(outputs, expected):
    """Raise ExtractError unless two outputs, tensors or nests of them, agree."""
    for ours, theirs in zip(_tensors(outputs), _tensors(expected), strict=True):
        if ours.shape != theirs.shape or not _agree(ours, theirs):
            raise ExtractError(
                "the smaller network does not give the outputs of the masked one: its forward is no function of the "
                "input alone (random numbers, a state, a write into a view of a tensor, a question for a type)"
            )


def in_same_types(network, examples):
    """Pairs of a network's outputs and the masked one's for `accepted` examples; None where their types differ."""
    pairs = []
    for values, expected in examples:
        try:
            pairs += zip(_tensors(network.forward(*values)), _tensors(expected), strict=True)
        except Exception:  # whatever an operation raises on a type that it is not for
            return None
    same = all((ours.dtype, ours.device) == (theirs.dtype, theirs.device) for ours, theirs in pairs)
    return pairs if same else None


def same_but_for_rounding(ours, theirs):
    """Whether two outputs of one type are no further apart than `ROUNDED`, which not all types have."""
    return theirs.dtype not in ROUNDED or _agree(ours, theirs, ROUNDED[theirs.dtype])


def distance(ours, theirs):
    """Largest |difference| of two tensors, relative to the largest value of the second."""
    return ((ours.to(theirs) - theirs).abs().max() / theirs.abs().max()).item()


def accepted(masked, examples):
    """[(example, what the masked network makes of it)] of those examples that it takes."""
    found = []
    for values in examples:
        with suppress(Exception):  # whatever a forward may raise on a size that it is not for
            # What fails by being called prints a traceback of torch.fx's, and here it may fail.
            found.append((values, masked.forward(*(x.clone() for x in values))))
    return found


def check_batch(smaller, batch):
    """Raise ExtractError unless the smaller network agrees on a batch of another length, as of `accepted`."""
    cause = disagreement(smaller, batch)
    if cause:
        raise ExtractError(
            "the network's forward does other things for one image than for several, and what is extracted would do "
            "the same for both; take what asks for the length of the batch out of it"
        ) from cause


def disagreement(smaller, examples):
    """What is wrong with the smaller network's outputs for some examples, as of `accepted`: an exception, or None."""
    for values, expected in examples:
        try:
            compare(smaller.forward(*(x.clone() for x in values)), expected)
        except Exception as error:  # whatever it raises where the masked network does not
            return error
    return None


def _agree(ours, theirs, tolerance=TOLERANCE):
    if not (theirs.is_floating_point() or theirs.is_complex()):
        return torch.equal(ours, theirs)
    return torch.allclose(ours, theirs, rtol=0, atol=tolerance * _largest(theirs), equal_nan=True)


def _tensors(nest):
    """All tensors of a nest of lists, tuples, dicts and dataclasses, in order."""
    if isinstance(nest, torch.Tensor):
        return [nest]
    if is_dataclass(nest):
        nest = [getattr(nest, field.name) for field in fields(nest)]
    elif isinstance(nest, Mapping):
        nest = nest.values()
    elif not isinstance(nest, (list, tuple)):
        return []
    return [tensor for part in nest for tensor in _tensors(part)]


def _largest(tensor):
    finite = tensor[tensor.isfinite()]
    return float(finite.abs().max()) if finite.any() else 1.0
