"""How a machine is called, by what its system says of it."""

import platform

import pytest

from psp.runs.provenance import processor

ZEN_5 = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 26
model\t\t: 2
model name\t: AMD EPYC
stepping\t: 1

processor\t: 1
model\t\t: 3
model name\t: another
"""
NEOVERSE = """processor\t: 0
BogoMIPS\t: 243.75
Features\t: fp asimd: half
CPU implementer\t: 0x41
CPU part\t: 0xd40
"""


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        (ZEN_5, "AMD EPYC (family 26, model 2)"),
        (ZEN_5.replace("model\t\t: 2", "model\t\t: 17"), "AMD EPYC (family 26, model 17)"),
        (NEOVERSE, f"{platform.machine()} (implementer 0x41, part 0xd40)"),
        ("model name\t: A processor\n", "A processor"),
        ("", ""),
    ],
)
def test_processors_of_one_name_are_told_apart_by_their_numbers(cpuinfo, name):
    assert processor(cpuinfo) == name
