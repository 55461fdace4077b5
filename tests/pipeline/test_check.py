"""A recorded run trained once more, and what is said of the two."""

import pytest
from few import PLAIN

import psp
from psp.errors import ConfigError, DataError
from psp.files import sealed, write_json
from psp.pipeline.check import check
from psp.pipeline.profiles import Profile
from psp.runs.config import RunConfig

pytestmark = pytest.mark.usefixtures("few_digits")
CONFIG = RunConfig(epochs=1, batch_size=32, method="psp_weight_decay", structure_decay=0.001)


@pytest.fixture
def profile(tmp_path, monkeypatch):
    monkeypatch.setattr("psp.pipeline.profiles.ROOT", tmp_path)
    return Profile("elsewhere", {"a-s0": CONFIG})


@pytest.fixture
def record(profile, tmp_path):
    record = psp.train(CONFIG, checkpoints=tmp_path / "checkpoints", device="cpu", progress=False)
    write_json(record, profile.record_path("a-s0"))
    return record


def test_the_same_run_ends_in_the_same_bits(profile, record):
    said = check(profile, "a-s0")
    error = f"{record['test_error_pct']:.2f} %"
    assert f"test error {error}, recorded {error}\n" in said
    assert "weights: the same bits" in said
    assert said.count(f"by {PLAIN['kernels']} kernels in {PLAIN['precision']}") == 2


def test_what_does_not_come_out_again_is_said(profile, record):
    write_json(sealed({**record, "test_error_pct": 1.5, "weights_sha256": "0"}), profile.record_path("a-s0"))
    said = check(profile, "a-s0")
    assert f"test error {record['test_error_pct']:.2f} %, recorded 1.50 %" in said
    assert "weights: other bits" in said


def test_other_images_are_not_compared(profile, record):
    write_json(sealed({**record, "data": {**record["data"], "sha256": "0"}}), profile.record_path("a-s0"))
    with pytest.raises(DataError, match=r"a-s0 was trained on .* and the images at hand are "):
        check(profile, "a-s0")


def test_a_run_without_a_record_is_named(profile):
    with pytest.raises(ConfigError, match="no run record"):
        check(profile, "a-s0")
