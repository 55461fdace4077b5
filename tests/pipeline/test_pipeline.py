"""The pipeline: end to end on a copy of the repository, and its errors."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import yaml

from psp.data.sets import load
from psp.errors import ConfigError, DataError
from psp.files import SEAL
from psp.pipeline import commands as pipeline
from psp.pipeline.plan import (
    LOADER_BATCHES,
    PREFETCHED,
    fed_by,
    images_per_second,
    loader_speed,
    minutes,
    plan,
    relative_epochs,
)
from psp.pipeline.profiles import ROOT, Profile, load_profile
from psp.pipeline.stages import stages
from psp.runs.config import RunConfig
from psp.runs.record import read_record

BASELINE, PRUNED, L1 = "baseline-s0", "psp_weight_decay-1e-2-s0", "psp_l1-1e-2-s0"
LARGE = "psp_weight_decay-column-25e-2-s0"
DENSENET = "psp_weight_decay-column-29e-3-s0"


def setting(run):
    """What params.yaml calls a run of seed 0."""
    return run.removesuffix("-s0")


def change(repository, before, after):
    """Change params.yaml of the copy, and the list of stages with it."""
    params = repository / "params.yaml"
    assert before in params.read_text()
    params.write_text(params.read_text().replace(before, after))
    command = [sys.executable, "-m", "psp.pipeline", "list", "demo"]
    return subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)


def dvc(folder, *arguments):
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def changed_stages(folder, pipeline="dvc.yaml"):
    """The stages of one pipeline file that `dvc repro` would run again, by name without their file."""
    status = dvc(folder, "status", "--json", pipeline)
    assert status.returncode == 0, status.stderr
    return {stage.split(":")[-1] for stage in json.loads(status.stdout)}


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A copy of this repository in which the demo is three runs of one epoch, after `dvc repro`."""
    folder = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name, follow_symlinks=False)
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["defaults"] |= {"epochs": 1, "batch_size": 256}
    params["runs"] = {
        setting(BASELINE): {"method": "baseline"},
        setting(PRUNED): {"method": "psp_weight_decay", "structure_decay": 0.01},
        setting(L1): {"method": "psp_l1", "structure_decay": 0.01},
    }
    params["timing"] |= {"batches": [1], "random_batch": 1, "backends": ["eager"], "precisions": ["float32"]}
    params["timing"] |= {"runs": [PRUNED], "structures": ["channel"], "sparsities": [0.5]}
    params["cifar"]["defaults"] |= {"epochs": 1, "batch_size": 256}
    params["cifar"]["runs"].pop(setting(BASELINE))
    params["cifar"]["timing"] |= {"batches": [1], "random_batch": 1}
    large = params["ilsvrc"]
    large["defaults"] |= {"epochs": 1, "sides": [32, 32, 32]}
    large["runs"] = {name: settings for name, settings in large["runs"].items() if "column" in name}
    large["timing"] |= {"runs": [LARGE], "batches": [1], "random_batch": 1, "backends": ["eager"]}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    first = dvc(folder, "repro")
    assert first.returncode != 0
    assert "error: params.yaml was changed, and the list of stages follows it now: run this again" in first.stderr
    done = dvc(folder, "repro")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_repro_goes_from_images_to_the_figure(repository):
    results = repository / "results" / "demo"
    record = read_record(results / "runs" / f"{BASELINE}.json")
    table = (results / "tables" / "figure_3.csv").read_text()
    assert f"{record['test_error_pct']:.10g}" in table
    assert (results / "figures" / "figure_3.png").read_bytes().startswith(b"\x89PNG")
    assert "demo profile: resnet20, digits, 1 epochs, 1 seed" in (results / "figures" / "figure_3.svg").read_text()
    assert "not tested at this profile" in (results / "tables" / "figure_3_claims.md").read_text()
    assert json.loads((results / "executed" / f"{PRUNED}.ipynb").read_text())["cells"]


