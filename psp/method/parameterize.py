"""Parameterized structures: every structure i of a weight is multiplied by a learned α_i.

Forward:   q_i = w_i · ν(α_i),   ν(α) = 0 where |α| < ε, else α
Backward:  ∂ν/∂α = 1 (straight-through), so that a pruned structure still receives a gradient and can
           come back; ∂E/∂α_i = Σ_j ∂E/∂q_ij · w_ij over the weights j of structure i, the exact chain
           rule of q = w · α; or, "summed", Σ_j ∂E/∂q_ij without the factor w_ij.

Source: Schindler et al. 2019, section 3. The forward and backward rules are as we remember them, and which of
the two gradients the paper prints is not available to us, nor are ε and the initial α: our defaults are chosen
by experiment (see README).
"""

import math
from collections import Counter
from numbers import Real
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils import parametrize

from psp.errors import ConfigError
from psp.method.choose import choose_structures
from psp.method.structures import alpha_shape

THRESHOLD = 0.1
INIT = 1.0
GRADIENTS = ("exact", "summed")


class ThresholdedScale(nn.Module):
    """The parametrization w ↦ w · ν(α) of one weight, with a straight-through threshold."""

    def __init__(self, weight, structure, threshold, init, gradient=GRADIENTS[0]):
        super().__init__()
        shape = alpha_shape(weight.shape, structure)
        self.structure = structure
        self.threshold = threshold
        self.gradient = gradient
        self.alpha = nn.Parameter(weight.new_full(shape, init).detach())

    def kept(self):
        """Boolean tensor in the shape of α: True where the structure survives, |α| ≥ ε."""
        return (self.alpha.detach().abs() < self.threshold).logical_not()  # NaN is not pruned

    def forward(self, weight):
        nu = torch.where(self.kept(), self.alpha, 0.0)
        if self.gradient == "summed":  # the second term is 0, and carries ∂q_ij/∂α_i = 1
            return weight * nu.detach() + (self.alpha - self.alpha.detach())
        # Its value is ν(α) exactly (α + (0 − α) = 0 and α + 0 = α in floating point), its gradient that of α.
        straight_through = self.alpha + (nu - self.alpha).detach()
        return weight * straight_through

    def extra_repr(self):
        return f"structure={self.structure}, threshold={self.threshold}, alpha={tuple(self.alpha.shape)}"


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


def parameterize(model, structure="column", threshold=THRESHOLD, init=INIT, skip=(), gradient=GRADIENTS[0]):
    """Give the convolution and linear layers of `model` structure parameters, in place; returns `model`.

    Args:
        model: any nn.Module that holds Conv1d/2d/3d or Linear layers.
        structure: granularity, a key of `psp.method.structures.ALPHA_SHAPE`; or, for different layers, a mapping of
            names or patterns to a granularity or None (left as it is), of which the last one that matches counts:
            {"*": "channel", "layer1.*": "column", "fc": None}.
        threshold: ε ≥ 0; a structure with |α| < ε is pruned. 0 prunes nothing.
        init: initial α of every structure, |init| ≥ ε; with 1 the first forward pass is that of the plain network.
        skip: layer names, or patterns such as "layer1.*", that stay as they are.
        gradient: of α: "exact" or "summed", see above.

    Raises:
        ConfigError: ε < 0, |init| < ε, an unknown structure or gradient, a pattern that matches no layer, structure
            "layer" where no bypass exists, a layer already parameterized, or nothing left to parameterize.
    """
    check_threshold(threshold, init)
    check_gradient(gradient)
    return attach(model, structure, skip, lambda weight, own: ThresholdedScale(weight, own, threshold, init, gradient))


def check_threshold(threshold, init):
    """Raise ConfigError unless 0 ≤ ε ≤ |init| < ∞."""
    for name, value in (("threshold (ε)", threshold), ("init α", init)):
        if not isinstance(value, Real) or not math.isfinite(value):
            raise ConfigError(f"{name} must be a finite number, got {value!r}")
    if threshold < 0:
        raise ConfigError(f"threshold (ε) must be at least 0, got {threshold}")
    if abs(init) < threshold:
        raise ConfigError(f"init α = {init} lies below the threshold ε = {threshold}: all would start pruned")


