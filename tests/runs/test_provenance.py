"""Where a record comes from: how a machine is called, by what its system says of it; of which commit the code is."""

import platform
import shutil
import subprocess
import sys

import pytest

from psp.files import ROOT
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


def test_code_that_is_installed_within_another_project_is_not_of_that_projects_commit(tmp_path):
    shutil.copytree(ROOT / "psp", tmp_path / "site" / "psp", ignore=shutil.ignore_patterns("__pycache__"))

    def run(*command):
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()

    run("git", "init", "-q")
    run("git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "theirs")
    say = "import sys; sys.path.insert(0, 'site'); from psp.runs.provenance import git_commit; print(git_commit())"
    assert run(sys.executable, "-c", say) == "unknown"
    run("git", "add", "site")
    run("git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "ours")
    assert run(sys.executable, "-c", say) == run("git", "rev-parse", "HEAD")
