"""How long a profile will take on this machine: images/s of a short probe × images left to train on."""

import json
import subprocess
import sys

import torch

from psp.data import load
from psp.errors import ConfigError
from psp.fast import deterministic
from psp.profiles import ROOT
from psp.records import device_name
from psp.train import choose, steps_per_epoch


def plan(profile):
    """Projected time of the runs that `dvc repro` would train, in words."""
    left = runs_left(profile)
    counts = f"{profile.title()}: {len(profile.runs)} runs, {len(profile.runs) - len(left)} up to date"
    if not left:
        return f"{counts}; nothing to train"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    speeds, steps, seconds = {}, set(), 0.0
    for config in (profile.config(run) for run in left):
        data = load(config.dataset)
        kind = (config.dataset, config.model, config.batch_size, config.method == "baseline")
        if kind not in speeds:
            speeds[kind], step = images_per_second(config, data.to(device), device)
            steps.add(step)
        seconds += config.epochs * (len(data.train) - config.holdout) / speeds[kind]
    slowest, fastest = min(speeds.values()), max(speeds.values())
    how = f"{slowest:.0f}–{fastest:.0f} images/s ({', '.join(sorted(steps))})"
    return f"{counts}; about {minutes(seconds)} at {how} on {device_name(device)}"


def runs_left(profile):
    """Names of the runs whose record is missing or out of date, as DVC sees it."""
    command = [sys.executable, "-m", "dvc", "status", "--json", profile.pipeline_file().relative_to(ROOT)]
    status = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if status.returncode:
        raise ConfigError(f"`dvc status` failed: {status.stderr.strip()}")
    changed = {stage.split("train@")[-1] for stage in json.loads(status.stdout)}
    return [run for run in profile.runs if run in changed]


def images_per_second(config, data, device):
    """(speed of a few steps of the real loop, the way they are computed): the fastest way that this machine has."""
    steps_per_epoch(config, data.train)
    with deterministic():
        speeds = choose(config, data.train, data, torch.device(device))["images_per_second"]
    step = max(speeds, key=speeds.get)
    return speeds[step], step


def minutes(seconds):
    """A duration in whole minutes, or hours and minutes."""
    hours, rest = divmod(max(1, round(seconds / 60)), 60)
    return f"{hours} h {rest} min" if hours else f"{rest} min"
