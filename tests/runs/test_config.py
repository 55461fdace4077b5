"""A run's settings are checked in full before any work."""

import pytest

from psp.errors import ConfigError
from psp.runs.config import RunConfig, run_key


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
    monkeypatch.setattr("psp.runs.config.DECIDING", ("native.py",))
    assert run_key(config, "a") != key
