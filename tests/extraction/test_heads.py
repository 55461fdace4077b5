"""Heads of attention blocks: pruned by structure "head", extracted, and gone with their queries, keys and values."""

import copy
from functools import partial

import pytest
import timm
import torch
from networks import difference
from torch import nn
from torchvision.models import VisionTransformer

import psp
from psp.errors import ConfigError, ExtractError
from psp.kernels.attention import KeptHeads
from psp.method.baselines import attach_norm_masks, fix_sparsity


class Attention(nn.Module):
    """Four heads of three features of twelve, as timm writes it; `late` normalizes them all together."""

    def __init__(self, late=False):
        super().__init__()
        self.num_heads, self.scale = 4, 3**-0.5
        self.qkv, self.proj = nn.Linear(12, 36), nn.Linear(12, 12)
        self.norm = nn.LayerNorm(12) if late else nn.Identity()
        self.bias = nn.Parameter(torch.randn(4, 1, 1))

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) * self.scale * self.bias).softmax(-1)
        return self.proj(self.norm((weights @ v).transpose(1, 2).flatten(2)))


class Blocks(nn.Module):
    """Two blocks of attention and a layer behind each."""

    def __init__(self, make=Attention):
        super().__init__()
        torch.manual_seed(0)
        self.attn, self.fc = nn.ModuleList([make(), make()]), nn.Linear(12, 12)

    def forward(self, x):
        for attn in self.attn:
            x = x + self.fc(attn(x))
        return x


ALONE = {"need_weights": False}


class Wrapped(nn.Module):
    """Torch's own attention, asked for its output alone unless `asked` says more."""

    def __init__(self, asked=ALONE, **options):
        super().__init__()
        self.attention, self.asked = nn.MultiheadAttention(12, 4, **options), asked

    def forward(self, x):
        return self.attention(x, x, x.flip(1), **self.asked)[0]


class Masked(Wrapped):
    """Each token sees those before it, as numbers or as bools, and none of those that are padding."""

    def __init__(self, numbers, **options):
        super().__init__(**options)
        self.numbers = numbers

    def forward(self, x):
        first = self.attention.batch_first
        steps = torch.ones_like(x[0, :, 0] if first else x[:, 0, 0]).cumsum(0)
        later, padding = steps > steps[:, None], x[..., 0] > 0.5
        padding = (padding if first else padding.T) & (steps > 1)  # a token that sees none has no output
        if self.numbers:
            later, padding = (
                torch.zeros_like(mask, dtype=x.dtype).masked_fill(mask, -9.0) for mask in (later, padding)
            )
        return self.attention(x, x, x, key_padding_mask=padding, attn_mask=later, **self.asked)[0]


class MaskedEach(Wrapped):
    """With a mask of every head."""

    def forward(self, x):
        masks = (x @ x.transpose(1, 2)).repeat_interleave(4, 0)
        return self.attention(x, x, x, attn_mask=masks, **self.asked)[0]


class Weighed(Wrapped):
    """One that reads its weights, for what it puts out or for something else."""

    def __init__(self, read):
        super().__init__()
        self.read = read

    def forward(self, x):
        return self.read(self, *self.attention(x, x, x))


def highest(self, out, weights):
    return out if weights is None else out * (1 + weights.argmax(-1, keepdim=True).transpose(0, 1))


def entropy(self, out, weights):
    self.entropy = -(weights * weights.log()).sum(-1).mean()
    return out


def pruned(net, heads=(0, 2)):
    psp.parameterize(net.double(), "head").eval()
    for alpha in psp.structure_parameters(net).values():
        alpha.data[0, list(heads)] = 0.0
    return net


def tokens(batch=2, count=5):
    return torch.randn(batch, count, 12, dtype=torch.float64)


