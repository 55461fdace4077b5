"""The column-sparse convolution against PyTorch's own, in float64, with zeros in the pruned columns."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from convolutions import case
from hypothesis import given, settings
from hypothesis import strategies as st
from machine import HAS_C
from torch.autograd import forward_ad
from torch.nn import functional as F

from psp import native
from psp.errors import ConfigError
from psp.kernels import column_conv2d, cpu
from psp.kernels.column_conv import reference

FORMS = {
    "contiguous": lambda x: x.contiguous(),
    "channels-last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "part of a larger one": lambda x: F.pad(x, (1, 2, 1, 0, 2, 1))[:, 2 : 2 + x.shape[1], 1:, 1 : 1 + x.shape[3]],
    "turned": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
}
HARD = {"deadline": None, "max_examples": 150}


@pytest.fixture(scope="module", autouse=True)
def _kernel():
    """These are tests of the compiled kernel; without a compiler there is nothing to test."""
    if not HAS_C:
        pytest.skip("no C compiler here")
    assert cpu.available(), "there is a compiler, and what it makes of the kernel cannot be used"


def assert_same(out, expected, columns):
    """Within the rounding of a float32 sum of that many products of normal numbers."""
    assert out.shape == expected.shape
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=4e-7 * (columns + 1))


PAIRS = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def cases(draw):
    kernel, stride, dilation = draw(PAIRS), draw(PAIRS), draw(PAIRS)
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    smallest = [max(1, d * (r - 1) + 1 - 2 * p) for r, p, d in zip(kernel, padding, dilation, strict=True)]
    size = tuple(low + draw(st.integers(0, 12)) for low in smallest)
    n, c = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 3, 8, 17]))
    k = draw(st.sampled_from([1, 2, 5, 8, 15, 16, 17, 31, 33, 48, 64, 65]))
    share = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    return case(n, c, k, size, kernel, stride, padding, dilation, share, draw(st.integers(0, 99)), draw(st.booleans()))


@settings(**HARD)
@given(cases(), st.sampled_from(list(FORMS)), st.booleans(), st.sampled_from([1, 2, 5]))
def test_it_is_the_convolution_with_zeros_in_the_pruned_columns(a_case, form, relu, threads):
    x, (weight, *columns), options, expected = a_case
    expected = expected.relu() if relu else expected
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for stored in (weight, weight.t().contiguous().t()):
            assert_same(
                column_conv2d(FORMS[form](x), stored, *columns, **options, relu=relu), expected, len(columns[0])
            )
    finally:
        torch.set_num_threads(before)
    lists = {name: list(value) for name, value in options.items()}
    assert_same(reference(FORMS[form](x), weight, *columns, *lists.values(), relu), expected, len(columns[0]))


def test_threads_are_those_of_pytorch():
    """Its OpenMP runtime is found; without, everything would be right, but on one thread."""
    if sys.platform == "linux" and "OpenMP" in torch.__config__.parallel_info():
        assert cpu.parallel()


@pytest.fixture
def fresh_kernel():
    """The kernel is looked for anew, in the test and after it."""
    for cached in (cpu._kernel, native.load):
        cached.cache_clear()
    yield
    for cached in (cpu._kernel, native.load):
        cached.cache_clear()


@pytest.mark.parametrize("flags", [("-mavx2", "-mfma"), ("-march=x86-64",)])
def test_narrower_vectors_than_this_processor_has(monkeypatch, fresh_kernel, flags):
    """The code that an older processor would run; four to a vector is what ARM has."""
    if "__AVX2__" not in native.output(["cc", *native.NATIVE, "-dM", "-E", "-x", "c", os.devnull]):
        pytest.skip("no AVX2 here")
    monkeypatch.setattr(native, "NATIVE", flags)
    for k in (1, 3, 7, 9, 12, 16, 21, 29, 40):
        x, columns, options, expected = case(2, 5, k, (7, 9), (3, 3), (1, 1), (1, 1), (1, 1), 0.4, k)
        assert_same(column_conv2d(x, *columns, **options, relu=True), expected.relu(), len(columns[1]))
    assert cpu.available()


@pytest.mark.parametrize(
    ("n", "channels", "size", "stride"),
    [(1, 16, 32, 1), (2, 32, 16, 1), (3, 64, 8, 1), (2, 16, 32, 2), (1, 64, 56, 1), (1, 130, 7, 1)],
)
def test_shapes_of_real_networks(n, channels, size, stride):
    """Several bands of rows to an image, several blocks of output channels."""
    x, columns, options, expected = case(
        n, channels, channels, (size, size), (3, 3), (stride,) * 2, (1, 1), (1, 1), 0.24, 0
    )
    assert_same(column_conv2d(FORMS["channels-last"](x), *columns, **options), expected, len(columns[1]))


def test_integers_stand_for_pairs_and_nothing_is_left_of_an_empty_batch():
    x, columns, _, expected = case(2, 4, 6, (9, 9), (3, 3), (2, 2), (1, 1), (1, 1), 0.5, 0)
    options = {"kernel_size": 3, "stride": 2, "padding": 1}
    assert_same(column_conv2d(x, *columns, **options), expected, len(columns[1]))
    assert column_conv2d(x[:0], *columns, **options).shape == (0, 6, 5, 5)


def test_a_nan_stays_a_nan():
    x, columns, options, _ = case(1, 2, 3, (4, 4), (1, 1), (1, 1), (0, 0), (1, 1), 1.0, 0)
    x[0, 1, 2, 3] = torch.nan
    out = column_conv2d(x, *columns, **options, relu=True)
    assert out[0, :, 2, 3].isnan().all()
    assert int(out.isnan().sum()) == 3


def test_float64_runs_the_reference():
    x, (weight, c, t, bias), options, expected = case(1, 3, 4, (5, 6), (3, 2), (1, 1), (1, 0), (1, 1), 0.5, 0)
    out = column_conv2d(x.double(), weight.double(), c, t, bias.double(), **options)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_the_convolution_with_zeros():
    x, (weight, c, t, bias), options, _ = case(2, 3, 4, (5, 6), (3, 3), (1, 2), (1, 0), (1, 1), 0.5, 0)
    leaves = [v.requires_grad_() for v in (x, weight, bias)]
    out = column_conv2d(x, weight, c, t, bias, **options, relu=True)
    got = torch.autograd.grad(out.square().sum(), leaves)
    dense = torch.zeros(4, 3, 9).index_put((torch.arange(4)[:, None], c, t), weight).view(4, 3, 3, 3)
    plain = F.conv2d(x, dense, bias, options["stride"], options["padding"], options["dilation"]).relu()
    for mine, theirs in zip(got, torch.autograd.grad(plain.square().sum(), leaves), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    (alone,) = torch.autograd.grad(column_conv2d(x.detach(), weight, c, t, **options).sum(), weight)
    assert alone.shape == weight.shape


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_a_gradient_is_relus_where_it_is_no_number(value):
    x, (weight, c, t, bias), options, _ = case(1, 2, 3, (4, 4), (1, 1), (1, 1), (0, 0), (1, 1), 1.0, 0)
    out = column_conv2d(x, weight, c, t, bias.requires_grad_(), **options, relu=True)
    (passed,) = torch.autograd.grad(out, bias, torch.full_like(out, value))
    plain = F.conv2d(x, torch.zeros(3, 2).index_put((torch.arange(3)[:, None], c), weight)[:, :, None, None], bias)
    (wanted,) = torch.autograd.grad(plain.relu(), bias, torch.full_like(plain, value))
    torch.testing.assert_close(passed, wanted, equal_nan=True)


def test_derivatives_forwards_are_those_of_the_convolution_with_zeros():
    x, columns, options, _ = case(2, 3, 4, (5, 6), (3, 3), (1, 2), (1, 0), (1, 1), 0.5, 0)
    tangent = torch.randn_like(x)
    weight, c, t, _ = columns
    _, found = torch.func.jvp(lambda x: column_conv2d(x, *columns, **options), (x,), (tangent,))
    assert_same(found, column_conv2d(tangent, weight, c, t, **options).double(), 30)
    with forward_ad.dual_level():
        y = column_conv2d(forward_ad.make_dual(x, tangent), *columns, **options)
        assert torch.equal(forward_ad.unpack_dual(y).tangent, found)


def test_pytorch_compiles_traces_and_checks_the_operator():
    x, columns, options, expected = case(2, 3, 5, (7, 6), (3, 3), (1, 1), (1, 1), (1, 1), 0.4, 0)
    compiled = torch.compile(lambda x: column_conv2d(x, *columns, **options) + 1, backend="aot_eager", fullgraph=True)
    assert_same(compiled(x) - 1, expected, 30)
    (alike,) = torch.autograd.grad(compiled(leaf := x.clone().requires_grad_()).square().sum(), leaf)
    (eager,) = torch.autograd.grad((column_conv2d(leaf, *columns, **options) + 1).square().sum(), leaf)
    torch.testing.assert_close(alike, eager)
    traced = torch.fx.symbolic_trace(lambda x: column_conv2d(x, *columns, **options))
    assert [node.target for node in traced.graph.nodes if node.op == "call_function"] == [column_conv2d]
    assert_same(traced(x), expected, 30)
    lists = [list(value) for value in options.values()]
    torch.library.opcheck(torch.ops.psp.column_conv2d.default, (x, *columns, *lists, True))


def test_without_a_compiler_the_reference_runs_and_one_warning_says_so(monkeypatch, fresh_kernel):
    x, columns, options, expected = case(1, 2, 3, (6, 6), (3, 3), (1, 1), (1, 1), (1, 1), 0.5, 0)
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.warns(UserWarning, match=r"without their speed-up.*no-such-compiler.*install gcc or clang"):
        assert_same(column_conv2d(x, *columns, **options), expected, len(columns[1]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(column_conv2d(x, *columns, **options), expected, len(columns[1]))


def test_a_failing_compiler_is_quoted(monkeypatch, tmp_path, fresh_kernel):
    failing = tmp_path / "cc"
    failing.write_text("#!/bin/sh\necho 'some context' >&2\necho 'error: out of cheese' >&2\nexit 1\n")
    failing.chmod(0o755)
    monkeypatch.setenv("CC", str(failing))
    with pytest.warns(UserWarning, match="out of cheese"):
        assert not cpu.available()


def test_what_does_not_fit_together_is_named():
    x, (weight, c, t, bias), options, _ = case(1, 4, 6, (5, 5), (3, 3), (1, 1), (0, 0), (1, 1), 0.5, 0)
    with pytest.raises(ConfigError, match="x must be N×C×H×W"):
        column_conv2d(x[0], weight, c, t, bias, **options)
    with pytest.raises(ConfigError, match="K×J with J channels and J taps"):
        column_conv2d(x, weight, c[1:], t, bias, **options)
    with pytest.raises(ConfigError, match="one value for each row"):
        column_conv2d(x, weight, c, t, bias[1:], **options)
    for wrong in ({"padding": (1, -1)}, {"stride": 0}, {"dilation": (-1, 1)}):
        with pytest.raises(ConfigError, match="stride and dilation must be at least 1 and padding at least 0"):
            column_conv2d(x, weight, c, t, bias, **{**options, **wrong})
    with pytest.raises(ConfigError, match="spans 3 pixels"):
        column_conv2d(x[:, :, :2], weight, c, t, bias, **options)
    with pytest.raises(ConfigError, match="channels and taps are whole numbers"):
        column_conv2d(x, weight, c.float(), t, bias, **options)
    for dtype in (torch.float32, torch.float64):
        for channels, taps in ((c + 4, t), (c, t + 9), (c - 4, t), (c, t - 9)):
            with pytest.raises(ConfigError, match="lies outside the 4 input channels"):
                column_conv2d(x.to(dtype), weight.to(dtype), channels, taps, bias.to(dtype), **options)


def test_triton_kernel_in_its_interpreter():
    """The code that a GPU would run, step by step on the CPU, in a process of its own."""
    pytest.importorskip("triton")
    script = Path(__file__).with_name("interpret_triton.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 0


@pytest.mark.parametrize(("dtype", "precision"), [("fp32", "tf32"), ("fp32", "ieee"), ("bf16", "tf32")])
def test_triton_kernel_compiles_for_a_gpu_that_is_not_here(monkeypatch, tmp_path, dtype, precision):
    """Down to PTX, and with matrix units wherever the precision allows them."""
    triton = pytest.importorskip("triton")
    from psp.kernels import gpu

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    constants = {"precision": precision, "has_bias": True, "relu": True, "block_p": 64, "block_k": 64, "block_j": 32}
    names = gpu._column_conv.arg_names
    kinds = dict.fromkeys(names, "i32") | dict.fromkeys(["out", "x", "weight", "bias"], f"*{dtype}")
    kinds |= dict.fromkeys(["channels", "taps"], "*i64") | dict.fromkeys(constants, "constexpr")
    values = {(names.index(name),): value for name, value in constants.items()}
    source = triton.compiler.ASTSource(gpu._column_conv, kinds, values)
    compiled = triton.compile(source, target=triton.backends.compiler.GPUTarget("cuda", 90, 32))
    assert ("mma" in compiled.asm["ptx"]) == (precision == "tf32")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("k", [5, 16, 70])
def test_on_a_gpu(monkeypatch, k):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    x, columns, options, expected = case(3, 17, k, (9, 8), (3, 3), (2, 1), (1, 1), (1, 2), 0.4, 0)
    for form in FORMS.values():
        out = column_conv2d(form(x).cuda(), *(t.cuda() for t in columns), **options, relu=True)
        assert_same(out.cpu(), expected.relu(), len(columns[1]))


def test_onnx_sees_a_convolution_with_zeros(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    x, columns, options, expected = case(2, 3, 5, (7, 6), (3, 3), (2, 1), (1, 1), (1, 1), 0.4, 0)

    class Layer(torch.nn.Module):
        def forward(self, x):
            return column_conv2d(x, *columns, **options)

    torch.onnx.export(Layer().eval(), (x,), tmp_path / "layer.onnx", dynamo=True, verbose=False)
    session = runtime.InferenceSession(tmp_path / "layer.onnx", providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(out).double(), expected, rtol=1e-5, atol=1e-5)
