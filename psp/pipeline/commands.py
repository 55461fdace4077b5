"""The stages of dvc.yaml, and what leads to them, as commands: python -m psp.pipeline STAGE PROFILE ….

Each stage checks what it was given before it starts to work, and ends with one line of error, not a traceback.
"""

import argparse
import re
import sys

import torch
from tqdm import tqdm

from psp import errors
from psp.data.sets import load
from psp.files import ROOT, read_json, write_json
from psp.pipeline.check import check
from psp.pipeline.notebook import execute
from psp.pipeline.plan import parts, plan
from psp.pipeline.profiles import load_profile
from psp.pipeline.runs import ahead, check_data, train_stage
from psp.pipeline.stages import check_stages, stages_path, write_stages
from psp.report.paper_tables import paper_values
from psp.timing.networks import networks
from psp.timing.record import timing_record, without_gpu

ERRORS = (*(error for error in vars(errors).values() if isinstance(error, type)), OSError)
FIGURES = {
    "figure_1": "figure_1_structures",
    "figure_2": "figure_2_structure_parameters",
    "figure_3": "figure_3_column_pruning",
    "timing_tables": "timing",
    "network_table": "table_networks",
}
BEFORE_ALL = ("figure_2", "figure_3")  # that can be drawn of some runs


def stage_list(profile):
    """Bring the list that dvc.yaml goes over, stages.yaml, up to what params.yaml says, as each stage does."""
    path = stages_path(profile.name)
    said = "up to date" if path.is_file() else "not needed, as there is no dvc.yaml beside it"
    return f"{path.relative_to(ROOT)}: {said}"


def data(profile, datasets):
    """Write what image sets are, all of the profile if none is named: name, size and sha256."""
    for name in datasets or sorted({config.dataset for config in profile.runs.values()}):
        write_json(load(name).summary(), profile.data_path(name))
    return f"images read and counted: see {profile.data_path('*').relative_to(ROOT)}"


def plans(profile):
    """Projected time of the runs that `dvc repro` would train, of a profile and of the sections of its file."""
    return "\n".join(plan(part)[1] for part in parts(profile))


def sweep(profile, runs, cluster, processes, parameters):
    """Train runs, all of the profile if none is named, as the jobs of a scheduler."""
    from psp.pipeline.sweep import sweep  # submitit is needed for nothing else

    for dataset in sorted({profile.config(run).dataset for run in runs or profile.runs}):
        check_data(profile, dataset)
    return sweep(profile, runs, cluster, processes, parameters)


def timing(profile, device=None):
    """Time the profile's dense and extracted networks on the CPU and, where there is one, on the GPU."""
    if profile.timing is None:
        raise errors.ConfigError(f"profile {profile.name!r} times nothing: its file has no `timing:`")
    for kind in (device,) if device else ("cpu", "cuda"):
        path = profile.timing_path(kind)
        earlier = read_json(path, "delete it, and time again") if path.is_file() else {}
        if kind == "cuda" and not torch.cuda.is_available():
            write_json(without_gpu(earlier, profile), path)
        else:
            pairs = tqdm(networks(profile, profile.timing), total=profile.timing.count, unit="network")
            write_timing(timing_record(pairs, profile.timing.as_dict(), torch.device(kind)), earlier, path)
    return f"timing: see {profile.timing_path('cpu').parent.relative_to(ROOT)}"


def write_timing(record, earlier, path):
    """Write a timing record to `path`; the earlier one of another machine goes to a file of its own."""

    def own(record):
        name = re.sub(r"[^a-z0-9]+", "-", f"{path.stem} {record['provenance']['device']}".lower()).strip("-")
        return path.parent / "machines" / f"{name}.json"

    if "networks" in earlier and own(earlier) != own(record):
        write_json(earlier, own(earlier))
    write_json(record, path)
    own(record).unlink(missing_ok=True)


def figure(profile, name, so_far=False):
    """Draw a figure and write its tables, through the notebook that shows them.

    With `so_far` of the runs that have a record, into a folder of their own. Of the tables of networks, what is known
    of the paper's is said as well.
    """
    results = profile.results
    parameters = {"profile": profile.name}
    if so_far:
        if name not in BEFORE_ALL:
            raise errors.ConfigError(f"--so-far is for {' and '.join(BEFORE_ALL)}; {name} needs all runs")
        results /= "so_far"
        parameters["so_far"] = True
    execute(FIGURES[name], results / "executed" / f"{name}.ipynb", {**parameters, "output": str(results)})
    said = f"{name}: see {results.relative_to(ROOT) / 'figures'} and tables beside it"
    if name == "network_table" and not paper_values().empty:
        said += "\n\n" + (results / "tables" / "networks_paper.md").read_text(encoding="utf-8")
    return said


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m psp.pipeline", description=__doc__.splitlines()[0])
    stages = parser.add_subparsers(dest="stage", required=True)
    functions = {"list": stage_list, "data": data, "plan": plans, "ahead": ahead, "train": train_stage}
    functions |= {"check": check, "sweep": sweep, "timing": timing, "figure": figure}
    for name, function in functions.items():
        stage = stages.add_parser(name, help=function.__doc__.splitlines()[0])
        stage.add_argument("profile")
        stage.set_defaults(function=function)
    stages.choices["check"].add_argument("run")
    stages.choices["figure"].add_argument("name", choices=FIGURES)
    stages.choices["figure"].add_argument("--so-far", action="store_true", help="of the runs that have a record")
    stages.choices["timing"].add_argument("--device", choices=("cpu", "cuda"), help="only this one; both by default")
    stages.choices["data"].add_argument("datasets", metavar="set", nargs="*")
    for name in ("train", "sweep"):
        stages.choices[name].add_argument("runs", metavar="run", nargs="*")
    jobs = {"type": int, "help": "how many runs at a time"}
    stages.choices["ahead"].add_argument("--jobs", **jobs, default=0)
    stage = stages.choices["train"]
    stage.add_argument("--jobs", **jobs, default=1)
    stage.add_argument("--no-notebook", dest="in_notebook", action="store_false", help="train without papermill")
    stage.add_argument("--ahead", action="store_true", help="into checkpoints/ only, where `dvc repro` finds it")
    stage = stages.choices["sweep"]
    stage.add_argument("--cluster", choices=("slurm", "local"), default="slurm")
    stage.add_argument("--processes", type=int, default=1, help="of a job: one for each GPU that trains a run")
    stage.add_argument("--set", dest="parameters", metavar="NAME=VALUE", nargs="*", default=[], help="submitit's own")
    options = vars(parser.parse_args(arguments))
    # The others are called by DVC, which goes by the list that it has read already.
    follow = write_stages if options.pop("stage") in ("plan", "ahead") else check_stages
    function = options.pop("function")
    try:
        profile = load_profile(options.pop("profile"))
        follow(profile.name)
        print(function(profile, **options))
    except ERRORS as error:
        sys.exit(f"error: {error}")
