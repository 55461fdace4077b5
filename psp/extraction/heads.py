"""Attention blocks without the heads that their output projection does not read.

Such a head is gone as a whole: its queries, keys and values, and its columns of the projection. The scale of the
products of queries and keys depends on the features of a head, which stay as many.
"""

import copy

import torch
from torch import nn

from psp.extraction.compare import compare
from psp.extraction.cost import hooked
from psp.kernels.attention import KeptHeads, linear
from psp.method.heads import projections


def drop_heads(model, inputs):
    """(the network without the heads that are gone, names of the projections whose blocks keep them all the same).

    The first is `model` itself where all heads are read. A block is replaced only if on what it is given on the example
    the smaller one puts out the same, but for the attention weights of all heads, if nothing reads these.
    """
    pruned = {name: block for name, block in projections(model).items() if block.name and _unread(model, name, block)}
    if not pruned:
        return model, set()
    expected, seen = calls(model, [block.name for block in pruned.values()], inputs)
    smaller, whole = copy.deepcopy(model), set()
    for projection, (name, heads) in pruned.items():
        kept = read_heads(model.get_submodule(projection), heads)
        block = None if _is_torchs(model, name) else without(model.get_submodule(name), kept)
        if block is not None and _stands_for(block.eval(), model, name, seen[name], inputs, expected):
            smaller.set_submodule(name, block)
        else:
            whole.add(projection)
    return smaller, whole


def read_heads(projection, heads):
    """Indices of those of so many heads that an output projection reads, at least one."""
    return projection.weight.ne(0).any(0).view(heads, -1).any(1).nonzero().flatten().tolist() or [0]


def _unread(model, projection, block):
    return len(read_heads(model.get_submodule(projection), block.heads)) < block.heads


def _is_torchs(model, name):
    """Whether a block is part of a layer of torch's own, as a TransformerEncoderLayer, which reads its weights."""
    return type(model.get_submodule(name.rpartition(".")[0])).__module__.startswith("torch.nn.modules.transformer")


def calls(model, names, inputs):
    """(outputs, {name: [(arguments, keyword arguments, output) of each call]} of blocks) on the example."""
    seen = {name: [] for name in names}

    def note(name):
        return lambda _, args, kwargs, output: seen[name].append((args, kwargs, output))

    hooks = [(model.get_submodule(name), note(name)) for name in names]
    with hooked(hooks):
        outputs = model(*(x.clone() for x in inputs))
    return outputs, seen


def without(block, heads):
    """`block` with the heads of these indices alone; None if it is of a form of which that is not known."""
    if isinstance(block, nn.MultiheadAttention):
        plain = block.in_proj_weight is not None and block.bias_k is None and not block.add_zero_attn
        return KeptHeads(block, heads) if plain else None
    smaller = copy.deepcopy(block)
    rows = torch.arange(block.proj.in_features).view(block.num_heads, -1)[heads].flatten()
    threefold = torch.cat([rows + part * block.proj.in_features for part in range(3)])
    bias = None if block.qkv.bias is None else block.qkv.bias[threefold]
    smaller.qkv = linear(block.qkv.weight[threefold], bias)
    smaller.proj = linear(block.proj.weight[:, rows], block.proj.bias)
    smaller.num_heads = len(heads)
    if getattr(block, "attn_dim", None) == block.proj.in_features:
        smaller.attn_dim = len(rows)
    for name, parameter in block.named_parameters(recurse=False):
        axes = [axis for axis, length in enumerate(parameter.shape) if length == block.num_heads]
        if len(axes) == 1:  # of each head, such as a bias by position
            own = parameter.detach().index_select(axes[0], torch.tensor(heads))
            setattr(smaller, name, nn.Parameter(own))
    return smaller


def _stands_for(block, model, name, shown, inputs, expected):
    """Whether a smaller block does what that of this name did in all calls `shown`; `expected` are the outputs."""
    if isinstance(block, KeptHeads) and any(output[1] is not None for *_, output in shown):
        if _reads_weights(model, name, inputs, expected):
            return False
        shown = [(args, kwargs, output[:1]) for args, kwargs, output in shown]
    return bool(shown) and all(_is_same(block, *call) for call in shown)


def _reads_weights(model, name, inputs, expected):
    """Whether a network needs the attention weights that its block of this name puts out: other outputs without."""

    def without_weights(_, args, kwargs, output):
        return output[0], None

    try:
        with hooked([(model.get_submodule(name), without_weights)]):
            compare(model(*(x.clone() for x in inputs)), expected)
        return False
    except Exception:  # whatever code may raise that has None in place of weights
        return True


def _is_same(block, args, kwargs, output):
    try:
        compare(block(*args, **kwargs), output)
        return True
    except Exception:  # whatever code may raise that is not written for another number of heads
        return False
