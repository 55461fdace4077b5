"""The project's own files agree with one another."""

import ast
import inspect
import json
import re
import subprocess
from dataclasses import fields, replace
from fnmatch import fnmatch
from itertools import product
from pathlib import Path

import papermill
import pytest
import torch
import yaml

import psp
from psp.data.cifar import CIFAR
from psp.errors import ConfigError
from psp.files import ROOT
from psp.method.pruners import parametrizations
from psp.pipeline.commands import FIGURES
from psp.pipeline.notebook import check_names, run_settings
from psp.pipeline.profiles import load_profile, with_sections
from psp.pipeline.stages import stages as stages_of
from psp.pipeline.stages import stages_path
from psp.report.trials import chosen, read_trials, trials_table
from psp.runs.config import DECIDING, RunConfig, sources

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PIPELINES = ("demo", "laptop", "paper")  # with a dvc.yaml
PROFILES = (*PIPELINES, "next", "peers")
FIGURE_STAGES = [*FIGURES, "cifar_table", "ilsvrc_table"]
FIGURE_STAGES.remove("network_table")  # the command of both tables
# Imported everywhere, and no number depends on it.
UNTRACKED = {"errors.py", "files.py"}


def stages():
    """{stage: what it is} of dvc.yaml; of one that goes over a list, what is done for each entry."""
    listed = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    return {name: stage.get("do", stage) for name, stage in listed.items()}


