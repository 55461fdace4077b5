"""Timing: who takes turns with whom, that every variant runs the same network, and what the tables make of it."""

import json
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from machine import needs_c
from networks import Call
from torch import nn

import psp
from psp.errors import ConfigError
from psp.files import write_json
from psp.pipeline.commands import write_timing
from psp.pipeline.profiles import Profile, load_profile, with_sections
from psp.report.timing_tables import machines_table, speed_ups, summary_table
from psp.runs.record import read_record
from psp.timing.floor import Limits, Work, floors
from psp.timing.measure import alternate, cpu_block, quartiles
from psp.timing.networks import cost_left, left_by, lively, masks_sha256, networks, random_masks, trained_masks
from psp.timing.record import DenseNetworks, make_variants, read_timing, timing_record, with_dense, without_gpu
from psp.timing.settings import BACKENDS, NO_GPU, PRECISIONS, TimingConfig
from psp.timing.variants import has_compiler, make_variant, outputs, unavailable
from psp.timing.work import CALLS, REPEATS, _best, measure_limits, nonzero_macs, work

CPU = torch.device("cpu")
SETTINGS = {
    "batches": [1, 4],
    "backends": ["eager"],
    "precisions": ["float32"],
    "runs": [],
    "model": "resnet20",
    "skip": ["conv1", "fc"],
    "structures": ["channel"],
    "sparsities": [0.5],
    "random_batch": 4,
}


def test_calls_take_turns_and_every_round_counts(monkeypatch):
    """A warm-up, then in each round a turn of each, in an order that changes; no turn without a rest before it."""
    order, names, took = [], "abcd", iter(range(1, 1000))

    def block(call, threads):
        def seconds(number):
            call()
            return float(next(took))

        return seconds

    monkeypatch.setattr("psp.timing.measure.ROUNDS", 8)
    monkeypatch.setattr("psp.timing.measure.cpu_block", block)
    monkeypatch.setattr("time.sleep", lambda _: order.append("rest"))
    measured = alternate({name: lambda name=name: order.append(name) for name in names}, CPU, 1)
    warm_up, turns = order[: 2 * len(names)], order[2 * len(names) :]
    assert warm_up == [name for name in names for _ in range(2)]
    assert turns[::2] == ["rest"] * 8 * len(names)
    rounds = ["".join(turns[1::2])[i : i + len(names)] for i in range(0, 8 * len(names), len(names))]
    assert {"".join(sorted(own)) for own in rounds} == {names}
    assert len(set(rounds)) > 3
    places = [2 * len(names) + 1 + len(names) * i + own.index("a") for i, own in enumerate(rounds)]
    assert measured["a"] == quartiles([float(place) for place in places])


def test_a_block_of_calls_is_timed_on_so_many_threads():
    threads, seen = torch.get_num_threads(), []
    assert cpu_block(lambda: seen.append(torch.get_num_threads()), 1)(5) > 0
    assert set(seen) == {1}
    assert torch.get_num_threads() == threads


def test_quartiles_by_hand():
    assert quartiles([5.0, 1.0, 2.0, 4.0, 3.0]) == (3.0, 2.0, 4.0)


def small_net():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(144, 5))
    return net.eval()


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


def test_the_dense_network_has_no_zeros_that_lanes_would_leave_out():
    masked = random_masks("resnet20", "channel", 0.8, skip=("conv1", "fc"))
    network = DenseNetworks(SETTINGS).network(("resnet20", 10), masked)
    assert all(parameter.all() for parameter in network.parameters())


@needs_c
def test_the_dense_network_is_timed_in_every_variant_of_the_extracted_one():
    """A variant that only the extracted network has would make its speed-up one over a slower dense network."""
    about = {"name": "n", "model": "resnet20", "structure": "channel", "masks": "random", "batches": [2], "side": 16}
    about |= {"classes": 10}
    masked = random_masks("resnet20", "channel", 0.8, skip=("conv1", "fc"))
    settings = {"backends": ["eager", "lanes"], "precisions": ["float32"]}
    (network,) = timing_record([(about, masked)], settings, CPU)["networks"]
    variants = {
        name: {t["backend"] for t in network["timings"] if t["network"] == name} for name in ("dense", "extracted")
    }
    assert variants["dense"] == variants["extracted"] == {"eager", "lanes"}
    assert network["unavailable"] == network["dense_unavailable"] == []


