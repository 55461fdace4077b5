"""A run's settings are checked in full before any work."""

import shutil
import subprocess
import sys

import pytest

from psp.errors import ConfigError
from psp.files import ROOT
from psp.runs.config import RunConfig, code_sha256, run_key


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epoch": 3}, "unknown parameter 'epoch'; did you mean 'epochs'"),
        ("digits", "the settings of a run are a mapping, .* got 'digits'"),
        ({"zzz": 3}, "unknown parameter 'zzz'; known are dataset, model"),
        ({"dataset": "mnist"}, "unknown dataset 'mnist'"),
        ({"model": "vgg"}, "unknown model 'vgg'"),
        ({"method": "magnitude"}, "unknown method 'magnitude'; choose one of baseline"),
        ({"structure": "row"}, "unknown structure 'row'"),
        ({"threshold": -0.1}, "threshold must be at least 0, got -0.1"),
        ({"method": "l1_norm", "sparsity": 1.5}, "sparsity must lie in 0…1, got 1.5"),
        ({"method": "l1_norm"}, "method 'l1_norm' needs a sparsity"),
        ({"method": "baseline", "sparsity": 0.5}, "method 'baseline' takes no sparsity"),
        ({"structure_decay": "3e-3"}, r"structure_decay must be float, got '3e-3' \(in YAML write"),
        ({"epochs": 2.5}, "epochs must be int, got 2.5"),
        ({"epochs": 0}, "epochs must be above 0"),
        ({"epochs": True}, "epochs must be int, got True"),
        ({"learning_rate": 0}, "learning_rate must be above 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number"),
        ({"structure_decay": float("inf")}, "structure_decay must be a finite number"),
        ({"skip": "fc"}, "skip must be tuple, got 'fc'"),
        ({"skip": None}, "skip must be tuple, got None"),
        ({"gradient": "mean"}, "unknown gradient 'mean'; choose one of exact, summed"),
        (
            {"method": "psp_fixed_sparsity", "sparsity": 0.5, "structure": "layer"},
            "structure 'layer' has no sparsity per layer",
        ),
        ({"init": 0.01}, "init α = 0.01 lies below the threshold"),
        ({"prune_at": 1.0}, "prune_at must be at least 0 and below 1"),
        ({"momentum": 1}, "momentum must be at least 0 and below 1, got 1.0"),
        ({"seed": 2**63}, "seed must be at most"),
        (
            {"method": "psp_fixed_sparsity", "sparsity": 0.5, "structure": "channel", "couple": True},
            "couple is of psp_l1 and psp_weight_decay, not of 'psp_fixed_sparsity': leave it out",
        ),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        RunConfig.of(settings)


def test_a_config_survives_json():
    config = RunConfig(method="l1_norm", sparsity=0.5, skip=["conv1"])
    assert RunConfig.of(config.as_dict()) == config
    assert RunConfig.of(config) is config


def test_a_run_is_known_by_settings_data_and_code(monkeypatch):
    config = RunConfig()
    key = run_key(config, "a")
    assert run_key(RunConfig(), "a") == key
    assert run_key(RunConfig(seed=1), "a") != key
    assert run_key(config, "b") != key
    assert run_key(RunConfig(init=1, learning_rate=0.1), "a") == key, "a whole number is that number"
    monkeypatch.setattr("psp.runs.config.code_sha256", lambda: "of other code")
    assert run_key(config, "a") != key


def test_the_code_of_a_run_is_that_which_was_imported_whatever_is_edited_since(tmp_path):
    shutil.copytree(ROOT / "psp", tmp_path / "psp", ignore=shutil.ignore_patterns("__pycache__"))
    code = """
import psp.runs.config as config
from pathlib import Path
path = Path(config.__file__).parents[1] / "training" / "epoch.py"
path.write_text(path.read_text() + "# edited")
said = config.code_sha256()
config.code_sha256.cache_clear()
print(said == {before!r}, said == config.code_sha256())
"""
    before = code_sha256()
    command = [sys.executable, "-c", code.format(before=before)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]
