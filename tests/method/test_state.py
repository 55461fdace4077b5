"""What users do to a model around training gives the same numbers with structure parameters as without."""

import copy
import shutil

import pytest
import torch
from torch import nn

import psp

STRUCTURES = ("weight", "column", "channel", "input_channel", "shape")


def make_net(structure="column", seed=0):
    """A small network with some structures pruned."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5))
    psp.parameterize(net, structure)
    for alpha in psp.structure_parameters(net).values():
        alpha.data.uniform_(-0.5, 0.5)
    return net


def batch(seed=1, n=8):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, 4, 4, generator=generator), torch.randint(5, (n,), generator=generator)


def train_steps(net, call, rows=slice(None), steps=3):
    """`steps` of SGD in which `call` computes the outputs for the `rows` of each batch; returns the losses."""
    optimizer = torch.optim.SGD(psp.param_groups(net, 1e-3, 1e-2), lr=0.1, momentum=0.9)
    losses = []
    for step in range(steps):
        x, y = batch(step)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(call(x[rows]), y[rows])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("structure", STRUCTURES)
def test_state_dict_round_trip(structure):
    net, other = make_net(structure), make_net(structure, seed=5)
    train_steps(net, net)
    assert other.load_state_dict(copy.deepcopy(net.state_dict())) == ([], [])
    assert psp.sparsity(other) == psp.sparsity(net)
    x, _ = batch()
    assert torch.equal(other.eval()(x), net.eval()(x))


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_deep_copy_trains_alike_and_apart(structure):
    net = make_net(structure)
    twin = copy.deepcopy(net)
    untouched = copy.deepcopy(net.state_dict())
    losses = train_steps(twin, twin)
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in net.state_dict().items())
    assert train_steps(net, net) == losses
    assert all(torch.equal(tensor, twin.state_dict()[name]) for name, tensor in net.state_dict().items())


def test_folding_a_deep_copy_leaves_the_original_parameterized():
    net, x = make_net().eval(), batch()[0]
    copies = [copy.deepcopy(net) for _ in range(2)]
    expected = net(x)
    for twin in copies:
        torch.testing.assert_close(psp.fold(twin)(x), expected)
        assert not psp.structure_parameters(twin)
        assert torch.equal(net(x), expected)
    assert len(psp.structure_parameters(net)) == 2
    torch.testing.assert_close(psp.fold(net)(x), expected)
    assert type(net[0]) is nn.Conv2d


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_trains_to_the_same_numbers(structure, backend):
    """aot_eager traces forward and backward without generating code; inductor needs a C++ compiler on a CPU."""
    if backend == "inductor" and (structure != "column" or not shutil.which("g++")):
        pytest.skip("generated code is tried on one structure, where there is a compiler")
    net, plain = make_net(structure), make_net(structure)
    torch._dynamo.reset()
    losses = train_steps(net, torch.compile(net, backend=backend, fullgraph=True))
    assert losses == pytest.approx(train_steps(plain, plain), rel=1e-5)
    assert psp.sparsity(net) == psp.sparsity(plain)
    for name, alpha in psp.structure_parameters(net).items():
        torch.testing.assert_close(alpha, psp.structure_parameters(plain)[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_autocast_rounds_the_product_and_nothing_before_it(structure):
    """In bf16 the layers see w · ν(α) computed in float32 and rounded once, and α's gradient stays in float32."""
    net, x = make_net(structure).eval(), batch()[0]
    folded = psp.fold(copy.deepcopy(net))
    with torch.autocast("cpu", torch.bfloat16):
        out = net(x)
        assert torch.equal(out, folded(x))
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert all(alpha.grad.dtype == torch.float32 for alpha in psp.structure_parameters(net).values())
    torch.testing.assert_close(out.float(), net(x), rtol=0.05, atol=0.05)


def distributed_steps(rank, folder, structure):
    """One of two processes, each with every other row; batch norm uses its running statistics, as rows differ."""
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    net = make_net(structure)
    net[1].eval()
    parallel = nn.parallel.DistributedDataParallel(net)
    train_steps(net, parallel, rows=slice(rank, None, 2))
    torch.save(net.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("structure", ["column", "channel"])
def test_two_processes_train_to_the_numbers_of_one(structure, tmp_path):
    torch.multiprocessing.spawn(distributed_steps, (str(tmp_path), structure), nprocs=2)
    alone = make_net(structure)
    alone[1].eval()
    train_steps(alone, alone)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, tensor in alone.state_dict().items():
        assert torch.equal(first[name], second[name]), "both processes hold one model"
        torch.testing.assert_close(first[name], tensor, rtol=1e-5, atol=1e-6)


def test_sparsity_is_read_through_the_distributed_wrapper():
    net = make_net()
    layers = psp.sparsity(nn.DataParallel(net)).layers
    assert {name.removeprefix("module."): layer for name, layer in layers.items()} == psp.sparsity(net).layers