def imported_modules(source):
    """Files of psp that some Python source imports, relative to psp/."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            module = ROOT / Path(*name.split("."))
            for found in (module / "__init__.py", module.with_suffix(".py")):
                if name.startswith("psp.") and found.is_file():
                    yield found.relative_to(ROOT / "psp").as_posix()


def import_closure(source):
    seen, todo = set(), set(imported_modules(source))
    while todo:
        name = todo.pop()
        seen.add(name)
        todo |= set(imported_modules((ROOT / "psp" / name).read_text())) - seen
    return seen


def rooms(files):
    """The rooms that files lie in; of a shared file, itself."""
    return {name.split("/")[0] for name in set(files) - UNTRACKED}


def dependencies(stage):
    return {d.removeprefix("psp/") for d in stage["deps"] if d.startswith("psp/")}


def test_training_depends_on_what_decides_its_numbers_and_on_nothing_else():
    assert dependencies(stages()["train"]) == set(DECIDING) == rooms(import_closure("import psp.training.train"))
    (promised,) = [d for d in stages()["train"]["deps"] if not d.startswith("psp/")]
    assert promised == "results/${profile}/data/${item.dataset}.json", "no other set's"


def test_the_fingerprint_of_the_code_has_every_source_that_decides():
    found = {path.relative_to(ROOT / "psp").as_posix() for path in sources(DECIDING)}
    assert found >= import_closure("import psp.training.train") - UNTRACKED
    assert found >= {"training/norm_relu.cpp", "training/tiles.cpp", "training/tiles.h"}
    assert not [path for path in found if path.endswith(".pyc")]


def test_timing_depends_on_all_that_it_uses_and_on_nothing_else():
    """Of runs on what is recorded of their masks, which a timing names; not on how that is read."""
    used = import_closure("import psp.timing.networks\nimport psp.timing.record")
    assert dependencies(stages()["timing"]) == rooms(used) - {"data", "runs"}


@pytest.mark.parametrize("name", FIGURE_STAGES)
def test_a_figure_depends_on_all_that_its_notebook_uses(name):
    """What trains reaches a figure through the records, and what is timed through the timings; not what reads them."""
    stage = stages()[name]
    path = ROOT / "notebooks" / f"{FIGURES[stage['cmd'].split()[-1]]}.ipynb"
    source = "".join("".join(cell["source"]).replace("%matplotlib inline", "") + "\n" for cell in cells(path))
    used = {file for file in import_closure(source) if file.split("/")[0] in ("pipeline", "report")}
    written = {d.split("/")[0] if d.startswith("report") else d for d in dependencies(stage)}
    assert {file if file.startswith("pipeline") else "report" for file in used} - {"pipeline/__init__.py"} <= written
    assert {"method", "runs"} <= written, "by which masks and settings are read"
    records = {d for d in stage["deps"] if d.startswith("results/${") and d.endswith(("runs", "timing"))}
    assert records, "of nothing else are its numbers"
    assert f"notebooks/{path.name}" in stage["deps"]


def test_a_failing_stage_loses_no_output():
    for stage in stages().values():
        for out in stage.get("outs", []):
            assert next(iter(out.values())) == {"cache": False, "persist": True}


def test_dvc_yaml_is_short_enough_to_be_read():
    assert len((ROOT / "dvc.yaml").read_text().splitlines()) <= 220


@pytest.mark.parametrize("profile", PIPELINES)
def test_the_list_of_stages_is_what_the_profile_says(profile):
    listed = yaml.safe_load(stages_path(profile).read_text(encoding="utf-8"))
    assert listed["stages"] == stages_of(profile)
    runs = {(entry["profile"], entry["run"]): entry for entry in listed["stages"]["train"].values()}
    for part in with_sections(profile):
        for run, config in load_profile(part).runs.items():
            assert RunConfig.of(runs.pop((part, run))["settings"]) == config
    assert runs == {}


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_is_complete(profile):
    loaded = load_profile(profile)
    if profile in PIPELINES:
        assert {config.method for config in loaded.runs.values()} == set(psp.runs.config.METHODS)
    for run, config in loaded.runs.items():
        assert run.startswith(config.method)
        assert run.endswith(f"-s{config.seed}")


@pytest.mark.parametrize("profile", PIPELINES)
def test_every_profile_with_stages_is_its_own_pipeline(profile):
    folder = ROOT if profile == "demo" else ROOT / "profiles" / profile
    params = yaml.safe_load((folder / "params.yaml").read_text())
    assert (folder / params["root"]).resolve() == ROOT
    assert ROOT / params["params_file"] == folder / "params.yaml"
    assert (folder / "dvc.yaml").resolve() == ROOT / "dvc.yaml", "one stage list for all profiles"


@pytest.mark.parametrize("profile", PIPELINES)
def test_every_profile_has_its_networks_for_large_images(profile):
    loaded = load_profile(f"{profile}/ilsvrc")
    assert loaded.record_path("x") == ROOT / "results" / profile / "ilsvrc" / "runs" / "x.json"
    assert (
        loaded.data_path("x") == load_profile(profile).data_path("x") == ROOT / "results" / profile / "data" / "x.json"
    )
    configs = loaded.runs.values()
    assert {c.structure for c in configs if c.method == "psp_weight_decay"} >= {"column", "channel"}
    assert {c.model for c in configs if c.method == "baseline"} == {c.model for c in configs}
    if profile == "paper":
        networks = {(c.model, c.structure) for c in configs if c.method == "psp_weight_decay"}
        models, structures = ("resnet18", "resnet50", "densenet121"), ("column", "channel", "layer")
        assert networks == set(product(models, structures))
        assert {(c.dataset, c.epochs, c.sides) for c in configs} == {("ilsvrc2012", 90, (224, 224, 224))}
    for run, config in loaded.runs.items():
        assert run.startswith(config.method)
        assert run.endswith(f"-s{config.seed}")


def test_table_cifar_of_the_paper_has_every_network_data_set_and_structure():
    """Among the main runs or those of the section."""
    networks, structures = ("resnet56", "densenet40"), ("column", "channel", "shape", "layer")
    parts = load_profile("paper"), load_profile("paper/cifar")
    runs = [config for part in parts for config in part.runs.values()]
    assert {(c.model, c.dataset) for c in runs if c.method == "baseline"} == set(product(networks, CIFAR))
    timed = [part.config(run) for part in parts for run in part.timing.runs]
    assert {c.method for c in timed} == {"psp_weight_decay"}
    assert {(c.model, c.dataset, c.structure) for c in timed} == set(product(networks, CIFAR, structures))


@pytest.mark.parametrize("profile", ["laptop", "paper"])
def test_table_cifar_compares_with_the_dense_network_of_the_same_schedule(profile):
    parts = load_profile(profile), load_profile(f"{profile}/cifar")
    runs = [config for part in parts for config in part.runs.values()]
    assert len({(c.epochs, c.batch_size, c.learning_rate, c.weight_decay) for c in runs}) == 1
    dense = {(c.model, c.dataset) for c in runs if c.method == "baseline"}
    assert {(part.config(run).model, part.config(run).dataset) for part in parts for run in part.timing.runs} == dense
    for run, config in parts[1].runs.items():
        assert run.startswith(f"{config.method}-{config.model}-{config.dataset}-")
        assert run.endswith(f"-s{config.seed}")


def e_foldings(config, images=50_000):
    """λ·Ση/(1−μ); Ση is half of the largest rate in every step."""
    rates = images / config.batch_size * config.epochs * config.learning_rate / 2
    return config.structure_decay * rates / (1 - config.momentum)


def config_of_trial(name):
    return RunConfig.of(json.loads((ROOT / "results" / "trials" / f"{name}.json").read_text())["config"])


@pytest.mark.parametrize(
    ("structure", "network", "name"),
    [
        ("column", "resnet56-cifar100", "cifar100-wd-5e-4-eps03-12-epochs"),
        ("column", "densenet40-*", "densenet16-wd-1e-3-eps03-12-epochs"),
        ("channel", "resnet56-cifar10", "channel-3e-3-12-epochs"),
        ("channel", "resnet56-cifar100", "cifar100-channel-1e-3-12-epochs"),
        ("channel", "densenet40-*", "densenet16-channel-5e-3-12-epochs"),
        ("channel", "*-ilsvrc2012", "channel-3e-3-12-epochs"),
        ("shape", "*", "shape-3e-2-12-epochs"),
        ("layer", "resnet*", "layer-5e-2-eps035-12-epochs"),
        ("layer", "densenet*", "densenet16-layer-1e-2-eps035-3-epochs"),
    ],
)
def test_structures_of_the_paper_profile_are_decayed_as_in_trials(structure, network, name):
    """Figure 3's columns are a sweep, and those on ILSVRC2012 have the ε of Imagenette's."""
    tried = config_of_trial(name)
    parts = map(load_profile, ("paper", "paper/cifar", "paper/ilsvrc"))
    runs = [c for p in parts for c in p.runs.values() if c.structure == structure]
    runs = [c for c in runs if c.method == "psp_weight_decay" and fnmatch(f"{c.model}-{c.dataset}", network)]
    assert runs
    for config in runs:
        images = 1_281_167 if config.dataset == "ilsvrc2012" else 50_000
        assert e_foldings(config, images) == pytest.approx(e_foldings(tried, 45_000), rel=0.02)
        assert (config.threshold, config.place) == (tried.threshold, tried.place)


@pytest.mark.parametrize("profile", PIPELINES)
def test_every_run_of_table_cifar_can_have_its_structures(profile):
    for config in {replace(c, seed=0) for c in load_profile(f"{profile}/cifar").runs.values()}:
        with torch.device("meta"):
            model = psp.parameterize(psp.create_model(config.model), config.structure, skip=config.skip)
        layers = [name for name, m in model.named_modules() if isinstance(m, torch.nn.Conv2d)]
        whole = {"conv1", "transition1.2", "transition2.2"}
        assert set(parametrizations(model)) == set(layers) - whole


def test_table_cifar_has_the_settings_that_the_rule_takes_among_the_trials():
    """Those of one run each: Figure 3's columns are a sweep, and of single weights there are no trials."""
    rule = chosen(trials_table(read_trials(ROOT / "results" / "trials")), epochs=12)
    trials = {(row.dataset, row.network, row.structure): row for row in rule.itertuples()}
    main, section = map(load_profile, ("laptop", "laptop/cifar"))
    runs = [c for c in main.runs.values() if c.structure not in ("column", "weight")]
    runs += [c for c in section.runs.values() if c.method != "baseline"]
    structures = {(c.dataset, c.model, c.structure) for c in runs}
    assert len(structures) == 8
    for config in runs:
        trial = trials[config.dataset, config.model, config.structure]
        assert config.threshold == trial.threshold
        tried = replace(config, epochs=12, structure_decay=trial.setting)
        assert e_foldings(config) == pytest.approx(e_foldings(tried, images=45_000))


