"""How a frozen network is run: by which instructions, and what is measured to decide it."""

import copy
import os
import subprocess

import pytest
import torch
from machine import HAS_C, needs_c
from networks import network, prune
from torch import nn

import psp
from psp import native
from psp.errors import KernelError
from psp.frozen import lanes, pixels
from psp.frozen.freeze import available, prepared
from psp.frozen.lanes import SOURCE as LANES
from psp.frozen.layout import Layouts
from psp.frozen.pixels import SOURCE, Pixels
from psp.frozen.planner import Planner
from psp.frozen.structs import PixelOperation
from psp.frozen.values import CONV
from psp.kernels import cpu

try:
    KINDS = {str(dtype)[6:]: list(available(dtype)) for dtype in (torch.float32, torch.bfloat16)} if HAS_C else {}
except KernelError:
    KINDS = {}
pytestmark = needs_c
needs_pairs = pytest.mark.skipif(len(KINDS.get("bfloat16", ())) < 4, reason="no products of bfloat16 here")
needs_tiles = pytest.mark.skipif(len(KINDS.get("bfloat16", ())) < 5, reason="no AMX here")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("source", [lanes, pixels])
def test_what_there_is_a_compiler_for_compiles(source, dtype):
    """Where it does not, tests that need it are left out, and this one fails."""
    source.library(dtype)


def of_kind(frozen, kind):
    return next(way for way in frozen.ways if str(way) == kind)


def operations(way):
    return (PixelOperation * way.program.operations).from_address(way.program.operation)


def forced(monkeypatch, costs):
    """The way of each convolution whose cost is least is taken, whatever the time."""
    monkeypatch.setattr(Pixels, "times", lambda self, operations: costs(operations))


def share_always(monkeypatch):
    """Images that are left over are computed by all threads, whatever that takes."""
    monkeypatch.setattr(Pixels, "share", lambda self, threads: 0.1 if threads > 1 else 1)


def error(net, got, x):
    with torch.no_grad():
        expected = copy.deepcopy(net).double()(x.double())
    return float((got - expected).abs().max() / expected.abs().max())


@needs_tiles
@pytest.mark.parametrize(
    ("kind", "sparsity"),
    [(kind, s) for kind in ("units", "taps", "joined") for s in (0.0, 0.5, 0.9) if s or kind != "joined"],
)
@pytest.mark.parametrize("side", [6, 19, 32])
def test_tiles_of_whole_taps_of_columns_and_of_pairs_of_columns(monkeypatch, kind, sparsity, side):
    """Odd channels, a strided layer, one to five tiles of outputs and of planes, residual sums; each kind forced."""
    forced(monkeypatch, lambda operations: costs_but_for(kind, operations))
    torch.manual_seed(side)
    net, x = Tiled().eval(), torch.randn(5, 3, side, side + 4).bfloat16()
    for layer in net.children():
        layer.weight.data *= torch.rand(1, *layer.weight.shape[1:]) >= sparsity
    frozen = psp.freeze(net, x)
    way = of_kind(frozen, "matrix unit, bfloat16")
    convolutions = [o for o in operations(way) if o.kind == CONV]
    assert all(o.tiled for o in convolutions)
    assert sum(bool(o.direct) for o in convolutions) == (4 if kind == "taps" else 0)
    assert any(o.order for o in convolutions) == (kind == "joined")
    assert sum(o.x.rows > 0 for o in convolutions) == 2, "a longer step, and a smaller map, without gathering"
    reference = error(net, copy.deepcopy(net).bfloat16()(x).detach(), x)
    assert 0 < error(net, frozen.run(way, x), x) < 1.5 * reference


def costs_but_for(kind, operations):
    """None for the tiles of a kind; they are offered in this order, the last only where it can pay."""
    tiled = [i for i, o in enumerate(operations) if o.tiled]
    wanted = tiled[: ["units", "taps", "joined"].index(kind) + 1][-1:]
    return [i not in wanted for i in range(len(operations))]


class Tiled(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 21, 3, padding=1), nn.Conv2d(21, 64, 3, 2, 1)
        self.third, self.fourth = nn.Conv2d(64, 70, 3, padding=1), nn.Conv2d(70, 70, 3, padding=1)
        self.fifth, self.sixth = nn.Conv2d(70, 20, (1, 3), padding=(0, 1)), nn.Conv2d(20, 9, 3)

    def forward(self, x):
        x = self.third(self.second(self.first(x).relu()))
        y = (self.fourth(x) + x).relu()
        return self.sixth(self.fifth(y) + x[:, 5:25])


