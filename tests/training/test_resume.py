"""A run killed at any moment and started again ends with the record of one that never was."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from machine import HAS_CXX

import psp
from psp.data.sets import load
from psp.errors import CheckpointError, ConfigError, DivergedError
from psp.files import SEAL, locked
from psp.runs.config import RunConfig
from psp.training.checkpoint import Checkpoint
from psp.training.epoch import State
from psp.training.train import start

pytestmark = pytest.mark.usefixtures("few_digits")

# All that can be lost or differ: bfloat16, and our own kernels where there is a compiler.
CHOICE = {"precision": "bfloat16", "kernels": "fused" if HAS_CXX else "plain"}
CONFIG = {"method": "psp_weight_decay", "structure_decay": 0.01, "epochs": 4, "batch_size": 16, "holdout": 64}
TIMES = ("seconds", "provenance", SEAL)  # and the seal of the record, these among it


def checkpoint_path(folder, config=CONFIG):
    return Checkpoint(folder, RunConfig.of(config), load("digits").sha256).path


def without_times(record):
    return {key: value for key, value in record.items() if key not in TIMES}


def train(config, folder):
    return psp.train(config, checkpoints=folder, device="cpu", progress=False)


def train_until_killed(folder, place, call):
    """Train in a process of its own that kills itself by SIGKILL in place of the `call`-th call of `place`."""
    code = f"""
import os, signal, sys
import few, psp, torch
module, name = {place!r}.rsplit(".", 1)
module = sys.modules[module]
really, calls = getattr(module, name), []
def or_die(*arguments):
    calls.append(1)
    if len(calls) == {call}:
        os.kill(os.getpid(), signal.SIGKILL)
    return really(*arguments)
setattr(module, name, or_die)
few.use_few_digits({CHOICE!r})
torch.set_num_threads({torch.get_num_threads()})
psp.train({CONFIG!r}, checkpoints={str(folder)!r}, device="cpu", progress=False)
"""
    return subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=False).returncode


@pytest.fixture(scope="module", autouse=True)
def choice(few_digits):
    """A run begins as CHOICE says; one that is resumed must not choose again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("psp.training.train.choose", lambda *_: CHOICE)
        yield


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory, few_digits):
    folder = tmp_path_factory.mktemp("whole")
    return train(CONFIG, folder), checkpoint_path(folder).with_name("weights.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("place", "call", "epochs_kept"),
    [
        ("psp.data.images.augment", 6, 1),  # in the middle of the second epoch
        ("os.replace", 1, 0),  # the way to compute is chosen, but not kept for other runs
        ("os.replace", 2, 0),  # the first checkpoint is written, but not in place
        ("os.replace", 4, 2),
        ("os.replace", 6, 4),  # all epochs done, the weights not in place, the test set not read
        ("os.replace", 7, 4),  # the record not in place
    ],
)
def test_a_run_killed_by_sigkill_resumes_bit_for_bit(place, call, epochs_kept, tmp_path, never_killed, monkeypatch):
    assert train_until_killed(tmp_path, place, call) == -signal.SIGKILL
    path = checkpoint_path(tmp_path)
    assert not path.with_name("record.json").exists()
    kept = torch.load(path, weights_only=True)["epoch"] if path.exists() else 0
    assert kept == epochs_kept
    if kept:
        monkeypatch.setattr("psp.training.train.choose", None)
    resumed = train(CONFIG, tmp_path)
    assert resumed["provenance"]["step"] == CHOICE
    record, weights = never_killed
    assert without_times(resumed) == without_times(record)
    assert path.with_name("weights.safetensors").read_bytes() == weights


def test_a_finished_run_is_not_trained_again(tmp_path):
    config = {**CONFIG, "epochs": 1}
    first = train(config, tmp_path)
    assert train(config, tmp_path) == first


def test_a_checkpoint_of_another_config_is_refused_and_kept(tmp_path):
    config = {**CONFIG, "epochs": 1}
    train(config, tmp_path)
    other = {**config, "seed": 1}
    misplaced = checkpoint_path(tmp_path, other)
    misplaced.parent.mkdir()
    misplaced.write_bytes(checkpoint_path(tmp_path, config).read_bytes())
    with pytest.raises(CheckpointError, match="differs in seed"):
        train(other, tmp_path)
    assert misplaced.read_bytes() == checkpoint_path(tmp_path, config).read_bytes()