def test_a_variant_that_the_dense_network_has_not_is_not_timed():
    one, other = ("eager", "float32"), ("lanes", "float32")
    kept, without = with_dense({one: 1, other: 2}, {one: 3, ("compile", "float32"): 4}, 64)
    assert kept == {one: 1}
    reason = "the dense network is not to be had in it"
    assert without == [{"batch": 64, "backend": "lanes", "precision": "float32", "reason": reason}]


def test_networks_with_other_classes_are_compared_with_a_dense_network_of_their_own(monkeypatch):
    monkeypatch.setattr("psp.timing.measure.ROUNDS", 2)
    monkeypatch.setattr("psp.timing.measure.BLOCK_SECONDS", 0.0)
    monkeypatch.setattr("psp.timing.work.PRODUCT_SIDE", 64)
    monkeypatch.setattr("psp.timing.work.COPY_MIB", 1)
    about = {"model": "densenet16", "structure": "channel", "masks": "random", "batches": [1], "side": 8}
    pairs = (
        ({**about, "name": str(n), "classes": n}, random_masks("densenet16", "channel", 0.5, ("conv1", "fc"), n))
        for n in (10, 100, 10)
    )
    made = timing_record(pairs, {"backends": ["eager"], "precisions": ["float32"]}, CPU)["networks"]
    ten, hundred, again = (network["cost"]["dense"]["params"] for network in made)
    assert (hundred - ten, again) == (90 * (160 + 1), ten)


def test_what_a_network_must_move_and_do_by_hand():
    """Every layer reads its input, its weights and its bias, and writes its output."""
    done = work(small_net(), torch.zeros(1, 3, 8, 8))
    assert done.values == (192 + 216 + 8 + 512) + (512 + 288 + 4 + 144) + (144 + 720 + 5 + 5)
    assert done.macs == 8 * 27 * 64 + 4 * 72 * 36 + 720


def test_multiply_accumulates_by_zeros_do_not_count():
    net, image = small_net(), torch.zeros(1, 3, 8, 8)
    assert nonzero_macs(net, image) == work(net, image).macs
    with torch.no_grad():
        next(net.parameters())[1:3] = 0  # two of eight channels with 27 weights, on 8×8 pixels
    assert nonzero_macs(net, image) == work(net, image).macs - 2 * 27 * 64


def test_work_of_layers_called_by_keyword_and_of_transposed_ones():
    """Each of 25 pixels of 4 channels meets 6 outputs of 4 taps; the first of the channels has weights of 0."""
    net = Call(lambda net, x: net.up(input=x), up=nn.ConvTranspose2d(4, 6, 2, 2, bias=False))
    net.up.weight.data[0] = 0
    image = torch.zeros(1, 4, 5, 5)
    assert work(net, image) == Work(4 * 25 + 6 * 100 + 4 * 6 * 4, 25 * 4 * 6 * 4)
    assert nonzero_macs(net, image) == 25 * 3 * 6 * 4


def test_floors_by_hand():
    limits = Limits(bytes_per_s=100.0, flops={"float32": 50.0, "bfloat16": 200.0})
    assert floors(Work(25, 75), limits, "float32") == {"memory_s": 1.0, "arithmetic_s": 3.0}
    assert floors(Work(25, 75), limits, "bfloat16") == {"memory_s": 0.5, "arithmetic_s": 0.75}


def test_limits_of_this_machine_are_of_the_right_order(monkeypatch):
    monkeypatch.setattr("psp.timing.work.COPY_MIB", 8)
    monkeypatch.setattr("psp.timing.work.PRODUCT_SIDE", 256)
    limits = measure_limits(CPU)
    assert 1e8 < limits.bytes_per_s < 1e13
    assert all(1e8 < flops < 1e15 for flops in limits.flops.values())


def test_the_limits_of_a_gpu_are_taken_by_its_own_clock_over_many_calls(monkeypatch):
    asked = []
    monkeypatch.setattr("psp.timing.work.cuda_block", lambda call: lambda calls: asked.append(calls) or 1 / len(asked))
    assert _best(None, SimpleNamespace(type="cuda")) == 1 / (1 + REPEATS)
    assert set(asked) == {CALLS}
    assert CALLS > 1


@pytest.mark.parametrize("structure", ["weight", "column", "channel", "shape"])
@pytest.mark.parametrize("sparsity", [0.25, 0.9])
def test_random_masks_have_their_sparsity_in_every_layer(structure, sparsity):
    model = random_masks("resnet20", structure, sparsity, skip=("conv1", "fc"))
    for layer in psp.sparsity(model).layers.values():
        assert layer.structures == pytest.approx(sparsity, abs=0.5 / layer.count + 1e-9)


