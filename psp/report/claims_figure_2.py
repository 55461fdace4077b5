"""The claims of the paper's Figure 2, each with a tolerance: weight decay parts the α in two groups, ℓ1 pulls all to 0.

What the paper has in numbers is not available to us. Ours are of the last epoch, of all layers together, by the
histograms of log10|α| in run records; α that all lie in one bin have a separability of 0. Two settings are compared,
one of each regularizer, whose mean sparsities are closest, seed by seed; a claim is decided as in `psp.report.claims`.
What was written down when is said in results/README.md, "What was fixed when".
"""

from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd

from psp.errors import ConfigError
from psp.report.claims import NOT_TESTED, OPEN, difference, order_verdict
from psp.report.tables import figure_2_table


class Claim(NamedTuple):
    """That weight decay has more of a `column` of `figure_2_table` than ℓ1 has (`sign` 1), or less (−1)."""

    text: str
    column: str
    sign: int
    tolerance: float
    unit: str = ""


CLAIMS = (
    Claim("weight decay parts α more clearly than ℓ1: separability", "separability", 1, 0.05),
    Claim("weight decay leaves fewer α near ε than ℓ1 (within a factor 3)", "near_threshold_pct", -1, 5.0, " %"),
    Claim("ℓ1 pulls all α towards 0, weight decay does not: median magnitude, log10", "median_log10", 1, 0.3),
)


def figure_2_claims(records, configs, complete=True):
    """Table of claims: what came out of weight decay and of ℓ1, the tolerance, and whether the claim holds.

    Args:
        records: {run: record} of both methods and all seeds. A seed that has no run of both settings is left out.
        configs: the RunConfigs of the profile, whose data decide what it can test.
        complete: whether these are all runs of the profile; where some are still to come, no claim is decided.
    """
    try:
        ours = pd.concat([_row_of(*pair) for pair in closest_pairs(records.values())])
    except ConfigError:
        ours = None
    tested = all(config.dataset == "cifar10" for config in configs)
    rows = [_row(claim, ours, tested, complete) for claim in CLAIMS]
    return pd.DataFrame(rows, columns=["claim", "ours: weight decay, ℓ1", "pruned, %", "tolerance", "verdict"])


def closest_pairs(records):
    """Of each seed the record by ℓ1 and the one by weight decay that are compared, in the order of the seeds.

    They are of one λ and ε each, the same for all seeds: those two whose sparsities, means over the seeds that both
    have, are closest. Raises ConfigError where no seed has a run of both, and for two runs of one setting and seed.
    """
    by_setting = {}
    for record in records:
        config = record["config"]
        setting = config["method"], config["structure_decay"], config["threshold"]
        seeds = by_setting.setdefault(setting, {})
        if config["seed"] in seeds:
            raise ConfigError(f"Figure 2 has two runs of {', '.join(map(str, setting))} and seed {config['seed']}")
        seeds[config["seed"]] = record
    ours = {
        m: [runs for setting, runs in by_setting.items() if setting[0] == m] for m in ("psp_l1", "psp_weight_decay")
    }
    common = [
        [(l1[seed], decay[seed]) for seed in sorted(l1.keys() & decay.keys())]
        for l1, decay in product(ours["psp_l1"], ours["psp_weight_decay"])
    ]
    if not any(common):
        raise ConfigError("Figure 2 compares ℓ1 with weight decay, and no seed has a run of both")
    return min(filter(None, common), key=_apart)


def _apart(pairs):
    sparsities = np.array([[record["sparsity"]["structures"] for record in pair] for pair in pairs])
    return abs(np.subtract(*sparsities.mean(0)))


def _row_of(l1, decay):
    """A row of weight decay's numbers and ℓ1's."""
    table = figure_2_table({"l1": l1, "decay": decay}).set_index("run")
    return pd.DataFrame({(name, run): [table.loc[run, name]] for name in table.columns for run in table.index})


def _row(claim, ours, tested, complete):
    if not tested or ours is None:
        verdict = OPEN if tested and not complete else NOT_TESTED
        return (claim.text, "–", "–", f"{claim.tolerance}{claim.unit}", verdict)
    decay, l1 = (ours[claim.column, run].fillna(0.0).to_numpy() for run in ("decay", "l1"))
    pruned = ", ".join(f"{ours['sparsity_pct', run].mean():.1f}" for run in ("decay", "l1"))
    text = f"{decay.mean():.2f}, {l1.mean():.2f}" + difference(claim.sign * (decay - l1))
    verdict = order_verdict(claim.sign * (decay - l1), claim.tolerance) if complete else OPEN
    return (claim.text, text, pruned, f"{claim.tolerance}{claim.unit}", verdict)
