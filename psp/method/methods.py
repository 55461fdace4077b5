"""The five series of Figure 3 as things to do to a network: before training, and before a step of it."""

from psp.method.baselines import attach_norm_masks, fix_sparsity, prune_by_norm
from psp.method.parameterize import parameterize, structure_parameters
from psp.method.regularize import param_groups
from psp.models import create_model

# The five series of Figure 3, by the names that `results/reference/figure3.csv` gives them.
METHODS = ("baseline", "l1_norm", "psp_fixed_sparsity", "psp_l1", "psp_weight_decay")
PRESCRIBED = ("l1_norm", "psp_fixed_sparsity")
THRESHOLDED = ("psp_l1", "psp_weight_decay")


def build_model(config, num_classes):
    """The network of a `RunConfig`, its method's parametrization attached; weights can be loaded into it."""
    model = create_model(config.model, num_classes)
    where = {"structure": config.structure, "skip": config.skip}
    alpha = {"init": config.init, "gradient": config.gradient, "place": config.place}
    if config.method in THRESHOLDED:
        return parameterize(model, threshold=config.threshold, couple=config.couple, **alpha, **where)
    if config.method == "psp_fixed_sparsity":
        return fix_sparsity(model, sparsity=config.sparsity, **alpha, **where)
    if config.method == "l1_norm":
        return attach_norm_masks(model, **where)
    return model


def before_step(model, config, step, steps):
    """What a method does before step `step` (from 0) of `steps`: ℓ1 norm prunes once, after `prune_at` of them."""
    if config.method == "l1_norm" and step == int(config.prune_at * steps):
        prune_by_norm(model, config.sparsity)


def groups(model, config):
    """Optimizer groups of a run: λ_w on weights, λ as ℓ1 or as weight decay on α."""
    regularizer = "l1" if config.method == "psp_l1" else "weight_decay"
    structure_decay = config.structure_decay if structure_parameters(model) else 0.0
    return param_groups(model, config.weight_decay, structure_decay, regularizer)