def test_what_is_left_of_a_run_is_its_network_without_what_its_masks_prune():
    profile, image = load_profile("laptop"), torch.randn(1, 3, 32, 32)
    dense, pruned = (left_by(read_record(profile.record_path(run))) for run in ("baseline-s0", "l1_norm-70-s0"))
    whole = psp.create_model("resnet20").eval()
    assert psp.cost(dense, image).macs == psp.cost(whole, image).macs
    conv1, fc = 27 * 16 * 32 * 32, 640
    kept = psp.cost(pruned, image).macs - conv1 - fc
    # 30 % of the columns, rounded in each layer; fewer where no later layer reads a channel
    assert kept <= 0.3 * (psp.cost(whole, image).macs - conv1 - fc) * 1.01
    assert kept >= 0.2 * (psp.cost(whole, image).macs - conv1 - fc)


@pytest.mark.parametrize("run", ["baseline-s0", "l1_norm-80-s0", "psp_weight_decay-13e-4-s0"])
def test_the_cost_that_is_left_of_pruned_columns_counted_from_their_masks(run):
    """A filter of a block is gone where the block's second convolution reads nothing of it; nothing else is."""
    profile = load_profile("eighteen-epochs")
    record = read_record(profile.record_path(run))
    network = trained_masks(profile.config(run), 10, record)
    macs = 27 * 16 * 32**2 + 640
    for stage, side in ((network.layer1, 32), (network.layer2, 16), (network.layer3, 8)):
        for block in stage:
            first, second = (conv.weight.any(0) for conv in (block.conv1, block.conv2))  # kept columns
            read = int(second.flatten(1).any(1).sum())
            macs += side**2 * (int(first.sum()) * read + int(second.sum()) * len(block.conv2.weight))
    assert cost_left(record).mac_reduction == pytest.approx(40_551_040 / macs)


def test_random_masks_of_layers_and_lively_normalization():
    model = random_masks("resnet20", "layer", 0.5, skip=("conv1", "fc"))
    assert psp.sparsity(model).structures == 0.5
    assert not model.training
    assert model.bn1.bias.abs().min() > 0
    assert lively(psp.create_model("resnet20")).bn1.running_var.std() > 0.1


def timing(network, batch, backend, precision, seconds, macs):
    return {
        "network": network,
        "batch": batch,
        "backend": backend,
        "precision": precision,
        "median_s": seconds,
        "low_s": 0.9 * seconds,
        "high_s": 1.2 * seconds,
        "values": 1000,
        "macs": macs,
    }


def record():
    """One network at a quarter of the MACs; dense is fastest compiled in bf16, the extracted one eager in float32."""
    timings = [
        timing("dense", 64, "eager", "float32", 0.008, 400),
        timing("dense", 64, "onnxruntime", "float32", 0.006, 400),
        timing("dense", 64, "compile", "bfloat16", 0.004, 400),
        timing("extracted", 64, "eager", "float32", 0.002, 100),
        timing("extracted", 64, "compile", "bfloat16", 0.0025, 100),
    ]
    network = {
        "name": "n",
        "model": "resnet20",
        "structure": "channel",
        "masks": "random",
        "batches": [64],
        "sparsity": {"structures": 0.5, "weights": 0.5},
        "cost": {"dense": {"params": 40, "macs": 400}, "extracted": {"params": 10, "macs": 120}},
        "nonzero_macs": 100,
        "timings": timings,
        "unavailable": [],
        "difference": 1e-7,
    }
    limits = {"bytes_per_s": 4e6, "flops": {"float32": 1e6, "bfloat16": 4e6}}
    settings = SETTINGS | {"precisions": ["float32", "bfloat16"]}
    return {"kind": "cpu", "limits": limits, "networks": [network], "settings": settings}


def test_a_speed_up_is_against_the_fastest_dense_variant():
    table = speed_ups(record()).set_index("precision")
    assert table["speed_up"].to_dict() == pytest.approx({"float32": 3.0, "bfloat16": 1.6, "any": 2.0})
    assert table["realised"].to_dict() == pytest.approx({"float32": 0.75, "bfloat16": 0.4, "any": 0.5})
    row = table.loc["any"]
    assert (row["dense_variant"], row["extracted_variant"]) == ("compile, bfloat16", "eager, float32")
    assert (row["dense_ms"], row["extracted_ms"]) == pytest.approx((4.0, 2.0))
    assert row["extracted_iqr_ms"] == pytest.approx(0.6)
    assert (row["dense_memory_floor_ms"], row["extracted_memory_floor_ms"]) == pytest.approx((0.5, 1.0))
    assert row["extracted_arithmetic_floor_ms"] == pytest.approx(0.2)