def test_the_alpha_of_a_head_multiplies_what_the_head_puts_out():
    net = Blocks()
    plain, x = copy.deepcopy(net), torch.randn(2, 5, 12)
    psp.parameterize(net, "head")
    assert {name: alpha.shape for name, alpha in psp.structure_parameters(net).items()} == {
        "attn.0.proj": (1, 4),
        "attn.1.proj": (1, 4),
    }
    torch.testing.assert_close(net(x), plain(x))
    alpha = psp.structure_parameters(net)["attn.1.proj"]
    alpha.data[0, :] = torch.tensor([0.5, -2.0, 0.01, 1.0])
    with torch.no_grad():
        plain.attn[1].qkv.weight[24:] *= torch.tensor([0.5, -2.0, 0.0, 1.0]).repeat_interleave(3)[:, None]
        plain.attn[1].qkv.bias[24:] *= torch.tensor([0.5, -2.0, 0.0, 1.0]).repeat_interleave(3)
    torch.testing.assert_close(net(x), plain(x))
    assert psp.sparsity(net) == (0.125, 0.125, {"attn.0.proj": (0.0, 0.0, 4), "attn.1.proj": (0.25, 0.25, 4)})
    assert psp.cost(net, x).params == sum(p.numel() for p in plain.parameters()) - 12 * 3
    net(x).sum().backward()
    assert alpha.grad[0, 2] != 0, "a pruned head can come back"
    (structures,) = (group for group in psp.param_groups(net, structure_decay=0.1) if group["weight_decay"] == 0.1)
    assert structures["params"][1] is alpha


def test_heads_are_copied_saved_and_folded():
    net, x = pruned(Blocks()), tokens()
    other = psp.parameterize(Blocks().double(), "head").eval()
    other.load_state_dict(net.state_dict())
    for twin in (copy.deepcopy(net), other, psp.fold(copy.deepcopy(net))):
        torch.testing.assert_close(twin(x), net(x))
    folded = psp.fold(copy.deepcopy(net))
    assert (folded.attn[0].proj.weight[:, :3] == 0).all()
    assert type(folded.attn[0].proj) is nn.Linear


def test_heads_beside_other_structures():
    net = psp.parameterize(Blocks(), {"*": "channel", "attn.1": "head"}, place="weight")
    shapes = {name: tuple(alpha.shape) for name, alpha in psp.structure_parameters(net).items()}
    assert shapes == {
        "attn.0.qkv": (36, 1),
        "attn.0.proj": (12, 1),
        "attn.1.qkv": (36, 1),
        "attn.1.proj": (1, 4),
        "fc": (12, 1),
    }
    assert list(psp.structure_parameters(psp.parameterize(Blocks(), {"attn.*.proj": "head"}))) == [
        "attn.0.proj",
        "attn.1.proj",
    ]


def test_what_is_no_attention_has_no_heads():
    with pytest.raises(ConfigError, match=r"'head' is for attention blocks.*Sequential has no such block"):
        psp.parameterize(nn.Sequential(nn.Linear(4, 4)), "head")
    with pytest.raises(ConfigError, match=r"pattern 'fc' matches none; the blocks are: attn.0, attn.1"):
        psp.parameterize(Blocks(), {"*": "channel", "fc": "head"})
    with pytest.raises(ConfigError, match="not for the ℓ1 norm"):
        attach_norm_masks(Blocks(), "head")


def test_a_fixed_share_of_heads():
    assert psp.sparsity(fix_sparsity(Blocks(), "head", 0.5)).structures == 0.5


@pytest.mark.parametrize("heads", [(0, 2), (1,), (0, 1, 2, 3)])
def test_a_pruned_head_is_gone_with_its_queries_keys_and_values(heads):
    net = pruned(Blocks(), heads)
    smaller = psp.extract(net, tokens())
    assert difference(net, smaller, tokens(3, 9)) < 1e-12
    left = max(4 - len(heads), 1)
    # Projections, two products of the tokens and the layer behind.
    macs = 5 * 12 * 12 * left + 2 * 5 * 5 * 3 * left + 5 * 12 * 12
    assert psp.cost(smaller, tokens(1)).macs <= 2 * macs
    if len(heads) < 4:
        assert psp.cost(smaller, tokens(1)).macs == 2 * macs
        assert smaller.get_submodule("attn.0.qkv").weight.shape == (9 * left, 12)
        assert smaller.get_submodule("attn.0.proj").weight.shape == (12, 3 * left)


def test_heads_that_a_normalization_mixes_stay_and_this_is_explained():
    net = pruned(Blocks(lambda: Attention(late=True)))
    smaller = psp.extract(net, tokens())
    assert difference(net, smaller, tokens(3, 9)) < 1e-12
    assert smaller.get_submodule("attn.0.qkv").weight.shape == (36, 12)
    assert all("not for fewer heads" in layer.why for layer in psp.explain(smaller).layers)


