"""What layers and normalizations of a user's own class do with a factor on their weight, found by trying copies."""

import copy
import math

import torch
from torch import nn
from torch.nn.utils import parametrize

from psp.method.graph import LAYERS

TORCHS = ("torch.nn.", "torch.ao.")


@torch.no_grad()
def takes_scale_out(layer):
    """Whether a layer of a class of its own normalizes its weight when it is called, so that a factor on it cancels.

    Tried without its hooks, with random numbers that nobody else draws.
    """
    if type(layer) in LAYERS or parametrize.is_parametrized(layer):
        return False
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            other = _alone(copy.deepcopy(layer).to("cpu", torch.float32))
            other.bias = None
            x, _ = torch.randn(_image_shape(other)), other.weight.normal_()
            before = other(x)
            other.weight.mul_(2)
            return bool(before.any()) and torch.allclose(other(x), before, rtol=0.1)
    except Exception:  # whatever a forward of its own may ask for
        return False


@torch.no_grad()
def is_silenced_by_zeros(norm):
    """Whether a normalization puts out zeros where γ and β are 0, as torch's do, and not one that adds 1 to γ.

    Of a class of its own that is tried; one that takes none of the usual shapes is said not to.
    """
    if type(norm).forward.__module__.startswith(TORCHS) or parametrize.is_parametrized(norm):
        return True
    alone = copy.copy(norm)  # what it keeps of its last input cannot be copied, and is not needed
    alone.__dict__ = {name: value for name, value in vars(norm).items() if not isinstance(value, torch.Tensor)}
    other = _alone(copy.deepcopy(alone).to_empty(device="cpu").float())  # from any device, and without the values
    for tensor in (*other.parameters(), *other.buffers()):
        tensor.fill_(1)
    for affine in (other.weight, getattr(other, "bias", None)):
        if affine is not None:
            affine.zero_()
    count = len(norm.weight)
    for sides in ((count, 4, 4), (count, 4), (count,), (count, 4, 4, 4), (4, count), (4, 4, count)):
        shape = (2, *sides)
        try:
            x = torch.linspace(-1, 2, math.prod(shape), dtype=torch.float32, device="cpu")
            return not other(x.view(shape)).any()
        except Exception:  # whatever a forward of its own may raise on a shape that it is not for
            continue
    return False


def _alone(module):
    """`module`, a copy, in evaluation mode and without its hooks."""
    module._forward_hooks, module._forward_pre_hooks = {}, {}
    return module.eval()


def _image_shape(layer):
    """The smallest batch that a convolution without padding or a linear layer takes."""
    if isinstance(layer, nn.Linear):
        return (1, layer.in_features)
    return (1, layer.in_channels, *(1 + d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)))
