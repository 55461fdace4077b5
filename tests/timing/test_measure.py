"""Who takes turns with whom, and a roofline: counted by hand."""

from types import SimpleNamespace

import torch
from networks import Call
from timed import CPU, small_net
from torch import nn

from psp.kernels.transposed import ColumnSparseConvTranspose2d
from psp.timing.measure import alternate, cpu_block, quartiles
from psp.timing.roofline import Limits, Work, roofline_seconds
from psp.timing.work import CALLS, REPEATS, _best, measure_limits, nonzero_macs, work


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


def test_a_roofline_by_hand():
    limits = Limits(bytes_per_s=100.0, flops={"float32": 50.0, "bfloat16": 200.0})
    assert roofline_seconds(Work(25, 75), limits, "float32") == {"memory_s": 1.0, "arithmetic_s": 3.0}
    assert roofline_seconds(Work(25, 75), limits, "bfloat16") == {"memory_s": 0.5, "arithmetic_s": 0.75}


def test_limits_of_this_machine_are_of_the_right_order(monkeypatch):
    monkeypatch.setattr("psp.timing.work.COPY_MIB", 8)
    monkeypatch.setattr("psp.timing.work.PRODUCT_SIDE", 256)
    limits = measure_limits(CPU)
    assert 1e8 < limits.bytes_per_s < 1e13
    assert all(1e8 < flops < 1e15 for flops in limits.flops.values())


def test_products_of_float32_are_those_of_convolutions_while_they_are_timed(monkeypatch):
    """In TF32, by PyTorch's default; afterwards the user's choice is back."""
    products, seen = torch.backends.cuda.matmul, []
    monkeypatch.setattr("psp.timing.work._best", lambda *_: seen.append(products.fp32_precision) or 1.0)
    before = products.fp32_precision
    measure_limits(CPU)
    assert seen[:2] == [torch.backends.cudnn.conv.fp32_precision] * 2 != [before] * 2
    assert products.fp32_precision == before


def test_the_limits_of_a_gpu_are_taken_by_its_own_clock_over_many_calls(monkeypatch):
    asked = []
    monkeypatch.setattr("psp.timing.work.cuda_block", lambda call: lambda calls: asked.append(calls) or 1 / len(asked))
    assert _best(None, SimpleNamespace(type="cuda")) == 1 / (1 + REPEATS)
    assert set(asked) == {CALLS}
    assert CALLS > 1


def test_a_transposed_convolution_of_kept_columns_counts_by_the_pixels_that_it_reads():
    net = nn.ConvTranspose2d(8, 6, 2, 2, bias=False)
    net.weight.data[:5] = 0.0
    zeros = nonzero_macs(net, torch.zeros(1, 8, 5, 5))
    settings = net.stride, net.padding, net.output_padding, net.dilation
    sparse = ColumnSparseConvTranspose2d(net.weight.detach().transpose(0, 1), None, *settings)
    assert nonzero_macs(sparse, torch.zeros(1, 8, 5, 5)) == zeros == 3 * 6 * 4 * 25
