"""An extracted network as a file for other runtimes."""

import math
from pathlib import Path

import torch

from psp.errors import ExtractError
from psp.extraction.examples import all_tensors
from psp.extraction.preconditions import check_evaluation
from psp.files import write_bytes

# In float32, relative to the largest output: another order of summation, after a hundred layers.
TOLERANCE = 1e-3


@torch.no_grad()
def export(network, path, example_input):
    """Write `network` to `path` in ONNX, of operators that any runtime has, and check it there; returns the path.

    A convolution of kept columns is written as a dense one, with zeros: ONNX has no other.

    Args:
        network: of `psp.extract`, or any other in evaluation mode, in float32 and on the CPU.
        path: of the file, as "net.onnx"; one that is there is replaced at the end, if all went well.
        example_input: a tensor, the axis of the batch first, or a tuple of the arguments of `forward`; the file is for
            inputs of this size.

    Raises:
        ExtractError: the network is in training mode, of another type, or has outputs that are no tensors; onnx,
            onnxscript or onnxruntime is not installed; or the outputs of onnxruntime are not those of `network`.
    """
    check_evaluation(network)
    check_type(network)
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  torch needs it, and says so less clearly
    except ImportError as error:
        raise ExtractError(f"psp.export needs {error.name}: pip install onnx onnxscript onnxruntime") from error
    path, inputs = Path(path), all_tensors(example_input)
    leaves = torch.utils._pytree.tree_leaves(network(*(x.clone() for x in inputs)))
    expected = [leaf for leaf in leaves if leaf is not None]  # which no file has
    if others := [leaf for leaf in expected if not isinstance(leaf, torch.Tensor)]:
        raise ExtractError(f"outputs are to be tensors, and the network's have {others[0]!r:.60} among them")
    content = torch.onnx.export(network, inputs, dynamo=True, verbose=False).model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    got = session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})
    for ours, theirs in zip(map(torch.from_numpy, got), expected, strict=True):
        if ours.shape != theirs.shape or not (off := _difference(ours, theirs)) < TOLERANCE:
            how = f"{off:.1e}, relatively" if ours.shape == theirs.shape else f"shape, {tuple(ours.shape)}"
            raise ExtractError(f"onnxruntime gives other outputs than the network: they differ by {how}")
    write_bytes(content, path)
    return path


def check_type(network):
    """Raise ExtractError unless the parameters of `network` are float32, on the CPU."""
    for name, parameter in network.named_parameters():
        if parameter.is_floating_point() and (parameter.dtype, parameter.device.type) != (torch.float32, "cpu"):
            raise ExtractError(
                f"psp.export is for networks in float32 on the CPU, and {name!r} is {parameter.dtype} on "
                f"{parameter.device}: call network.float().cpu() first"
            )


def _difference(got, expected):
    """The largest difference of two tensors, relative to the largest number; of whole numbers, 0 or infinity."""
    if not expected.is_floating_point():
        return 0.0 if torch.equal(got, expected) else math.inf
    finite = expected.isfinite()
    if not torch.allclose(got[~finite], expected[~finite], equal_nan=True):  # of infinities: the same ones
        return math.inf
    got, expected = got[finite], expected[finite]
    return float((got - expected).abs().max() / expected.abs().max().clamp(min=1e-30)) if len(expected) else 0.0
