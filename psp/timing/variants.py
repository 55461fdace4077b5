"""The ways in which one network is run: a function without arguments for each, or why there is none."""

import copy
import importlib.util
import io
import shutil
import sys
from functools import partial

import torch

from psp.errors import ConfigError, KernelError
from psp.frozen.freeze import freeze
from psp.timing.settings import BACKENDS, NO_GPU


def make_variant(backend, precision, model, images, threads):
    """A function without arguments that runs `model` on `images`; or a text that says why it cannot be had here.

    Args:
        backend: one of `psp.timing.settings.BACKENDS`.
        precision: one of `psp.timing.settings.PRECISIONS`, the names of torch's types.
        model: in evaluation mode, float32, on the device of `images`; it stays as it is.
        images: N×C×H×W, float32.
        threads: of onnxruntime and OpenVINO; those of torch are set where it is timed.
    """
    reason = unavailable(backend, precision, images.device)
    if reason:
        return reason
    if backend == "onnxruntime":
        return _onnxruntime(model, images, threads)
    if backend == "openvino":
        return _openvino(model, images, precision, threads)
    layout = {"dtype": getattr(torch, precision), "memory_format": torch.channels_last}
    images = images.to(**layout)
    model = copy.deepcopy(model).to(**layout)
    if backend == "lanes":
        return _lanes(model, images)
    if backend == "cuda_graph":
        return _cuda_graph(model, images)
    if backend == "compile":
        return _compiled(model, images)
    if backend == "eager":
        return _call(model, images)
    raise ConfigError(f"unknown backend {backend!r}; choose one of {', '.join(BACKENDS)}")


def outputs(said):
    """The tensor that a function of `make_variant` returned in the way of its engine."""
    return said if isinstance(said, torch.Tensor) else torch.from_numpy(said[0])


def unavailable(backend, precision, device):
    """Why a variant does not exist on this machine; an empty text where it does."""
    if backend == "onnxruntime" and device.type != "cpu":
        return "the onnxruntime package that we install runs on CPUs only"
    if backend == "onnxruntime" and precision != "float32":
        return "onnxruntime has no bfloat16 convolution on a CPU"
    if backend == "openvino" and device.type != "cpu":
        return "OpenVINO is timed on CPUs only"
    if backend == "openvino" and not importlib.util.find_spec("openvino"):
        return "openvino is not installed"
    if backend == "lanes" and device.type != "cpu":
        return "psp.freeze is for CPUs only"
    if backend == "cuda_graph" and device.type != "cuda":
        return NO_GPU
    if backend == "compile" and device.type == "cpu" and not has_compiler():
        return "torch.compile needs a C++ compiler on a CPU, and there is none here"
    return ""


def has_compiler():
    """Whether torch.compile finds a C++ compiler."""
    return any(shutil.which(name) for name in (("clang++",) if sys.platform == "darwin" else ("g++", "clang++")))


def _call(model, images):
    @torch.inference_mode()
    def call():
        return model(images)

    return call


def _compiled(model, images):
    """Compiled for just this network and batch, weights frozen into the code: the fastest that torch offers."""
    if isinstance(model, torch.fx.GraphModule):
        model = torch.fx.GraphModule(model, model.graph)  # code of its own: the compiler keeps few versions of one code
    mode = "max-autotune" if images.is_cuda else None
    call = _call(torch.compile(model, mode=mode, dynamic=False), images)
    with torch._inductor.config.patch(freezing=True):
        call()
    return call


def _lanes(model, images):
    try:
        frozen = freeze(model, images)
    except KernelError as error:
        return str(error)
    return partial(frozen, images)


def _cuda_graph(model, images):
    """One captured graph, replayed: no launch overhead, which is most of the time at batch 1."""
    call = _call(model, images)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        written = call()

    def replay():
        graph.replay()
        return written

    return replay


def _onnxruntime(model, images, threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Otherwise its threads stay busy for some 50 ms after a call, and slow down who is timed next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(to_onnx(model, images), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: images.contiguous().numpy()}
    return lambda: session.run(None, feed)


def _openvino(model, images, precision, threads):
    """Weights and images stay float32: that products are of bfloat16 is a hint, which the processor decides on."""
    import openvino

    core = openvino.Core()
    if precision == "bfloat16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return "OpenVINO has no bfloat16 on this processor"
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    settings["INFERENCE_PRECISION_HINT"] = {"float32": "f32", "bfloat16": "bf16"}[precision]
    try:
        compiled = core.compile_model(core.read_model(to_onnx(model, images)), "CPU", settings)
    except RuntimeError as error:  # an operation that it has not
        return f"OpenVINO cannot convert it: {str(error).splitlines()[-1]}"
    request, feed = compiled.create_infer_request(), images.contiguous().numpy()
    request.set_input_tensor(openvino.Tensor(feed, shared_memory=True))
    return request.infer


def to_onnx(model, images):
    """The network as the bytes of an ONNX file, for batches of the size of `images`."""
    file = io.BytesIO()
    program = torch.onnx.export(copy.deepcopy(model), (images.contiguous(),), dynamo=True, verbose=False)
    program.save(file)
    return file.getvalue()
