"""The threshold: every structure i of a weight is multiplied by ν(α_i) of a learned α_i.

Forward:   q_i = w_i · ν(α_i),   ν(α) = 0 where |α| < ε, else α
Backward:  ∂ν/∂α = 1 (straight-through), so that a pruned structure still receives a gradient and can
           come back; ∂E/∂α_i = Σ_j ∂E/∂q_ij · w_ij over the weights j of structure i, the exact chain
           rule of q = w · α; or, "summed", Σ_j ∂E/∂q_ij without the factor w_ij.

Source: Schindler et al. 2019, section 3. The forward and backward rules are as we remember them, and which of
the two gradients the paper prints is not available to us; the summed one was tried and trains badly
(docs/choices.md).
"""

import torch
from torch import nn

from psp.errors import ConfigError
from psp.method.structures import alpha_shape, is_transposed

GRADIENTS = ("exact", "summed")


class ThresholdedScale(nn.Module):
    """The parametrization w ↦ w · ν(α) of one weight, with a straight-through threshold.

    `values` are the layer's weight, or, where α stands on the normalization that follows (`OnNormalization`), the
    entries of γ or β that belong to the layer's channels.
    """

    def __init__(self, weight, structure, threshold, init, gradient=GRADIENTS[0], transposed=False, heads=None):
        super().__init__()
        shape = alpha_shape(weight.shape, structure, transposed, heads)
        self.columns = 1 if heads is None else weight.shape[1] // heads  # for which one α stands
        self.structure = structure
        self.threshold = threshold
        # ε in the weight's type, so that an α of just ε is kept in every type that the network is brought to.
        self.least = threshold and torch.tensor(threshold, dtype=weight.dtype, device="cpu").item()
        self.gradient = gradient
        self.alpha = nn.Parameter(weight.new_full(shape, init).detach())

    def kept(self):
        """Boolean tensor in the shape of α: True where the structure survives, |α| ≥ ε."""
        return (self.alpha.detach().abs() < self.least).logical_not()  # NaN is not pruned

    def forward(self, values, shape=None):
        """`values` times ν(α), whose α is given another shape for a layer that shares it."""
        alpha, kept = self.alpha, self.kept()
        if shape is not None:
            alpha, kept = alpha.reshape(shape), kept.reshape(shape)
        if self.columns > 1:
            alpha, kept = (tensor.repeat_interleave(self.columns, 1) for tensor in (alpha, kept))
        if values.ndim != alpha.ndim:  # γ and β have but the axis of channels
            alpha, kept = (tensor.reshape(-1, *[1] * (values.ndim - 1)) for tensor in (alpha, kept))
        nu = torch.where(kept, alpha, 0.0)
        if self.gradient == "summed":  # the second term is 0, and carries ∂q_ij/∂α_i = 1
            return values * nu.detach() + (alpha - alpha.detach())
        # Its value is ν(α) exactly (α + (0 − α) = 0 and α + 0 = α in floating point), its gradient that of α.
        straight_through = alpha + (nu - alpha).detach()
        return values * straight_through

    def extra_repr(self):
        return f"structure={self.structure}, threshold={self.threshold}, alpha={tuple(self.alpha.shape)}"


class Coupled(nn.Module):
    """The scale of a layer that shares α, or a mask, with another, the `leader`, and is pruned together with it."""

    def __init__(self, leader, layer, structure):
        super().__init__()
        self.leader = (leader,)  # in a tuple, so that α is a parameter of the leading layer alone
        self.structure = structure
        self.shape = alpha_shape(layer.weight.shape, structure, is_transposed(layer))

    def kept(self):
        return self.leader[0].kept().reshape(self.shape)

    def forward(self, values):
        check_original(self)
        return self.leader[0].forward(values, self.shape if values.ndim == len(self.shape) else None)


def check_original(scale):
    """Raise ConfigError for a copy that nn.DataParallel made, which would look for α on the first GPU."""
    if getattr(scale, "_is_replica", False):
        raise ConfigError(
            "nn.DataParallel cannot share α between layers; use nn.parallel.DistributedDataParallel instead"
        )


class OnNormalization(nn.Module):
    """The parametrization of γ or β of a normalization: the entries of some channels times their layers' ν(α).

    Several layers can share a normalization, as those do whose outputs a dense block concatenates; what belongs to none
    stays as it is. Two can have the very same entries, such as the channels of the last layer of a branch and the whole
    of its first, and multiply them one after the other.
    """

    def __init__(self):
        super().__init__()
        self.spans = {}

    def add(self, first, count, scale):
        """Have `count` entries from `first` on multiplied by what `scale`, of a layer, makes of its α."""
        # In tuples, so that α is a parameter of its layer alone.
        self.spans[first, count] = (*self.spans.get((first, count), ()), scale)

    def scales(self):
        """All that multiply some entries."""
        return [scale for scales in self.spans.values() for scale in scales]

    def forward(self, values):
        check_original(self)
        pieces, end = [], 0
        for (first, count), scales in sorted(self.spans.items(), key=lambda span: span[0]):
            piece = values[first : first + count]
            for scale in scales:
                piece = scale.forward(piece)
            pieces += [values[end:first], piece]
            end = first + count
        pieces = [piece for piece in (*pieces, values[end:]) if len(piece)]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
