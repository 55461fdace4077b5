"""The training stage: one run to its record, or all that `dvc repro` would train, before it asks for them."""

import os

import torch
from torch import distributed

from psp.data.limits import cores_of_one
from psp.data.sets import load
from psp.errors import ConfigError, DataError, RunsFailedError
from psp.files import ROOT, read_json, write_json
from psp.pipeline.jobs import share_of_threads, train_runs
from psp.pipeline.notebook import execute
from psp.pipeline.plan import parts, plan
from psp.pipeline.profiles import CHECKPOINTS
from psp.training.checkpoint import Checkpoint
from psp.training.distributed import own_device
from psp.training.train import train


def train_stage(profile, runs, jobs, in_notebook, ahead):
    """Train runs to their records, all of the profile if none is named; one here, several in processes of their own."""
    if distributed.is_torchelastic_launched() and len(runs) != 1:
        raise ConfigError(f"torchrun trains one run at a time; name one of {', '.join(profile.runs)}")
    if len(runs) == 1:
        return train_ahead(profile, runs[0]) if ahead else train_run(profile, runs[0], in_notebook)
    options = ["--ahead"] * ahead + ["--no-notebook"] * (not in_notebook)
    return train_runs(profile, runs or list(profile.runs), jobs, options)


def train_run(profile, run, in_notebook=True):
    """Train one run and write its record, through notebooks/train.ipynb or, where papermill is missing, directly.

    Directly, too, where the run is finished already, and under torchrun, of whose processes the first writes it.
    """
    config, record = profile.config(run), profile.record_path(run)
    launched = distributed.is_torchelastic_launched()
    first = not launched or os.environ["RANK"] == "0"
    # Of several processes none goes its own way: they ask in `train`, together.
    finished = None if launched else finished_before(profile, config)
    if first and not finished:
        check_data(profile, config.dataset)
    if in_notebook and not launched and not finished:
        execute("train", profile.notebook_path(run), {**config.as_dict(), "record_path": str(record)})
    else:
        trained = finished or train(config, checkpoints=CHECKPOINTS)
        if first:
            write_json(trained, record)
    return f"{run}: see {record.relative_to(ROOT)}"


def finished_before(profile, config):
    """The record of a run that has ended on the images that the data stage has described; None if there is none."""
    promised = promised_data(profile, config.dataset)
    return promised and Checkpoint(CHECKPOINTS, config, promised.get("sha256")).finished_record()


def train_ahead(profile, run):
    """Train one run into checkpoints/ and write no record: the pipeline does, once it comes to it."""
    train(profile.config(run), checkpoints=CHECKPOINTS)
    return f"{run}: finished in {CHECKPOINTS.relative_to(ROOT)}"


def ahead(profile, jobs):
    """Train what `dvc repro` would, several runs at a time, so that it finds them finished.

    A run that fails, or whose images are not here, is left to `dvc repro`, which says so again.
    """
    if jobs < 0:
        raise ConfigError(f"--jobs must be at least 1, or 0 for one a core, got {jobs}")
    jobs = jobs or (cores_of_one() if own_device().type == "cpu" else 1)
    threads = share_of_threads(jobs)
    torch.set_num_threads(threads)  # what is measured for the plan is what will run
    for part in parts(profile):
        left, words = plan(part, jobs)
        print(words, flush=True)
        try:
            if left:
                print(train_runs(part, left, jobs, ["--ahead"], threads), flush=True)
        except RunsFailedError as error:
            print(error, flush=True)
    return f"{profile.name}: `dvc repro` has the rest to do"


def check_data(profile, dataset):
    """Raise DataError unless the images at hand are those that the profile's data stage has described."""
    path, stage = profile.data_path(dataset), data_stage(profile, dataset)
    promised, found = promised_data(profile, dataset), load(dataset).summary()
    if promised is None:
        raise DataError(f"there is no {path} yet, which says what {dataset} is; run first: {stage}")
    if promised != found:
        raise DataError(
            f"{dataset} at hand is {found}, but {path} promises {promised}; "
            f"if the images at hand are right, run again: {stage}"
        )


def promised_data(profile, dataset):
    """What the profile's data stage has written of an image set; None if it has not run."""
    path = profile.data_path(dataset)
    return read_json(path, f"run again: {data_stage(profile, dataset)}") if path.is_file() else None


def data_stage(profile, dataset):
    """The command that describes an image set."""
    return f"python -m psp.pipeline data {profile.name} {dataset}"
