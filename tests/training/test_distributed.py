"""Several processes train the run of one: the same images in the same order, and the same numbers up to rounding."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from few import in_float64
from safetensors.torch import load_file
from torch import nn

import psp
from psp.errors import ConfigError
from psp.pipeline.jobs import what_failed
from psp.training.distributed import ALONE, Processes, Statistics, own_device
from psp.training.epoch import State, backward
from psp.training.fast import Network

CONFIG = {
    "method": "psp_weight_decay",
    "structure_decay": 0.02,
    "epochs": 3,
    "batch_size": 32,
    "micro_batches": 4,
    "learning_rate": 0.01,
}
CONFIG |= {"model": "resnet20", "holdout": 29}
# A single step, of the same images: sums of gradients in another order are all that differs.
ONE_STEP = {**CONFIG, "epochs": 1, "batch_size": 96}
# In float32 rounding grows to a percent within nine steps, as it does with another number of threads or on another
# processor. In float64 (few.py) nothing is seen of it; logits alone are float32.
ROUNDING, GROWN = 1e-9, 1e-6

SCRIPT = """
import few, os, psp, signal, sys, torch
few.use_few_digits()
torch.set_num_threads(1)
kill = {kill!r}
step, steps = torch.optim.SGD.step, []
def or_die(*arguments):
    steps.append(1)
    if os.environ["RANK"] == "1" and len(steps) == kill:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(*arguments)
torch.optim.SGD.step = or_die
with few.in_float64():
    record = psp.train({config!r}, checkpoints={folder!r}, device="cpu", progress=False)
assert record["provenance"]["processes"] == {processes}
os.write(1, b"%d steps\\n" % len(steps))  # in one piece, as several processes write
"""


LONE_NAN = """
cross_entropy = torch.nn.functional.cross_entropy
factor = float("nan") if os.environ["RANK"] == "1" else 1.0
torch.nn.functional.cross_entropy = lambda *arguments: factor * cross_entropy(*arguments)
"""

# Images from files, through a DataLoader's workers; the pixels of each micro-batch are written down as sums.
FROM_FILES = """
from psp.data import folders
folders.MEMORY_SHARE = 0
backward, seen = sys.modules["psp.training.epoch"].backward, []
def watched(state, micro_batch, *rest):
    seen.append(micro_batch[0].sum((1, 2, 3)).tolist())
    return backward(state, micro_batch, *rest)
sys.modules["psp.training.epoch"].backward = watched
"""
WRITE_SEEN = """
with open({folder!r} + "/seen-" + os.environ["RANK"], "w") as file:
    print(seen, file=file)
