"""Several training runs by one command, some of them at once: a small network alone keeps no device busy.

Every run is a process of its own, `python -m psp.pipeline train PROFILE RUN`; on a CPU they share the threads, on a
GPU the device. One that fails stops none of the others; where this process is stopped, all of them are.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager

import torch
from tqdm import tqdm

from psp.errors import ConfigError, RunsFailedError
from psp.files import ROOT
from psp.pipeline.plan import minutes

# The class of the error by which torchrun itself ends, whatever ended its processes.
TORCHRUN = "ChildFailedError"


def train_runs(profile, runs, jobs=1, options=(), threads=None):
    """Train several runs, `jobs` at a time, with `options` of the training stage; returns what was done in words.

    Each has so many `threads`, by default its share of this process's. Raises ConfigError for an unknown run or jobs
    below 1, before anything is started; RunsFailedError, naming the runs and what they said last, once all others have
    ended.
    """
    if jobs < 1:
        raise ConfigError(f"--jobs must be at least 1, got {jobs}")
    for run in runs:
        profile.config(run)
    threads = threads or share_of_threads(jobs)
    began, failed = time.perf_counter(), {}
    with tqdm(total=len(runs), unit="run") as bar, at_once(jobs) as submit:
        started = {submit(command(profile, run, options), threads): run for run in runs}
        for ended in as_completed(started):
            run, process = started[ended], ended.result()
            if process.returncode:
                failed[run] = what_failed(process)
            bar.write(f"{run}: {failed[run]}" if run in failed else process.stdout.strip(), file=sys.stderr)
            bar.update()
    raise_if_any_failed(failed, runs)
    return f"{len(runs)} runs trained in {minutes(time.perf_counter() - began)}"


def share_of_threads(jobs):
    """How many of this process's threads each of so many jobs has."""
    return max(1, torch.get_num_threads() // jobs)


def command(profile, run, options):
    return [sys.executable, "-m", "psp.pipeline", "train", profile.name, run, *options]


@contextmanager
def at_once(jobs):
    """A function of a command and a number of threads that starts it as soon as fewer than `jobs` are under way.

    It returns the future of the ended process. Whatever ends the context early (Ctrl-C, SIGTERM, an error) ends the
    processes under way, and none is started any more.
    """
    running, stopped = set(), threading.Event()

    def work(command, threads):
        process = start(command, threads)
        running.add(process)
        if stopped.is_set():  # between being started and being seen
            process.terminate()
        said = process.communicate()
        running.discard(process)
        return subprocess.CompletedProcess(command, process.returncode, *said)

    with ThreadPoolExecutor(jobs) as pool, ended_by_sigterm():
        try:
            yield lambda *job: pool.submit(work, *job)
        except BaseException:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                process.terminate()
            raise


def start(command, threads):
    """A process of this repository with so many threads, what it says to be read."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


@contextmanager
def ended_by_sigterm():
    """While it lasts SIGTERM, which ends a process on the spot otherwise, is an exception as Ctrl-C is."""
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def what_failed(process):
    """What the ended process of a stage said of an error, or else the last line of a traceback, or the last of all.

    torchrun follows what its processes say by a summary of its own, where only a signal that ended one of them matters,
    and not the SIGTERM by which torchrun ends the others.
    """
    lines = process.stderr.strip().splitlines() or [f"ended by {process.returncode}"]
    for telling in (r"error:", r"\s*traceback *: Signal (?!15\b)", r"(\[\w+\]:\s*)?[\w.]*(Error|Exception)\b"):
        found = [line for line in lines if re.match(telling, line) and TORCHRUN not in line]
        if found:
            return found[-1].strip()
    return lines[-1]


def raise_if_any_failed(failed, runs):
    """Raise RunsFailedError if `failed`, {run: what it said last}, names any of `runs`."""
    if failed:
        reasons = "; ".join(f"{run}: {failed[run]}" for run in runs if run in failed)
        raise RunsFailedError(f"{len(failed)} of {len(runs)} runs failed: {reasons}")
