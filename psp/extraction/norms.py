"""Normalizations that treat each channel by itself, and so can lose some of them."""

import torch
from torch import nn

from psp.extraction.channels import Channels
from psp.extraction.graph import BATCHNORM
from psp.extraction.ops import ByChannel, Op

INSTANCE = {nn.InstanceNorm1d: 3, nn.InstanceNorm2d: 4, nn.InstanceNorm3d: 5}  # axes of a batch
NORMS = (*BATCHNORM, *INSTANCE, nn.GroupNorm)


def normalization(node, module):
    """The rule of a node that calls one of `NORMS`, in evaluation mode, which nothing else calls."""
    kind, axes = type(module), len(node.args[0].meta["shape"])
    groups = kind is nn.GroupNorm and module.num_groups < module.num_channels
    if groups or axes != INSTANCE.get(kind, axes):
        return Op(node)
    by_input = not module.track_running_stats if kind in INSTANCE else getattr(module, "running_mean", None) is None
    return (ByInput if by_input else ByChannel)(node, module)


class ByInput(ByChannel):
    """One by statistics of what it reads: what is constant becomes β there, and so does all where γ is 0."""

    def forward(self, known):
        live, _ = known[self.read]
        weight, bias = self.module.weight, self.module.bias
        live = live if weight is None else live & weight.ne(0)
        return Channels.of(live, torch.zeros(len(live), dtype=torch.float64) if bias is None else bias.detach())
