"""What the tests of frozen networks share: random networks node by node, and how far outputs may lie from float64's."""

import copy
import ctypes

import pytest
import torch
from hypothesis import strategies as st
from machine import HAS_C
from networks import randomize
from torch import fx, nn

import psp
from psp.errors import KernelError
from psp.frozen.lanes import library

PAIRS = st.tuples(st.integers(1, 3), st.integers(1, 3))
PADS = st.tuples(st.integers(0, 3), st.integers(0, 3))
BATCHES = (1, 2, 3, 17, 40, 65)
ACTIVATIONS = (nn.ReLU6(), nn.Hardsigmoid(), nn.Hardswish(), nn.Sigmoid(), nn.SiLU(), nn.GELU(), nn.GELU("tanh"))


def has_bfloat16():
    """Whether there are products of bfloat16 here; where nothing can be compiled another test says so."""
    try:
        return HAS_C and bool(library(torch.bfloat16).psp_lanes(ctypes.c_int64(torch.bfloat16.itemsize)))
    except KernelError:
        return False


HAS_BFLOAT16 = has_bfloat16()
needs_bfloat16 = pytest.mark.skipif(not HAS_BFLOAT16, reason="no bfloat16 products here")


def error(net, frozen, x):
    """Largest difference of outputs and those of `net` in float64, relative to the largest; of a frozen network's by
    any of the ways that it could be run.
    """
    with torch.no_grad():
        expected, outputs = copy.deepcopy(net).double()(x.double()), [frozen(x)]
    outputs += [frozen.run(way, x) for way in getattr(frozen, "ways", ())]
    assert all((got.shape, got.dtype) == (expected.shape, x.dtype) for got in outputs)
    assert all(torch.equal(got.isnan(), expected.isnan()) for got in outputs), "and max would pass over a NaN"
    expected = expected.nan_to_num()
    largest = expected.abs().max().clamp(min=1e-6)
    return max(float((got.nan_to_num() - expected).abs().max() / largest) for got in outputs)


def bound(dtype):
    """On `error` of one layer: rounding of products, and of bfloat16's weights and outputs."""
    return 1e-5 if dtype == torch.float32 else 0.02


def either_type(seed):
    """One of the types that this machine has, by a number drawn."""
    return torch.bfloat16 if seed % 2 and HAS_BFLOAT16 else torch.float32


def freeze(net, x):
    return psp.freeze(net.eval(), x)


class Graph:
    """A network that is written node by node, as psp.extract writes it."""

    def __init__(self, channels, height, width):
        self.root, self.graph, self.shapes = nn.Module(), fx.Graph(), {}
        self.input = self.note(self.graph.placeholder("x"), torch.zeros(2, channels, height, width))

    def note(self, node, example):
        self.shapes[node] = example.shape
        return node

    def module(self, module, *reads):
        name = f"layer{len(self.shapes)}"
        self.root.add_module(name, randomize(module.eval()))
        return self.note(self.graph.call_module(name, reads), module(*(torch.zeros(self.shapes[r]) for r in reads)))

    def function(self, function, *args, **kwargs):
        example = fx.map_arg(args, lambda node: torch.zeros(self.shapes[node]))
        return self.note(self.graph.call_function(function, args, kwargs), function(*example, **kwargs))

    def network(self, node):
        self.graph.output(node)
        return fx.GraphModule(self.root, self.graph)


def alone(module, *shape):
    made = Graph(*shape)
    return made.network(made.module(module, made.input))
