"""The paper's CIFAR ResNets and DenseNets by name; ILSVRC's networks come from torchvision.

May use: no other room.
"""

from functools import partial
from numbers import Integral

from torch import nn

from psp.errors import ConfigError, extra
from psp.models.densenet import CIFAR_DENSENETS, CifarDenseNet
from psp.models.resnet import CIFAR_RESNETS, CifarResNet

# For images of any size; built, and their weights drawn, as torchvision does.
TORCHVISION = ("resnet18", "resnet50", "densenet121")
MODELS = {name: partial(CifarResNet, blocks) for name, blocks in CIFAR_RESNETS.items()}
MODELS |= {name: partial(CifarDenseNet, *variant) for name, variant in CIFAR_DENSENETS.items()}


def create_model(name, num_classes=10):
    """A network by name, that classifies images into `num_classes` classes.

    "resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "densenet16", "densenet40" and "densenet_bc100" are for
    32×32 images, with He-normal weights (He et al. 2015); "resnet18", "resnet50" and "densenet121" are torchvision's
    for ILSVRC2012. Initialization draws from torch's global random generator. Raises ConfigError for an unknown name
    or a number of classes below 1, MissingPackageError for one of torchvision's without that.
    """
    check_model(name)
    if not isinstance(num_classes, Integral) or num_classes < 1:
        raise ConfigError(f"num_classes must be a whole number of at least 1, got {num_classes!r}")
    if name in TORCHVISION:
        with extra("data"):
            from torchvision import models  # takes seconds to import, and the other networks do without it

        return models.get_model(name, num_classes=num_classes)
    model = MODELS[name](num_classes=num_classes)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
    return model


def check_model(name):
    """Raise ConfigError, naming the known ones, unless `name` is a known network."""
    known = (*MODELS, *TORCHVISION)
    if name not in known:
        raise ConfigError(f"unknown model {name!r}; choose one of {', '.join(known)}")