def test_repro_goes_from_image_folders_to_their_table(repository):
    results = repository / "results" / "demo" / "ilsvrc"
    (path,) = (results / "runs").glob("*.json")
    record = read_record(path)
    assert record["data"]["converted_to_rgb"] == {"CMYK": 1, "L": 1}
    table = (results / "tables" / "networks.csv").read_text()
    assert f"{record['test_error_pct']:.10g}" in table
    assert "JPEGs drawn for this purpose" in (results / "tables" / "networks.md").read_text()
    assert "not available to us" in (results / "tables" / "networks_paper.md").read_text()


def test_table_cifar_has_the_main_runs_and_those_of_its_section(repository):
    folder = repository / "results" / "demo" / "cifar" / "tables"
    table = pd.read_csv(folder / "networks.csv")
    assert list(table["network"]) == ["resnet20", "resnet20", "densenet16"]
    assert list(table["structure"]) == ["none (dense)", "column", "column"], "of the two columns the one that is timed"
    title = (folder / "networks.md").read_text().splitlines()[0]
    assert "demo profile: resnet20, digits, 1 epochs, 1 seed; demo/cifar profile: densenet16, digits" in title


def test_repro_prints_the_differences_to_the_papers_tables_once_they_are_filled_in(repository):
    """The demo has no network of the paper's: its row is printed all the same, and says so."""
    path = repository / "results" / "reference" / "paper_tables.csv"
    before = path.read_text()
    try:
        path.write_text(before + "cifar10,resnet56,column,7.25,,,\n")
        printed = dvc(repository, "repro", "-s", "cifar_table").stdout
        assert "| 7.25" in printed
        assert "no such row here" in printed
    finally:
        path.write_text(before)
        assert "not available to us" not in dvc(repository, "repro", "-s", "cifar_table").stdout


def test_missing_image_folders_stop_their_own_runs_and_no_other(repository, tmp_path, monkeypatch):
    monkeypatch.setenv("PSP_DATA", str(tmp_path))
    figure = repository / "psp" / "report" / "figures" / "figure_3.py"
    before, drawn = figure.read_text(), repository / "results" / "demo" / "figures" / "figure_3.png"
    drawn.unlink()
    try:
        change(repository, "dataset: drawings", "dataset: ilsvrc2012")
        figure.write_text(before + "\n")
        ended = dvc(repository, "repro", "--keep-going")
        assert ended.returncode != 0
        assert "error: ilsvrc2012 not found: looked for train/<class>/* and val/<class>/*" in ended.stderr
        assert "Running stage 'train@ilsvrc" not in ended.stdout
        assert "Running stage 'figure_3'" in ended.stdout
        assert drawn.exists()
    finally:
        change(repository, "dataset: ilsvrc2012", "dataset: drawings")
        figure.write_text(before)
    again = dvc(repository, "repro", "--keep-going")
    assert again.returncode == 0, again.stderr
    assert "Running stage 'train@ilsvrc" not in again.stdout


def test_a_second_repro_does_nothing(repository):
    again = dvc(repository, "repro")
    assert again.returncode == 0
    assert "Running stage" not in again.stdout
    assert "up to date" in again.stdout
    assert changed_stages(repository) == set()


def test_a_stage_that_fails_keeps_the_old_record_and_says_why_in_one_line(repository):
    """The error arises inside the notebook: the layer that `skip` names exists in no model."""
    record = repository / "results" / "demo" / "runs" / f"{PRUNED}.json"
    old, wrong = record.read_bytes(), "structure_decay: 0.01\n    skip: [nowhere]"
    try:
        change(repository, "structure_decay: 0.01", wrong)
        failed = dvc(repository, "repro", f"train@{PRUNED}")
    finally:
        change(repository, wrong, "structure_decay: 0.01")
    assert failed.returncode != 0
    assert "error: skip pattern 'nowhere' matches no layer" in failed.stderr
    assert record.read_bytes() == old


