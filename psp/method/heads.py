"""Attention blocks and their output projections, on whose columns the α of heads stand.

A head's output of d features is read by d neighbouring columns of the block's output projection. There α multiplies
what the head puts out, behind everything that could cancel it: the softmax of queries and keys, and any normalization
of these.
"""

from typing import NamedTuple

from torch import nn

from psp.errors import ConfigError

KNOWN = "torch.nn.MultiheadAttention, or a module with `num_heads` and the linear layers `qkv` and `proj`"


class Block(NamedTuple):
    """An attention block: its name, and how many heads its output projection reads, one after the other."""

    name: str
    heads: int


def projections(model):
    """{name of an output projection: the `Block` it belongs to} of all attention blocks of a form that is known."""
    found = {}
    for name, module in model.named_modules():
        heads, prefix = getattr(module, "num_heads", None), f"{name}." if name else ""
        if isinstance(module, nn.MultiheadAttention):
            found[f"{prefix}out_proj"] = Block(name, heads)
        elif type(heads) is int and heads > 0 and _has_projections(module, heads):
            found[f"{prefix}proj"] = Block(name, heads)
    return found


def _has_projections(module, heads):
    """Whether a module has linear layers `qkv`, of three equal parts, and `proj`, which reads one of such a size."""
    qkv, proj = (module._modules.get(name) for name in ("qkv", "proj"))
    linear = isinstance(qkv, nn.Linear) and isinstance(proj, nn.Linear)
    return linear and qkv.out_features == 3 * proj.in_features and proj.in_features % heads == 0


def check_heads(model, blocks, rules, matches):
    """Raise ConfigError unless each pattern with structure "head" matches an attention block.

    `blocks` are those of `projections`, `rules` {pattern: structure}; `matches(name, pattern)` says whether a rule is
    for a layer.
    """
    for pattern in (pattern for pattern, structure in rules.items() if structure == "head"):
        if not blocks:
            raise ConfigError(
                f"structure 'head' is for attention blocks, {KNOWN}; {type(model).__name__} has no such block"
            )
        if not any(matches(name, pattern) for name in blocks):
            raise ConfigError(
                f"structure 'head' is for attention blocks, and pattern {pattern!r} matches none; the blocks are: "
                f"{', '.join(block.name for block in blocks.values())}"
            )
