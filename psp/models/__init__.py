"""Networks by name."""

from functools import partial

from torch import nn

from psp.errors import ConfigError
from psp.models.densenet import CIFAR_DENSENETS, CifarDenseNet
from psp.models.resnet import CIFAR_RESNETS, CifarResNet

MODELS = {name: partial(CifarResNet, blocks) for name, blocks in CIFAR_RESNETS.items()}
MODELS |= {name: partial(CifarDenseNet, *variant) for name, variant in CIFAR_DENSENETS.items()}


def create_model(name, num_classes=10):
    """A network for 32×32 images with He-normal weights (He et al. 2015).

    `name` is "resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "densenet40" or "densenet_bc100".
    Initialization draws from torch's global random generator. Raises ConfigError for an unknown name.
    """
    check_model(name)
    model = MODELS[name](num_classes=num_classes)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
    return model


def check_model(name):
    """Raise ConfigError, naming the known ones, unless `name` is a known network."""
    if name not in MODELS:
        raise ConfigError(f"unknown model {name!r}; choose one of {', '.join(MODELS)}")
