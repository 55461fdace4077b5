"""Few images for quick runs; real ones and an independent author's weights where they are at hand."""

import os
from pathlib import Path

import pytest
from few import PLAIN, few

import psp.data.sets
from psp.data.sets import load
from psp.errors import DataError


def pytest_collection_modifyitems(items):
    """The file that takes longest comes first: of several processes, none is to begin it when the others have done."""
    items.sort(key=lambda item: item.path.name != "test_pipeline.py")


@pytest.fixture(scope="module")
def few_digits():
    """For the length of a test module, the digits are the few of few.py, and no way to compute is tried out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(psp.data.sets, "_digits", few(psp.data.sets._digits))
        patch.setattr("psp.training.train.choose", lambda *_: PLAIN)
        yield


@pytest.fixture
def plain_steps(monkeypatch):
    """No way to compute is tried out."""
    monkeypatch.setattr("psp.training.train.choose", lambda *_: PLAIN)


@pytest.fixture(scope="session")
def cifar10():
    return _real("cifar10")


@pytest.fixture(scope="session")
def cifar100():
    return _real("cifar100")


@pytest.fixture(scope="session")
def reference_weights():
    """Folder with resnet20.th and resnet56.th of akamaster/pytorch_resnet_cifar10."""
    folder = os.environ.get("PSP_REFERENCE_WEIGHTS")
    if not folder:
        pytest.skip("PSP_REFERENCE_WEIGHTS names no folder with an independent author's weights")
    return Path(folder)


def _real(name):
    """A set of real images; those that are there and cannot be read fail the test."""
    try:
        return load(name)
    except DataError as error:
        if "not found" not in str(error):
            raise
        pytest.skip(str(error))
