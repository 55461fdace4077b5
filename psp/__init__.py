"""Parameterized structured pruning (Schindler, Roth, Pernkopf, Fröning 2019): the method and its replication."""

__version__ = "0.2.8"

from psp.extraction.cost import cost
from psp.extraction.explain import explain
from psp.extraction.export import export
from psp.extraction.extract import extract
from psp.frozen.freeze import freeze
from psp.method.baselines import fix_sparsity
from psp.method.fold import fold
from psp.method.parameterize import parameterize, sparsity, structure_parameters
from psp.method.regularize import param_groups
from psp.models import create_model
from psp.training.train import train

__all__ = [
    "cost",
    "create_model",
    "explain",
    "export",
    "extract",
    "fix_sparsity",
    "fold",
    "freeze",
    "param_groups",
    "parameterize",
    "sparsity",
    "structure_parameters",
    "train",
]
