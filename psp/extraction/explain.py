"""What became of each parameterized layer of an extracted network, and why where nothing was gained."""

from typing import NamedTuple

from torch import fx, nn

from psp.errors import ExtractError
from psp.extraction.graph import CONVOLUTION, describe
from psp.extraction.names import free_name
from psp.extraction.ops import Op, Pad
from psp.extraction.parts import is_part
from psp.extraction.shapes import FLATTENS
from psp.kernels.spread import SpreadConvolution, SpreadLinear, SpreadWeight
from psp.method.pruners import kept_weights, parametrizations, weight_shape
from psp.method.structures import is_transposed

NOTED = "psp_explanation"


class Layer(NamedTuple):
    """Weights of one layer: `before`, `unpruned`, and `left` after extraction; `why` these are not fewer, or ""."""

    name: str
    before: int
    unpruned: int
    left: int
    why: str


class Explanation(NamedTuple):
    """The layers of an extracted network, and the sizes of inputs that it is good for; printed, a table."""

    layers: tuple
    sizes: str

    def __str__(self):
        width = max(len("layer"), *(len(layer.name) for layer in self.layers))
        rows = [f"{'layer':{width}} {'weights':>10} {'unpruned':>10} {'left':>10}"]
        for name, before, unpruned, left, why in self.layers:
            rows.append(f"{name:{width}} {before:10,} {unpruned:10,} {left:10,}  {why}")
        return "\n".join(row.rstrip() for row in (*rows, f"for inputs of {self.sizes}"))


def explain(network):
    """`Explanation` of a network that `psp.extract` made. Raises ExtractError for any other."""
    places = [network.meta, *map(vars, network.children())] if isinstance(network, fx.GraphModule) else []
    for place in places:
        if NOTED in place:
            return place[NOTED]
    raise ExtractError(f"{type(network).__name__} is no result of psp.extract, which notes what became of its layers")


def note(smaller, explanation):
    """Have `explain(smaller)` give an `Explanation`, also once the network was copied, or saved and loaded."""
    smaller.meta[NOTED] = explanation
    if not any(True for _ in smaller.children()):
        smaller.add_module("noted", nn.Module())
    for child in smaller.children():  # which torch.save writes as they are, of the graph no more than its code
        setattr(child, NOTED, explanation)


def explanation(model, traced, smaller):
    """The `Explanation` of `smaller`, made of `model`, whose graph `traced` has its rules."""
    sizes = smaller.meta.get("sizes")
    layers = []
    for name, (layer, pruner) in parametrizations(model).items():
        before = weight_shape(layer).numel()
        unpruned = int(kept_weights(layer, pruner).sum())
        called = free_name(name)
        left, stored = _left(smaller, called)
        gained = left < min(before, max(unpruned, 1) + 1) and not stored
        why = _put_back(traced, called, layer, pruner) if gained else _why(traced, called)
        if name in traced.meta["all heads"]:
            why = "the code of its attention is not for fewer heads: their queries, keys and values are left"
        layers.append(Layer(name, before, unpruned, left, f"{stored}: {why}" if stored else why))
    return Explanation(tuple(layers), f"{sizes} only" if sizes else "any size that the network takes")


def _left(network, name):
    """(how many weights are left at a name, in words how these are stored without zeros, or "")."""
    module = dict(network.named_modules()).get(name)
    if module is None:
        return 0, ""
    weights = sum(p.numel() for key, p in module.named_parameters() if not key.endswith("bias"))
    if isinstance(module, (SpreadLinear, SpreadConvolution)):
        return weights, "stored without zeros, and computed without channels that are all zeros"
    spread = any(isinstance(part, SpreadWeight) for part in module.modules())
    return weights, "only stored without zeros" if spread else ""


def _calls(traced, name):
    """The nodes that call the layer at a name."""
    return [node for node in traced.graph.nodes if node.op == "call_module" and node.target == name]


