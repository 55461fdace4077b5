"""Equation (6) and its ℓ1 variant against updates written out by hand."""

import pytest
import torch
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer

import psp
from psp.errors import ConfigError

MU, ETA, LAMBDA = 0.9, 0.05, 0.3


def one_alpha():
    """One weight w = 2 and one α = 1, so that E = c·x·α·w has ∂E/∂α = c·w for x = 1."""
    net = psp.parameterize(nn.Sequential(nn.Linear(1, 1, bias=False)).double(), threshold=0.0)
    net[0].parametrizations.weight.original.data.fill_(2.0)
    net[0].parametrizations.weight.original.requires_grad_(False)
    return net, psp.structure_parameters(net)["0"]


@pytest.mark.parametrize(
    ("regularizer", "term"),
    [("weight_decay", lambda alpha: alpha), ("l1", lambda alpha: (alpha > 0) - (alpha < 0))],
)
def test_update_by_hand_over_several_steps(regularizer, term):
    """Δα(t+1) = μ Δα(t) − η ∂E/∂α − λ η α, through zero, for six steps."""
    net, alpha = one_alpha()
    groups = psp.param_groups(net, structure_decay=LAMBDA, regularizer=regularizer)
    optimizer = torch.optim.SGD(groups, lr=ETA, momentum=MU)
    expected, delta = 1.0, 0.0
    for slope in (1.0, 4.0, 3.0, -1.0, -6.0, 0.5):
        optimizer.zero_grad()
        (slope * net(torch.ones(1, 1, dtype=torch.float64))).sum().backward()
        optimizer.step()
        delta = MU * delta - ETA * (slope * 2.0) - LAMBDA * ETA * term(expected)
        expected += delta
        assert alpha.item() == pytest.approx(expected, rel=1e-12)


def test_under_a_schedule_the_momentum_term_carries_the_ratio_of_learning_rates():
    """As the module's docstring says: Δα(t+1) = μ·η(t+1)/η(t)·Δα(t) − η(t+1)·(∂E/∂α + λα)."""
    net, alpha = one_alpha()
    optimizer = torch.optim.SGD(psp.param_groups(net, structure_decay=LAMBDA), lr=ETA, momentum=MU)
    expected, delta, before = 1.0, 0.0, ETA
    for rate in (0.05, 0.04, 0.01, 0.03):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        net(torch.ones(1, 1, dtype=torch.float64)).sum().backward()
        optimizer.step()
        delta = MU * rate / before * delta - rate * 2.0 - LAMBDA * rate * expected
        expected, before = expected + delta, rate
        assert alpha.item() == pytest.approx(expected, rel=1e-12)


def test_l1_is_applied_once_per_step_however_many_backward_passes():
    net, alpha = one_alpha()
    optimizer = torch.optim.SGD(psp.param_groups(net, structure_decay=LAMBDA, regularizer="l1"), lr=ETA)
    for _ in range(4):
        (0.0 * net(torch.ones(1, 1, dtype=torch.float64))).sum().backward()
    optimizer.step()
    assert alpha.item() == pytest.approx(1.0 - ETA * LAMBDA)


@pytest.mark.parametrize("fused", [False, True])
def test_l1_is_not_divided_by_the_scale_of_a_grad_scaler(fused):
    net, alpha = one_alpha()
    groups = psp.param_groups(net, structure_decay=LAMBDA, regularizer="l1")
    optimizer, scaler = torch.optim.SGD(groups, lr=ETA, fused=fused), torch.amp.GradScaler("cpu")
    scaler.scale((3.0 * net(torch.ones(1, 1, dtype=torch.float64))).sum()).backward()
    scaler.step(optimizer)
    assert alpha.item() == pytest.approx(1.0 - ETA * (3.0 * 2.0 + LAMBDA))


def test_l1_within_a_closure_is_refused_and_nothing_has_moved():
    net, alpha = one_alpha()
    optimizer = torch.optim.SGD(psp.param_groups(net, structure_decay=LAMBDA, regularizer="l1"), lr=ETA)
    with pytest.raises(ConfigError, match=r"step\(closure\)"):
        optimizer.step(lambda: net(torch.ones(1, 1, dtype=torch.float64)).sum())
    assert alpha.item() == 1.0
    optimizer.step(None)


