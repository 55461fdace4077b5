"""What is left of torch.nn.MultiheadAttention without some of its heads, of layers that each are smaller."""

import torch
from torch import nn
from torch.nn import functional as F

from psp.errors import ExtractError


class KeptHeads(nn.Module):
    """The output of an nn.MultiheadAttention of which only some heads are kept, without the weights of all.

    Args:
        attention: an nn.MultiheadAttention with queries, keys and values of one length, and without `add_bias_kv`.
        heads: indices of the kept ones; what the other heads add to the output is left out.
    """

    def __init__(self, attention, heads):
        super().__init__()
        self.heads, self.batch_first = len(heads), attention.batch_first
        rows = torch.arange(attention.embed_dim).view(attention.num_heads, -1)[heads].flatten()
        self.q, self.k, self.v = (
            linear(weight[rows], None if bias is None else bias[rows])
            for weight, bias in zip(*_in_three(attention), strict=True)
        )
        self.out_proj = linear(attention.out_proj.weight[:, rows], attention.out_proj.bias)

    def forward(
        self, query, key, value, key_padding_mask=None, need_weights=True, attn_mask=None, is_causal=False, **options
    ):
        """Three tensors N×tokens×features, or tokens×N×features as `batch_first` says, to (one of those, None).

        Arguments as of nn.MultiheadAttention, `key_padding_mask` N×tokens and `attn_mask` tokens×tokens; None stands in
        place of the weights, whether they are asked for or not. Raises ExtractError for a mask of every head.
        """
        if attn_mask is not None and attn_mask.ndim != 2:
            raise ExtractError("attention was extracted without some of its heads: a mask of each is one too many")
        causal = is_causal and key_padding_mask is None and not need_weights  # then torch does not look at the mask
        mask = None if attn_mask is None or causal else _added(attn_mask, query)
        if key_padding_mask is not None:
            padding = _added(key_padding_mask, query)[:, None, None]
            mask = padding if mask is None else mask + padding
        q, k, v = (layer(x) for layer, x in ((self.q, query), (self.k, key), (self.v, value)))
        if not self.batch_first:
            q, k, v = (x.transpose(0, 1) for x in (q, k, v))
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
        out = self.out_proj(F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal).transpose(1, 2).flatten(2))
        return (out if self.batch_first else out.transpose(0, 1)), None

    def extra_repr(self):
        return f"heads={self.heads}"


def _added(mask, like):
    """A mask as what is added to the products: −∞ where a boolean one is True."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -torch.inf)
    return mask.to(like.dtype)


def _in_three(attention):
    """The weights, and the biases or Nones, of queries, keys and values."""
    bias = attention.in_proj_bias
    return attention.in_proj_weight.chunk(3), [None] * 3 if bias is None else bias.chunk(3)


def linear(weight, bias):
    """A linear layer of these weights."""
    layer = nn.Linear(*reversed(weight.shape), bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone())
    layer.bias = None if bias is None else nn.Parameter(bias.detach().clone())
    return layer
