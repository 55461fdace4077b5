"""Normalizations that treat each channel by itself, and so can lose some of them."""

import copy

import torch
from torch import nn

from psp.extraction.channels import Channels
from psp.extraction.graph import BATCHNORM
from psp.extraction.ops import Op, Pointwise

INSTANCE = {nn.InstanceNorm1d: 3, nn.InstanceNorm2d: 4, nn.InstanceNorm3d: 5}  # axes of a batch
NORMS = (*BATCHNORM, *INSTANCE, nn.GroupNorm)


def normalization(node, module):
    """The rule of a node that calls one of `NORMS`, which nothing else calls."""
    kind = type(module)
    groups = kind is nn.GroupNorm and module.num_groups < module.num_channels
    if groups or len(node.args[0].meta["shape"]) != INSTANCE.get(kind, len(node.args[0].meta["shape"])):
        return Op(node)
    by_input = not module.track_running_stats if kind in INSTANCE else getattr(module, "running_mean", None) is None
    return (ByInput if by_input else Norm)(node, module)


class Norm(Pointwise):
    """One by running statistics, in evaluation, that follows no convolution: one affine function per channel."""

    def emit(self, builder, wanted):
        x, carried = builder.about(self.read, wanted)
        smaller, left = copy.deepcopy(self.module), int(carried.sum())
        for size in ("num_features", "num_channels", "num_groups"):
            if hasattr(smaller, size):
                setattr(smaller, size, left)
        for name, parameter in self.module.named_parameters():
            setattr(smaller, name, nn.Parameter(parameter.detach()[carried], parameter.requires_grad))
        for name, buffer in self.module.named_buffers():
            setattr(smaller, name, buffer[carried] if buffer.ndim else buffer.clone())
        return builder.insert(self.node.target, smaller.eval(), x), carried


class ByInput(Norm):
    """One by statistics of what it reads: what is constant becomes β there, and so does all where γ is 0."""

    def forward(self, known):
        live, _ = known[self.read]
        weight, bias = self.module.weight, self.module.bias
        live = live if weight is None else live & weight.ne(0)
        return Channels.of(live, torch.zeros(len(live), dtype=torch.float64) if bias is None else bias.detach())
