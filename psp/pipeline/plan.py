"""How long a profile will take on this machine: images/s of a short probe × images left to train on."""

import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import cache
from itertools import chain

import torch

from psp.data.limits import cores_of_one
from psp.data.sets import TREES, load
from psp.errors import ConfigError, DataError
from psp.files import ROOT
from psp.pipeline.profiles import CHECKPOINTS, file_of, load_profile, with_sections
from psp.pipeline.stages import stage_of, stages_path
from psp.runs.provenance import device_name
from psp.training.distributed import own_device
from psp.training.fast import deterministic
from psp.training.train import chosen, steps_per_epoch

LOADER_BATCHES = 10
PREFETCHED = 2  # batches by each of a DataLoader's workers


def parts(profile):
    """A profile and the sections of its file; of a section, itself."""
    return [profile] if "/" in profile.name else [load_profile(name) for name in with_sections(profile.name)]


def plan(profile, jobs=1):
    """(the runs that `dvc repro` would train and that can be trained here, their projected time in words)."""
    left = runs_left(profile)
    counts = f"{profile.title()}: {len(profile.runs)} runs, {len(profile.runs) - len(left)} up to date"
    if not left:
        return [], f"{counts}; nothing to train"
    device = own_device()
    found = measured({run: profile.config(run) for run in left}, device)
    cannot = "".join(f"; {len(runs)} cannot be trained here: {reason}" for reason, runs in found.cannot.items())
    left = [run for run in left if run not in chain(*found.cannot.values())]
    if not left:
        return [], counts + cannot
    at_once = min(jobs, len(left))
    slowest, fastest = min(found.speeds.values()), max(found.speeds.values())
    ways = ", ".join([*sorted(found.steps), *[f"{at_once} runs at a time"] * (at_once > 1)])
    how = f"{slowest:.0f}–{fastest:.0f} images/s ({ways})"
    feeding = "".join(
        f"; {name} is decoded and cropped at {speed:.0f} images/s{', which training waits for' * (speed < fastest)}"
        for name, speed in found.loaders.items()
    )
    projected = f"about {minutes(found.seconds / at_once)} at {how} on {device_name(device)}"
    return left, f"{counts}; {projected}{feeding}{cannot}"


@dataclass
class Measured:
    """Images/s of a step by kind of run, the ways to compute it, images/s of loaders by data set, seconds of all runs.

    And {why runs cannot be trained here: their names}: missing or broken images, settings that do not fit them.
    """

    speeds: dict = field(default_factory=dict)
    steps: set = field(default_factory=set)
    loaders: dict = field(default_factory=dict)
    seconds: float = 0.0
    cannot: dict = field(default_factory=dict)


def measured(configs, device):
    """What there is to know of runs, {name: RunConfig}, before they are trained: `Measured`."""
    found, sets = Measured(), {}
    for run, config in configs.items():
        try:
            if config.dataset not in sets:
                sets[config.dataset] = load(config.dataset).to(device)
            _measure(found, config, sets[config.dataset], device)
        except (ConfigError, DataError) as error:
            found.cannot.setdefault(str(error), []).append(run)
    return found


def _measure(found, config, data, device):
    """Add a run to `found`, measuring what no run of its kind has measured."""
    kind = (config.dataset, config.model, config.batch_size, config.micro_batches, config.train_side(0))
    kind += (config.method == "baseline",)
    if kind not in found.speeds:
        speed, step = images_per_second(config, data, device)
        found.speeds[kind] = speed
        found.steps.add(step)
    if config.dataset in TREES and config.dataset not in found.loaders:
        found.loaders[config.dataset] = loader_speed(config, data)
    images = len(data.train) - config.holdout
    fed = fed_by(found.loaders.get(config.dataset), found.speeds[kind], device)
    found.seconds += images * relative_epochs(config) / fed


def fed_by(loader, step, device):
    """Images/s of a step, of speed `step` alone, that a loader of speed `loader` feeds; None where there is none.

    On a CPU both share the cores; a GPU and the workers that decode for it work at the same time.
    """
    if loader is None:
        return step
    return min(step, loader) if device.type == "cuda" else 1 / (1 / step + 1 / loader)


def relative_epochs(config):
    """A run's epochs, each counted by the area of its images relative to the first one's."""
    return sum(config.train_side(epoch) ** 2 for epoch in range(config.epochs)) / config.train_side(0) ** 2


def runs_left(profile):
    """Names of the runs whose record is missing or out of date, as DVC sees it."""
    changed = changed_stages(file_of(profile.name))
    return [run for run in profile.runs if f"train@{stage_of(profile.name, run)}" in changed]


@cache
def changed_stages(name):
    """The stages of a profile's pipeline that DVC would run again. Asking takes seconds, and is done once."""
    pipeline = stages_path(name).with_name("dvc.yaml").relative_to(ROOT)
    if not (ROOT / pipeline).is_file():
        raise ConfigError(f"{pipeline} is missing; `python -m psp.pipeline train {name}` trains the runs without DVC")
    command = [sys.executable, "-m", "dvc", "status", "--json", pipeline]
    status = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if status.returncode:
        raise ConfigError(f"`dvc status` failed: {status.stderr.strip()}")
    return {stage.split(":")[-1] for stage in json.loads(status.stdout)}


def loader_speed(config, data):
    """Images/s of a tree's training crops alone, without a step: what must not be slower than training."""
    ahead = PREFETCHED * cores_of_one()  # batches that workers have begun before the clock starts, and are not counted
    needed = (LOADER_BATCHES + 2 * ahead) * config.batch_size
    order = torch.randperm(len(data.train)).repeat(1 + needed // len(data.train))[:needed]
    parts = [(b, data.train.draws(len(b), torch.Generator())) for b in order.split(config.batch_size)]
    fed = data.train.feed(parts, config, 0)
    for _ in range(ahead):
        next(fed)
    began, images = time.perf_counter(), 0
    for _, labels in fed:
        images += len(labels)
    return images / (time.perf_counter() - began)


def images_per_second(config, data, device):
    """(speed of a few steps of the real loop, the way they are computed): the fastest way that this machine has."""
    steps_per_epoch(config, data.train)
    with deterministic():
        speeds = chosen(config, data.train, data, torch.device(device), CHECKPOINTS)["images_per_second"]
    step = max(speeds, key=speeds.get)
    return speeds[step], step


def minutes(seconds):
    """A duration in whole minutes, or hours and minutes."""
    hours, rest = divmod(max(1, round(seconds / 60)), 60)
    return f"{hours} h {rest} min" if hours else f"{rest} min"
