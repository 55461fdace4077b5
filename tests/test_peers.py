"""The pruners that PSP is compared with: channels go until the costs are what was asked for, the weakest first."""

import hashlib
from itertools import product

import peers
import peers_time
import pytest
import torch
from torch import nn

import psp
from psp.extraction.extract import fold_batchnorm
from psp.files import ROOT
from psp.report.peers import peer_rows, read_peers, read_sealed, searched_table
from psp.runs.config import RunConfig
from psp.timing.networks import lively
from psp.training.epoch import learning_rate

RECORDS = ROOT / "results" / "peers"


@pytest.mark.parametrize("name", peers.PRUNERS)
@pytest.mark.parametrize("reduction", [2, 4])
def test_a_pruner_stops_at_the_cost_asked_for(name, reduction):
    torch.manual_seed(0)
    net, image = psp.create_model("resnet20").eval(), torch.randn(1, 3, 32, 32)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.1, 1.0)
    nn.init.constant_(net.layer3[1].bn1.weight[:40], 1e-3)
    before = psp.cost(net, image).macs
    peers.remove(peers.make_pruner(name, net, image, 1e-4), net, image, reduction)
    assert reduction <= before / psp.cost(net, image).macs < 1.1 * reduction
    assert net(image).shape == (1, 10)
    assert [net.conv1.out_channels, *(stage[-1].conv2.out_channels for stage in (net.layer2, net.layer3))] == [
        16,
        32,
        64,
    ]
    if name == "slimming":
        assert net.layer3[1].bn1.weight.min() > 1e-3


@pytest.mark.parametrize("name", peers.PRUNERS)
def test_what_is_removed_is_what_the_network_loses(name):
    """Six tenths of the channels within each block are 0 for any image, and half of the costs are those of such."""
    torch.manual_seed(0)
    net, image = lively(psp.create_model("resnet20")), torch.randn(2, 3, 32, 32)
    for block in (block for stage in (net.layer1, net.layer2, net.layer3) for block in stage):
        dead = torch.rand(block.bn1.num_features).argsort()[: round(0.6 * block.bn1.num_features)]
        for parameter in (block.bn1.weight, block.bn1.bias, block.conv1.weight):
            parameter.data[dead] = 0.0
        block.conv2.weight.data[:, dead] = 0.0
    expected = net(image)
    peers.remove(peers.make_pruner(name, net, image[:1], 1e-4), net, image[:1], 2)
    torch.testing.assert_close(net(image), expected, rtol=1e-4, atol=1e-4)
    assert net.conv1.out_channels == 16
    assert net.layer3[0].conv1.out_channels < 64


@pytest.mark.parametrize("name", peers.PRUNERS)
def test_a_pruner_adds_its_decay_to_the_gradients(name):
    net = psp.create_model("resnet20")
    image = torch.randn(2, 3, 32, 32)
    pruner = peers.make_pruner(name, net, image, 1e-2)
    net(image).square().sum().backward()
    before = [parameter.grad.clone() for parameter in net.parameters()]
    pruner.regularize(net)
    changed = [n for (n, p), grad in zip(net.named_parameters(), before, strict=True) if not torch.equal(p.grad, grad)]
    within = {n for n, _ in net.named_parameters() if ".bn1.weight" in n}
    assert within <= set(changed)
    assert {n for n in changed if "bn" in n and n.endswith("weight")} == within, "nothing that cannot go"
    assert any("conv" in n for n in changed) is (name != "slimming")


def test_slimming_ranks_the_scales_of_all_layers_together():
    """Liu et al. 2017: the small scales of a layer that has no other go before those of a layer of large ones."""
    torch.manual_seed(0)
    net, image = psp.create_model("resnet20").eval(), torch.randn(1, 3, 32, 32)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    nn.init.uniform_(net.layer1[1].bn1.weight, 0.010, 0.011)
    peers.remove(peers.make_pruner("slimming", net, image, 1e-4), net, image, 1.05)
    assert net.layer1[1].conv1.out_channels < 16
    others = [b.conv1.out_channels for s in (net.layer1, net.layer2, net.layer3) for b in s if b is not net.layer1[1]]
    assert others == [16, 16, 32, 32, 32, 64, 64, 64]


@pytest.mark.usefixtures("few_digits")
def test_from_the_command_line_to_a_row_of_the_table(tmp_path):
    path = tmp_path / "slimming.json"
    command = f"{path} --pruner slimming --reduction 2 --dataset digits --epochs 3 --batch-size 16 --holdout 64"
    peers.main([*command.split(), "--prune-at", "0.4", "--checkpoints", str(tmp_path)])
    record = read_sealed(path)
    assert record["prune_at"] == pytest.approx(1 / 3)
    assert [point["epoch"] for point in record["curve"]] == [1, 2, 3]
    image = torch.zeros(1, 3, 32, 32)
    left = psp.cost(fold_batchnorm(peers.narrowed(record)), image)
    assert psp.cost(psp.create_model("resnet20"), image).macs / left.macs == record["mac_reduction"] >= 2
    assert peer_rows({"slimming": record})["parameters"].tolist() == [left.params]
    assert len(searched_table({"slimming": record})) == 1
    with pytest.raises(SystemExit):
        peers.main([*command.split(), "--checkpoints", str(tmp_path)])
    assert read_sealed(path) == record, "nothing is trained over a record"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--prune-at 0.96", "--prune-at leaves 12 of 12 epochs before the removal"),
        ("--prune-at 0.02", "--prune-at leaves 0 of 12 epochs before the removal"),
        ("--reduction 0.5", "--reduction is by how much costs are divided, more than 1, got 0.5"),
    ],
)
def test_what_would_prune_nothing_is_refused(arguments, message, tmp_path, capsys):
    command = f"{tmp_path / 'a.json'} --pruner slimming --reduction 4 {arguments}"
    with pytest.raises(SystemExit):
        peers.main(command.split())
    assert message in capsys.readouterr().err