def test_a_run_goes_on_with_the_threads_that_it_began_with(tmp_path, never_killed):
    """Sums in other shares are other numbers; afterwards this process has its own threads again."""
    assert train_until_killed(tmp_path, "psp.data.images.augment", 6) == -signal.SIGKILL
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        resumed = train(CONFIG, tmp_path)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
    assert resumed["provenance"]["threads"] == before
    assert without_times(resumed) == without_times(never_killed[0])


def test_a_run_that_another_process_trains_is_refused(tmp_path):
    path = checkpoint_path(tmp_path)
    with (
        locked(path),
        pytest.raises(CheckpointError, match=r"another process trains this run, and has the lock .*wait"),
    ):
        train(CONFIG, tmp_path)
    assert not path.exists()


def test_a_checkpoint_of_a_gpu_does_not_go_on_on_a_cpu(tmp_path, monkeypatch):
    checkpoint = Checkpoint(tmp_path, RunConfig.of(CONFIG), "images")
    state = start(RunConfig.of(CONFIG), 10, torch.device("cpu"))
    state.choice = CHOICE
    checkpoint.save(state)
    monkeypatch.setattr(State, "device", torch.device("cuda"))
    with pytest.raises(CheckpointError, match="was begun on cpu, not on cuda: go on there, or delete it"):
        checkpoint.restore(state)


@pytest.mark.parametrize("entry", ["data", "code"])
def test_a_checkpoint_of_other_images_or_other_code_is_refused(entry, tmp_path):
    """Both name its folder, too; so one that was put into another's place."""
    checkpoint = Checkpoint(tmp_path, RunConfig.of(CONFIG), "images")
    state = start(RunConfig.of(CONFIG), 10, torch.device("cpu"))
    state.choice = CHOICE
    checkpoint.save(state)
    assert checkpoint.restore(state)
    checkpoint.identity[entry] = "another"
    with pytest.raises(CheckpointError, match=f"belongs to another run, which differs in {entry}; move it away"):
        checkpoint.restore(state)


def test_a_damaged_checkpoint_is_named(tmp_path):
    path = checkpoint_path(tmp_path)
    path.parent.mkdir()
    path.write_bytes(b"half a file")
    with pytest.raises(CheckpointError, match=r"last\.pt cannot be read"):
        train(CONFIG, tmp_path)
    torch.save({"weights": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match=r"last\.pt cannot be read"):
        train(CONFIG, tmp_path)


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
        train(config, tmp_path)
    saved = torch.load(checkpoint_path(tmp_path, config), weights_only=True)
    assert saved["epoch"] == 1
    assert all(tensor.isfinite().all() for tensor in saved["model"].values())


def test_weights_that_the_last_step_of_an_epoch_made_nan_are_not_saved(tmp_path, monkeypatch):
    config = {**CONFIG, "epochs": 2}
    step = torch.optim.SGD.step
    calls = []

    def step_into_nan(optimizer, *arguments):
        step(optimizer, *arguments)
        calls.append(1)
        if len(calls) == 2 * 4:
            optimizer.param_groups[0]["params"][0].data.fill_(float("nan"))

    monkeypatch.setattr(torch.optim.SGD, "step", step_into_nan)
    with pytest.raises(
        DivergedError, match="weights became NaN or infinite at epoch 2, step last; the checkpoint of epoch 1"
    ):
        train(config, tmp_path)
    assert torch.load(checkpoint_path(tmp_path, config), weights_only=True)["epoch"] == 1


def test_a_run_goes_on_by_the_step_that_it_was_begun_by(tmp_path):
    assert train_until_killed(tmp_path, "psp.training.train.train_epoch", 3) == -signal.SIGKILL
    other = {**CHOICE, "precision": "float32"}
    with pytest.raises(
        CheckpointError, match=r"was begun by the step .*bfloat16.*, not by .*float32.*: leave `step` out"
    ):
        psp.train(CONFIG, checkpoints=tmp_path, device="cpu", progress=False, step=other)
    record = psp.train(CONFIG, checkpoints=tmp_path, device="cpu", progress=False, step=CHOICE)
    assert record["provenance"]["step"] == CHOICE


@pytest.mark.parametrize(("option", "value"), [("checkpoints", None), ("step", 3)])
def test_what_is_no_folder_and_no_step_is_refused_before_images_are_read(option, value, monkeypatch):
    monkeypatch.setattr("psp.training.train.load", lambda name: pytest.fail("read"))
    with pytest.raises(ConfigError, match=rf"{option}.* got None|a step on cpu is one of .*, not 3"):
        psp.train(CONFIG, device="cpu", progress=False, **{option: value})
