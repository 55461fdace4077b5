"""Networks by name."""

from psp.errors import ConfigError
from psp.models.resnet import CIFAR_RESNETS, cifar_resnet


def create_model(name, num_classes=10):
    """A freshly initialized network: "resnet20", "resnet32", "resnet44", "resnet56" or "resnet110" for 32×32 images.

    Initialization draws from torch's global random generator. Raises ConfigError for an unknown name.
    """
    check_model(name)
    return cifar_resnet(CIFAR_RESNETS[name], num_classes)


def check_model(name):
    """Raise ConfigError, naming the known ones, unless `name` is a known network."""
    if name not in CIFAR_RESNETS:
        raise ConfigError(f"unknown model {name!r}; choose one of {', '.join(CIFAR_RESNETS)}")