"""


def torchrun(config, folder, kill=0, processes=2, script=SCRIPT, options=()):
    """The ended process of `torchrun` with two gloo processes; the second kills itself in step `kill`."""
    path = folder / "script.py"
    path.write_text(script.format(config=config, folder=str(folder), kill=kill, processes=processes))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {"PYTHONPATH": f"{Path(__file__).parents[1]}:{Path(psp.__file__).parents[1]}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *options, str(path)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def finished(folder):
    """(record, weights) of the one run in a folder of checkpoints."""
    (path,) = folder.glob("*/record.json")
    return json.loads(path.read_text()), load_file(path.with_name("weights.safetensors"))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the processes of torchrun have: sums in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, few_digits, one_thread):
    folder = tmp_path_factory.mktemp("alone")
    with in_float64():
        psp.train(CONFIG, checkpoints=folder, device="cpu", progress=False)
    return finished(folder)


def check_same(ours, theirs):
    assert [p["loss"] for p in ours["curve"]] == pytest.approx([p["loss"] for p in theirs["curve"]], rel=GROWN)
    for key in ("train_error_pct", "sparsity"):
        assert [p[key] for p in ours["curve"]] == [p[key] for p in theirs["curve"]]
    assert ours["test_error_pct"] == theirs["test_error_pct"]


def test_a_step_of_two_processes_gives_the_weights_of_one(tmp_path, few_digits):
    with in_float64():
        psp.train(ONE_STEP, checkpoints=tmp_path / "alone", device="cpu", progress=False)
    (tmp_path / "two").mkdir()
    ended = torchrun(ONE_STEP, tmp_path / "two")
    assert ended.returncode == 0, ended.stderr
    (record, weights), (other, others) = finished(tmp_path / "two"), finished(tmp_path / "alone")
    assert record["test_error_pct"] == other["test_error_pct"]
    assert set(weights) == set(others)
    for name, tensor in weights.items():
        if tensor.is_floating_point():
            largest = float(others[name].abs().max())
            assert torch.allclose(tensor, others[name], rtol=0, atol=ROUNDING * largest), name


def test_two_processes_give_the_losses_of_one(alone, tmp_path):
    ended = torchrun(CONFIG, tmp_path)
    assert ended.returncode == 0, ended.stderr
    check_same(finished(tmp_path)[0], alone[0])


def test_after_a_process_is_killed_the_run_goes_on_to_the_same_numbers(alone, tmp_path):
    killed = torchrun(CONFIG, tmp_path, kill=5)  # in the second epoch of three steps
    assert killed.returncode != 0
    assert what_failed(killed).startswith("traceback : Signal 9 (SIGKILL) received by PID")
    assert f"exitcode  : {-signal.SIGKILL}" in killed.stderr
    (checkpoint,) = tmp_path.glob("*/last.pt")
    assert torch.load(checkpoint, weights_only=True)["epoch"] == 1
    again = torchrun(CONFIG, tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("6 steps") == 2, "both went on from the first epoch"
    check_same(finished(tmp_path)[0], alone[0])


def test_two_processes_read_the_files_of_one_in_its_order(tmp_path, monkeypatch):
    """Of four micro-batches a step, the first process has the first two, whatever the workers of each."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = {**CONFIG, "dataset": "drawings", "model": "resnet18", "epochs": 2, "batch_size": 64}
    config |= {"holdout": 32, "sides": [32, 48, 48]}
    script = SCRIPT.replace("with few.", FROM_FILES + "with few.") + WRITE_SEEN
    for processes in (1, 2):
        (tmp_path / str(processes)).mkdir()
        ended = torchrun(config, tmp_path / str(processes), script=script, processes=processes)
        assert ended.returncode == 0, ended.stderr
        assert "Grad strides" not in ended.stderr
    alone, first, second = (json.loads((tmp_path / name).read_text()) for name in ("1/seen-0", "2/seen-0", "2/seen-1"))
    assert len(alone) == 2 * 2 * 4, "epochs, steps, micro-batches"
    assert first == [part for k, part in enumerate(alone) if k % 4 < 2]
    assert second == [part for k, part in enumerate(alone) if k % 4 >= 2]
    check_same(finished(tmp_path / "2")[0], finished(tmp_path / "1")[0])


def test_processes_that_torchrun_starts_again_go_on(alone, tmp_path):
    """By torchrun's own --max-restarts, in one call."""
    once = SCRIPT.replace("== kill:", '== kill and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":')
    ended = torchrun(CONFIG, tmp_path, kill=5, script=once, options=["--max-restarts=1"])
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("6 steps") == 2, "both went on from the first epoch"
    check_same(finished(tmp_path)[0], alone[0])


def test_processes_that_see_different_checkpoints_are_an_error(alone, tmp_path):
    """One folder for each, of which the first has an epoch already: they must not wait for each other."""
    apart = SCRIPT.replace("checkpoints={folder!r}", 'checkpoints={folder!r} + os.environ["RANK"]')
    killed = torchrun(CONFIG, tmp_path, kill=5)
    assert killed.returncode != 0
    shutil.copytree(tmp_path, f"{tmp_path}0")
    ended = torchrun(CONFIG, tmp_path, script=apart)
    assert ended.returncode != 0
    said = "last epoch in checkpoints/: process 0 1, process 1 none; all processes must see one and the same folder"
    assert said in ended.stderr


