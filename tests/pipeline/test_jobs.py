"""Several runs by one command."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from psp.errors import ConfigError, RunsFailedError
from psp.pipeline import commands as pipeline
from psp.pipeline import jobs, runs
from psp.pipeline.profiles import Profile
from psp.runs.config import RunConfig

PROFILE = Profile("elsewhere", {name: RunConfig(method="baseline") for name in ("a", "b", "c")})


class Ended:
    """A process that has ended."""

    def __init__(self, returncode, said):
        self.returncode, self.said = returncode, said

    def communicate(self):
        return self.said


@pytest.fixture
def started(monkeypatch):
    """What would be started as processes: (command after -m, threads). Run "b" fails."""
    commands = []

    def start(command, threads):
        commands.append((command[2:], threads))
        failed = "b" in command
        said = ("", "Traceback\nerror: no images\n") if failed else ("see the record\n", "a warning\n")
        return Ended(int(failed), said)

    monkeypatch.setattr(jobs, "start", start)
    monkeypatch.setattr(jobs.torch, "get_num_threads", lambda: 5)
    return commands


def test_every_run_is_a_process_with_its_share_of_the_threads(started):
    assert jobs.train_runs(PROFILE, ["a", "c"], jobs=2, options=["--no-notebook"]) == "2 runs trained in 1 min"
    assert sorted(started) == [(["psp.pipeline", "train", "elsewhere", r, "--no-notebook"], 2) for r in ("a", "c")]


def test_more_jobs_than_threads_leave_one_thread_each(started):
    jobs.train_runs(PROFILE, ["a"], jobs=9)
    assert started == [(["psp.pipeline", "train", "elsewhere", "a"], 1)]


def test_what_was_planned_for_a_share_of_the_threads_is_trained_by_that_share(started, monkeypatch):
    """Of four threads two jobs have two each, in the plan and in their processes."""
    threads = [4]
    monkeypatch.setattr(jobs.torch, "get_num_threads", lambda: threads[-1])
    monkeypatch.setattr(jobs.torch, "set_num_threads", threads.append)
    monkeypatch.setattr(runs, "parts", lambda profile: [profile])
    monkeypatch.setattr(runs, "plan", lambda profile, jobs: (["a", "c"], f"planned for {threads[-1]}"))
    runs.ahead(PROFILE, jobs=2)
    assert threads == [4, 2]
    assert [own for _, own in started] == [2, 2]


def test_a_process_has_its_threads():
    process = jobs.start([sys.executable, "-c", "import os; print(os.environ['OMP_NUM_THREADS'])"], 3)
    assert process.communicate() == ("3\n", "")


@pytest.mark.parametrize(("sent", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_where_this_process_is_stopped_so_are_the_runs_under_way_and_none_is_started(
    sent, raised, monkeypatch, request
):
    processes, lock = [], threading.Lock()

    def start(command, threads):
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], text=True)
        with lock:
            processes.append(process)
            second = len(processes) == 2
        if second:
            time.sleep(0.5)  # until the third one waits its turn
            os.kill(os.getpid(), sent)
        return process

    monkeypatch.setattr(jobs, "start", start)
    before = signal.getsignal(signal.SIGTERM)
    # A shell has what it starts in the background ignore SIGINT, these tests among it.
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, interrupt))
    with pytest.raises(raised):
        jobs.train_runs(PROFILE, ["a", "b", "c"], jobs=2)
    assert [process.poll() for process in processes] == [-signal.SIGTERM] * 2
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_failed_run_stops_no_other_and_is_named_with_its_reason(started, capsys):
    with pytest.raises(RunsFailedError, match=r"^1 of 3 runs failed: b: error: no images$"):
        jobs.train_runs(PROFILE, ["b", "a", "c"])
    assert len(started) == 3
    assert "b: error: no images" in capsys.readouterr().err


def test_what_is_wrong_with_the_command_is_found_before_any_run(started):
    with pytest.raises(ConfigError, match="has no run 'x'"):
        jobs.train_runs(PROFILE, ["a", "x"])
    with pytest.raises(ConfigError, match="--jobs must be at least 1, got 0"):
        jobs.train_runs(PROFILE, ["a", "b"], jobs=0)
    assert started == []


def test_without_names_all_runs_of_the_profile_are_trained_and_a_failure_is_the_exit_status(started, monkeypatch):
    monkeypatch.setattr(pipeline, "load_profile", lambda name: PROFILE)
    monkeypatch.setattr(pipeline, "check_stages", lambda name: None)
    with pytest.raises(SystemExit, match=r"^error: 1 of 3 runs failed: b"):
        pipeline.main(["train", "elsewhere", "--jobs", "3"])
    assert sorted(command[3] for command, _ in started) == ["a", "b", "c"]


def test_runs_at_once_are_really_at_once(monkeypatch, tmp_path):
    """Each of two processes waits for the other's file: one after the other they would wait in vain."""
    wait = """
import pathlib, sys, time
mine, other = sys.argv[1:3]
folder = pathlib.Path(sys.argv[3])
(folder / mine).touch()
for _ in range(1000):
    if (folder / other).exists():
        sys.exit()
    time.sleep(0.01)
sys.exit("alone")
"""
    really = jobs.start

    def start(command, threads):
        names = {"a": ("a", "b"), "b": ("b", "a")}[command[5]]
        return really([sys.executable, "-c", wait, *names, str(tmp_path)], threads)

    monkeypatch.setattr(jobs, "start", start)
    assert jobs.train_runs(PROFILE, ["a", "b"], jobs=2).startswith("2 runs trained")
