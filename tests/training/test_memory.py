"""Freed memory is kept, so that what is allocated next does not come as new pages."""

import ctypes
import subprocess
import sys

import pytest

ALLOCATE = """
import ctypes, resource, torch
from psp.training.memory import keep_memory
if {keep}:
    keep_memory()
for step in range(20):
    if step == 5:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    maps = [torch.ones(2**21) for _ in range(8)]
    del maps
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep):
    """Page faults of 15 rounds of eight tensors of 8 MiB, 16,384 pages a round."""
    command = [sys.executable, "-c", ALLOCATE.format(keep=keep)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_what_was_freed_is_used_again():
    if not (sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "mallopt")):
        pytest.skip("this system's C library cannot be told to keep memory")
    if (before := faults(keep=False)) < 15 * 1000:
        pytest.skip("this system's C library keeps memory unasked")
    assert faults(keep=True) < before / 10
