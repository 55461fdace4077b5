"""The fused kernels against PyTorch in float64, and what `fuse` does to a network."""

import platform
from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from machine import needs_cxx
from torch import nn
from torch.nn import functional as F

import psp
from psp import native
from psp.errors import KernelError
from psp.training import fused
from psp.training.fused import NormReLU, fuse

# Relative to the largest value: rounding of the result, and of what it is computed from.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2**-8 + 2e-6}


def images(shape, dtype, seed):
    """Random images with a mean far from 0 and another scale in every channel, channels-last."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(1, shape[1], 1, 1, generator=generator) + 0.1
    x = (torch.randn(shape, generator=generator) + 3 * torch.randn(1, shape[1], 1, 1, generator=generator)) * scale
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def a_norm(channels):
    norm = nn.BatchNorm2d(channels, momentum=0.3)
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(tensor)
    return norm.train()


def reference(norm, x, residual, gradient):
    """(output, gradients of x, residual, weight, bias; running mean and variance) by PyTorch in float64.

    Where the output is close to 0, rounding decides whether its gradient passes: `gradient` must be 0 there.
    """
    norm = deepcopy(norm).double()
    x = x.double().requires_grad_()
    residual = None if residual is None else residual.double().requires_grad_()
    y = norm(x)
    z = F.relu(y if residual is None else y + residual)
    wanted = [t for t in (x, residual, norm.weight, norm.bias) if t is not None]
    return z.detach(), torch.autograd.grad(z, wanted, gradient.double()), norm.running_mean, norm.running_var


def assert_close(ours, theirs, dtype):
    bound = TOLERANCE[dtype] * max(1.0, float(theirs.abs().max()))
    torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=bound)


@needs_cxx
@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 5),
    channels=st.sampled_from([1, 3, 12, 16, 24, 32, 64, 96, 128]),
    side=st.sampled_from([8, 16]),
    dtype=st.sampled_from(list(TOLERANCE)),
    added=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_output_gradients_and_statistics_are_pytorchs(batch, channels, side, dtype, added, seed):
    torch.manual_seed(seed)
    norm = a_norm(channels)
    x, r, gradient = (images((batch, channels, side, side), dtype, seed + k) for k in range(3))
    residual = r if added else None
    expected = reference(norm, x, residual, torch.zeros_like(gradient))[0]
    gradient = gradient * (expected.abs() > 0.05)
    expected, gradients, mean, var = reference(norm, x, residual, gradient)

    leaves = [t.detach().requires_grad_() for t in (x, residual) if t is not None]
    z = NormReLU(norm)(*leaves)
    assert type(z.grad_fn).__name__ == "_NormReLUBackward", "the kernels themselves are tested"
    ours = torch.autograd.grad(z, [*leaves, norm.weight, norm.bias], gradient)
    assert z.dtype == dtype
    assert_close(z, expected, dtype)
    for mine, theirs in zip(ours, gradients, strict=True):
        # Sums over all rows carry the rounding of their terms, not of their own value.
        assert_close(mine, theirs, dtype if mine.ndim == 4 else torch.bfloat16)
    torch.testing.assert_close(norm.running_mean.double(), mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(norm.running_var.double(), var, rtol=1e-6, atol=1e-6)
    assert norm.num_batches_tracked == 1


@needs_cxx
def test_statistics_do_not_lose_digits_to_a_large_mean():
    norm = nn.BatchNorm2d(16)
    x = (images((8, 16, 8, 8), torch.float32, 0) + 1000.0).contiguous(memory_format=torch.channels_last)
    expected, _, _, var = reference(norm, x, None, torch.zeros_like(x))
    assert_close(NormReLU(norm)(x), expected, torch.bfloat16)
    torch.testing.assert_close(norm.running_var.double(), var, rtol=1e-4, atol=0)


@needs_cxx
def test_the_number_of_threads_changes_no_bit():
    x, gradient = (images((8, 32, 16, 16), torch.bfloat16, seed) for seed in (0, 1))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            torch.manual_seed(0)
            norm, leaf = a_norm(32), x.clone().requires_grad_()
            z = NormReLU(norm)(leaf)
            results.append([z, *torch.autograd.grad(z, [leaf, norm.weight, norm.bias], gradient), norm.running_var])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_cxx
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_nan_is_passed_on_so_that_a_diverging_run_is_noticed(dtype):
    x = images((2, 16, 8, 8), dtype, 0)
    x[1, 3, 2, 2] = float("nan")
    z = NormReLU(a_norm(16))(x)
    assert z[:, 3].isnan().all()
    assert z[:, :3].isfinite().all()


@needs_cxx
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="no AVX-512 to do without")
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_without_instructions_for_bfloat16_no_bit_changes(dtype, monkeypatch):
    x, residual, gradient = (images((3, 32, 8, 8), dtype, seed) for seed in (0, 1, 2))
    # Below 2⁻¹²⁶ instructions for bfloat16 write 0.
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 1.0, -1.0, 2**-100, -(2**-100)], dtype=dtype)
    gradient[0, 0] = special
    found = []
    for flags in ((), ("-mno-avx512bf16",), ("-mno-avx512f",)):
        library = native.load(fused.SOURCE, (*fused.OPTIONS, *flags))
        monkeypatch.setattr(fused, "kernels", lambda library=library: library)
        torch.manual_seed(0)
        norm, leaves = a_norm(32), [t.clone().requires_grad_() for t in (x, residual)]
        z = NormReLU(norm)(*leaves)
        found.append([z, *torch.autograd.grad(z, [*leaves, norm.weight, norm.bias], gradient)])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            bits = torch.int16 if a.dtype == torch.bfloat16 else torch.int32
            assert torch.equal(a.view(bits), b.view(bits))


@needs_cxx
@pytest.mark.parametrize("value", [torch.nan, -torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 2.0**-130])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_gradient_passes_where_the_output_is_above_0_or_nan(dtype, value):
    norm = nn.BatchNorm2d(1, affine=True).train()
    x = torch.zeros(1, 1, 8, 8, dtype=dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    residual = torch.full_like(x, value).requires_grad_()
    z = NormReLU(norm)(x, residual)
    gradient = images((1, 1, 8, 8), dtype, 0)
    (passed,) = torch.autograd.grad(z, residual, gradient)
    assert torch.equal(passed, torch.where(z <= 0, 0.0, gradient))


@needs_cxx
@pytest.mark.parametrize(
    "case", ["evaluation", "another layout", "half a block", "float64", "a negated view", "a residual of float32"]
)
def test_what_the_kernels_cannot_do_pytorch_does(case):
    norm = a_norm(16)
    x, residual = images((2, 16, 8, 8), torch.float32, 0), images((2, 16, 8, 8), torch.float32, 1)
    if case == "evaluation":
        norm.eval()
    if case == "another layout":
        x = x.contiguous()
    if case == "half a block":
        x, residual = (t[:1, :, :3, :1].contiguous(memory_format=torch.channels_last) for t in (x, residual))
    if case == "float64":
        norm, x, residual = norm.double(), x.double(), residual.double()
    if case == "a negated view":
        x = torch._neg_view(x)
    if case == "a residual of float32":
        x = x.bfloat16()
    expected = F.relu(deepcopy(norm)(x) + residual)
    assert torch.equal(NormReLU(norm)(x, residual), expected)


@needs_cxx
def test_a_negated_residual_and_gradient_are_what_they_say():
    x, residual, gradient = (images((2, 16, 8, 8), torch.float32, seed) for seed in (0, 1, 2))
    found = []
    for negated in (lambda t: -t, torch._neg_view):
        torch.manual_seed(0)
        norm, leaf = a_norm(16), x.clone().requires_grad_()
        z = NormReLU(norm)(leaf, negated(residual))
        found.append([z, *torch.autograd.grad(z, [leaf, norm.weight], negated(gradient))])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@needs_cxx
def test_images_of_another_device_are_not_the_kernels():
    norm = a_norm(16).to("meta")
    assert NormReLU(norm)(images((2, 16, 8, 8), torch.float32, 0).to("meta")).device.type == "meta"


@needs_cxx
def test_one_value_of_a_channel_has_no_variance_as_pytorch_says():
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        NormReLU(a_norm(64))(images((1, 64, 1, 1), torch.float32, 0))


@needs_cxx
def test_a_second_derivative_is_refused():
    x = images((2, 16, 8, 8), torch.float32, 0).requires_grad_()
    (gradient,) = torch.autograd.grad(NormReLU(a_norm(16))(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()


@needs_cxx
@pytest.mark.parametrize("hooked", [0, 1])
@pytest.mark.parametrize("register", ["register_forward_hook", "register_full_backward_hook"])
def test_hooks_are_called(hooked, register):
    net, called = nn.Sequential(a_norm(16), nn.ReLU()), []
    getattr(net[hooked], register)(lambda *_: called.append(1))
    x = images((2, 16, 8, 8), torch.float32, 0).requires_grad_()
    fuse(net)(x).sum().backward()
    assert called == [1]


def count(graph_module):
    return sum(isinstance(module, NormReLU) for module in graph_module.modules())


@needs_cxx
@pytest.mark.parametrize(
    ("name", "norms", "method"), [("resnet20", 19, "plain"), ("resnet20", 19, "psp"), ("densenet40", 39, "psp")]
)
def test_a_fused_network_trains_the_parameters_of_the_one_it_was_made_from(name, norms, method):
    torch.manual_seed(0)
    model = psp.create_model(name).to(memory_format=torch.channels_last).train()
    if method == "psp":
        psp.parameterize(model, skip=("conv1", "fc"))
    twin = deepcopy(model)
    network = fuse(model)
    assert count(network) == norms, "every batch norm"
    x, labels = torch.randn(8, 3, 32, 32).contiguous(memory_format=torch.channels_last), torch.arange(8)
    for forward in (network, twin):
        F.cross_entropy(forward(x), labels).backward()
    theirs = dict(twin.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-3, atol=1e-5, msg=name)
    for name, buffer in twin.named_buffers():
        torch.testing.assert_close(model.get_buffer(name), buffer, rtol=1e-4, atol=1e-5, msg=name)
    assert model.state_dict().keys() == twin.state_dict().keys()


class Odd(nn.Module):
    """Batch norms that no ReLU follows, or whose result something else needs too, stay as they are."""

    def __init__(self):
        super().__init__()
        self.alone, self.shared, self.plain = (nn.BatchNorm2d(4) for _ in range(3))
        self.relu = nn.ReLU()

    def forward(self, x):
        x = self.alone(x)
        y = self.shared(x)
        return self.relu(y) + y + self.relu(self.plain(x) + 1)


@needs_cxx
def test_only_what_is_batch_norm_addition_and_relu_is_fused():
    network = fuse(Odd())
    assert count(network) == 0
    chain = fuse(nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)))
    assert count(chain) == 1


@needs_cxx
@pytest.mark.parametrize(("height", "width", "stride"), [(8, 8, 2), (7, 9, 2), (9, 6, 3)])
def test_every_so_many_pixels_are_pooled_with_the_same_values_and_gradient(height, width, stride):
    class Sliced(nn.Module):
        def forward(self, x):
            return F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, 1, 1))

    x = images((2, 16, height, width), torch.bfloat16, 0).requires_grad_()
    pooled = fuse(Sliced())(x)
    assert type(pooled.grad_fn.next_functions[0][0]).__name__ == "AvgPool2DBackward0"
    gradient = images(pooled.shape, torch.bfloat16, 1)
    sliced = Sliced()(x)
    assert torch.equal(pooled, sliced)
    assert torch.equal(torch.autograd.grad(pooled, x, gradient)[0], torch.autograd.grad(sliced, x, gradient)[0])


@needs_cxx
@pytest.mark.parametrize(
    "part",
    [lambda x: x[:, :, ::2], lambda x: x[:, :, 1::2, 1::2], lambda x: x[:, ::2, ::2, ::2], lambda x: x[:, :, ::2, ::3],
     lambda x: x[:, 0], lambda x: x[:, :, :4:2, ::2]],
)  # fmt: skip
def test_other_slices_stay_slices(part):
    class Sliced(nn.Module):
        def forward(self, x):
            return F.pad(part(x), (1, 1))

    x = torch.randn(2, 4, 8, 6)
    assert "every" not in fuse(Sliced()).code
    assert torch.equal(fuse(Sliced())(x), Sliced()(x))


@needs_cxx
def test_a_slice_that_something_else_reads_stays_a_slice():
    """It shares memory with what it is of, which a write into it shows."""

    class Written(nn.Module):
        def forward(self, x):
            return F.relu(x[:, :, ::2, ::2], inplace=True)

    assert "every" not in fuse(Written()).code


@needs_cxx
def test_every_so_many_of_what_are_no_images_are_sliced():
    class Sliced(nn.Module):
        def forward(self, x):
            return F.pad(x[:, :, ::2, ::2], (1, 1))

    for x in (torch.randn(2, 3, 4, 5, 6), torch.arange(64).view(1, 1, 8, 8)):
        assert torch.equal(fuse(Sliced())(x), Sliced()(x))


@needs_cxx
def test_a_network_that_cannot_be_traced_is_named():
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(KernelError, match=r"torch\.fx cannot follow Branching"):
        fuse(Branching())


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_compiler_the_reason_is_given(compiler, monkeypatch):
    monkeypatch.setenv("CXX", compiler)
    native.load.cache_clear()
    with pytest.raises(KernelError, match=rf"norm_relu\.cpp cannot be compiled \(.*{compiler}.*\); install"):
        fused.kernels()
    native.load.cache_clear()