@pytest.mark.parametrize("regularizer", ["l1", "weight_decay"])
def test_what_is_maximized_decays_too(regularizer):
    """torch turns gradients round, and has its own decay act before: α shrinks either way, as without a gradient."""
    net, alpha = one_alpha()
    groups = psp.param_groups(net, structure_decay=LAMBDA, regularizer=regularizer)
    optimizer = torch.optim.SGD(groups, lr=ETA, maximize=True)
    (0.0 * net(torch.ones(1, 1, dtype=torch.float64))).sum().backward()
    optimizer.step()
    assert alpha.item() == pytest.approx(1.0 - ETA * LAMBDA)


def test_other_optimizers_of_the_process_are_left_alone():
    parameter = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=ETA)
    parameter.grad = torch.zeros(1)
    optimizer.step()
    assert parameter.item() == 1.0


def test_groups_hold_every_parameter_once_with_its_own_decay():
    net = psp.parameterize(psp.create_model("resnet20"), skip=("conv1", "fc"))
    weights, plain, alphas = psp.param_groups(net, weight_decay=1e-4, structure_decay=1e-3)
    assert (weights["weight_decay"], plain["weight_decay"], alphas["weight_decay"]) == (1e-4, 0.0, 1e-3)
    assert alphas["psp_l1"] == 0.0
    grouped = [id(p) for group in (weights, plain, alphas) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in net.parameters())
    assert {id(p) for p in alphas["params"]} == {id(p) for p in psp.structure_parameters(net).values()}
    assert all(p.ndim <= 1 for p in plain["params"])


def test_a_plain_network_has_no_structure_group():
    assert all("psp_l1" not in group for group in psp.param_groups(psp.create_model("resnet20"), 1e-4))


def test_normalization_over_several_axes_has_no_decay():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LayerNorm([4, 6, 6]), nn.GroupNorm(2, 4))
    weights, plain = psp.param_groups(net, weight_decay=1e-4)
    assert [p.shape for p in weights["params"]] == [(4, 3, 3, 3)]
    assert (len(plain["params"]), plain["weight_decay"]) == (5, 0.0)


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="gloo is not in this build")
def test_l1_is_applied_once_by_an_optimizer_that_steps_through_another(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        net = psp.parameterize(nn.Linear(1, 1, bias=False), "column")
        groups = psp.param_groups(net, structure_decay=LAMBDA, regularizer="l1")
        optimizer = ZeroRedundancyOptimizer(groups, torch.optim.SGD, lr=ETA)
        (alpha,) = psp.structure_parameters(net).values()
        alpha.grad = torch.zeros_like(alpha)
        optimizer.step()
    finally:
        torch.distributed.destroy_process_group()
    assert alpha.item() == pytest.approx(1 - ETA * LAMBDA)


class Lookahead(torch.optim.Optimizer):
    """Steps through another, whose groups it has, by itself or among others."""

    def __init__(self, base, held):
        self.base, self.held = base, held
        super().__init__(base.param_groups, {})
        if held is not base:
            self.base = None

    def step(self, closure=None):
        for optimizer in [self.base] if self.base else self.held:
            optimizer.step()


@pytest.mark.parametrize("hold", [lambda base: base, lambda base: [base]])
def test_l1_is_applied_once_by_an_optimizer_that_has_the_groups_of_another(hold):
    net = psp.parameterize(nn.Linear(1, 1, bias=False), "column")
    groups = psp.param_groups(net, structure_decay=LAMBDA, regularizer="l1")
    (alpha,) = psp.structure_parameters(net).values()
    alpha.grad = torch.zeros_like(alpha)
    base = torch.optim.SGD(groups, lr=ETA)
    Lookahead(base, hold(base)).step()
    assert alpha.item() == pytest.approx(1 - ETA * LAMBDA)


def test_bad_arguments():
    net, _ = one_alpha()
    with pytest.raises(ConfigError, match="unknown regularizer 'L2'; choose one of weight_decay, l1"):
        psp.param_groups(net, regularizer="L2")
    with pytest.raises(ConfigError, match="decay must be at least 0"):
        psp.param_groups(net, structure_decay=-1e-3)
    for wrong in (float("nan"), float("inf"), "1e-4"):
        with pytest.raises(ConfigError, match=f"decay must be at least 0, and finite, got weight_decay={wrong!r}"):
            psp.param_groups(net, weight_decay=wrong)
    with pytest.raises(ConfigError, match=r"structure_decay=0.001 has no α to act on; call psp.parameterize"):
        psp.param_groups(nn.Linear(2, 2), structure_decay=1e-3)
