"""Structure parameters on the layers of a network: given to it, looked at, and folded into plain weights again.

Where the α of a layer stand follows from the structure. For most they multiply its weight. But the α of an output
channel, or of a whole layer, cancels in a normalization that follows: the loss does not see it, and decay shrinks all
alike. There α stands on γ and β of that normalization instead (`psp.method.place`), which the loss does see.

ε and the initial α of the paper are not available to us; our defaults are chosen by experiment (docs/choices.md).
"""

import math
from numbers import Real
from typing import NamedTuple

import torch

from psp.errors import ConfigError
from psp.method.attach import PLACES, attach
from psp.method.pruners import parametrizations, weight_shape
from psp.method.threshold import GRADIENTS, ThresholdedScale

THRESHOLD = 0.1
INIT = 1.0


class LayerSparsity(NamedTuple):
    """Sparsity of one layer, 0…1, and how many structures it is counted over."""

    structures: float
    weights: float
    count: int


class Sparsity(NamedTuple):
    """Share of pruned structures and weights, 0…1, over all parameterized layers, and by layer name."""

    structures: float
    weights: float
    layers: dict


def parameterize(
    model,
    structure="column",
    threshold=THRESHOLD,
    init=INIT,
    skip=(),
    gradient=GRADIENTS[0],
    place=PLACES[0],
    couple=False,
):
    """Give the convolution and linear layers of `model` structure parameters, in place; returns `model`.

    An optimizer that was made before does not know of them: make it afterwards, of `psp.param_groups`. What changes the
    network's modules comes before, such as nn.SyncBatchNorm.convert_sync_batchnorm; what wraps the network, such as
    DistributedDataParallel or torch.compile, between the two.

    Args:
        model: any nn.Module that holds Conv1d/2d/3d, ConvTranspose1d/2d/3d or Linear layers.
        structure: granularity, a key of `psp.method.structures.ALPHA_SHAPE`; or, for different layers, a mapping of
            names or patterns to a granularity or None (left as it is), of which the last one that matches counts:
            {"*": "channel", "layer1.*": "column", "fc": None}. "head" is for attention blocks alone, all of them or
            those whose names match, {"blocks.*.attn": "head"}, see `psp.method.heads`.
        threshold: ε ≥ 0; a structure with |α| < ε is pruned. 0 prunes nothing.
        init: initial α of every structure, |init| ≥ ε; with 1 the first forward pass is that of the plain network.
        skip: layer names, or patterns such as "layer1.*", that stay as they are.
        gradient: of α: "exact" or "summed", see `psp.method.threshold`.
        place: where the α of channels and layers stand. "auto": on γ and β of the normalization that follows, if
            nothing but normalizations follows (`psp.method.place`), which `psp.param_groups` then decays, too; on the
            layer's weight otherwise, as the α of all other structures. "weight": on the weight, whatever follows.
        couple: whether output channels that meet in a sum, such as the branches of a residual stage, share one α and
            are pruned together (`psp.method.coupling`); of layers with structure "channel".

    Raises:
        ConfigError: a network that is wrapped, ε < 0, |init| < ε, an unknown structure, gradient or place, a pattern
            that matches no layer, structure "layer" where no bypass exists, structure "head" without attention, nothing
            to couple, a layer already parameterized, or nothing left to parameterize.
    """
    check_threshold(threshold, init)
    check_gradient(gradient)

    def scale(weight, own, transposed, heads):
        return ThresholdedScale(weight, own, threshold, init, gradient, transposed, heads)

    return attach(model, structure, skip, scale, place, couple)


def check_threshold(threshold, init):
    """Raise ConfigError unless 0 ≤ ε ≤ |init| < ∞."""
    check_number("threshold (ε)", threshold)
    check_number("init α", init)
    if threshold < 0:
        raise ConfigError(f"threshold (ε) must be at least 0, got {threshold}")
    if abs(init) < threshold:
        raise ConfigError(f"init α = {init} lies below the threshold ε = {threshold}: all would start pruned")


def check_number(name, value):
    """Raise ConfigError, naming it, unless a value is a finite number."""
    if not isinstance(value, Real) or not math.isfinite(value):
        raise ConfigError(f"{name} must be a finite number, got {value!r}")


def check_gradient(gradient):
    """Raise ConfigError, naming the known ones, unless `gradient` is a known rule."""
    if gradient not in GRADIENTS:
        raise ConfigError(f"unknown gradient {gradient!r}; choose one of {', '.join(GRADIENTS)}")


def structure_parameters(model):
    """{layer name: α}, the learned structure parameters, in the shapes that `psp.method.structures` gives.

    Of coupled layers, which share their α, the first one's name alone.
    """
    pruners = parametrizations(model).items()
    return {name: pruner.alpha for name, (_, pruner) in pruners if hasattr(pruner, "alpha")}


@torch.no_grad()
def sparsity(model):
    """`Sparsity` of the parameterized layers: pruned structures and zeroed weights over all they have.

    Layers that were skipped count neither as pruned nor as kept. A model without parameterized layers has
    sparsity 0 and no layers.
    """
    layers, pruned, total, zeros, size = {}, 0, 0, 0, 0
    for name, (layer, pruner) in parametrizations(model).items():
        kept = pruner.kept()
        gone = kept.numel() - int(kept.sum())
        weights = weight_shape(layer).numel()
        zeroed = gone * weights // kept.numel()  # every structure of a layer holds equally many weights
        layers[name] = LayerSparsity(gone / kept.numel(), zeroed / weights, kept.numel())
        pruned, total, zeros, size = pruned + gone, total + kept.numel(), zeros + zeroed, size + weights
    return Sparsity(pruned / max(total, 1), zeros / max(size, 1), layers)
