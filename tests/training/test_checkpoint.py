"""A checkpoint, and the weights of a finished run, are those that were written, or they are refused."""

import io
import re
from hashlib import sha256

import pytest
import torch
from damage import flipped
from hypothesis import assume, given
from hypothesis import strategies as st

import psp
from psp.errors import CheckpointError
from psp.runs.config import RunConfig
from psp.runs.record import read_record
from psp.training.checkpoint import Checkpoint
from psp.training.train import State

CONFIG = {"epochs": 1, "batch_size": 32, "method": "psp_weight_decay", "structure_decay": 0.001}


def a_state(seed):
    torch.manual_seed(seed)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
    return State(model, optimizer, torch.Generator().manual_seed(seed), choice={"kernels": "plain"}, epoch=seed)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    checkpoint = Checkpoint(tmp_path_factory.mktemp("checkpoints"), RunConfig(), "some data")
    checkpoint.save(a_state(7))
    return checkpoint


@pytest.fixture(scope="module")
def content(checkpoint):
    return checkpoint.path.read_bytes()


def assert_refused(checkpoint, damaged):
    """And nothing of it reaches the state, or is overwritten."""
    checkpoint.path.write_bytes(damaged)
    state = a_state(1)
    with pytest.raises(CheckpointError, match=r"last\.pt cannot be read .*; delete it to start the run anew"):
        checkpoint.restore(state)
    assert state.epoch == 1
    assert torch.equal(state.model.weight, a_state(1).model.weight)
    assert checkpoint.path.read_bytes() == damaged


def test_what_was_written_is_restored(checkpoint, content):
    checkpoint.path.write_bytes(content)
    state = a_state(1)
    assert checkpoint.restore(state)
    assert (state.epoch, state.choice) == (7, {"kernels": "plain"})
    assert torch.equal(state.model.weight, a_state(7).model.weight)


@given(st.data())
def test_one_bit_flipped_anywhere_is_refused(checkpoint, content, data):
    assert_refused(checkpoint, flipped(content, data.draw(st.integers(0, 8 * len(content) - 1))))


@given(st.data())
def test_twenty_bits_flipped_anywhere_are_refused(checkpoint, content, data):
    bits = data.draw(st.sets(st.integers(0, 8 * len(content) - 1), min_size=20, max_size=20))
    assert_refused(checkpoint, flipped(content, *bits))


@given(st.data())
def test_four_hundred_zeroed_bytes_are_refused(checkpoint, content, data):
    start = data.draw(st.integers(0, len(content) - 400))
    damaged = content[:start] + bytes(400) + content[start + 400 :]
    assume(damaged != content)
    assert_refused(checkpoint, damaged)


@given(st.data())
def test_a_truncated_file_is_refused(checkpoint, content, data):
    assert_refused(checkpoint, content[: data.draw(st.integers(0, len(content) - 1))])


@given(st.binary(max_size=100))
def test_a_foreign_file_and_one_with_something_behind_it_are_refused(checkpoint, content, other):
    assert_refused(checkpoint, other)
    assume(other)
    assert_refused(checkpoint, content + other)


def test_a_foreign_archive_with_its_sha256_is_refused(checkpoint):
    archive = io.BytesIO()
    torch.save({"weights": torch.ones(1)}, archive)
    assert_refused(checkpoint, archive.getvalue() + sha256(archive.getvalue()).digest())


def train(folder):
    return psp.train(CONFIG, checkpoints=folder, device="cpu", progress=False)


def test_a_run_is_not_resumed_from_a_damaged_checkpoint_and_starts_anew_without_it(tmp_path, few_digits):
    first = train(tmp_path)
    (path,) = tmp_path.glob("*/last.pt")
    path.with_name("record.json").unlink()
    damaged = flipped(path.read_bytes(), 8 * path.stat().st_size // 2)
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError, match=re.escape(f"{path} cannot be read")):
        train(tmp_path)
    assert path.read_bytes() == damaged
    path.unlink()
    assert train(tmp_path)["weights_sha256"] == first["weights_sha256"]


def test_the_record_names_its_weights_and_others_are_refused(tmp_path, few_digits):
    record = train(tmp_path)
    (path,) = tmp_path.glob("*/weights.safetensors")
    weights = path.read_bytes()
    assert record["weights_sha256"] == sha256(weights).hexdigest()
    assert read_record(path.with_name("record.json")) == record
    path.write_bytes(flipped(weights, 8 * len(weights) - 1))
    with pytest.raises(CheckpointError, match=r"weights\.safetensors is damaged: record\.json .* delete both"):
        train(tmp_path)
    path.unlink()
    path.with_name("record.json").unlink()
    again = train(tmp_path)
    assert again["seconds"] == record["seconds"], "from the last checkpoint, not trained anew"
    assert path.read_bytes() == weights