@pytest.mark.parametrize(("profile", "epochs", "least"), [("demo", 1, 2), ("laptop", 16, 4), ("paper", 100, 6)])
def test_every_series_has_its_sparsities_at_one_schedule(profile, epochs, least):
    runs = load_profile(profile).runs.values()
    assert len({(c.epochs, c.batch_size, c.learning_rate, c.weight_decay, c.model, c.dataset) for c in runs}) == 1
    assert next(iter(runs)).epochs >= epochs
    for method in set(psp.runs.config.METHODS) - {"baseline"}:
        assert len({(c.sparsity, c.structure_decay) for c in runs if c.method == method}) >= least


def test_an_unknown_profile_and_run_are_named():
    with pytest.raises(ConfigError, match="unknown profile 'desktop'; choose one of demo, laptop, next, paper, peers"):
        load_profile("desktop")
    with pytest.raises(ConfigError, match="unknown profile 'demo/x'; 'demo' has the sections cifar, ilsvrc"):
        load_profile("demo/x")
    with pytest.raises(ConfigError, match="profile 'demo' has no run 'x'"):
        load_profile("demo").config("x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"runs": None}, "params.yaml needs `runs:` with entries of its own, got None"),
        ({"runs": {"a": 3}}, "params.yaml, runs: 'a' must have settings of its own, got 3"),
        ({"runs": {"a": {"seeds": 3}}}, "params.yaml, runs: 'a' needs `seeds: [0, …]`"),
        (
            {"runs": {"a": {"seed": 3}}},
            "params.yaml, runs: 'a' needs `seeds: [0, …]`, its own or of defaults, and no `seed`",
        ),
        ({"defaults": 3}, "params.yaml needs `defaults:` with entries of its own, got 3"),
        ({"profile": "other"}, "params.yaml must have an entry `profile: demo`"),
        ({"timing": {"runs": []}}, "params.yaml: timing must set batches, backends"),
        ({"ilsvrc": None}, "params.yaml needs `ilsvrc:`"),
        ({"seeds": [0, 1]}, "params.yaml: nothing reads 'seeds'; known are profile"),
        ({"runs": {"l1-0.1": {"method": "psp_l1"}}}, "runs: a name is of letters, digits, _ and -, got 'l1-0.1'"),
        ({"runs": {"a": {"seeds": [0, 0]}}}, "params.yaml, runs: 'a' has a seed twice: [0, 0]"),
    ],
)
def test_a_damaged_profile_is_explained(monkeypatch, tmp_path, change, message):
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({**content, **change}))
    monkeypatch.setattr("psp.pipeline.profiles.ROOT", tmp_path)
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_profile("demo/ilsvrc" if "ilsvrc" in change else "demo")