def test_one_process_that_diverges_ends_both(tmp_path):
    """Its images alone are at fault; the other must not wait for it."""
    script = SCRIPT.replace("with few.", LONE_NAN + "with few.")
    ended = torchrun(CONFIG, tmp_path, script=script)
    assert ended.returncode != 0
    assert "DivergedError: the loss became nan at epoch 1" in what_failed(ended)


def test_micro_batches_that_processes_cannot_share_are_an_error_before_training(tmp_path):
    ended = torchrun({**CONFIG, "micro_batches": 1}, tmp_path)
    assert ended.returncode != 0
    assert "micro_batches 1 cannot be shared by 2 processes; set a multiple of that" in ended.stderr
    with pytest.raises(ConfigError, match="micro_batches 5 cannot be shared by 2 processes"):
        Processes(0, 2).parts(5)
    assert [list(Processes(rank, 2).parts(4)) for rank in (0, 1)] == [[0, 1], [2, 3]]


def test_without_batch_normalization_micro_batches_change_nothing_but_rounding():
    """Gradients of a linear network, cut into four parts or not, against torch's own gradient of the whole batch."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5))
    pixels = torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8)
    labels = torch.arange(12) % 5
    data = type("Data", (), {"mean": (100.0,) * 3, "std": (50.0,) * 3})
    state = State(net, None, None, choice={"precision": "float32", "kernels": "plain"})
    state.network = Network(net, state.choice)
    total = sum(backward(state, (p, y), data, 4)[0] for p, y in zip(pixels.split(3), labels.split(3), strict=True))
    loss = nn.functional.cross_entropy(net((pixels - 100.0) / 50.0), labels)
    assert total.item() == pytest.approx(loss.item(), rel=1e-6)
    expected = torch.autograd.grad(loss, list(net.parameters()))
    for parameter, gradient in zip(net.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, gradient, rtol=1e-5, atol=1e-6)


def test_running_statistics_are_the_mean_over_micro_batches_by_hand():
    norm = nn.BatchNorm2d(2, momentum=0.5)
    parts = [torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    statistics = Statistics(norm, 3)
    for _ in range(2):
        statistics.begin()
        for part in parts:
            norm(part)
            statistics.part_done()
        statistics.end(ALONE)
    means = torch.stack([part.mean((0, 2, 3)) for part in parts]).mean(0)
    variances = torch.stack([part.transpose(0, 1).flatten(1).var(1) for part in parts]).mean(0)
    assert torch.allclose(norm.running_mean, 0.75 * means, atol=1e-6)
    assert torch.allclose(norm.running_var, 0.25 + 0.75 * variances, atol=1e-6)


def test_a_device_that_is_asked_for_is_never_replaced(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert own_device() == torch.device("cpu")
    refused = {
        "cuda": "device 'cuda' is not here: torch finds no GPU",
        0: "device 'cuda:0' is not here",
        "gpu": "unknown device 'gpu'",
        "": "unknown device ''",
        "meta": "device 'meta' is not here: ",
        "xpu": "device 'xpu' is not here: ",
    }
    for device, message in refused.items():
        with pytest.raises(ConfigError, match=message):
            own_device(device)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert own_device().type == "cuda"
    assert own_device(1) == torch.device("cuda:1")
    with pytest.raises(ConfigError, match="device 'cuda:2' is not here: torch finds 2 GPUs"):
        own_device("cuda:2")
    assert own_device("cpu") == torch.device("cpu")


def test_a_process_of_torchrun_has_the_gpu_of_its_own_rank(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert own_device("cuda") == chosen[0] == torch.device("cuda", 3)
    assert own_device("cuda:1") == torch.device("cuda", 1)
