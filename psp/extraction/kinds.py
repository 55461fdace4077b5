"""Which rule of ops and layers holds for a node; what is not recognized is an `Op`: kept as it is, all of it live."""

from psp.extraction.axes import turn
from psp.extraction.function_kinds import function_op
from psp.extraction.graph import calls
from psp.extraction.layer_kinds import layer_op
from psp.extraction.ops import Input, Op
from psp.extraction.parts import is_part, part
from psp.extraction.recurrent import RECURRENT, Recurrent
from psp.extraction.regroup import question, regroup
from psp.extraction.resize import Resize, is_resize
from psp.extraction.shapes import has_channels

FUNCTIONS = ("call_function", "call_method")


def classify(network):
    """Write its `Op` into every node's meta["op"]; the shapes are known."""
    modules, count = dict(network.named_modules()), calls(network)
    for node in network.graph.nodes:
        op = _op(node, modules.get(node.target), count[node.target]) if node.op == "call_module" else _op(node)
        if type(op) is Op and node.op in FUNCTIONS:
            op = regroup(node) or question(node) or op
        node.meta["op"] = op


def _op(node, module=None, times=0):
    """The rule for a node, which calls a module or none."""
    if node.op == "placeholder":
        return Input(node)
    if module is not None and _is_recurrent(node, module, times):
        turn(node, len(node.args[0].meta["shape"]) - 1)
        return Recurrent(node, module)
    if is_resize(node):
        return Resize(node)
    if module is not None and has_channels(node) and _reads_channels(node):
        return layer_op(node, module, times)
    if node.op in FUNCTIONS and has_channels(node) and _reads_channels(node):
        return function_op(node)
    return part(node) if has_channels(node) and is_part(node) else Op(node)


def _is_recurrent(node, module, times):
    """Whether a node is an unprojected recurrent layer with biases, called once, that reads batches of sequences."""
    known = type(module) in RECURRENT and times == 1 and module.bias and not getattr(module, "proj_size", 0)
    return known and node.args and has_channels(node.args[0]) and len(node.args[0].meta["shape"]) == 3


def _reads_channels(node):
    return len(node.all_input_nodes) > 0 and all(has_channels(n) for n in node.all_input_nodes)
