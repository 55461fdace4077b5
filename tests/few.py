"""Digits so few that a test can train on them in a second, all steps computed one way whatever the machine."""

import sys
from contextlib import contextmanager

import torch

import psp.data.sets

TRAIN, TEST = 128, 32
PLAIN = {"precision": "float32", "kernels": "plain"}


def few(digits):
    """A replacement for psp.data.sets._digits that keeps the first images of `digits()`."""
    train, test = digits()
    return lambda: (train.rows(torch.arange(TRAIN)), test.rows(torch.arange(TEST)))


def use_few_digits(choice=PLAIN):
    """For a process of its own; inside pytest the fixture `few_digits` undoes it again."""
    psp.data.sets._digits = few(psp.data.sets._digits)
    sys.modules["psp.training.train"].choose = lambda *_: choice


@contextmanager
def in_float64():
    """Training in float64, in which what the order of a sum makes is too small to grow to anything in a few steps."""
    modules = [sys.modules[name] for name in ("psp.training.epoch", "psp.training.evaluate")]
    normalize = psp.data.sets.normalize
    torch.set_default_dtype(torch.float64)
    for module in modules:
        module.normalize = lambda *arguments: normalize(*arguments).double()
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        for module in modules:
            module.normalize = normalize
