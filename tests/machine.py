"""What tests need of the machine: they are left out where it is missing, and fail where it is there and of no use."""

import os
import shlex
import shutil

import pytest
import torch

HAS_C, HAS_CXX = (
    bool(shutil.which(shlex.split(os.environ.get(variable) or usual)[0]))
    for variable, usual in (("CC", "cc"), ("CXX", "c++"))
)
HAS_TILES = HAS_CXX and getattr(torch.cpu, "_is_amx_tile_supported", bool)() and torch.cpu._init_amx()
needs_c = pytest.mark.skipif(not HAS_C, reason="no C compiler here")
needs_cxx = pytest.mark.skipif(not HAS_CXX, reason="no C++ compiler here")
needs_tiles = pytest.mark.skipif(not HAS_TILES, reason="no matrix unit or no C++ compiler here")
