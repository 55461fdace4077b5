"""What Python and C both say of the memory that they share: the fields of structures, in order, and a few numbers."""

import re

import pytest

from psp.files import ROOT
from psp.frozen import columns, lanes, structs
from psp.kernels import cpu
from psp.training import fused, tiles

PSP = ROOT / "psp"
STRUCTURES = [
    (structs.Map, "frozen/lanes.h", "map"),
    (structs.Region, "frozen/lanes.h", "region"),
    (structs.Operation, "frozen/lanes.h", "operation"),
    (structs.Program, "frozen/lanes.h", "program"),
    (structs.Planes, "frozen/pixels.h", "map"),
    (structs.PixelOperation, "frozen/pixels.h", "operation"),
    (structs.PixelProgram, "frozen/pixels.c", "program"),
    (cpu.Shape, "kernels/column_conv.c", "shape"),
]
CONSTANTS = [
    (columns.GROUP, "frozen/registers.h", "GROUP"),
    (lanes.GROUP, "frozen/registers.h", "GROUP"),
    (columns.ROWS, "frozen/tiles.h", "ROWS"),
    (fused.BLOCK, "training/blocks.h", "kBlock"),
    (fused.BITS, "training/blocks.h", "kBits"),
    (tiles.PARTS, "training/tiles.h", "kParts"),
    (cpu.OUT_OF_MEMORY, "kernels/column_conv.c", "OUT_OF_MEMORY"),
    (cpu.BAD_INDEX, "kernels/column_conv.c", "BAD_INDEX"),
]


def code(name):
    return re.sub(r"/\*.*?\*/|//[^\n]*", "", (PSP / name).read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize(("python", "source", "name"), STRUCTURES, ids=lambda value: getattr(value, "__name__", value))
def test_structures_have_the_same_fields_in_the_same_order(python, source, name):
    (body,) = re.findall(rf"typedef struct \{{([^}}]*)\}} {name};", code(source))
    declared = [re.sub(r"^\s*(const )?\w+ ", "", declaration) for declaration in body.split(";")[:-1]]
    fields = [re.sub(r"[\s*]", "", field) for declaration in declared for field in declaration.split(",")]
    assert [field for field, _ in python._fields_] == fields


@pytest.mark.parametrize(("python", "source", "name"), CONSTANTS)
def test_numbers_are_the_same(python, source, name):
    (value,) = re.findall(rf"\b{name} = (\d+)", code(source))
    assert int(value) == python