TRAINED = {*(f"train@{run}" for run in (BASELINE, PRUNED, L1)), f"train@cifar-{DENSENET}", f"train@ilsvrc-{LARGE}"}
TIMED = {f"timing@{part}" for part in ("main", "cifar", "ilsvrc")}
TABLES = {f"timing_tables@{part}" for part in ("main", "cifar", "ilsvrc")} | {"cifar_table", "ilsvrc_table"}
DRAWN = {"figure_1", "figure_2", "figure_3"}


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("psp/report/figures/figure_3.py", DRAWN | TABLES),
        ("psp/timing/measure.py", TIMED | TABLES | {"figure_3"}),
        ("psp/frozen/lanes.c", TIMED),
        ("psp/extraction/cost.py", TIMED | {"figure_3"}),
        ("psp/native.py", TRAINED | TIMED),
        ("psp/models/resnet.py", TRAINED | TIMED | {"figure_3"}),
        ("psp/method/masks.py", TRAINED | TIMED | TABLES | DRAWN),
        ("psp/runs/record.py", TRAINED | TABLES | DRAWN),
        ("results/reference/paper_tables.csv", {"cifar_table", "ilsvrc_table"}),
        ("notebooks/figure_3_column_pruning.ipynb", {"figure_3"}),
        ("notebooks/train.ipynb", set()),
        ("psp/pipeline/plan.py", set()),
        ("README.md", set()),
        ("psp/training/train.py", TRAINED),
        ("psp/training/norm_relu.cpp", TRAINED),
        ("psp/data/images.py", TRAINED | {"data@digits", "data@drawings"}),
        ("results/demo/data/digits.json", TRAINED - {f"train@ilsvrc-{LARGE}"} | {"data@digits"}),
    ],
)
def test_an_edit_makes_only_what_depends_on_it_out_of_date(name, stages, repository):
    path = repository / name
    before = path.read_text()
    try:
        path.write_text(before + "\n")
        assert changed_stages(repository) == stages
    finally:
        path.write_text(before)


def test_an_edit_of_one_setting_makes_its_runs_and_what_is_drawn_of_them_out_of_date(repository):
    try:
        change(repository, "method: psp_l1\n    structure_decay: 0.01", "method: psp_l1\n    structure_decay: 0.02")
        assert changed_stages(repository) - DRAWN == {"list", "cifar_table", f"train@{L1}"}
    finally:
        change(repository, "structure_decay: 0.02", "structure_decay: 0.01")


def test_the_committed_results_of_the_laptop_profile_are_up_to_date_without_its_images(repository):
    assert changed_stages(repository, "profiles/laptop/dvc.yaml") == set()


def test_errors_come_as_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PSP_DATA", str(tmp_path))
    monkeypatch.setattr("psp.data.cifar.ROOT", tmp_path)
    for arguments, message in (
        (["data", "desktop"], "error: unknown profile 'desktop'"),
        (["train", "demo", "x"], "error: profile 'demo' has no run 'x'"),
        (["train", "laptop", BASELINE], "error: cifar10 not found: looked for"),
    ):
        with pytest.raises(SystemExit, match=message):
            pipeline.main(arguments)


