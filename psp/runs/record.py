"""Run records: the one small JSON file that a training run ends in, and that every table and figure reads."""

import json
from pathlib import Path

import torch

from psp.errors import ConfigError
from psp.method.masks import excerpt, masks
from psp.method.parameterize import sparsity, structure_parameters

SCHEMA = 2
# Histograms of log10|α|: equal bins over this range, values outside counted in the first and the last bin.
LOG10_ALPHA = {"low": -6.0, "high": 1.0, "bins": 70}


def make_record(config, data, state, test_errors, origin):
    """The record of a finished run: what was run, on what, and what came out, the final epoch's errors only.

    `test_errors` are `psp.training.evaluate.Errors`; `origin` is the `provenance` taken when the run (or, for a
    resumed one, its last sitting) started.
    """
    pruned = sparsity(state.model)
    return {
        "schema": SCHEMA,
        "config": config.as_dict(),
        "data": data.summary(),
        "test_error_pct": test_errors.top1,
        "test_top5_error_pct": test_errors.top5,
        "sparsity": {"structures": pruned.structures, "weights": pruned.weights},
        "layers": {name: layer._asdict() for name, layer in pruned.layers.items()},
        "masks": masks(state.model),
        "excerpt": excerpt(state.model),
        "log10_alpha": {**LOG10_ALPHA, "counts": layer_alpha_counts(state.model)},
        "parameters": sum(p.numel() for p in state.model.parameters()),
        "curve": state.curve,
        "seconds": state.seconds,
        "provenance": origin,
    }


def layer_alpha_counts(model):
    """{layer name: histogram counts of log10|α|} over the bins of `LOG10_ALPHA`."""
    return {name: _counts(alpha.detach().flatten()) for name, alpha in structure_parameters(model).items()}


def alpha_counts(model):
    """Histogram counts of log10|α| over all layers; empty for a network without structure parameters."""
    layers = layer_alpha_counts(model).values()
    return [sum(counts) for counts in zip(*layers, strict=True)]


def _counts(alpha):
    low, high, bins = LOG10_ALPHA.values()
    smallest = 10.0 ** (low - 1)
    logs = alpha.abs().clamp_min(smallest).log10().clamp(low, high).cpu()
    return torch.histc(logs, bins, low, high).long().tolist()


def read_record(path):
    """The record in a file. Raises ConfigError where there is none, or one of another schema."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no run record {path}; `make repro` trains what is missing")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is no JSON file ({error}); train the run again") from error
    if record.get("schema") != SCHEMA:
        raise ConfigError(f"{path} has schema {record.get('schema')}, this code reads {SCHEMA}; train the run again")
    return record
