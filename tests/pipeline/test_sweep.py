"""Sweeps: what is submitted, by submitit's own executor for this machine, and what is said of runs that fail."""

import re
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from psp.errors import ConfigError, RunsFailedError
from psp.pipeline import sweep as sweeps
from psp.pipeline.jobs import what_failed
from psp.pipeline.profiles import Profile
from psp.runs.config import RunConfig

PROFILE = Profile("demo", {"a": RunConfig(), "b": RunConfig(seed=1)})
# Stands for Python in a job: writes down how it was called, and fails for one run.
STAGE = """#!/bin/sh
echo "$*" > "$(dirname "$0")/called"
case "$*" in *bad-s0*) echo "error: nothing to train on" >&2; echo noise >&2; exit 1;; esac
"""


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    """Jobs keep their logs in a folder of the test's own, and call STAGE for Python."""
    (tmp_path / "python").write_text(STAGE)
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sweeps, "LOGS", tmp_path / "jobs")
    monkeypatch.setattr(sweeps, "PYTHON", str(tmp_path / "python"))
    return tmp_path / "jobs"


def test_a_job_is_one_training_stage(jobs):
    assert sweeps.TrainingJob()("laptop", "baseline-s0", 1) == ""
    assert (jobs.parent / "called").read_text() == "-m psp.pipeline train laptop baseline-s0 --no-notebook\n"
    assert sweeps.TrainingJob()("laptop", "bad-s0", 1) == "error: nothing to train on"


def test_several_processes_are_started_by_torchrun(jobs):
    sweeps.TrainingJob()("paper/ilsvrc", "baseline-s0", 8)
    started = "-m torch.distributed.run --standalone --nproc-per-node=8 -m psp.pipeline train paper/ilsvrc baseline-s0"
    assert started in (jobs.parent / "called").read_text()


def test_the_last_error_is_what_a_stage_said():
    def said(text):
        return what_failed(CompletedProcess([], 3, stderr=text))

    assert said("a\nerror: what is wrong\n[W] noise") == "error: what is wrong"
    assert said("Traceback\nValueError: x") == "ValueError: x"
    assert said("") == "ended by 3"


def test_unknown_runs_and_parameters_are_errors_before_anything_is_submitted(jobs, monkeypatch):
    monkeypatch.setenv("PATH", "")  # no Slurm, whatever machine this is
    for runs, cluster, parameters, said in (
        (["x"], "local", [], "profile 'demo' has no run 'x'"),
        ([], "local", ["timeout"], "a parameter is written name=value, got 'timeout'"),
        ([], "local", ["slurm_partition=gpu"], "set timeout_min="),
        ([], "local", ["timeout_min=9", "time_min=5"], "sweep on 'local': .*time_min"),
        ([], "local", ["timeout_min=9", "tasks_per_node=8"], "tasks_per_node cannot be set: .*--processes"),
        ([], "slurm", ["timeout_min=9", "nodes=2"], "nodes cannot be set"),
        ([], "slurm", ["timeout_min=9"], "sweep on 'slurm': .*srun"),
    ):
        with pytest.raises(ConfigError, match=said):
            sweeps.sweep(PROFILE, runs, cluster, 1, parameters)
    for processes, said in ((0, "--processes must be at least 1, got 0"), (2, "micro_batches 1 cannot be shared by 2")):
        with pytest.raises(ConfigError, match=said):
            sweeps.sweep(PROFILE, [], "local", processes, ["timeout_min=9"])
    assert not [path for path in jobs.rglob("*") if path.is_file()]


def test_parameters_are_submitits():
    executor = sweeps.executor_for("local", ["timeout_min=7", "slurm_partition=gpu", "nodes=1"])
    assert executor._executor.parameters["timeout_min"] == 7


def test_jobs_run_on_the_local_cluster_and_failures_are_named(jobs):
    """Real jobs, in processes that submitit starts."""
    runs = {name: RunConfig() for name in ("a-s0", "bad-s0", "b-s0")}
    said = r"1 of 3 runs failed: bad-s0: error: nothing to train on \(log: (.*)\)$"
    with pytest.raises(RunsFailedError, match=said) as raised:
        sweeps.sweep(Profile("demo", runs), [], "local", 1, ["timeout_min=5"])
    log = Path(re.search(said, str(raised.value))[1])
    assert "error: nothing to train on\nnoise\n" in log.read_text()
    assert len(list(jobs.rglob("*_submitted.pkl"))) == 3
    assert sweeps.sweep(Profile("demo", runs), ["b-s0"], "local", 1, ["timeout_min=5"]).startswith(
        "1 runs trained on local"
    )


def test_a_job_that_is_cut_off_is_queued_again_as_it_was():
    again = sweeps.TrainingJob().checkpoint("laptop", "baseline-s0", 1)
    assert again.args == ("laptop", "baseline-s0", 1)
    assert isinstance(again.function, sweeps.TrainingJob)
