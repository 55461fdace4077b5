"""Where a number comes from: the code, the libraries and the machine that made it."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from psp.runs.config import code_sha256

PACKAGE = Path(__file__).parents[1]
LIBRARIES = ("torch", "numpy", "scikit-learn")


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
    """The commit of the code, with "-dirty" if files of psp/ differ from it; "unknown" outside a repository."""
    commit = _git("rev-parse", "HEAD")
    return f"{commit}-dirty" if commit and _git("status", "--porcelain", "--", ".") else commit or "unknown"


def _git(*arguments):
    command = ["git", "-C", str(PACKAGE), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # no git here
        return ""


def device_name(device):
    """The processor's or GPU's name as its vendor gives it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"
