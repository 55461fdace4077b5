"""Several training runs by one command, some of them at once: a small network alone keeps no device busy.

Every run is a process of its own, `python -m psp.pipeline train PROFILE RUN`; on a CPU they share the threads, on a
GPU the device. One that fails stops none of the others.
"""

import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed

import torch
from tqdm import tqdm

from psp.errors import ConfigError, RunsFailedError
from psp.files import ROOT
from psp.pipeline.plan import minutes

# The class of the error by which torchrun itself ends, whatever ended its processes.
TORCHRUN = "ChildFailedError"


def train_runs(profile, runs, jobs=1, options=()):
    """Train several runs, `jobs` at a time, with `options` of the training stage; returns what was done in words.

    Raises ConfigError for an unknown run or jobs below 1, before anything is started; RunsFailedError, naming the
    runs and what they said last, once all others have ended.
    """
    if jobs < 1:
        raise ConfigError(f"--jobs must be at least 1, got {jobs}")
    for run in runs:
        profile.config(run)
    began, failed = time.perf_counter(), {}
    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(runs), unit="run") as bar:
        started = {pool.submit(_train, profile, run, options, jobs): run for run in runs}
        for ended in as_completed(started):
            run, process = started[ended], ended.result()
            if process.returncode:
                failed[run] = what_failed(process)
            bar.write(f"{run}: {failed[run]}" if run in failed else process.stdout.strip(), file=sys.stderr)
            bar.update()
    raise_if_any_failed(failed, runs)
    return f"{len(runs)} runs trained in {minutes(time.perf_counter() - began)}"


def _train(profile, run, options, jobs):
    """The ended process of one run, which had its share of the threads."""
    command = [sys.executable, "-m", "psp.pipeline", "train", profile.name, run, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // jobs))}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


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
