"""Other pruners under the budget of our runs, as tables of what benchmarks/peers.py and peers_time.py recorded."""

import pandas as pd

from psp.errors import ConfigError
from psp.files import SEAL, is_sealed, read_json
from psp.report.equal_cost import check_budget, told_apart
from psp.report.timing_tables import by_others, faster, fastest_of_each, variant

DAMAGED = "restore it by git, or make it again by benchmarks/peers.py"
# As benchmarks/peers.py calls them.
PRUNERS = {"slimming": "network slimming", "group_norm": "group norm", "group_norm_max": "group norm (max)"}


def read_peers(folder):
    """{name: record} of the records of benchmarks/peers.py in a folder. Raises ConfigError for one that is damaged."""
    return {path.stem: read_sealed(path) for path in sorted(folder.glob("*.json"))}


def read_sealed(path):
    """A record of benchmarks/peers.py or peers_time.py. Raises ConfigError for one that is damaged."""
    record = read_json(path, DAMAGED)
    if not is_sealed(record):
        raise ConfigError(f"{path} is damaged: it does not fit its {SEAL}; {DAMAGED}")
    return record


def peer_rows(records):
    """A table for `psp.report.equal_cost.at_equal_cost` of records of peers, {name: record}."""
    return told_apart(pd.DataFrame([_peer_row(name, record) for name, record in records.items()]))


def _peer_row(name, record):
    return {
        "run": name,
        "method": PRUNERS[record["pruner"]],
        "fixed": f"regularization {record['regularization']:g}, pruning at {record['prune_at']:g}",
        "setting": record["reduction"],
        "seed": record["config"]["seed"],
        "mac_reduction": record["mac_reduction"],
        "parameters": record["parameters"],
        "test_error_pct": record["test_error_pct"],
    }


def searched_table(records):
    """The search for a peer's settings, {name: record of a run with images held out}: the best of each pruner first.

    Raises ConfigError for records without held-out images, and for one of another reduction or schedule.
    """
    check_budget(records)
    (first, reference), *_ = records.items()
    if not reference["config"]["holdout"]:
        raise ConfigError(f"{first!r} holds no training images out: set --holdout, and judge it by these")
    for name, record in records.items():
        if record["reduction"] != reference["reduction"]:
            raise ConfigError(f"{name!r} has another reduction than {first!r}: compare what costs the same")
    rows = [
        {
            "method": PRUNERS[record["pruner"]],
            "regularization": record["regularization"],
            "prune_at": record["prune_at"],
            "mac_reduction": record["mac_reduction"],
            "parameters": record["parameters"],
            "held_out_error_pct": record["curve"][-1]["validation_error_pct"],
        }
        for record in records.values()
    ]
    return pd.DataFrame(rows).sort_values(["method", "held_out_error_pct"], ignore_index=True)


def latency_table(timed):
    """The fastest variant of each network and batch in a record of benchmarks/peers_time.py, and its speed-up.

    Milliseconds a batch; the speed-up is that over the fastest variant of the network named "dense". `others_…` is the
    same among all engines but `psp.freeze`, missing where none has a time. `mac_reduction` counts multiply-accumulates
    by weights not 0. Raises ConfigError, naming it, for a network that has no time at a batch size.
    """
    rows = []
    for batch in dict.fromkeys(timing["batch"] for timing in timed["timings"]):
        own = [timing for timing in timed["timings"] if timing["batch"] == batch]
        best, others = (fastest_of_each(timings, timed["cost"]) for timings in (own, by_others(own)))
        if missing := [name for name, timing in best.items() if timing is None]:
            raise ConfigError(f"{missing[0]!r} has no time at batch {batch}")
        for name in timed["cost"]:
            rows.append(
                {
                    "network": name,
                    "batch": batch,
                    "mac_reduction": timed["nonzero_macs"]["dense"] / timed["nonzero_macs"][name],
                    "parameters": timed["cost"][name]["params"],
                    **_speed(best["dense"], best[name]),
                    **{f"others_{c}": value for c, value in _speed(others["dense"], others[name]).items()},
                }
            )
    return pd.DataFrame(rows)


def _speed(dense, own):
    """Of a network's fastest timing, or None: which variant it is, milliseconds, speed-up over the dense one's."""
    known = {"variant": variant(own), "ms": 1e3 * own["median_s"]} if own else {"variant": None, "ms": float("nan")}
    return {**known, "speed_up": faster(dense, own)}
