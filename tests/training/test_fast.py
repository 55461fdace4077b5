"""The way to compute a step: how it is chosen, and that only rounding depends on it."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from machine import HAS_CXX, HAS_TILES

import psp
from psp.errors import CheckpointError, ConfigError, KernelError
from psp.method.pruners import parametrizations
from psp.runs.config import RunConfig
from psp.training import train as training
from psp.training.fast import Network, can_build, fastest, remembered, ways

CPU = torch.device("cpu")
CONFIG = {"epochs": 1, "batch_size": 32, "method": "psp_weight_decay", "structure_decay": 0.001}


def choices(*names):
    return [{"precision": "float32", "kernels": name} for name in names]


class Clock:
    """A clock that the trials themselves set forward, so that no test depends on the machine's speed."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def perf_counter(self):
        return self.now

    def trial(self, name, first, later):
        """A trial that takes `first` seconds when it is called first and `later` seconds from then on."""

        def run():
            self.now += first if name not in self.calls else later
            self.calls.append(name)

        return {"precision": "float32", "kernels": name}, lambda: run


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("psp.training.fast.time", clock)
    return clock


def failing(error):
    def prepare():
        raise error

    return prepare


def test_the_fastest_is_chosen_and_all_speeds_are_told(clock):
    trials = [clock.trial("plain", 9, 2), clock.trial("fused", 9, 1), clock.trial("compiled", 9, 4)]
    chosen = fastest(trials, images=10)
    assert chosen == {
        "precision": "float32",
        "kernels": "fused",
        "images_per_second": {"plain float32": 5.0, "fused float32": 10.0, "compiled float32": 2.5},
        "left_out": {},
    }
    assert json.loads(json.dumps(chosen)) == chosen


def test_the_first_call_does_not_count_and_what_is_far_behind_is_not_tried_again(clock):
    fastest([clock.trial("plain", 1, 50), clock.trial("fused", 99, 10), clock.trial("compiled", 1, 11)], images=1)
    assert [clock.calls.count(name) for name in ("plain", "fused", "compiled")] == [2, 6, 6]


def test_what_does_not_work_here_is_left_out_with_its_reason(clock):
    fused, compiled = choices("fused", "compiled")
    failed = [(fused, failing(KernelError("no compiler"))), (compiled, failing(OSError("a\nb")))]
    chosen = fastest([clock.trial("plain", 1, 1), *failed], images=1)
    assert chosen["kernels"] == "plain"
    assert chosen["left_out"] == {"fused float32": "KernelError: no compiler", "compiled float32": "OSError: a"}


def test_an_error_of_the_run_itself_is_not_swallowed():
    with pytest.raises(ZeroDivisionError):
        fastest([(choices("plain")[0], failing(ZeroDivisionError()))], images=1)


def test_a_gpu_has_torch_compile_and_a_cpu_has_kernels_of_ours():
    assert {way["kernels"] for way in ways(CPU)} == {"plain", "fused", "tiled"}
    assert {way["kernels"] for way in ways(torch.device("cuda"))} == {"plain", "compiled"}


@pytest.mark.parametrize("way", ways(CPU), ids=lambda way: f"{way['kernels']} {way['precision']}")
def test_every_way_computes_the_same_network_up_to_rounding(way):
    if way["kernels"] != "plain" and not HAS_CXX:
        pytest.skip("no C++ compiler here")
    if way["kernels"] == "tiled" and not HAS_TILES:
        pytest.skip("no matrix unit here")
    state = training.start(RunConfig.of(CONFIG), 10, CPU)
    images = torch.randn(64, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    logits = Network(state.model, way)(images)
    expected = training.start(RunConfig.of(CONFIG), 10, CPU).model(images)
    assert logits.dtype == torch.float32
    bound = (0.05 if way["precision"] == "bfloat16" else 1e-4) * expected.abs().max()
    assert (logits - expected).abs().max() < bound
    logits.sum().backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in state.model.parameters())


def test_alpha_meets_the_weight_in_float32_also_under_bfloat16():
    """What autocast rounds is the product: α of 1 + 2⁻¹⁰ is more than bfloat16 can tell from 1."""
    state = training.start(RunConfig.of(CONFIG), 10, CPU)
    layer, pruner = next(iter(parametrizations(state.model).values()))
    torch.nn.init.constant_(pruner.alpha, 1 + 2**-10)
    with torch.autocast("cpu", torch.bfloat16):
        weight = layer.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, layer.parametrizations.weight.original * (1 + 2**-10))


def test_a_run_measures_and_tells_what_it_chose(tmp_path, monkeypatch):
    """With no compiler: the fused kernels are left out, and the record says why."""
    from few import few

    def kernels():
        raise KernelError("no compiler here")

    monkeypatch.setattr(psp.data.sets, "_digits", few(psp.data.sets._digits))
    monkeypatch.setattr("psp.training.fused.kernels", kernels)
    step = psp.train(CONFIG, checkpoints=tmp_path, device="cpu", progress=False)["provenance"]["step"]
    assert step["kernels"] == "plain"
    assert set(step["images_per_second"]) == {"plain float32", "plain bfloat16"}
    assert step["left_out"]["fused bfloat16"] == "KernelError: no compiler here"
    assert step["images_per_second"][f"plain {step['precision']}"] == max(step["images_per_second"].values())