@needs_pairs
@pytest.mark.parametrize("side", [4, 5, 12, 16, 28, 32, 56])
def test_strided_maps_are_read_by_rows(side):
    """Of whatever size, though the last vectors are of no pixel."""
    torch.manual_seed(side)
    net, x = nn.Sequential(nn.Conv2d(2, 4, 3, 2, 1), nn.Conv2d(4, 5, 3, 1, 1)), torch.randn(2, 2, side, side)
    for dtype in (torch.float32, torch.bfloat16):
        frozen = psp.freeze(net.eval(), x.to(dtype))
        for way in (way for way in frozen.ways if isinstance(way, Pixels)):
            assert operations(way)[0].x.rows > 0
            bound = 1e-5 if dtype == torch.float32 else 0.02
            assert error(net, frozen.run(way, x.to(dtype)), x.to(dtype)) < bound


@needs_tiles
def test_what_is_added_to_an_odd_channel_does_not_leak_into_the_next(monkeypatch):
    """An infinite value of a channel that nobody reads stays where it is."""
    forced(monkeypatch, lambda operations: costs_but_for("units", operations))
    x = torch.randn(1, 10, 6, 6).bfloat16()
    x[0, 9, 2, 2] = torch.inf
    net = Sliced().eval()
    frozen = psp.freeze(net, x)
    assert frozen.run(of_kind(frozen, "matrix unit, bfloat16"), x).isfinite().all()


class Sliced(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(10, 9, 1), nn.Conv2d(9, 4, 3, padding=1)
        self.first.weight.data[:, 8:] = 0

    def forward(self, x):
        return self.second(self.first(x) + x[:, :9])


@needs_pairs
@pytest.mark.parametrize("side", [1, 4, 19])
@pytest.mark.parametrize(("sparsity", "odd"), [(0.3, True), (0.9, True), (0.9, False)])
def test_columns_joined_in_pairs_whatever_their_channels(monkeypatch, sparsity, odd, side):
    """Odd numbers of channels, a strided layer, a residual sum; pairs forced where they are offered."""
    forced(monkeypatch, lambda operations: [not o.order for o in operations])
    torch.manual_seed(side)
    net = Residual().eval()
    for layer in (net.first, net.second, net.third):
        kept = torch.rand(1, *layer.weight.shape[1:]) >= sparsity
        kept.view(-1)[0] ^= bool(kept.sum() % 2) is not odd
        layer.weight.data *= kept
    x = torch.randn(3, 8, side, side + 4).bfloat16()
    frozen = psp.freeze(net, x)
    way = of_kind(frozen, "pixels as lanes, bfloat16")
    assert sum(bool(o.order) for o in operations(way)) == 3
    reference = error(net, copy.deepcopy(net).bfloat16()(x).detach(), x)
    assert 0 < error(net, frozen.run(way, x), x) < 1.5 * reference
    share_always(monkeypatch)
    assert torch.equal(way(x[:1], 3), way(x[:1], 1))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(8, 21, 3, padding=1), nn.Conv2d(21, 21, 3, padding=1)
        self.third = nn.Conv2d(21, 13, 3, 2, 1)

    def forward(self, x):
        y = self.first(x).relu()
        return self.third((self.second(y) + y).relu())


@needs_tiles
def test_tiles_and_vectors_compute_the_same():
    """The same sums of the same products of bfloat16, but for their order."""
    net, x = network("resnet20")
    smaller, images = (
        psp.extract(prune(net, "column", lambda layer, alpha: 0.6), x),
        torch.randn(3, 3, 16, 16).bfloat16(),
    )
    frozen = psp.freeze(smaller, images)
    tiles, vectors = (
        frozen.run(of_kind(frozen, f"{kind}, bfloat16"), images) for kind in ("matrix unit", "pixels as lanes")
    )
    torch.testing.assert_close(tiles, vectors, rtol=0.03, atol=0.03 * float(vectors.abs().max()))


@needs_tiles
def test_without_amx(monkeypatch):
    monkeypatch.setenv("PSP_WITHOUT_AMX", "1")
    frozen = psp.freeze(nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), torch.zeros(1, 3, 8, 8).bfloat16())
    assert not any("matrix unit" in str(way) for way in frozen.ways)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_that_share_an_image_compute_what_one_does(monkeypatch, threads, dtype):
    share_always(monkeypatch)
    net, x = network("resnet20")
    net, x, before = net.eval(), torch.randn(3, 3, 16, 16).to(dtype), torch.get_num_threads()
    frozen = psp.freeze(net, x)
    try:
        for way in frozen.ways:
            torch.set_num_threads(1)
            alone = [frozen.run(way, x[:n]) for n in (1, 2, 3)]
            torch.set_num_threads(threads)
            for n, expected in enumerate(alone, 1):
                assert torch.equal(frozen.run(way, x[:n]), expected)
    finally:
        torch.set_num_threads(before)