def test_more_than_can_be_removed_is_refused_before_it_is_trained():
    with pytest.raises(SystemExit, match="the costs are not yet down by 1000"):
        peers.train(RunConfig(method="baseline"), "slimming", 1e-4, 1, 1000, "unused")


def test_what_a_pruner_left_is_made_again_from_its_shapes():
    torch.manual_seed(0)
    net, image = psp.create_model("resnet20", 100).eval(), torch.randn(2, 3, 32, 32)
    peers.remove(peers.make_pruner("group_norm", net, image[:1], 1e-4), net, image[:1], 4)
    shapes = {name: list(values.shape) for name, values in net.state_dict().items()}
    again = peers.narrowed({"config": {"model": "resnet20"}, "shapes": shapes})
    assert psp.cost(again, image) == psp.cost(net, image)
    assert str(again) == str(net)  # which says the sizes that layers know of
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(image), net(image))


def test_all_networks_are_timed_at_all_batch_sizes():
    networks = {name: nn.Conv2d(3, width, 3).eval() for name, width in (("narrow", 2), ("dense", 8))}
    record = peers_time.timed(networks, {"backends": ["eager"], "precisions": ["float32"]}, batches=(1, 2))
    assert {(t["network"], t["batch"]) for t in record["timings"]} == {(n, b) for n in networks for b in (1, 2)}
    assert record["cost"]["dense"]["macs"] == 4 * record["cost"]["narrow"]["macs"] == 8 * 27 * 30 * 30
    assert record["nonzero_macs"] == {name: cost["macs"] for name, cost in record["cost"].items()}


def test_a_variant_that_the_dense_network_lacks_is_no_time_but_a_reason(monkeypatch):
    networks = {"narrow": nn.Conv2d(3, 2, 3).eval(), "dense": nn.Conv2d(3, 8, 3).eval()}
    without = [{"batch": 1, "backend": "lanes", "precision": "float32", "reason": "not of so wide a network"}]
    variants = {2: ({("eager", "float32"): 0, ("lanes", "float32"): 1}, []), 8: ({("eager", "float32"): 2}, without)}
    monkeypatch.setattr(peers_time, "make_variants", lambda model, *_: variants[model.out_channels])
    monkeypatch.setattr(peers_time, "time_batch", lambda _, made, images: [made])
    record = peers_time.timed(networks, batches=(1,))
    assert record["timings"] == [{"dense": {("eager", "float32"): 2}, "narrow": {("eager", "float32"): 0}}]
    reasons = {missing["network"]: missing["reason"] for missing in record["unavailable"]}
    assert reasons == {
        "dense": "not of so wide a network",
        "narrow": "the dense network is not to be had in it",
    }


def decay_before_removal(record):
    """The regularization times the sum of the rates, until channels are removed."""
    config = RunConfig.of(record["config"])
    steps = (50_000 - config.holdout) // config.batch_size
    removal = round(record["prune_at"] * config.epochs) * steps
    rates = [learning_rate(step, config.epochs * steps, config.learning_rate) for step in range(removal)]
    return record["regularization"] * sum(rates)


def test_peers_have_the_settings_that_were_best_on_held_out_images():
    """Scaled as λ is: as much decay before the removal as in the trial, whichever way group norm ranks."""
    tried, runs = read_peers(RECORDS / "search"), read_peers(RECORDS)
    for kind in ("slimming", "group_norm"):
        trials = [trial for trial in tried.values() if trial["pruner"].startswith(kind)]
        best = min(trials, key=lambda trial: trial["curve"][-1]["validation_error_pct"])
        chosen = [run for run in runs.values() if run["pruner"].startswith(kind)]
        assert {(run["reduction"], run["config"]["seed"]) for run in chosen} == set(product((2, 4), range(3)))
        for run in chosen:
            assert run["pruner"] == best["pruner"]
            assert run["prune_at"] == pytest.approx(best["prune_at"], abs=0.03)
            assert decay_before_removal(run) == pytest.approx(decay_before_removal(best), rel=0.02)


def test_times_are_those_of_the_committed_records():
    timed = read_sealed(RECORDS / "timing" / "cpu.json")["records_sha256"]
    folders = (RECORDS, RECORDS / "runs", ROOT / "results" / "laptop" / "runs")
    known = {hashlib.sha256(path.read_bytes()).hexdigest() for folder in folders for path in folder.glob("*.json")}
    assert len(timed) > 1
    assert set(timed.values()) <= known
