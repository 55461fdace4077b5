"""Regularization that drives structure parameters to zero.

Equation (6) of the paper, the update of a structure parameter under weight decay:

    Δα_i(t+1) = μ Δα_i(t) − η ∂E/∂α_i − λ η α_i

with momentum μ, learning rate η and regularization strength λ. At a constant η this is exactly
torch.optim.SGD with momentum μ and weight_decay λ on α. PyTorch keeps the buffer v = Δα/(−η) and steps by
η(t)·v, so that under a schedule the momentum term is μ·η(t+1)/η(t)·Δα(t): our runs, whose η changes at every
step, follow equation (6) up to that factor, which is close to 1. For ℓ1 the last term is λ η sign(α_i).
"""

import math
from numbers import Real

from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from psp.errors import ConfigError
from psp.method.graph import NORMALIZATIONS
from psp.method.parameterize import structure_parameters
from psp.method.pruners import affine, originals, scaled_normalizations

REGULARIZERS = ("weight_decay", "l1")


def param_groups(model, weight_decay=0.0, structure_decay=0.0, regularizer="weight_decay"):
    """Parameter groups for an optimizer of torch: torch.optim.SGD(psp.param_groups(model, …), lr, momentum).

    Equation (6) is that of SGD, and so is the rule for λ. Other optimizers take the groups as well, but Adam divides
    the decay by the size of gradients, and AdamW decays α itself: by exp(−λ·Ση) without a gradient, whatever its β.

    Args:
        model: a module, parameterized or, with structure_decay 0, not.
        weight_decay: decay λ_w ≥ 0 on weights (parameters of two or more axes), and on γ and β that α multiply: decay
            on both factors is what prunes, and with 0 the α of what is of no use come to rest about ε. Other biases and
            normalizations have none.
        structure_decay: λ ≥ 0 on α.
        regularizer: "weight_decay" has the optimizer add λ·α to the gradient of α (eq. 6), "l1" adds λ·sign(α).

    Returns a list of dicts: weights; biases and normalization; and, if there are any, structure parameters. What is
    frozen now (requires_grad is False), α aside, is in none: an optimizer that shall train it later gets it by
    add_param_group.
    The "psp_l1" entry of a group is applied once per optimizer step, however many backward passes led to it, also to
    gradients that a GradScaler has scaled. A step with a closure, which computes gradients anew within the step, raises
    ConfigError where there is such an entry.
    """
    if regularizer not in REGULARIZERS:
        raise ConfigError(f"unknown regularizer {regularizer!r}; choose one of {', '.join(REGULARIZERS)}")
    for name, decay in (("weight_decay", weight_decay), ("structure_decay", structure_decay)):
        if not isinstance(decay, Real) or not 0 <= decay < math.inf:
            raise ConfigError(f"decay must be at least 0, and finite, got {name}={decay!r}")
    alphas = list(structure_parameters(model).values())
    if structure_decay and not alphas:
        raise ConfigError(f"structure_decay={structure_decay} has no α to act on; call psp.parameterize(model) first")
    ids = {id(alpha) for alpha in alphas}
    # A LayerNorm over several axes has parameters of as many.
    normal = {id(p) for module in model.modules() if isinstance(module, NORMALIZATIONS) for p in module.parameters()}
    scaled = {
        id(p) for norm in scaled_normalizations(model).values() for name in affine(norm) for p in originals(norm, name)
    }
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in ids]
    decayed = {id(p) for p in others if id(p) in scaled or (p.ndim > 1 and id(p) not in normal)}
    groups = [
        {"params": [p for p in others if id(p) in decayed], "weight_decay": weight_decay},
        {"params": [p for p in others if id(p) not in decayed], "weight_decay": 0.0},
        {"params": alphas, "weight_decay": 0.0, "psp_l1": 0.0},
    ]
    groups[-1]["psp_l1" if regularizer == "l1" else "weight_decay"] = structure_decay
    return [group for group in groups if group["params"]]


def _add_l1_gradient(optimizer, args, kwargs):
    """Before every optimizer step: gradient of λ·Σ|α| for the groups that ask for it."""
    if wraps_another(optimizer):  # as ZeroRedundancyOptimizer does: the inner one steps, too
        return
    asking = [group for group in optimizer.param_groups if group.get("psp_l1", 0.0)]
    if asking and ((len(args) > 1 and args[1] is not None) or kwargs.get("closure") is not None):
        raise ConfigError("regularizer 'l1' cannot be added within optimizer.step(closure); call backward, then step()")
    # A fused optimizer divides gradients by the GradScaler's scale itself, after this hook.
    scale = getattr(optimizer, "grad_scale", None)
    for group in asking:
        decay = -group["psp_l1"] if group.get("maximize") else group["psp_l1"]  # torch turns the gradient round later
        for parameter in group["params"]:
            if parameter.grad is not None:
                sign = parameter.detach().sign()
                parameter.grad.add_(sign if scale is None else sign * scale, alpha=decay)


def wraps_another(optimizer):
    """Whether an optimizer leaves its step to another: to `optim`, or to one with its very groups."""
    if isinstance(vars(optimizer).get("optim"), Optimizer):
        return True
    held = [*vars(optimizer).values()]
    for value in vars(optimizer).values():
        held += value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    own = {id(group) for group in optimizer.param_groups}
    inner = [other for other in held if isinstance(other, Optimizer)]
    return any(own & {id(group) for group in other.param_groups} for other in inner)


# A hook on the step, not on the gradient: with gradient accumulation a gradient hook would add λ several times.
# Optimizers whose groups have no "psp_l1" entry, which is every other optimizer of the process, are left alone.
register_optimizer_step_pre_hook(_add_l1_gradient)
