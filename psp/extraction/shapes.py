"""The shapes of a network's tensors, on an example and on a larger one, and what follows from them."""

from contextlib import suppress

import torch
from torch import fx, nn

from psp.errors import ExtractError
from psp.extraction.examples import Interpreter, larger, without_numbers
from psp.extraction.graph import CONVOLUTION, describe

FLATTENS = {torch.flatten, torch.reshape, torch.squeeze, "flatten", "reshape", "view", "squeeze"}
EXAMPLE = "Give an example_input like the network's inputs in training, the axis of the batch first"
CASTS = "psp.extract computes in float64: take casts, such as x.float(), out of the network's forward"


def find_shapes(network, inputs):
    """Run the network on an example and write shapes into its nodes' meta; None for what is no tensor.

    "shape" is that of the example and "larger", where the network takes one, that of a batch twice as long, if possible
    of images twice as large: what has the same length in both does not come from there.
    """
    Shapes(network, "shape").run(*(x.clone() for x in inputs))
    for example in larger(inputs):
        with suppress(Exception), without_numbers() as fake:  # whatever a forward may raise
            Shapes(network, "larger").run(*(fake.from_tensor(x) for x in example))
            return
    for node in network.graph.nodes:
        node.meta["larger"] = node.meta["shape"]


def has_channels(node):
    """Whether a node is a batch with an axis of channels, and not empty."""
    shape = node.meta["shape"]
    return shape is not None and len(shape) >= 2 and all(shape)


def same_shape(*nodes):
    """Whether nodes have one shape, whatever the length of the batch and the size of the images."""
    return all(n.meta["shape"] == nodes[0].meta["shape"] and n.meta["larger"] == nodes[0].meta["larger"] for n in nodes)


def fix_size(network, inputs):
    """Have `network` refuse other sizes than those of `inputs`, for which alone it is; batches of any length go.

    The sizes are written into meta["sizes"], a list of shapes without the batch.
    """
    network.meta["sizes"] = [tuple(x.shape[1:]) for x in inputs]
    places = [node for node in network.graph.nodes if node.op == "placeholder"]
    for node, size in zip(places, network.meta["sizes"], strict=False):  # *args and **kwargs come last
        with network.graph.inserting_after(node):
            checked = network.graph.call_function(check_size, (node, size))
        node.replace_all_uses_with(checked, lambda user, checked=checked: user is not checked)
    network.recompile()


def check_size(x, size):
    """`x`, if it is a batch of `size`; else raises ExtractError."""
    if isinstance(x, fx.Proxy):  # torch.load traces the code that torch.save has written
        return x.tracer.create_proxy("call_function", check_size, (x, size), {})
    if tuple(x.shape[1:]) != size:
        raise ExtractError(
            f"the network does other things for other sizes, or would: it was extracted for inputs of {size}, got "
            f"{tuple(x.shape[1:])}; extract it again with such an example"
        )
    return x


class Shapes(Interpreter):
    """Runs the network and writes every tensor's shape into its node, as meta[key]; None for what is no tensor."""

    def __init__(self, network, key):
        super().__init__(network)
        self.key = key
        self.extra_traceback = False  # our messages name the layer

    def run_node(self, node):
        try:
            result = super().run_node(node)
        except Exception as error:
            shapes = ", ".join(str(tuple(n.meta["shape"])) for n in node.all_input_nodes if n.meta.get("shape"))
            remedy = CASTS if "type" in str(error) else EXAMPLE
            raise ExtractError(
                f"{describe(node)} fails on the example, on input of shape {shapes or 'unknown'}: {error}. {remedy}"
            ) from error
        node.meta[self.key] = result.shape if isinstance(result, torch.Tensor) else None
        return result

    def call_module(self, target, args, kwargs):
        layer = self.fetch_attr(target)
        if type(layer) in CONVOLUTION and args[0].ndim != layer.weight.ndim:
            raise ValueError(f"the batch axis is missing, which makes {layer.weight.ndim} axes")
        return super().call_module(target, args, kwargs)


def find_flattens(network):
    """Write every reshape from N×C×… to N×(C·…), however spelled, as torch.flatten(x, 1); shapes are known.

    Not x.view(-1, 3136), which takes larger images for more of them.
    """
    for node in network.graph.nodes:
        if node.op == "call_module":
            flattens = type(network.get_submodule(node.target)) is nn.Flatten
        else:
            flattens = node.op in ("call_function", "call_method") and node.target in FLATTENS
        if not flattens or not node.args or node.meta["shape"] is None:
            continue
        if all(_flat(node.args[0].meta[key], node.meta[key]) for key in ("shape", "larger")):
            node.op, node.target, node.args, node.kwargs = "call_function", torch.flatten, (node.args[0], 1), {}
    network.graph.eliminate_dead_code()
    network.recompile()


def _flat(before, after):
    return before is not None and len(before) > 2 and after == (before[0], before[1:].numel())
