"""Parameterized structured pruning (Schindler, Roth, Pernkopf, Fröning 2019): the method and its replication."""

from psp.cost import cost
from psp.extract import extract
from psp.kernels.lanes import freeze
from psp.models import create_model
from psp.parameterize import fold, parameterize, sparsity, structure_parameters
from psp.regularize import param_groups
from psp.train import train

__all__ = [
    "cost",
    "create_model",
    "extract",
    "fold",
    "freeze",
    "param_groups",
    "parameterize",
    "sparsity",
    "structure_parameters",
    "train",
]