def test_a_profile_that_is_no_yaml_and_a_run_that_sets_nothing(monkeypatch, tmp_path):
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    monkeypatch.setattr("psp.pipeline.profiles.ROOT", tmp_path)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({**content, "runs": {**content["runs"], "plain": None}}))
    defaults = {name: value for name, value in content["defaults"].items() if name != "seeds"}
    assert load_profile("demo").config("plain-s0") == RunConfig.of(defaults)
    content["timing"]["sparsities"] = 0.5
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=r"params.yaml: timing.sparsities must be list, got 0.5"):
        load_profile("demo")
    content = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(content.replace("  baseline:", "  baseline: {}\n  baseline:", 1))
    with pytest.raises(ConfigError, match=r"params\.yaml is no YAML: baseline stands twice"):
        load_profile("demo")
    merged = content.replace("defaults:\n", "defaults: &shared\n", 1)
    merged = merged.replace("cifar:\n  defaults:\n", "cifar:\n  defaults:\n    <<: *shared\n")
    (tmp_path / "params.yaml").write_text(merged)
    assert load_profile("demo/cifar").runs
    (tmp_path / "params.yaml").write_text(content.replace("ilsvrc:\n", "ilsvrc:\n  seeds: [1]\n", 1))
    with pytest.raises(ConfigError, match=r"params\.yaml, section ilsvrc: nothing reads 'seeds'"):
        load_profile("demo/ilsvrc")
    (tmp_path / "params.yaml").write_text("profile: [demo")
    with pytest.raises(ConfigError, match=r"params\.yaml is no YAML"):
        load_profile("demo")


