"""The stages of dvc.yaml as commands: python -m psp.pipeline data | plan | train | sweep | timing | figure PROFILE ….

Each stage checks what it was given before it starts to work, and ends with one line of error, not a traceback.
"""

import argparse
import json
import os
import sys

import torch
from torch import distributed
from tqdm import tqdm

from psp import errors
from psp.data.sets import load
from psp.errors import ConfigError, DataError, NotebookError
from psp.files import read_json, write_json
from psp.pipeline.jobs import train_runs
from psp.pipeline.plan import plan
from psp.pipeline.profiles import CHECKPOINTS, ROOT, load_profile, with_sections
from psp.report.paper_tables import paper_values
from psp.timing.networks import networks
from psp.timing.record import timing_record, without_gpu
from psp.training.train import train

ERRORS = tuple(error for error in vars(errors).values() if isinstance(error, type))
FIGURES = {
    "figure_1": "figure_1_structures",
    "figure_2": "figure_2_structure_parameters",
    "figure_3": "figure_3_column_pruning",
    "timing_tables": "timing",
    "network_table": "table_networks",
}


def data(profile):
    """Write results/<profile>/data.json: name, size and sha256 of every image set that the profile trains on."""
    names = sorted({config.dataset for config in profile.runs.values()})
    summaries = {name: load(name).summary() for name in names}
    write_json(summaries, profile.results / "data.json")
    return f"{', '.join(names)}: images read and counted, see {profile.results.relative_to(ROOT) / 'data.json'}"


def check_data(profile, dataset):
    """Raise DataError unless the images at hand are those that data.json describes."""
    path = profile.results / "data.json"
    stage = f"python -m psp.pipeline data {profile.name}"
    promised = read_json(path, f"run again: {stage}").get(dataset) if path.is_file() else None
    found = load(dataset).summary()
    if promised is None:
        raise DataError(f"{path} does not say yet what {dataset} is; run first: {stage}")
    if promised != found:
        raise DataError(
            f"{dataset} at hand is {found}, but {path} promises {promised}; "
            f"if the images at hand are right, run again: {stage}"
        )


def train_stage(profile, runs, jobs, in_notebook):
    """Train runs to their records, all of the profile if none is named; one here, several in processes of their own."""
    if distributed.is_torchelastic_launched() and len(runs) != 1:
        raise ConfigError(f"torchrun trains one run at a time; name one of {', '.join(profile.runs)}")
    if len(runs) == 1:
        return train_run(profile, runs[0], in_notebook)
    return train_runs(profile, runs or list(profile.runs), jobs, in_notebook)


def train_run(profile, run, in_notebook=True):
    """Train one run and write its record, through notebooks/train.ipynb or, where papermill is missing, directly.

    Under torchrun always directly; the first process writes the record.
    """
    config = profile.config(run)
    record, launched = profile.record_path(run), distributed.is_torchelastic_launched()
    first = not launched or os.environ["RANK"] == "0"
    if first:
        check_data(profile, config.dataset)
    if launched:
        trained = train(config, checkpoints=CHECKPOINTS)
        if first:
            write_json(trained, record)
    elif in_notebook:
        parameters = {**config.as_dict(), "record_path": str(record)}
        execute("train", profile.notebook_path(run), parameters)
    else:
        write_json(train(config, checkpoints=CHECKPOINTS), record)
    return f"{run}: see {record.relative_to(ROOT)}"


def plans(profile):
    """Projected time of the runs that `dvc repro` would train, of a profile and of the sections of its file."""
    names = [profile.name] if "/" in profile.name else with_sections(profile.name)
    return "\n".join(plan(load_profile(name)) for name in names)


def sweep(profile, runs, cluster, processes, parameters):
    """Train runs, all of the profile if none is named, as the jobs of a scheduler."""
    from psp.pipeline.sweep import sweep  # submitit is needed for nothing else

    for dataset in sorted({profile.config(run).dataset for run in runs or profile.runs}):
        check_data(profile, dataset)
    return sweep(profile, runs, cluster, processes, parameters)


def timing(profile, device=None):
    """Time the profile's dense and extracted networks on the CPU and, where there is one, on the GPU."""
    for kind in (device,) if device else ("cpu", "cuda"):
        path = profile.timing_path(kind)
        if kind == "cuda" and not torch.cuda.is_available():
            earlier = json.loads(path.read_text()) if path.is_file() else None
            record = without_gpu(earlier, profile)
        else:
            pairs = tqdm(networks(profile, profile.timing), total=profile.timing.count, unit="network")
            record = timing_record(pairs, profile.timing.as_dict(), torch.device(kind))
        write_json(record, path)
    return f"timing: see {profile.timing_path('cpu').parent.relative_to(ROOT)}"


def figure(profile, name):
    """Draw a figure and write its tables, through the notebook that shows them.

    Of the tables of networks, what is known of the paper's is said as well.
    """
    execute(FIGURES[name], profile.notebook_path(name), {"profile": profile.name, "output": str(profile.results)})
    said = f"{name}: see {profile.results.relative_to(ROOT) / 'figures'} and tables beside it"
    if name == "network_table" and not paper_values().empty:
        said += "\n\n" + (profile.results / "tables" / "networks_paper.md").read_text(encoding="utf-8")
    return said


def execute(notebook, output, parameters):
    """Run notebooks/<notebook>.ipynb by papermill; the executed copy goes to `output`."""
    import papermill  # not needed by --no-notebook, which is for machines without it

    output.parent.mkdir(parents=True, exist_ok=True)
    source = ROOT / "notebooks" / f"{notebook}.ipynb"
    try:
        papermill.execute_notebook(source, output, parameters, progress_bar=False, stderr_file=sys.stderr)
    except papermill.PapermillExecutionError as error:
        raise NotebookError(f"{error.evalue} ({error.ename}; all of it is in {output.relative_to(ROOT)})") from error


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m psp.pipeline", description=__doc__.splitlines()[0])
    stages = parser.add_subparsers(dest="stage", required=True)
    functions = {"data": data, "plan": plans, "timing": timing, "figure": figure, "train": train_stage, "sweep": sweep}
    for name, function in functions.items():
        stage = stages.add_parser(name, help=function.__doc__.splitlines()[0])
        stage.add_argument("profile")
        stage.set_defaults(function=function)
    stages.choices["figure"].add_argument("name", choices=FIGURES)
    stages.choices["timing"].add_argument("--device", choices=("cpu", "cuda"), help="only this one; both by default")
    for name in ("train", "sweep"):
        stages.choices[name].add_argument("runs", metavar="run", nargs="*")
    stage = stages.choices["train"]
    stage.add_argument("--jobs", type=int, default=1, help="how many runs at a time; 1 by default")
    stage.add_argument("--no-notebook", dest="in_notebook", action="store_false", help="train without papermill")
    stage = stages.choices["sweep"]
    stage.add_argument("--cluster", choices=("slurm", "local"), default="slurm")
    stage.add_argument("--processes", type=int, default=1, help="of a job: one for each GPU that trains a run")
    stage.add_argument("--set", dest="parameters", metavar="NAME=VALUE", nargs="*", default=[], help="submitit's own")
    options = vars(parser.parse_args(arguments))
    options.pop("stage")
    function = options.pop("function")
    try:
        print(function(load_profile(options.pop("profile")), **options))
    except ERRORS as error:
        sys.exit(f"error: {error}")
