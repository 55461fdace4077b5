"""Parameters and multiply-accumulates of a network, without what is pruned."""

from collections import Counter
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from psp.errors import ExtractError
from psp.extraction.examples import as_arguments
from psp.method.fold import holders
from psp.method.parameterize import sparsity, structure_parameters
from psp.method.pruners import kept_weights, originals, parametrizations, weight_shape
from psp.method.structures import is_transposed


class Cost(NamedTuple):
    """Parameters, and multiply-accumulates of one forward pass."""

    params: int
    macs: int


def cost(model, example_input):
    """`Cost` of `model` on `example_input`, a tensor or a tuple of arguments; for the usual count give it one image.

    Multiply-accumulates are those that torch.utils.flop_counter knows: convolutions, linear layers, attention and other
    matrix products; normalization, activations and additions are not counted. In a parameterized layer only the weights
    of kept structures count, and α, which `psp.fold` multiplies into them, does not. Inputs that other layers have
    zeroed are counted, and `psp.extract` saves these too; on the other hand it keeps zeros where a dense kernel of few
    zeros is faster. A layer that changes its weight in its own forward, as weight standardization does, counts by what
    is pruned of the weight, though no zero is left. Of torch's MultiheadAttention the output projection is counted
    whole, since it reads that layer's weight without calling it. Raises ExtractError for a shape instead of an example.
    """
    inputs = as_arguments(example_input)
    shape = inputs[0] if isinstance(example_input, list) else inputs
    if len(shape) > 1 and all(isinstance(x, int) for x in shape):
        raise ExtractError(f"example_input is a tensor and not its shape: torch.zeros({', '.join(map(str, shape))})")
    pruned = sparsity(model).layers
    zeroed = {
        name: round(pruned[name].weights * weight_shape(layer).numel())
        for name, (layer, _) in parametrizations(model).items()
    }
    params = left_parameters(model)
    saved = []

    def save(name):
        def hook(layer, args, kwargs, output):
            # A weight takes part once for every pixel of its first axis's channels.
            pixels = read_by(args, kwargs) if is_transposed(layer) else output
            saved.append(zeroed[name] * (pixels.numel() // weight_shape(layer)[0]))

        return hook

    hooks = [(layer, save(name)) for name, (layer, _) in parametrizations(model).items()]
    with hooked(hooks), evaluation_mode(model), countable(model), FlopCounterMode(display=False) as counter:
        model(*(x.clone() if isinstance(x, torch.Tensor) else x for x in inputs))  # a forward may write into its input
    return Cost(params, counter.get_total_flops() // 2 - sum(saved))


def left_parameters(model):
    """How many parameters are left without those that are zeroed and without α."""
    alphas = sum(alpha.numel() for alpha in structure_parameters(model).values())
    return sum(p.numel() for p in model.parameters()) - alphas - zeroed_parameters(model)


def zeroed_parameters(model):
    """How many weights are zeroed; one that several modules share, only where all of them zero it."""
    kept, zeroing, holding = {}, Counter(), holders(model)
    for layer, pruner in parametrizations(model).values():
        weights = tuple(id(p) for p in originals(layer))
        kept[weights] = kept.get(weights, False) | kept_weights(layer, pruner)
        zeroing[weights] += 1
    gone = {weights: mask.numel() - int(mask.sum()) for weights, mask in kept.items()}
    return sum(count for weights, count in gone.items() if zeroing[weights] == holding[weights[0]])


@contextmanager
def countable(model):
    """No gradients, and no fused path of transformer layers and LSTMs, of which the counter would see nothing.

    Not even of parameters: the counter fails on a module that is given a view of one, as of a class token.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    products = torch.backends.mkldnn.enabled
    torch.backends.mha.set_fastpath_enabled(False)
    if any(isinstance(module, nn.LSTM) for module in model.modules()):
        torch.backends.mkldnn.enabled = False
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.backends.mkldnn.enabled = products
        torch.backends.mha.set_fastpath_enabled(fused)
        for parameter in trained:
            parameter.requires_grad_(True)


def read_by(args, kwargs):
    """What a layer is called with, whether its caller names it or not."""
    return args[0] if args else next(iter(kwargs.values()))


@contextmanager
def hooked(hooks):
    """Forward hooks with keyword arguments, pairs of a module and a hook, for as long as the context lasts."""
    handles = [module.register_forward_hook(hook, with_kwargs=True) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluation_mode(model):
    """Every module of `model` in evaluation mode for as long as the context lasts, then as it was before."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield model
    finally:
        for module, mode in training.items():
            module.training = mode
