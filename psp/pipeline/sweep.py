"""Runs of a profile as the jobs of a scheduler, by submitit: a Slurm job array, or processes of this machine.

A job runs one training stage, in the folder of this repository, which all machines share. One that is preempted or
reaches its time limit is queued again and goes on from its last epoch. Afterwards `make repro` finds every run finished
in checkpoints/ and trains none again.
"""

import subprocess
import sys
from collections import deque

import submitit
from submitit.helpers import Checkpointable, as_completed
from tqdm import tqdm

from psp.errors import ConfigError
from psp.files import ROOT
from psp.pipeline.jobs import raise_if_any_failed, what_failed
from psp.training.distributed import Processes

PYTHON = sys.executable
# How often a job may reach its time limit: each time it goes on from its last epoch.
REQUEUES = 100
# Of the lines that a stage says, all of which are in its job's log, so many are searched for the reason of a failure.
SAID = 1000
# A job is one task, whose torchrun starts the processes; several tasks would each train the whole run.
ONE_TASK = ("nodes", "tasks_per_node", "ntasks_per_node", "ntasks")
LOGS = ROOT / "checkpoints" / "jobs"


class TrainingJob(Checkpointable):
    """One training stage, by one process or by several that torchrun starts; queued again when it is cut off.

    Called with profile, run and number of processes, it returns what went wrong, "" if nothing did.
    """

    def __init__(self):
        self.python = PYTHON

    def __call__(self, profile, run, processes):
        python = [self.python, "-m"]
        if processes > 1:
            python += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
        command = [*python, "psp.pipeline", "train", profile, run, "--no-notebook"]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
            said = deque(maxlen=SAID)
            for line in process.stderr:  # a step of a progress bar is a line, too
                said.append(line)
                sys.stderr.write(line)
        done = subprocess.CompletedProcess(command, process.returncode, stderr="".join(said))
        return what_failed(done) if done.returncode else ""


def sweep(profile, runs, cluster, processes, parameters):
    """Submit runs, all of the profile if none is named, and wait for them; returns what was done in words.

    Args:
        cluster: "slurm", or "local" for processes of this machine.
        processes: of a job, one for each GPU or CPU that trains a run.
        parameters: submitit's, as "name=value": "timeout_min=240", which it needs, "slurm_partition=gpu", ….

    Raises ConfigError, before anything is submitted, for unknown runs and parameters, and for runs that so many
    processes cannot share; RunsFailedError, naming the runs, what they said last and where their logs are, once all
    others have ended.
    """
    runs = runs or list(profile.runs)
    if processes < 1:
        raise ConfigError(f"--processes must be at least 1, got {processes}")
    for run in runs:
        Processes(count=processes).parts(profile.config(run).micro_batches)
    executor = executor_for(cluster, parameters)
    with executor.batch():
        jobs = [executor.submit(TrainingJob(), profile.name, run, processes) for run in runs]
    names = {job.job_id: run for job, run in zip(jobs, runs, strict=True)}
    failed = {}
    for job in tqdm(as_completed(jobs, poll_frequency=1), total=len(jobs), unit="run"):
        error = job.exception()  # of a job that did not even end by itself
        if said := str(error).strip().splitlines()[0] if error else job.result():
            failed[names[job.job_id]] = f"{said} (log: {job.paths.stderr})"
    raise_if_any_failed(failed, runs)
    return f"{len(runs)} runs trained on {cluster}; `make repro` takes their records from checkpoints/"


def executor_for(cluster, parameters):
    """submitit's executor, its parameters set. Raises ConfigError for a scheduler or a parameter that there is not."""
    settings = dict(map(parameter, parameters))
    if "timeout_min" not in settings:
        raise ConfigError("set timeout_min=…, the minutes after which a job is cut off and queued again")
    several = [name for name in settings if name.removeprefix("slurm_") in ONE_TASK and settings[name] != 1]
    if several:
        raise ConfigError(f"{several[0]} cannot be set: a job is one task on one node; --processes starts more in it")
    try:
        executor = submitit.AutoExecutor(LOGS / "%j", cluster=cluster, slurm_max_num_timeout=REQUEUES)
        executor.update_parameters(**settings)
    except (NameError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"sweep on {cluster!r}: {error}") from error
    return executor


def parameter(text):
    """("name", value) of "name=value"; whole numbers are numbers."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"a parameter is written name=value, got {text!r}")
    return name, int(value) if value.lstrip("-").isdigit() else value
