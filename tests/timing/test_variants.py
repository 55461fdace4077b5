"""Every variant runs the same network, or says why it does not."""

from itertools import product

import pytest
import torch
from timed import CPU, small_net
from torch import nn

from psp.errors import ConfigError
from psp.timing.record import make_variants, with_dense
from psp.timing.settings import BACKENDS, NO_GPU, PRECISIONS
from psp.timing.variants import has_compiler, make_variant, outputs, unavailable


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_variant_runs_the_same_network(backend, precision):
    net, images = small_net(), torch.randn(2, 3, 8, 8)
    if unavailable(backend, precision, CPU):
        pytest.skip(unavailable(backend, precision, CPU))
    call = make_variant(backend, precision, net, images, threads=1)
    if backend in ("lanes", "openvino") and isinstance(call, str):
        pytest.skip(call)
    out = outputs(call())
    tolerance = 1e-5 if precision == "float32" else 0.05
    torch.testing.assert_close(out.float(), net(images), rtol=tolerance, atol=tolerance)
    assert net[0].weight.dtype == torch.float32, "the network stays as it is"


@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
def test_compiled_variants_stay_compiled_while_others_are_made():
    """Nothing is compiled again, without frozen weights, while it is timed; ten of one network are more than usual."""
    network = torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 3)).eval())
    calls = [make_variant("compile", "float32", network, torch.zeros(n, 3, 5, 5), 1) for n in range(1, 11)]
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert compiled >= 10
    assert [len(call()) for call in calls] == list(range(1, 11))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled


def test_a_variant_with_other_outputs_is_not_timed(monkeypatch):
    """Those of float32 may be a hundredth of the largest output away, those of bfloat16 a tenth."""
    made = {
        "eager": lambda net, images: net(images),
        "compile": lambda net, images: 1.05 * net(images),
        "onnxruntime": lambda net, images: [(0.95 * net(images)).numpy()],
        "openvino": lambda net, images: {0: 2 * net(images).numpy()},
        "lanes": lambda net, images: net(images) * float("nan"),
    }
    monkeypatch.setattr(
        "psp.timing.record.make_variant", lambda backend, _, net, images, __: lambda: made[backend](net, images)
    )
    settings = {"backends": list(made), "precisions": ["float32", "bfloat16"]}
    calls, missing = make_variants(small_net(), settings, torch.randn(2, 3, 8, 8))
    near = {("eager", "float32"), *((backend, "bfloat16") for backend in ("eager", "compile", "onnxruntime"))}
    assert set(calls) == near
    assert {(m["backend"], m["precision"]) for m in missing} == set(product(made, settings["precisions"])) - near
    assert missing[0]["reason"] == "its outputs are 0.05 of the largest one away from the network's"


def test_a_variant_that_fails_leaves_the_others_their_times(monkeypatch):
    """When it is made, or when it is first called; a mistake in the settings is an error."""

    def fails(*_):
        raise OSError("no such header\nin file x")

    monkeypatch.setattr("psp.timing.variants.has_compiler", lambda: True)
    monkeypatch.setattr("psp.timing.variants._compiled", fails)
    monkeypatch.setattr("psp.timing.variants._lanes", lambda *_: fails)
    settings = {"backends": ["compile", "eager", "lanes"], "precisions": ["float32"]}
    calls, missing = make_variants(small_net(), settings, torch.randn(2, 3, 8, 8))
    assert list(calls) == [("eager", "float32")]
    assert [(m["batch"], m["backend"], m["reason"]) for m in missing] == [
        (2, "compile", "OSError: no such header"),
        (2, "lanes", "OSError: no such header"),
    ]
    with pytest.raises(ConfigError, match="unknown backend"):
        make_variants(small_net(), {"backends": ["eager", "mkl"], "precisions": ["float32"]}, torch.randn(2, 3, 8, 8))


def test_a_variant_that_cannot_be_had_says_why(monkeypatch):
    assert unavailable("cuda_graph", "float32", CPU) == NO_GPU
    assert "bfloat16" in make_variant("onnxruntime", "bfloat16", small_net(), torch.zeros(1, 3, 8, 8), 1)
    assert "CPUs only" in unavailable("onnxruntime", "float32", torch.device("cuda"))
    assert "CPUs only" in unavailable("lanes", "float32", torch.device("cuda"))
    assert "CPUs only" in unavailable("openvino", "float32", torch.device("cuda"))
    unknown = nn.Sequential(nn.Tanh()).eval()
    assert "'0' cannot be run" in make_variant("lanes", "float32", unknown, torch.zeros(1, 3, 8, 8), 1)
    assert unavailable("compile", "float32", torch.device("cuda")) == ""
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert not has_compiler()
    assert "C++ compiler" in unavailable("compile", "float32", CPU)


def test_a_variant_that_the_dense_network_has_not_is_not_timed():
    one, other = ("eager", "float32"), ("lanes", "float32")
    kept, without = with_dense({one: 1, other: 2}, {one: 3, ("compile", "float32"): 4}, 64)
    assert kept == {one: 1}
    reason = "the dense network is not to be had in it"
    assert without == [{"batch": 64, "backend": "lanes", "precision": "float32", "reason": reason}]


def test_a_backend_that_nobody_makes_is_an_error():
    with pytest.raises(ConfigError, match="unknown backend 'tensorrt'; choose one of eager, "):
        make_variant("tensorrt", "float32", small_net(), torch.randn(2, 3, 8, 8), threads=1)
