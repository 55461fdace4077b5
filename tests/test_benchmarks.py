"""Benchmarks run from end to end, on sizes at which their numbers mean nothing."""

import importlib
import re
import sys

import pytest


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr("psp.timing.measure.ROUNDS", 2)
    monkeypatch.setattr("psp.timing.measure.BLOCK_SECONDS", 0.0)


def test_overhead_has_a_line_for_each_structure(monkeypatch, capsys):
    overhead = importlib.import_module("overhead")
    monkeypatch.setattr(overhead, "BATCH", 2)
    overhead.main(["--model", "resnet20"])
    ratios = dict(re.findall(r"^ *(\w+): .* ([\d.]+) × dense$", capsys.readouterr().out, re.MULTILINE))
    assert set(ratios) == {"dense", "weight", "column", "channel", "input_channel", "shape"}
    assert float(ratios["dense"]) == 1.0
    assert all(float(ratio) > 0 for ratio in ratios.values())


def test_the_column_convolution_is_compared_at_every_shape_and_sparsity(monkeypatch, capsys):
    column_conv = importlib.import_module("column_conv")
    monkeypatch.setattr(sys, "argv", ["column_conv.py", "--batch", "1", "--rounds", "2"])
    column_conv.main()
    said = capsys.readouterr().out
    assert len(re.findall(r"^\| (?:0|25|50|76|90)% ", said, re.MULTILINE)) == 3 * 5
