"""What Figure 3 compares PSP with: pruning to a prescribed sparsity, layer by layer.

ℓ1 norm: train, prune, retrain. Each structure's importance is ‖w_i‖₁ (Li et al. 2017, Mao et al. 2017); at
one moment of the training the least important ones are masked for good and the rest trains on. Whole layers have
no rivals within themselves: they are ranked over the network, by mean |w|, since their sizes differ, and those of one
branch, of use only together, as one (`psp.method.place`).
Fixed sparsity: PSP without a regularizer's choice. The layer's structures with the smallest |α| are
pruned at every step, straight-through, so that which ones they are can change until the end.
How the paper schedules its ℓ1-norm pruning is not available to us.
"""

from collections import defaultdict
from numbers import Real

import torch
from torch import nn

from psp.errors import ConfigError
from psp.method.attach import PLACES, attach
from psp.method.parameterize import INIT, check_gradient, check_number
from psp.method.pruners import parametrizations
from psp.method.structures import HEAD, alpha_shape, is_one_structure
from psp.method.threshold import GRADIENTS, ThresholdedScale


class FixedSparsity(ThresholdedScale):
    """w ↦ w · ν(α) where ν zeroes the `pruned` structures of smallest |α| instead of those below ε."""

    def __init__(self, weight, structure, sparsity, init, gradient, transposed=False, heads=None):
        check_share(structure, weight.shape, transposed, heads)
        super().__init__(weight, structure, None, init, gradient, transposed, heads)
        self.sparsity = sparsity

    def kept(self):
        return largest(self.alpha.detach().abs(), self.sparsity)

    def extra_repr(self):
        return f"structure={self.structure}, sparsity={self.sparsity}, alpha={tuple(self.alpha.shape)}"


class NormMask(nn.Module):
    """w ↦ w · m with a binary mask m per structure; everything is kept until `prune` is called."""

    def __init__(self, weight, structure, transposed=False, heads=None):
        super().__init__()
        if structure == HEAD:
            raise ConfigError("structure 'head' is for psp.parameterize and a fixed sparsity, not for the ℓ1 norm")
        if structure != "layer":
            check_share(structure, weight.shape, transposed)
        self.structure = structure
        shape = alpha_shape(weight.shape, structure, transposed)
        self.register_buffer("mask", torch.ones(shape, dtype=torch.bool, device=weight.device))

    def kept(self):
        return self.mask

    def forward(self, weight, shape=None):
        """`weight` times the mask, given another shape for a layer that shares it."""
        return weight * (self.mask if shape is None else self.mask.reshape(shape))

    def prune(self, weight, sparsity):
        """Mask the share `sparsity` of structures with the smallest ‖w_i‖₁."""
        spanned = [axis for axis, length in enumerate(self.mask.shape) if length == 1]
        norm = weight.detach().abs().sum(spanned, keepdim=True) if spanned else weight.detach().abs()
        self.mask.copy_(largest(norm, sparsity))


def fix_sparsity(model, structure="column", sparsity=0.5, init=INIT, skip=(), gradient=GRADIENTS[0], place=PLACES[0]):
    """PSP at a prescribed sparsity: in every layer the share `sparsity` (0…1) of smallest |α| is pruned.

    In place; returns `model`. Arguments and errors as `psp.parameterize`, and ConfigError for a sparsity outside
    0…1 or for a layer that is one structure, as all are for "layer" and 1×1 convolutions for "shape".
    """
    check_sparsity(sparsity)
    check_number("init α", init)
    check_gradient(gradient)

    def scale(weight, own, transposed, heads):
        return FixedSparsity(weight, own, sparsity, init, gradient, transposed, heads)

    return attach(model, structure, skip, scale, place)


def attach_norm_masks(model, structure="column", skip=()):
    """Give every layer an all-kept mask per structure, in place; `prune_by_norm` closes them. Returns `model`."""
    return attach(model, structure, skip, NormMask, join_branches=True)


def prune_by_norm(model, sparsity):
    """In every layer with a `NormMask`, prune the share `sparsity` (0…1) of structures of smallest ℓ1 norm.

    Of the branches of layers with structure "layer", that share, those of smallest mean |w|. In place; returns `model`.
    """
    check_sparsity(sparsity)
    branches = defaultdict(list)  # by the mask that their layers share
    for layer, pruner in parametrizations(model).values():
        if pruner.structure == "layer":
            branches[getattr(pruner, "leader", (pruner,))].append(layer.weight.detach())
        elif isinstance(pruner, NormMask):
            pruner.prune(layer.weight, sparsity)
    prune_whole({mask: weights for (mask,), weights in branches.items() if isinstance(mask, NormMask)}, sparsity)
    return model


def prune_whole(branches, sparsity):
    """Of {mask: the weights it is for}, close the share `sparsity` with the smallest mean |w| of all their weights."""
    if not branches:
        return
    magnitudes = (torch.cat([weight.abs().flatten() for weight in weights]) for weights in branches.values())
    score = torch.stack([magnitude.mean() for magnitude in magnitudes])
    for mask, kept in zip(branches, largest(score, sparsity), strict=True):
        mask.mask.fill_(kept)


def largest(score, sparsity):
    """Boolean mask in the shape of `score`: all but the round(sparsity · n) smallest; ties go to the first."""
    keep = score.numel() - round(sparsity * score.numel())
    order = score.flatten().argsort(descending=True, stable=True)
    kept = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
    return kept.index_fill_(0, order[:keep], True).view_as(score)


def check_sparsity(sparsity):
    """Raise ConfigError unless 0 ≤ sparsity ≤ 1."""
    if not isinstance(sparsity, Real) or not 0 <= sparsity <= 1:
        raise ConfigError(f"sparsity must lie in 0…1, got {sparsity!r}")


def check_share(structure, weight_shape=(), transposed=False, heads=None):
    """Raise ConfigError where a layer is one structure: no share of it can be prescribed."""
    if structure == "layer":
        raise ConfigError(
            "structure 'layer' has no sparsity per layer to prescribe; use psp.parameterize, or the ℓ1 norm, which "
            "ranks whole layers over the network"
        )
    if weight_shape and is_one_structure(weight_shape, structure, transposed, heads):
        raise ConfigError(
            f"structure {structure!r} of a weight {'×'.join(map(str, weight_shape))} is the whole layer, which has no "
            "sparsity to prescribe; skip this layer or give it another structure"
        )