def test_without_a_gpu_the_table_says_so():
    table = summary_table(record(), {"kind": "cuda", "unavailable": NO_GPU}, 64)
    assert table.loc[0, ["gpu_speed_up", "gpu_realised"]].tolist() == [NO_GPU, NO_GPU]
    assert table.loc[0, "cpu_speed_up"] == pytest.approx(2.0)
    assert table.loc[0, "mac_reduction"] == pytest.approx(4.0)
    faster = record()
    faster["networks"][0]["timings"][3]["median_s"] = 0.001
    assert summary_table(record(), faster, 64).loc[0, "gpu_speed_up"] == pytest.approx(4.0)


def on(device, seconds=0.002):
    """The record as a machine made it, with the time of its fastest extracted variant."""
    made = record() | {"provenance": {"device": device}}
    made["networks"][0]["timings"][3]["median_s"] = seconds
    return made


def test_machines_stand_side_by_side_with_the_networks_of_the_first():
    other = on("B", 0.001)
    other["networks"].append({**other["networks"][0], "name": "only here"})
    table = machines_table([on("A"), other], 64).set_index("precision")
    assert table["name"].unique().tolist() == ["n"]
    assert table.loc["any", ["speed_up, A", "speed_up, B"]].tolist() == pytest.approx([2.0, 4.0])
    assert table.loc["any", ["realised, A", "realised, B"]].tolist() == pytest.approx([0.5, 1.0])
    other["networks"][0]["masks_sha256"] = "of other masks"
    alone = machines_table([on("A"), other], 64)
    assert alone.equals(machines_table([on("A")], 64)), "of the same name, but not the same network"


def test_the_record_of_another_machine_stays_in_a_file_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(Profile, "results", tmp_path)
    profile = Profile("p", {}, None)
    for kind in ("cpu", "cuda"):
        path = profile.timing_path(kind)
        write_timing(on("A new one"), on("An old CPU, 2 cores"), path)
        for earlier in (on("A new one"), {"unavailable": NO_GPU}, {}):
            write_timing(on("A new one"), earlier, path)
    folder = tmp_path / "timing" / "machines"
    assert sorted(path.name for path in folder.iterdir()) == [
        "cpu-an-old-cpu-2-cores.json",
        "cuda-an-old-cpu-2-cores.json",
    ]
    assert profile.other_machines() == [folder / "cpu-an-old-cpu-2-cores.json"]
    assert json.loads(profile.other_machines()[0].read_text()) == on("An old CPU, 2 cores")
    again, path = on("An old CPU, 2 cores", 0.001), profile.timing_path("cpu")
    write_timing(again, json.loads(path.read_text()), path)
    assert json.loads(path.read_text()) == again
    assert profile.other_machines() == [folder / "cpu-a-new-one.json"], "and not a machine beside itself"


def test_a_timing_record_that_is_missing_or_damaged_is_named_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(Profile, "results", tmp_path)
    profile = Profile("p", {}, None)
    with pytest.raises(ConfigError, match=r"no timing record .*cpu\.json; run: python -m psp\.pipeline timing p$"):
        read_timing(profile, "cpu")
    write_timing(on("A"), {}, profile.timing_path("cpu"))
    assert read_timing(profile, "cpu") == on("A")
    profile.timing_path("cpu").write_text("{")
    with pytest.raises(ConfigError, match=r"cpu\.json is no JSON file .*; run: python -m psp\.pipeline timing p$"):
        read_timing(profile, "cpu")


def test_times_of_earlier_masks_are_refused(monkeypatch, tmp_path):
    masks = {"masks": {"a": {"shape": [1], "bits": "gA=="}}}
    monkeypatch.setattr("psp.timing.record.read_record", lambda _: masks)
    monkeypatch.setattr("psp.pipeline.profiles.ROOT", tmp_path)
    profile = Profile("p", {"r": None})
    network = {"name": "r", "masks": "trained", "masks_sha256": masks_sha256(masks)}
    write_json({"networks": [network, {"name": "random", "masks": "random"}]}, profile.timing_path("cpu"))
    assert read_timing(profile, "cpu")["networks"][0] == network
    write_json({"networks": [network | {"masks_sha256": "earlier"}]}, profile.timing_path("cpu"))
    with pytest.raises(ConfigError, match=r"has times of earlier masks of r; run: python -m psp\.pipeline timing p$"):
        read_timing(profile, "cpu")


