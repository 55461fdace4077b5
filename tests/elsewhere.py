"""What test_package.py runs where this package is installed with what it declares, and nothing else: it says, as JSON,
where `psp` was found, which packages it loaded, how much smaller a network became, and what lacks an extra."""

import importlib
import json
import pkgutil
import sys

import torch
from torch.nn import functional as F

import psp
from psp.errors import MissingPackageError
from psp.kernels.column_conv import has_triton

# What `import psp` reaches; of `data` only what needs no extra.
ROOMS = ("extraction", "frozen", "kernels", "method", "models", "runs", "training")


def import_whole_rooms():
    for room in ROOMS:
        for module in pkgutil.iter_modules(importlib.import_module(f"psp.{room}").__path__, f"psp.{room}."):
            if module.name != "psp.kernels.gpu" or has_triton():
                importlib.import_module(module.name)


def pruned_network():
    """After a step with the paper's decay on α, and then half of all columns."""
    torch.manual_seed(0)
    network = psp.parameterize(psp.create_model("resnet20"), "column", skip=("conv1", "fc"))
    optimizer = torch.optim.SGD(psp.param_groups(network, weight_decay=5e-4, structure_decay=1e-3), 0.1)
    F.cross_entropy(network(torch.randn(4, 3, 32, 32)), torch.arange(4)).backward()
    optimizer.step()
    with torch.no_grad():
        for alpha in psp.structure_parameters(network).values():
            alpha *= torch.rand_like(alpha) < 0.5
    return network.eval()


def message_of(call):
    try:
        call()
    except MissingPackageError as error:
        return str(error)


@torch.no_grad()
def largest_difference(ours, theirs, images):
    return ((ours(images) - theirs(images)).abs().max() / theirs(images).abs().max()).item()


import_whole_rooms()
network = pruned_network()
images = torch.randn(8, 3, 32, 32)
small = psp.extract(network, images)
said = {
    "file": psp.__file__,
    "version": psp.__version__,
    "loaded": sorted({name.partition(".")[0] for name in sys.modules}),
    "params": [psp.cost(n, images[:1]).params for n in (psp.create_model("resnet20"), small)],
    "extracted": largest_difference(small, network, images),
    "without_extra": [
        message_of(lambda: psp.train({"dataset": "digits"}, progress=False)),
        message_of(lambda: psp.train({"dataset": "drawings"}, progress=False)),
        message_of(lambda: psp.create_model("resnet18")),
    ],
}
if "freeze" in sys.argv:
    said["frozen"] = largest_difference(psp.freeze(small, images), network, images)
print(json.dumps(said))