def test_a_run_begun_with_kernels_that_are_gone_is_not_resumed_another_way(tmp_path, monkeypatch, few_digits):
    fused = {"precision": "float32", "kernels": "fused"}
    config = RunConfig.of({**CONFIG, "epochs": 2})
    data = psp.data.sets.load("digits")
    checkpoint = training.Checkpoint(tmp_path, config, data.sha256)
    state = training.start(config, 10, CPU)
    state.choice, state.epoch = fused, 1
    checkpoint.save(state)

    def kernels():
        raise KernelError("no compiler here")

    monkeypatch.setattr("psp.training.fused.kernels", kernels)
    with pytest.raises(CheckpointError, match=r"begun with fused kernels, which this machine lacks \(no comp"):
        psp.train(config, checkpoints=tmp_path, device="cpu", progress=False)
    assert checkpoint.path.exists()


def test_what_was_chosen_for_a_kind_of_run_is_measured_once(tmp_path):
    path, measured = tmp_path / "checkpoints" / "ways.json", []

    def measure():
        measured.append(len(measured))
        return {"precision": "float32", "kernels": "plain", "round": measured[-1]}

    first = remembered(path, ["digits", 32], measure)
    assert remembered(path, ["digits", 32], measure) == first
    assert remembered(path, ["digits", 64], measure)["round"] == 1
    assert remembered(path, ["digits", 32], measure) == first, "and is kept beside the others"
    for round, useless in ((2, "{"), (3, "[]")):
        path.write_text(useless)
        assert remembered(path, ["digits", 32], measure)["round"] == round


def test_a_step_that_is_named_is_not_chosen(tmp_path, monkeypatch, few_digits):
    monkeypatch.setattr("psp.training.train.choose", None)
    step = {"precision": "bfloat16", "kernels": "plain"}
    record = psp.train(CONFIG, checkpoints=tmp_path, device="cpu", progress=False, step={**step, "left_out": {}})
    assert record["provenance"]["step"] == step
    with pytest.raises(ConfigError, match=r"a step on cpu is one of .* not {'precision': 'float16', 'kernels': None}"):
        psp.train(CONFIG, checkpoints=tmp_path, device="cpu", progress=False, step={"precision": "float16"})


def test_a_new_run_is_computed_without_kernels_where_their_compiler_is_gone(tmp_path, monkeypatch, few_digits):
    def choose(*_):
        return {"precision": "float32", "kernels": "fused" if "fused" in can_build() else "plain"}

    def lost():
        raise KernelError("no compiler")

    monkeypatch.setattr("psp.training.train.choose", choose)
    steps = []
    for seed in (0, 1):
        record = psp.train({**CONFIG, "seed": seed}, checkpoints=tmp_path, device="cpu", progress=False)
        steps.append(record["provenance"]["step"]["kernels"])
        monkeypatch.setattr("psp.training.fused.kernels", lost)
    assert steps == ["fused" if HAS_CXX else "plain", "plain"]


def test_of_several_that_ask_at_once_one_measures(tmp_path):
    measured = []

    def measure():
        measured.append(len(measured))
        time.sleep(0.2)
        return {"round": len(measured)}

    def ask(kind):
        return remembered(tmp_path / "checkpoints" / "ways.json", [kind], measure)

    with ThreadPoolExecutor(4) as pool:
        first, second, *others = pool.map(ask, ["a", "a", "a", "b"])
    assert first == second == others[0] != others[1]
    assert len(measured) == 2


def test_a_folder_without_locks_is_no_reason_not_to_train(tmp_path, monkeypatch):
    def refuse(lock):
        raise NotImplementedError("flock")

    monkeypatch.setattr("psp.files.FileLock.acquire", refuse)
    assert remembered(tmp_path / "ways.json", ["a"], lambda: {"round": 1}) == {"round": 1}
    with pytest.raises(ZeroDivisionError):
        remembered(tmp_path / "ways.json", ["b"], lambda: 1 / 0)


def test_runs_of_one_kind_are_computed_alike(tmp_path, monkeypatch, few_digits):
    choices = [{"precision": "float32", "kernels": "plain"}, {"precision": "float32", "kernels": "fused"}]
    monkeypatch.setattr("psp.training.train.choose", lambda *_: choices.pop(0))
    steps = [
        psp.train({**CONFIG, **own}, checkpoints=tmp_path, device="cpu", progress=False)["provenance"]["step"][
            "kernels"
        ]
        for own in ({"seed": 0}, {"seed": 1}, {"method": "baseline", "structure_decay": 0.0})
    ]
    assert steps == ["plain", "plain", "fused"]