def test_environment_yml_takes_its_versions_from_the_pinned_file():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [d for d in environment["dependencies"] if isinstance(d, str)]
    pip = next(d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    assert pip == ["-r requirements.txt"]
    python = next(re.fullmatch(r"python=(\d+)\.(\d+)", d) for d in conda if d.startswith("python"))
    assert (int(python[1]), int(python[2])) >= (3, 11)
    assert {d.split("=")[0] for d in conda} == {"python", "pip", "make", "git"}, "no second place for versions"


def cells(path, kind="code"):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_every_cell_of_every_notebook_was_executed_in_order(path):
    counts = [cell["execution_count"] for cell in cells(path)]
    assert counts == list(range(1, len(counts) + 1))
    assert not [o for cell in cells(path) for o in cell["outputs"] if o["output_type"] == "error"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_every_notebook_has_one_parameters_cell_and_compares_outputs(path):
    assert len([c for c in cells(path) if "parameters" in c["metadata"].get("tags", [])]) == 1
    compared = [c for c in cells(path) if c["outputs"] and "nbval-ignore-output" not in c["metadata"].get("tags", [])]
    assert len(compared) >= 3


def parameters_cell(name):
    source = next(c for c in cells(ROOT / "notebooks" / name) if "parameters" in c["metadata"].get("tags", []))[
        "source"
    ]
    namespace = {}
    exec("".join(source), namespace)
    return namespace


def test_the_training_notebook_has_every_setting_of_a_run():
    names = set(parameters_cell("train.ipynb")) - {"__builtins__"}
    assert names == {field.name for field in fields(RunConfig)} | {"checkpoints", "record_path"}
    config, _, record_path = run_settings(parameters_cell("train.ipynb"))
    assert config.dataset == "digits"
    assert record_path == ""


def test_an_unknown_notebook_parameter_is_an_error_before_training():
    usual = {**parameters_cell("train.ipynb"), "In": [], "_i1": "", "psp": psp, "record": {}, "config": RunConfig()}
    assert run_settings(usual)[0].epochs == usual["epochs"], "and the cell can be run again"
    injected = {**usual, "epoch": 9}
    with pytest.raises(ConfigError, match="unknown parameter 'epoch'; did you mean 'epochs'"):
        run_settings(injected)
    with pytest.raises(ConfigError, match="unknown parameter 'profil'; known are profile"):
        check_names({"profile": "demo", "profil": "laptop", "check_names": check_names}, {"profile"})


def test_papermill_stops_at_an_unknown_parameter_before_training(tmp_path):
    """Papermill itself only warns of it; the notebook raises, and the executed copy ends there."""
    with pytest.raises(papermill.PapermillExecutionError, match="unknown parameter 'epoch'; did you mean 'epochs'"):
        papermill.execute_notebook(
            ROOT / "notebooks" / "train.ipynb", tmp_path / "out.ipynb", {"epoch": 9}, progress_bar=False
        )
    trained = [cell for cell in cells(tmp_path / "out.ipynb") if "psp.train(" in "".join(cell["source"])]
    assert [cell["execution_count"] for cell in trained] == [None]


def test_nothing_of_the_demo_is_committed():
    """So that the first `make repro` of a fresh clone really runs."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "dvc.lock", "results/demo"], capture_output=True, check=True
    )
    assert listed.stdout == b""


def test_every_public_function_explains_itself():
    for name in psp.__all__:
        assert len(inspect.getdoc(getattr(psp, name))) > 60, name
