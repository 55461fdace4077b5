"""Where a number comes from: the code, the libraries and the machine that made it."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from psp.runs.config import code_sha256

PACKAGE = Path(__file__).parents[1]
OWN = Path(__file__).relative_to(PACKAGE).as_posix()
LIBRARIES = ("torch", "numpy", "scikit-learn")
# In /proc/cpuinfo, of x86 and of ARM; how they are called here.
PROCESSOR_NUMBERS = {"cpu family": "family", "model": "model", "CPU implementer": "implementer", "CPU part": "part"}


def provenance(device):
    """Where a record comes from: code, libraries and machine."""
    return {
        "git_commit": git_commit(),
        "code_sha256": code_sha256(),
        "versions": {
            "python": platform.python_version(),
            **{name: version_of(name) for name in LIBRARIES},
        },
        "device": device_name(device),
        "threads": torch.get_num_threads(),
    }


def version_of(library):
    """The installed version of a library; "none" where there is none, as scikit-learn where nobody reads its digits."""
    try:
        return version(library)
    except PackageNotFoundError:
        return "none"


def git_commit():
    """The commit of the code, with "-dirty" if files of psp/ differ from it; "unknown" outside of its repository.

    A package that is installed within another project's folder is not of that project.
    """
    commit = _git("ls-files", "--", OWN) and _git("rev-parse", "HEAD")
    return f"{commit}-dirty" if commit and _git("status", "--porcelain", "--", ".") else commit or "unknown"


def _git(*arguments):
    command = ["git", "-C", str(PACKAGE), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # no git here
        return ""


def device_name(device):
    """The processor's or GPU's name as its vendor gives it.

    Of a processor with the numbers by which its vendor tells its models apart, where the system shows them: its name
    may be no more than "AMD EPYC" or, on ARM, missing.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    shown = processor(cpuinfo.read_text()) if cpuinfo.exists() else ""
    return f"{shown or platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def processor(cpuinfo):
    """Name and numbers of the first processor in the text of /proc/cpuinfo; empty where it says neither."""
    entries = (line.split(":", 1) for line in cpuinfo.split("\n\n")[0].splitlines() if ":" in line)
    said = {key.strip(): value.strip() for key, value in entries}
    numbers = [f"{key} {said[name]}" for name, key in PROCESSOR_NUMBERS.items() if name in said]
    name = said.get("model name", platform.machine() if numbers else "")
    return f"{name} ({', '.join(numbers)})" if numbers else name