def test_what_the_system_refuses_is_one_line_and_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    monkeypatch.setattr("psp.pipeline.profiles.ROOT", tmp_path)
    monkeypatch.setattr("psp.pipeline.profiles.profile_path", lambda _: tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    with pytest.raises(SystemExit, match=r"error: .*No space left on device"):
        pipeline.main(["data", "demo", "digits"])
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["params.yaml"]


def test_torchrun_trains_one_run_at_a_time(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(SystemExit, match="error: torchrun trains one run at a time; name one of baseline-s0"):
        pipeline.main(["train", "demo"])


def test_other_images_than_promised_are_refused(tmp_path, monkeypatch):
    profile = Profile("elsewhere", {BASELINE: RunConfig(method="baseline")})
    monkeypatch.setattr("psp.pipeline.profiles.ROOT", tmp_path)
    monkeypatch.setattr("psp.pipeline.commands.ROOT", tmp_path)
    with pytest.raises(
        DataError, match=r"there is no .*digits.json yet.* run first: python -m psp.pipeline data elsewhere digits"
    ):
        pipeline.check_data(profile, "digits")
    pipeline.data(profile, [])
    pipeline.check_data(profile, "digits")
    path = profile.data_path("digits")
    path.write_text(path.read_text().replace("1437", "1436"))
    with pytest.raises(DataError, match=r"digits at hand is .* promises .* python -m psp.pipeline data elsewhere"):
        pipeline.check_data(profile, "digits")
    for torn, what in (("{", "is no JSON file"), ("[]", "holds no names and values"), ("\xff", "is no JSON file")):
        path.write_text(torn, "latin-1")
        with pytest.raises(ConfigError, match=rf"digits.json {what} .*; run again: python -m psp.pipeline data else"):
            pipeline.check_data(profile, "digits")


def test_a_sweep_looks_at_the_images_before_it_submits_jobs(tmp_path, monkeypatch):
    monkeypatch.setattr("psp.pipeline.profiles.ROOT", tmp_path)
    monkeypatch.setattr("psp.pipeline.sweep.executor_for", None)
    with pytest.raises(DataError, match=r"run first: python -m psp\.pipeline data elsewhere"):
        pipeline.sweep(Profile("elsewhere", {"a": RunConfig()}), [], "local", 1, ["timeout_min=5"])


@pytest.mark.parametrize(
    ("name", "arguments", "called"),
    [
        (
            "sweep.sweep",
            "sweep demo baseline-s0 --cluster local --processes 2 --set timeout_min=5 mem_gb=1",
            (["baseline-s0"], "local", 2, ["timeout_min=5", "mem_gb=1"]),
        ),
        ("commands.timing_record", "timing demo --device cpu", (torch.device("cpu"),)),
        ("check.record_of", "check demo baseline-s0", ("baseline-s0",)),
        ("commands.execute", "figure demo figure_2 --so-far", ("figure_2_structure_parameters",)),
    ],
)
def test_a_command_hands_on_what_it_is_given(name, arguments, called, monkeypatch):
    """Each stops in the function that would do the work."""

    def stop(*given):
        assert all(any(type(one) is type(value) and one == value for one in given) for value in called)
        raise ConfigError("it was called")

    monkeypatch.setattr(f"psp.pipeline.{name}", stop)
    monkeypatch.setattr(pipeline, "check_data", lambda *_: None)
    with pytest.raises(SystemExit, match=r"^error: it was called$"):
        pipeline.main(arguments.split())


def test_a_profile_that_times_nothing_has_no_stage_of_timing_and_says_so(monkeypatch):
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    del content["ilsvrc"]["timing"]
    monkeypatch.setattr("psp.pipeline.profiles.read_profile", lambda name: content)
    assert list(stages("demo")["timing"]) == ["main", "cifar"]
    with pytest.raises(ConfigError, match="profile 'demo/ilsvrc' times nothing: its file has no `timing:`"):
        pipeline.timing(load_profile("demo/ilsvrc"))


def test_a_figure_so_far_goes_into_a_folder_of_its_own(monkeypatch):
    done = []
    monkeypatch.setattr(pipeline, "execute", lambda *arguments: done.append(arguments))
    said = pipeline.figure(load_profile("laptop"), "figure_3", so_far=True)
    ((notebook, output, parameters),) = done
    folder = ROOT / "results" / "laptop" / "so_far"
    assert (notebook, output) == ("figure_3_column_pruning", folder / "executed" / "figure_3.ipynb")
    assert parameters == {"profile": "laptop", "so_far": True, "output": str(folder)}
    assert "results/laptop/so_far/figures" in said
    with pytest.raises(SystemExit, match="--so-far is for figure_2 and figure_3; timing_tables needs all runs"):
        pipeline.main(["figure", "laptop", "timing_tables", "--so-far"])


def test_the_plan_of_a_section_is_that_of_no_other(monkeypatch):
    monkeypatch.setattr("psp.pipeline.commands.plan", lambda profile: ([], profile.name))
    plans = [pipeline.plans(load_profile(name)) for name in ("demo/ilsvrc", "demo")]
    assert plans == ["demo/ilsvrc", "demo\ndemo/cifar\ndemo/ilsvrc"]


def test_the_plan_counts_the_runs_that_are_left(monkeypatch):
    profile = Profile("elsewhere", {"a": RunConfig(method="baseline", epochs=100), "b": RunConfig()})
    monkeypatch.setattr("psp.pipeline.plan.images_per_second", lambda *_: (10.0, "fused bfloat16"))
    monkeypatch.setattr("psp.pipeline.plan.runs_left", lambda _: ["a", "b"])
    # 102 epochs of 1437 images at 10 images/s
    assert "2 runs, 0 up to date; about 4 h 4 min at 10–10 images/s (fused bfloat16) on " in plan(profile)[1]
    monkeypatch.setattr("psp.pipeline.plan.runs_left", lambda _: [])
    assert plan(profile)[1].endswith("2 runs, 2 up to date; nothing to train")


@pytest.mark.parametrize("change", [{"sides": (64, 64, 64)}, {"micro_batches": 4}, {"batch_size": 8}])
def test_the_plan_measures_every_kind_of_step(change, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = RunConfig(dataset="drawings", model="resnet18", sides=(32, 32, 32), epochs=1, batch_size=16)
    speeds = iter([(10.0, "fused bfloat16"), (1.0, "fused bfloat16")])
    monkeypatch.setattr("psp.pipeline.plan.images_per_second", lambda *_: next(speeds))
    monkeypatch.setattr("psp.pipeline.plan.runs_left", lambda _: ["a", "b", "c"])
    runs = {"a": config, "b": replace(config, seed=1), "c": replace(config, **change)}
    assert "at 1–10 images/s" in plan(Profile("elsewhere", runs))[1]


@pytest.mark.parametrize("cores", [1, 16])
def test_a_loader_is_timed_over_batches_that_no_worker_had_begun(cores, monkeypatch):
    """Of 24 images, 4 a batch, as often as it takes: those begun ahead of the clock are not the ones that count."""
    monkeypatch.setattr("psp.pipeline.plan.cores_of_one", lambda: cores)
    fed, clock = [], iter([0.0, 2.0])
    monkeypatch.setattr(
        "psp.pipeline.plan.time", SimpleNamespace(perf_counter=lambda: fed.append("clock") or next(clock))
    )

    class Train:
        def __len__(self):
            return 24

        def draws(self, count, generator):
            return None

        def feed(self, parts, config, epoch):
            for images, _ in parts:
                fed.append(len(images))
                yield images, images

    speed = loader_speed(RunConfig(batch_size=4), SimpleNamespace(train=Train()))
    counted = fed[fed.index("clock") + 1 : -1]
    assert fed.index("clock") == PREFETCHED * cores
    assert len(counted) == LOADER_BATCHES + PREFETCHED * cores
    assert speed == sum(counted) / 2


def test_the_plan_of_a_tree_counts_the_area_of_its_crops_and_names_the_loader(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = RunConfig(dataset="drawings", model="resnet18", sides=(32, 64, 64), epochs=3, batch_size=16)
    assert relative_epochs(config) == 1 + (48 / 32) ** 2 + 4
    monkeypatch.setattr("psp.pipeline.plan.images_per_second", lambda *_: (10.0, "fused bfloat16"))
    monkeypatch.setattr("psp.pipeline.plan.runs_left", lambda _: ["a"])
    said = plan(Profile("elsewhere", {"a": config}))[1]
    assert "1 runs, 0 up to date; about 2 min at 10–10 images/s" in said  # 160 images × 7.25 / 10
    assert re.search(r"; drawings is decoded and cropped at \d+ images/s$", said)
    monkeypatch.setattr("psp.pipeline.plan.images_per_second", lambda *_: (1e6, "fused bfloat16"))
    assert plan(Profile("elsewhere", {"a": config}))[1].endswith("images/s, which training waits for")
    missing = RunConfig(dataset="ilsvrc2012", model="resnet18")
    monkeypatch.setenv("PSP_DATA", str(tmp_path))
    assert "1 cannot be trained here: ilsvrc2012 not found" in plan(Profile("elsewhere", {"a": missing}))[1]
    monkeypatch.setattr("psp.pipeline.plan.runs_left", lambda _: ["a", "b", "c"])
    some = Profile("elsewhere", {"a": missing, "b": config, "c": replace(missing, seed=1)})
    left, said = plan(some)
    assert left == ["b"], "and of what is missing its own runs stop, and no other"
    assert "about 1 min at" in said
    assert "; 2 cannot be trained here: ilsvrc2012 not found" in said
    monkeypatch.undo()
    monkeypatch.setattr("psp.pipeline.plan.runs_left", lambda _: ["a"])
    large = Profile("elsewhere", {"a": RunConfig(batch_size=10_000)})
    assert "cannot be trained here: batch_size 10000 exceeds the 1437 images of digits" in plan(large)[1]


def test_a_step_that_a_loader_feeds_takes_longer():
    """By hand: on a CPU 1/30 + 1/60 of a second an image, beside a GPU the longer of the two."""
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert fed_by(60.0, 30.0, cpu) == pytest.approx(20.0)
    assert fed_by(60.0, 30.0, gpu) == 30.0
    assert fed_by(60.0, 90.0, gpu) == 60.0
    assert fed_by(None, 30.0, cpu) == 30.0


def test_the_plan_goes_by_what_dvc_would_train(repository):
    def printed():
        command = [sys.executable, "-m", "psp.pipeline", "plan", "demo"]
        return subprocess.run(command, cwd=repository, check=True, capture_output=True, text=True).stdout

    assert "3 runs, 3 up to date; nothing to train" in printed()
    try:
        change(repository, "structure_decay: 0.01", "structure_decay: 0.02")
        assert "3 runs, 1 up to date; about 1 min at " in printed()
    finally:
        change(repository, "structure_decay: 0.02", "structure_decay: 0.01")


def test_a_run_that_was_trained_ahead_is_not_trained_again(repository):
    record = repository / "results" / "demo" / "runs" / f"{L1}.json"
    executed = repository / "results" / "demo" / "executed" / f"{L1}.ipynb"
    before, executed_at = record.read_bytes(), executed.stat().st_mtime_ns
    settings = "method: psp_l1\n    structure_decay: "
    try:
        change(repository, f"{settings}0.01", f"{settings}0.015")
        command = [sys.executable, "-m", "psp.pipeline", "ahead", "demo", "--jobs", "2"]
        done = subprocess.run(command, cwd=repository, check=True, capture_output=True, text=True).stdout
        assert "3 runs, 2 up to date; about 1 min at " in done
        assert "1 runs trained in 1 min" in done
        assert record.read_bytes() == before, "records are the pipeline's"
        assert dvc(repository, "repro", f"train@{L1}").returncode == 0
        assert json.loads(record.read_text())["config"]["structure_decay"] == 0.015
        assert executed.stat().st_mtime_ns == executed_at
    finally:
        change(repository, f"{settings}0.015", f"{settings}0.01")
        assert dvc(repository, "repro").returncode == 0
    assert json.loads(record.read_text())["curve"] == json.loads(before)["curve"]


def test_the_probe_measures_a_speed():
    speed, step = images_per_second(RunConfig(batch_size=8), load("digits"), "cpu")
    assert 1 < speed < 1e6
    assert step.split()[1] in ("float32", "bfloat16")


def test_durations_in_words():
    assert [minutes(s) for s in (5, 90, 3600, 7260)] == ["1 min", "2 min", "1 h 0 min", "2 h 1 min"]


def test_a_finished_run_that_torchrun_starts_again_ends_at_once_in_all_processes(repository):
    path = repository / "results" / "demo" / "ilsvrc" / "runs" / f"{LARGE}.json"
    before = path.read_bytes()
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "psp.pipeline",
    ]
    command += ["train", "demo/ilsvrc", LARGE]
    done = subprocess.run(command, cwd=repository, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert path.read_bytes() == before


def test_a_run_without_papermill_writes_the_same_record(repository):
    path = repository / "results" / "demo" / "runs" / f"{BASELINE}.json"
    through_notebook = json.loads(path.read_text())
    for checkpoint in (repository / "checkpoints").iterdir():
        if checkpoint.is_dir():  # how a step is computed here stays known: measured again it may be in another way
            shutil.rmtree(checkpoint)
    command = [sys.executable, "-m", "psp.pipeline", "train", "demo", BASELINE, "--no-notebook"]
    subprocess.run(command, cwd=repository, check=True, capture_output=True)
    direct = json.loads(path.read_text())
    left_out = {"seconds", "provenance", SEAL}
    assert direct["provenance"]["step"] == through_notebook["provenance"]["step"]
    assert {k: v for k, v in direct.items() if k not in left_out} == {
        k: v for k, v in through_notebook.items() if k not in left_out
    }


def test_the_demo_has_all_five_series():
    assert len({config.method for config in load_profile("demo").runs.values()}) == 5