def check_gradient(gradient):
    """Raise ConfigError, naming the known ones, unless `gradient` is a known rule."""
    if gradient not in GRADIENTS:
        raise ConfigError(f"unknown gradient {gradient!r}; choose one of {', '.join(GRADIENTS)}")


def attach(model, structure, skip, make_parametrization):
    """Register `make_parametrization(weight, structure)` on the weight of every chosen layer; returns `model`.

    `structure` and `skip` choose as in `psp.method.choose.choose_structures`. Everything that can be wrong is found
    before the first layer is touched.
    """
    chosen = choose_structures(model, structure, skip)
    layers = {name: model.get_submodule(name) for name in chosen}
    for name, layer in layers.items():
        if _pruner(layer) is not None:
            raise ConfigError(f"layer {name!r} is parameterized already; psp.fold(model) makes it plain again")
        if "weight" not in layer._parameters and not parametrize.is_parametrized(layer, "weight"):
            raise ConfigError(
                f"the weight of layer {name!r} is no parameter, as after torch.nn.utils.weight_norm, spectral_norm or "
                "prune; use those of torch.nn.utils.parametrizations, remove it (prune.remove), or skip the layer"
            )
    made = {name: _made(name, layer, chosen[name], make_parametrization) for name, layer in layers.items()}
    for name, layer in layers.items():
        parametrize.register_parametrization(layer, "weight", made[name])
    return model


def _made(name, layer, structure, make_parametrization):
    try:
        return make_parametrization(layer.weight, structure)
    except ConfigError as error:
        raise ConfigError(f"layer {name!r}: {error}") from error


def parametrizations(model):
    """{layer name: (layer, its parametrization)} of every layer that PSP or one of the baselines prunes."""
    found = ((name, layer, _pruner(layer)) for name, layer in model.named_modules())
    return {name: (layer, pruner) for name, layer, pruner in found if pruner is not None}


def structure_parameters(model):
    """{layer name: α}, the learned structure parameters, in the shapes that `psp.method.structures` gives."""
    pruners = parametrizations(model).items()
    return {name: pruner.alpha for name, (_, pruner) in pruners if hasattr(pruner, "alpha")}


def weight_shape(layer):
    """Shape of a parameterized layer's weight without computing it; torch's weight_norm keeps that in two tensors."""
    return max(layer.parametrizations.weight.parameters(recurse=False), key=torch.Tensor.numel).shape


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


def fold(model):
    """Write w · ν(α) into the plain weights and drop the parametrization, in place; returns `model`.

    Outputs stay the same. Other parametrizations on the same weight are folded with it; a weight that several modules
    of the model share becomes each one's own.
    """
    holding = holders(model)
    for layer, _ in parametrizations(model).values():
        _own_class(layer)
        originals = layer.parametrizations.weight
        for name, weight in list(originals.named_parameters(recurse=False)):
            if holding[id(weight)] > 1:  # torch writes the new weight into it
                setattr(originals, name, nn.Parameter(weight.detach().clone(), weight.requires_grad))
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return model


def holders(model):
    """By the id of a parameter, how many modules of `model` hold it."""
    held = (module.parameters(recurse=False) for module in model.modules())
    return Counter(id(parameter) for parameters in held for parameter in parameters)


def _pruner(layer):
    """The parametrization on `layer`'s weight that decides which structures are kept, or None."""
    if not parametrize.is_parametrized(layer, "weight"):
        return None
    return next((p for p in layer.parametrizations.weight if hasattr(p, "kept")), None)


def _own_class(layer):
    """A class of its own for a parametrized layer.

    torch keeps the parametrized `weight` as a property of the class it injects, which a deep copy shares and from
    which removal deletes it: folding one of the two would break the other.
    """
    shared = type(layer)
    members = {name: value for name, value in vars(shared).items() if name not in ("__dict__", "__weakref__")}
    layer.__class__ = type(shared.__name__, shared.__bases__, members)
