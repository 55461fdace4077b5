"""What tests need of the machine: they are left out where it is missing, and fail where it is there and of no use."""

import os
import shlex
import shutil

import pytest

HAS_C, HAS_CXX = (
    bool(shutil.which(shlex.split(os.environ.get(variable) or usual)[0]))
    for variable, usual in (("CC", "cc"), ("CXX", "c++"))
)
needs_c = pytest.mark.skipif(not HAS_C, reason="no C compiler here")
needs_cxx = pytest.mark.skipif(not HAS_CXX, reason="no C++ compiler here")