def test_the_fastest_way_is_taken():
    frozen = psp.freeze(nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), torch.zeros(1, 3, 8, 8))
    for fastest in frozen.ways:
        frozen.seconds, frozen.chosen = {way: 1.0 if way is fastest else 1e6 for way in frozen.ways}, {}
        assert frozen.way(1) is frozen.way(64) is fastest


def test_lanes_over_images_take_as_long_for_one_image_as_for_all():
    lanes, pixels = psp.freeze(nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), torch.zeros(1, 3, 8, 8)).ways
    assert lanes.rounds(1, 2) == lanes.rounds(2 * lanes.lanes, 2) == 1
    assert pixels.rounds(64, 2) == 32 / pixels.example
    for share, rounds in ((0.6, 0.6), (2.0, 1)):  # images left over are shared only where that is faster
        pixels.shares[2] = share
        assert [pixels.rounds(n, 2) * pixels.example for n in (1, 5)] == [rounds, 2 + rounds]


def test_what_sharing_gains_is_measured_once(monkeypatch):
    pixels = psp.freeze(nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), torch.zeros(1, 3, 8, 8)).ways[1]
    alone, launched = [], pixels.launch

    def shortest(calls):
        for call in calls:
            call()
        return 2.0, 3.0

    def launch(x, y, threads, n):
        alone.append((len(x), threads, n))
        launched(x, y, threads, n)

    monkeypatch.setattr(psp.frozen.pixels, "shortest", shortest)
    monkeypatch.setattr(pixels, "launch", launch)
    assert pixels.share(3) == pixels.share(3) == 1.5
    assert alone == [(1, 3, 1), (1, 3, 0)]


def test_maps_that_live_at_once_do_not_overlap():
    """And one that is no longer needed leaves its place to another of its size."""
    net, _ = network("resnet20")
    plan = Planner(prepared(net.eval(), (3, 16, 16)), 3, 16, 16)
    layouts = Layouts(plan.operations, plan.result.source, parts=1)
    ends = {o: layouts.begins[o] + layouts[o].plane * o.channels for o in plan.operations}
    last = {value.source: i for i, o in enumerate(plan.operations) for value in o.reads}
    for i, o in enumerate(plan.operations):
        for other in plan.operations[:i]:
            apart = ends[other] <= layouts.begins[o] or ends[o] <= layouts.begins[other]
            assert apart or last[other] < i
    assert layouts.units < sum(layouts[o].plane * o.channels for o in plan.operations) / 2


@pytest.mark.parametrize("processor", ["x86-64", "haswell", "skylake-avx512", "cooperlake", "sapphirerapids"])
@pytest.mark.parametrize("macros", [(), ("-DBFLOAT16",)])
@pytest.mark.parametrize("source", [SOURCE, LANES])
def test_the_code_of_every_processor_compiles(tmp_path, processor, macros, source):
    if "__x86_64__" not in native.output(["cc", "-dM", "-E", "-x", "c", os.devnull]):
        pytest.skip("no compiler for x86-64 here")
    made, newest = tmp_path / "made.s", bool(macros) and processor in ("cooperlake", "sapphirerapids")
    command = ["cc", "-std=gnu11", "-O1", "-Wall", "-Werror", f"-march={processor}", *macros, "-S", str(source)]
    result = subprocess.run([*command, "-o", str(made)], capture_output=True, text=True)
    if "bad value" in result.stderr or "unknown target" in result.stderr:
        pytest.skip(f"this compiler does not know {processor}")
    assert not result.returncode, result.stderr
    assert ("tdpbf16ps" in made.read_text()) == (newest and source == SOURCE)
    assert ("vdpbf16ps" in made.read_text()) == newest


def test_what_is_compiled_anew_is_announced_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = native.library(SOURCE, cpu.FLAGS)
    assert "psp: compiling pixels.c for this processor, once" in capsys.readouterr().err
    assert native.library(SOURCE, cpu.FLAGS) == first
    assert not capsys.readouterr().err
