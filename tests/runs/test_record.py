"""A record that was changed after it was written is refused, wherever a byte of it matters."""

import json
import math
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from damage import flipped
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import psp
from psp.data.images import Images
from psp.data.sets import Dataset
from psp.errors import ConfigError
from psp.files import ROOT, SEAL, sealed, write_json
from psp.method.methods import build_model
from psp.pipeline.profiles import load_profile
from psp.runs.config import RunConfig
from psp.runs.record import SCHEMA, UNSEALED, alpha_counts, layer_alpha_counts, make_record, read_record, record_of
from psp.training.evaluate import Errors
from psp.training.train import State

COMMITTED = sorted((ROOT / "results").glob("*/**/runs/*.json"))


@pytest.fixture(scope="module")
def record():
    config = RunConfig(method="psp_weight_decay", structure="layer")
    images = Images(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.zeros(1, dtype=torch.long))
    about = {"unreadable": {"count": 1, "files": {"train/a/\udcff.jpg": "5 × nothing"}}}
    data = Dataset("digits", 10, images, images, (0,) * 3, (1,) * 3, "0" * 64, about)
    state = State(build_model(config, 10), None, None, curve=[{"epoch": 1, "loss": 1e-05}], seconds=0.1)
    return make_record(config, data, state, Errors(12.5, 1.25), "1" * 64, {"device": "none"})


@pytest.fixture(scope="module")
def path(record, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run.json"
    write_json(record, path)
    return path


@pytest.fixture(scope="module")
def content(path):
    return path.read_bytes()


def test_the_histogram_of_a_hand_made_alpha():
    """Bins of a tenth of a decade from 10⁻⁶ to 10; the first has what is smaller, the last what is larger."""
    net = psp.parameterize(nn.Sequential(nn.Linear(9, 2), nn.ReLU(), nn.Linear(2, 1)), "column")
    alpha = psp.structure_parameters(net)
    alpha["0"].data = torch.tensor([0.0, 1e-9, -1.2e-6, 1.5e-3, -0.15, 0.15, 1.1, 9.9, -50.0]).view_as(alpha["0"])
    alpha["2"].data = torch.tensor([0.15, 1.1]).view_as(alpha["2"])
    bins = {math.floor(10 * (math.log10(a) + 6)) for a in (1.5e-3, 0.15, 1.1, 9.9)}
    assert bins == {31, 51, 60, 69}
    first = {0: 3, 31: 1, 51: 2, 60: 1, 69: 2}
    assert layer_alpha_counts(net)["0"] == [first.get(bin, 0) for bin in range(70)]
    both = first | {51: 3, 60: 2}
    assert alpha_counts(net) == [both.get(bin, 0) for bin in range(70)]


def test_records_from_before_the_choice_of_a_place_have_alpha_on_weights():
    path = ROOT / "results" / "trials" / "channel-2e-3-3-epochs.json"
    assert "place" not in json.loads(path.read_text())["config"]
    assert RunConfig.of(read_record(path)["config"]).place == "weight"


def test_a_record_is_read_as_it_was_made(record, path, content):
    path.write_bytes(content)
    assert read_record(path) == record


def read_anyhow(path):
    """What is read, or why nothing is."""
    try:
        return read_record(path)
    except ConfigError as error:
        return str(error)


@given(st.data())
def test_a_flipped_bit_is_refused_where_it_changes_an_entry(record, path, content, data):
    path.write_bytes(flipped(content, data.draw(st.integers(0, 8 * len(content) - 1))))
    found = read_anyhow(path)
    if isinstance(found, str):
        assert found.startswith(str(path))
        assert found.endswith("train the run again")
    else:  # as 1e-5 and 1E-5 are the same
        assert found == record


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no JSON file"),
        ("[1]", r"holds no names and values but \[1\]"),
        ('{"schema": 1}', f"has schema 1, this code reads {SCHEMA}"),
        (f'{{"schema": {SCHEMA}}}', "is damaged: it does not fit its sha256; restore it by git, or "),
        (f'{{"schema": {UNSEALED}, "{SEAL}": "0"}}', "is damaged"),
    ],
)
def test_what_is_no_record_is_explained(tmp_path, text, message):
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"{re.escape(str(path))} {message}.*train the run again"):
        read_record(path)


def test_an_entry_by_another_hand_is_refused(record, path):
    write_json({**record, "test_error_pct": 0.0}, path)
    with pytest.raises(ConfigError, match="is damaged"):
        read_record(path)
    write_json(sealed({**record, "test_error_pct": 0.0}), path)
    assert read_record(path)["test_error_pct"] == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 36}, "epochs {epochs}, not 36, as the profile says now; train the run again"),
        ({"skip": ("fc",)}, r"skip \['conv1', 'fc'\], not \['fc'\]"),
        ({"couple": True}, "couple False, not True"),
    ],
)
def test_a_record_of_other_settings_than_the_profile_names_is_refused(record, path, change, message):
    write_json(record, path)
    config = RunConfig.of(record["config"])
    profile = SimpleNamespace(record_path=lambda _: path, config=lambda _: config)
    assert record_of(profile, "run") == record
    config = replace(config, **change)
    with pytest.raises(ConfigError, match=message.replace("{epochs}", str(record["config"]["epochs"]))):
        record_of(profile, "run")


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_every_committed_record_can_be_read(path):
    assert read_record(path)["schema"] in (UNSEALED, SCHEMA)


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_every_committed_record_is_of_the_run_that_its_profile_names(path):
    """On the images that the profile's data stage has described."""
    record = read_record(path)
    profile = load_profile(str(path.parents[1].relative_to(ROOT / "results")))
    said, recorded = profile.config(path.stem).as_dict(), record["config"]
    assert {name: said[name] for name in recorded} == recorded
    assert "place" in recorded or said["place"] == "weight" or said["structure"] not in ("channel", "layer")
    described = json.loads(profile.data_path(record["data"]["name"]).read_text(encoding="utf-8"))
    assert record["data"]["sha256"] == described["sha256"]
