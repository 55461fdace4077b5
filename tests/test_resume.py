"""A run killed at any moment and started again ends with the record of one that never was."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import psp
from psp.checkpoint import Checkpoint
from psp.config import RunConfig
from psp.data import load
from psp.errors import CheckpointError, DivergedError

pytestmark = pytest.mark.usefixtures("few_digits")

CONFIG = {"method": "psp_weight_decay", "structure_decay": 0.01, "epochs": 4, "batch_size": 16, "holdout": 64}
TIMES = ("seconds", "provenance")


def checkpoint_path(folder, config=CONFIG):
    return Checkpoint(folder, RunConfig.of(config), load("digits").sha256).path


def without_times(record):
    return {key: value for key, value in record.items() if key not in TIMES}


def train_in_a_process(folder):
    code = f"""
import few, psp, torch
few.use_few_digits()
torch.set_num_threads({torch.get_num_threads()})
psp.train({CONFIG!r}, checkpoints={str(folder)!r})
"""
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL, cwd=Path(__file__).parent)


def test_a_run_killed_by_sigkill_resumes_bit_for_bit(tmp_path):
    process = train_in_a_process(tmp_path / "killed")
    deadline = time.monotonic() + 120
    while not checkpoint_path(tmp_path / "killed").exists():
        assert process.poll() is None, "it ended without a checkpoint"
        assert time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not checkpoint_path(tmp_path / "killed").with_name("record.json").exists(), "it finished before the kill"
    resumed = psp.train(CONFIG, checkpoints=tmp_path / "killed", progress=False)
    never_killed = psp.train(CONFIG, checkpoints=tmp_path / "whole", progress=False)
    assert without_times(resumed) == without_times(never_killed)
    weights = [checkpoint_path(tmp_path / f).with_name("weights.safetensors").read_bytes() for f in ("killed", "whole")]
    assert weights[0] == weights[1]


def test_a_finished_run_is_not_trained_again(tmp_path):
    config = {**CONFIG, "epochs": 1}
    first = psp.train(config, checkpoints=tmp_path, progress=False)
    assert psp.train(config, checkpoints=tmp_path, progress=False) == first


def test_a_checkpoint_of_another_config_is_refused_and_kept(tmp_path):
    config = {**CONFIG, "epochs": 1}
    psp.train(config, checkpoints=tmp_path, progress=False)
    other = {**config, "seed": 1}
    misplaced = checkpoint_path(tmp_path, other)
    misplaced.parent.mkdir()
    misplaced.write_bytes(checkpoint_path(tmp_path, config).read_bytes())
    with pytest.raises(CheckpointError, match="differs in seed"):
        psp.train(other, checkpoints=tmp_path, progress=False)
    assert misplaced.read_bytes() == checkpoint_path(tmp_path, config).read_bytes()


def test_a_damaged_checkpoint_is_named(tmp_path):
    path = checkpoint_path(tmp_path)
    path.parent.mkdir()
    path.write_bytes(b"half a file")
    with pytest.raises(CheckpointError, match=r"last\.pt cannot be read"):
        psp.train(CONFIG, checkpoints=tmp_path, progress=False)


def test_a_diverging_run_stops_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    config = {**CONFIG, "epochs": 2}
    steps = 4  # (128 − 64) // 16
    calls = []

    def cross_entropy(logits, labels):
        calls.append(1)
        loss = torch.nn.functional.nll_loss(logits.log_softmax(1), labels)
        return loss * float("nan") if len(calls) == steps + 2 else loss

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", cross_entropy)
    with pytest.raises(DivergedError, match="nan at epoch 2, step 2; the checkpoint of epoch 1 is kept"):
        psp.train(config, checkpoints=tmp_path, progress=False)
    saved = torch.load(checkpoint_path(tmp_path, config), weights_only=True)
    assert saved["epoch"] == 1
    assert all(tensor.isfinite().all() for tensor in saved["model"].values())
