"""Masks and an excerpt of the weights, into a record and back."""

import json

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

import psp
from psp.errors import ConfigError
from psp.method.masks import apply_masks, decode, encode, excerpt, masks
from psp.method.methods import METHODS, build_model
from psp.method.pruners import parametrizations
from psp.runs.config import RunConfig


@hypothesis.given(shape=st.lists(st.integers(1, 7), min_size=1, max_size=4), seed=st.integers(0, 99))
@hypothesis.settings(deadline=None, max_examples=30)
def test_a_tensor_survives_json(shape, seed):
    torch.manual_seed(seed)
    mask, values = torch.rand(shape) < 0.5, torch.randn(shape)
    assert torch.equal(decode(json.loads(json.dumps(encode(mask)))), mask)
    assert torch.equal(decode(json.loads(json.dumps(encode(values)))), values.half().float())


def run(method):
    config = RunConfig(method=method, sparsity=0.5 if method in ("l1_norm", "psp_fixed_sparsity") else None)
    return build_model(config, 10)


@pytest.mark.parametrize("method", METHODS)
def test_the_masks_of_a_record_make_a_network_of_the_same_sparsity(method):
    torch.manual_seed(0)
    net = run(method)
    for _, pruner in parametrizations(net).values():
        if hasattr(pruner, "alpha"):
            pruner.alpha.data.normal_(std=0.1)
        else:
            pruner.mask.copy_(torch.rand(pruner.mask.shape) < 0.5)
    again = apply_masks(run(method), json.loads(json.dumps({"masks": masks(net)})))
    assert psp.sparsity(again) == psp.sparsity(net)
    for name, (_, pruner) in parametrizations(again).items():
        assert torch.equal(pruner.kept(), parametrizations(net)[name][1].kept())


def test_the_excerpt_is_the_pruned_weight_of_the_smallest_layer():
    net = psp.parameterize(psp.create_model("resnet20"), skip=("conv1", "fc"))
    psp.structure_parameters(net)["layer1.0.conv1"].data[:, :3] = 0.0
    found = excerpt(net)
    assert found["layer"] == "layer1.0.conv1"
    weight = decode(found["weight"])
    assert weight.shape == (16, 16, 3, 3)
    assert not weight[:, :3].any()
    torch.testing.assert_close(weight, net.layer1[0].conv1.weight.detach(), rtol=1e-3, atol=1e-6)
    assert excerpt(psp.create_model("resnet20")) is None


def test_a_record_in_which_layers_of_a_branch_left_alone_is_refused():
    """As earlier code had them: each with α of its own."""
    config = RunConfig(structure="layer", structure_decay=0.01)
    record = {"masks": masks(build_model(config, 10))}
    apply_masks(build_model(config, 10), record)
    record["masks"]["layer1.0.conv1"] = encode(torch.zeros(1, 1, 1, 1, dtype=torch.bool))
    with pytest.raises(ConfigError, match=r"prunes layer 'layer1.0.conv2' apart from one that it shares α with"):
        apply_masks(build_model(config, 10), record)
