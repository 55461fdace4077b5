"""The rooms of the package, and that each uses only those it says it may use."""

import ast
import importlib
import re
from graphlib import TopologicalSorter

import pytest

from psp.files import ROOT

PACKAGE = ROOT / "psp"
ROOMS = sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file())
# What all rooms share: files of the package itself, which use no room.
SHARED = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}


def uses(path):
    """What a source file imports of the package: names of rooms and of shared files."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("psp."))


def may_use(room):
    """The rooms that a room's own docstring names."""
    (said,) = re.findall(r"^May use: (.+)\.$", importlib.import_module(f"psp.{room}").__doc__, re.MULTILINE)
    return set() if said == "no other room" else set(said.split(", "))


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_uses_the_rooms_that_it_names_and_no_other(room):
    used = {name for path in (PACKAGE / room).rglob("*.py") for name in uses(path)} - {room}
    assert used - SHARED == may_use(room)


def test_what_is_shared_uses_no_room():
    for name in SHARED:
        assert set(uses(PACKAGE / f"{name}.py")) <= SHARED


def test_no_room_uses_itself_by_a_detour():
    order = list(TopologicalSorter({room: may_use(room) for room in ROOMS}).static_order())
    assert sorted(order) == ROOMS
    assert order.index("method") < order.index("training") < order.index("pipeline")


def test_every_room_has_its_tests():
    for room in ROOMS:
        assert list((ROOT / "tests" / room).glob("test_*.py")), room


def test_no_file_has_grown_past_one_idea():
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 250, path.name