def _why(traced, name):
    """What keeps the zeros of a layer in it."""
    called = _calls(traced, name)
    around = [n.target for n in traced.graph.nodes if n.op == "call_module" and name.startswith(f"{n.target}.")]
    if around:
        return f"the code of {around[0]!r} is not followed"
    if not called:
        return "its weight is read without it"
    if len(called) > 1:
        return "it is called several times"
    rule = called[0].meta["op"]
    if type(rule) is Op:
        return f"a {type(traced.get_submodule(name)).__name__} called like this is not followed"
    if rule.groups > 1 and _differ(rule.module, rule.groups):
        return "all groups of a convolution are as large as the largest that is left"
    if is_transposed(rule.module):
        return (
            "of a transposed convolution only channels and taps at the rim go, and columns where many are pruned at "
            "each tap"
        )
    if getattr(rule.module, "padding_mode", "zeros") != "zeros":
        return f"with {rule.module.padding_mode} padding it loses channels and no columns or taps"
    whole = _reads_whole(called[0])
    if whole is not None:
        return f"all that it computes is read by {_named(whole)}, of whose channels none can go"
    if (border := _cut_off(called[0], traced)) is not None:
        return f"what it prunes leaves its bias, a constant that ends where {describe(border)} pads with zeros"
    return "all that it reads is live, and all that it computes is read, or a dense kernel is faster with its zeros"


def _differ(layer, groups):
    """Whether some groups of a layer have other zeros than the first."""
    masks = layer.weight.detach().ne(0).unflatten(0, (groups, -1))
    return bool((masks != masks[:1]).any())


def _put_back(traced, name, layer, pruner):
    """Of a layer that got smaller: what its pruned channels are put back for, as constants; or ""."""
    called = _calls(traced, name)
    if len(called) != 1 or is_transposed(layer) or kept_weights(layer, pruner).flatten(1).any(1).all():
        return ""
    whole = _reads_whole(called[0])
    return "" if whole is None else f"what it prunes is put back for {_named(whole)}, of whose channels none can go"


def _cut_off(node, traced):
    """What is behind a layer whose pruned channels put out their bias, and has zeros at its border; or None."""
    layer = traced.get_submodule(node.target)
    if type(layer) not in CONVOLUTION or layer.bias is None:
        return None
    pruned = ~layer.weight.detach().flatten(1).any(1)
    if not layer.bias[pruned].any():
        return None
    for user in _behind(node, lambda user: not _ends(user)):
        module = traced.get_submodule(user.target) if user.op == "call_module" else None
        zeros = type(module) in CONVOLUTION and module.padding_mode == "zeros"
        pads = user.meta["op"]
        beside = isinstance(pads, Pad) and max(pads.space, default=0) > 0 and pads.fill == 0
        if beside or (zeros and any(module._reversed_padding_repeated_twice)):
            return user
    return None


def _named(node):
    """A node in words, and how to write one that is a flattening for images of the example's size alone."""
    read = node.all_input_nodes[0].meta if node.all_input_nodes else None
    reshaped = node.target in FLATTENS and read and read["shape"] is not None and read["op"].axis == 1
    flat = reshaped and node.meta["shape"] == (read["shape"][0], read["shape"][1:].numel())
    return describe(node) + " (which x.flatten(1) would be followed through)" * bool(flat)


def _reads_whole(node):
    """The first operation behind a layer that mixes its channels or is not known, before other layers; or None."""
    for user in _behind(node, lambda user: not _ends(user) and user.meta["shape"] is not None):
        if not _ends(user) and type(user.meta["op"]) is Op and not all(is_part(reader) for reader in user.users):
            return user
    return None


def _ends(node):
    """Whether a node is another layer, or the network's output: behind it are other channels."""
    return node.op == "output" or node.meta["op"].has_bias


def _behind(node, passes):
    """The nodes behind a node, each once, the nearest first: all that read it, or read what `passes` lets through."""
    left, seen = list(node.users), set()
    while left:
        user = left.pop(0)
        if user not in seen:
            seen.add(user)
            yield user
            left.extend(user.users if passes(user) else ())
