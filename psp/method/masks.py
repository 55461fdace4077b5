"""The masks that a run ended in, small enough for its record: what was kept, without the weights.

Figure 1 is drawn from them, and a network of the same masks can be built again, to be extracted and timed.
"""

import base64

import numpy as np
import torch

from psp.errors import ConfigError
from psp.method.pruners import parametrizations, pruned_weight
from psp.method.threshold import Coupled


def masks(model):
    """{layer name: which structures are kept}, encoded, of every parameterized layer."""
    return {name: encode(pruner.kept()) for name, (_, pruner) in parametrizations(model).items()}


def excerpt(model):
    """Name and pruned weight w · ν(α), in half precision, of the smallest parameterized layer; None without any."""
    layers = [(pruned_weight(*pair).detach(), name) for name, pair in parametrizations(model).items()]
    if not layers:
        return None
    weight, name = min(layers, key=lambda pair: pair[0].numel())
    return {"layer": name, "weight": encode(weight)}


@torch.no_grad()
def apply_masks(model, record):
    """Give a parameterized `model` the masks of a run's record, in place; returns `model`.

    Kept structures get an α above the threshold, the others 0. Weights stay as they are: a network to be
    extracted and timed, not one that has learned something. Raises ConfigError for a record of earlier code in which
    layers that share α here were pruned apart.
    """
    for name, (_, pruner) in parametrizations(model).items():
        kept = decode(record["masks"][name])
        if hasattr(pruner, "alpha"):
            pruner.alpha.copy_(kept * max(1.0, pruner.threshold or 0.0))
        elif hasattr(pruner, "mask"):
            pruner.mask.copy_(kept)
    for name, (_, pruner) in parametrizations(model).items():
        if isinstance(pruner, Coupled) and not torch.equal(pruner.kept().cpu(), decode(record["masks"][name])):
            raise ConfigError(
                f"the record prunes layer {name!r} apart from one that it shares α with: it is of earlier code, in "
                "which the layers of a branch had α of their own"
            )
    return model


def encode(tensor):
    """A tensor as JSON: its shape and base64 of its bits (bool) or of its values in half precision."""
    values = tensor.cpu().numpy()
    kind = "bits" if values.dtype == bool else "float16"
    data = np.packbits(values) if kind == "bits" else values.astype("<f2")
    return {"shape": list(values.shape), kind: base64.b64encode(data.tobytes()).decode()}


def decode(encoded):
    """The tensor of `encode`: bool, or float32."""
    shape = encoded["shape"]
    if "bits" in encoded:
        packed = np.frombuffer(base64.b64decode(encoded["bits"]), np.uint8)
        values = np.unpackbits(packed, count=int(np.prod(shape))).astype(bool)
    else:
        values = np.frombuffer(base64.b64decode(encoded["float16"]), "<f2").astype(np.float32)
    return torch.from_numpy(values.reshape(shape))