def test_a_gpu_record_from_elsewhere_stays_as_long_as_its_networks_do(monkeypatch):
    masks = {"masks": {"a": {"shape": [1], "bits": "gA=="}}}
    monkeypatch.setattr("psp.timing.record.read_record", lambda _: masks)
    profile = Profile("p", {"r": None}, TimingConfig.of(SETTINGS | {"runs": ["r"]}, ["r"]))
    earlier = {
        "settings": profile.timing.as_dict(),
        "networks": [{"name": "r", "masks": "trained", "masks_sha256": masks_sha256(masks)}],
    }
    assert without_gpu(earlier, profile) is earlier
    nothing = {"schema": 2, "kind": "cuda", "unavailable": NO_GPU}
    assert without_gpu({}, profile) == without_gpu(nothing, profile) == nothing
    assert without_gpu(earlier | {"settings": {}}, profile) == nothing
    masks["masks"]["a"]["bits"] = "AA=="
    assert without_gpu(earlier, profile) == nothing


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batches": [0]}, "timing.batches and random_batch are whole numbers of at least 1, got 0"),
        ({"backends": ["tensorrt"]}, "timing.backends: unknown 'tensorrt'; choose of eager"),
        ({"precisions": ["int8"]}, "timing.precisions: unknown 'int8'"),
        ({"runs": ["x"]}, "timing.runs: the profile has no run 'x'; its runs are a"),
        ({"structures": ["row"]}, "unknown structure 'row'"),
        ({"sparsities": [2]}, "sparsity must lie in 0…1"),
        ({"threads": 2}, "timing must set batches, backends"),
        ({"runs": ["a"], "random_batch": 8}, "timing.random_batch 8 must be one of timing.batches"),
    ],
)
def test_bad_settings(change, message):
    with pytest.raises(ConfigError, match=message):
        TimingConfig.of(SETTINGS | change, ["a"])


def test_from_networks_to_tables(monkeypatch, tmp_path):
    """Everything but the length of it: two networks, one variant, tables and the notebook's numbers."""
    monkeypatch.setattr("psp.timing.measure.ROUNDS", 2)
    monkeypatch.setattr("psp.timing.measure.BLOCK_SECONDS", 0.0)
    monkeypatch.setattr("psp.timing.work.PRODUCT_SIDE", 64)
    monkeypatch.setattr("psp.timing.work.COPY_MIB", 1)
    config = TimingConfig.of(SETTINGS | {"structures": ["channel", "layer"]}, [])
    made = timing_record(networks(load_profile("demo"), config), config.as_dict(), CPU)
    made = json.loads(json.dumps(made))
    assert [n["name"] for n in made["networks"]] == ["resnet20-channel-50", "resnet20-layer-50"]
    for network in made["networks"]:
        assert network["difference"] <= 1e-5
        assert network["cost"]["extracted"]["macs"] < 0.75 * network["cost"]["dense"]["macs"]
    table = speed_ups(made)
    assert len(table) == 2 * 2  # networks, float32 and any
    assert (table["speed_up"] > 0).all()
    assert isinstance(summary_table(made, {"unavailable": NO_GPU}, 4), pd.DataFrame)


def test_a_backend_that_nobody_makes_is_an_error():
    with pytest.raises(ConfigError, match="unknown backend 'tensorrt'; choose one of eager, "):
        make_variant("tensorrt", "float32", small_net(), torch.randn(2, 3, 8, 8), threads=1)


PROFILES = [part for name in ("demo", "laptop", "eighteen-epochs", "paper") for part in with_sections(name)]


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_can_prune_its_network_by_the_structures_it_times(profile):
    config = load_profile(profile).timing
    for structure in config.structures:
        psp.parameterize(psp.create_model(config.model), structure, skip=config.skip)


def test_a_structure_that_the_network_cannot_have_is_an_error_before_anything_is_timed():
    config = replace(load_profile("demo").timing, model="resnet18", structures=("column", "layer"), runs=())
    with pytest.raises(ConfigError, match=r"needs a bypass, and nothing leads around layer2\.0\.downsample\.0"):
        next(networks(load_profile("demo"), config))