@pytest.mark.parametrize(
    "make",
    [
        Wrapped,
        partial(Wrapped, batch_first=True),
        partial(Wrapped, bias=False),
        partial(Wrapped, batch_first=True, bias=False),
        partial(Wrapped, {}),  # the usual call: it asks for the weights of all heads as well, which nothing reads
        partial(Wrapped, {"average_attn_weights": False}),
        partial(Masked, numbers=False),
        partial(Masked, numbers=False, batch_first=True),
        partial(Masked, numbers=True, asked={}),
    ],
)
def test_torchs_attention_loses_its_heads(make):
    net = pruned(Blocks(make))
    smaller = psp.extract(net, tokens())
    assert difference(net, smaller, tokens(3, 9)) < 1e-12
    assert smaller.get_submodule("attn.1.attention.q").weight.shape == (6, 12)
    assert smaller.get_submodule("attn.1.attention.out_proj").weight.shape == (12, 6)


@pytest.mark.parametrize(
    "make",
    [
        partial(Wrapped, add_bias_kv=True),
        partial(Wrapped, add_zero_attn=True),
        partial(MaskedEach, batch_first=True),
        partial(Weighed, lambda self, out, weights: out * (1 + (weights > 0.3).any())),
        partial(Weighed, highest),
        partial(Weighed, entropy),
        partial(Weighed, lambda self, out, weights: out.view(weights.shape[1], weights.shape[0], -1)),
    ],
)
def test_other_forms_of_torchs_attention_stay_whole_and_this_is_explained(make):
    net = pruned(Blocks(make))
    smaller = psp.extract(net, tokens())
    assert difference(net, smaller, tokens(3)) < 1e-12
    assert all("not for fewer heads" in layer.why for layer in psp.explain(smaller).layers)


def test_of_a_causal_mask_whose_weights_nobody_wants_the_numbers_are_not_looked_at():
    """As torch has it: the mask of the example may be another than that of the next call."""
    attention, x = nn.MultiheadAttention(12, 4).double().eval(), tokens()
    whole, noise = KeptHeads(attention, [0, 1, 2, 3]), torch.randn(2, 2, dtype=torch.float64)
    for asked in ({"is_causal": True, "need_weights": False}, {"is_causal": True}, {"need_weights": False}):
        expected = attention(x, x, x, attn_mask=noise, **asked)[0]
        torch.testing.assert_close(whole(x, x, x, attn_mask=noise, **asked)[0], expected)


def test_attention_of_fewer_heads_refuses_what_it_cannot_give():
    attention, x = KeptHeads(nn.MultiheadAttention(12, 4), [0, 2]).double(), tokens()
    with pytest.raises(ExtractError, match="without some of its heads: a mask of each is one too many"):
        attention(x, x, x, attn_mask=torch.zeros(8, 5, 5))


def test_torchs_transformer_layers_stay_whole():
    net = pruned(nn.Sequential(nn.TransformerEncoderLayer(12, 4, 16, batch_first=True), nn.Linear(12, 3)))
    smaller = psp.extract(net, tokens())
    assert difference(net, smaller, tokens(3, 9)) < 1e-12


def known(name):
    """A small network of that kind, an image for it, and the name of the layers whose rows are those of heads."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    if name == "torchvision":
        net = VisionTransformer(64, 16, num_layers=2, num_heads=4, hidden_dim=48, mlp_dim=64)
        nn.init.normal_(net.heads.head.weight)  # zeros otherwise
        return net, x, "q"
    options = {"depths": (1, 1, 1, 1)} if "swin" in name else {"depth": 2}
    return timm.create_model(name, num_classes=10, img_size=64, **options), x, "qkv"


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "torchvision"])
def test_heads_of_known_networks(name):
    net, x, rows = known(name)
    psp.parameterize(net.double(), "head").eval()
    for alpha in psp.structure_parameters(net).values():
        alpha.data[0, ::2] = 0.0
    smaller = psp.extract(net, x)
    assert difference(net, smaller, torch.cat([x, -x])) < 1e-10
    assert not any("not for fewer heads" in layer.why for layer in psp.explain(smaller).layers)
    for projection, alpha in psp.structure_parameters(net).items():
        block = projection.rpartition(".")[0]
        width = net.get_submodule(projection).in_features // alpha.numel()
        left = smaller.get_submodule(f"{block}.{rows}").out_features
        assert left == alpha.numel() // 2 * width * (3 if rows == "qkv" else 1)
