"""Run records: the one small JSON file that a training run ends in, and that every table and figure reads."""

from pathlib import Path

import torch

from psp.errors import ConfigError
from psp.files import SEAL, is_sealed, read_json, sealed
from psp.method.masks import excerpt, masks
from psp.method.parameterize import sparsity, structure_parameters
from psp.runs.config import RunConfig

SCHEMA = 3
# Records of schema 2 were not sealed, and name no weights.
UNSEALED = 2
# Histograms of log10|α|: equal bins over this range, values outside counted in the first and the last bin.
LOG10_ALPHA = {"low": -6.0, "high": 1.0, "bins": 70}


def make_record(config, data, state, test_errors, weights_sha256, origin):
    """The record of a finished run: what was run, on what, and what came out, the final epoch's errors only.

    `test_errors` are `psp.training.evaluate.Errors`; `weights_sha256` is that of the file of final weights; `origin` is
    the `provenance` taken when the run (or, for a resumed one, its last sitting) started. It is `sealed`.
    """
    pruned = sparsity(state.model)
    entries = {
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
        "weights_sha256": weights_sha256,
        "provenance": origin,
    }
    return sealed(entries)


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
    """The record in a file. Raises ConfigError where there is none, a damaged one, or one of another schema."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no run record {path}; `make repro` trains what is missing")
    record = read_json(path, "train the run again")
    if record.get("schema") not in (SCHEMA, UNSEALED):
        raise ConfigError(f"{path} has schema {record.get('schema')}, this code reads {SCHEMA}; train the run again")
    unsealed = record["schema"] == UNSEALED and SEAL not in record
    if not unsealed and not is_sealed(record):
        raise ConfigError(f"{path} is damaged: it does not fit its {SEAL}; restore it by git, or train the run again")
    return with_place(record)


def record_of(profile, run):
    """The record of a run of a profile. Raises ConfigError, as `read_record`, and for one of other settings."""
    path, settings = profile.record_path(run), profile.config(run).as_dict()
    record = read_record(path)
    recorded = {**RunConfig().as_dict(), **record["config"]}  # settings that came later were at their defaults
    other = [f"{name} {recorded[name]!r}, not {value!r}" for name, value in settings.items() if recorded[name] != value]
    if other:
        raise ConfigError(f"{path} is of {'; '.join(other)}, as the profile says now; train the run again")
    return record


def with_place(record):
    """`record`, which says where α stood: those of channels and layers on weights, before there was a choice."""
    if record["config"]["structure"] in ("channel", "layer"):
        record["config"].setdefault("place", "weight")
    return record
