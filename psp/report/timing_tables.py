"""Timing tables as pure functions of timing records."""

import pandas as pd

from psp.timing.roofline import Limits, Work, roofline_seconds
from psp.timing.settings import NO_GPU

# What users call a backend, where a record has another name for it.
CALLED = {"lanes": "psp.freeze", "openvino": "OpenVINO"}
BOTH = ("dense", "extracted")


def fastest(timings):
    """Of the timings of one network at one batch the one with the smallest median; None of none."""
    return min(timings, key=lambda t: t["median_s"], default=None)


def fastest_of_each(timings, networks):
    """{network: its fastest timing}, None of one that has no time."""
    return {name: fastest(t for t in timings if t["network"] == name) for name in networks}


def by_others(timings):
    """Those by all engines but `psp.freeze`."""
    return [timing for timing in timings if timing["backend"] != "lanes"]


def faster(dense, extracted):
    """How many times as fast the second of two timings is; NaN where one of them is None."""
    return float("nan") if None in (dense, extracted) else dense["median_s"] / extracted["median_s"]


def variant(timing):
    """Backend and precision of a timing in words."""
    return f"{CALLED.get(timing['backend'], timing['backend'])}, {timing['precision']}"


def speed_ups(record):
    """One row for each network, batch and precision of a record.

    `speed_up` is the fastest dense variant's median over the fastest extracted variant's, both in that precision
    except "any", where either may use any; `speed_up_others` is the same among all engines but `psp.freeze`.
    `mac_reduction` counts multiply-accumulates by weights other than 0, fewer than `macs` where extraction kept zeros;
    `realised` is speed-up over that. Milliseconds a batch.
    """
    rows = []
    for network in record["networks"]:
        reduction = network["cost"]["dense"]["macs"] / max(network["nonzero_macs"], 1)
        for batch in network["batches"]:
            for precision in (*record["settings"]["precisions"], "any"):
                own = [t for t in network["timings"] if t["batch"] == batch and precision in (t["precision"], "any")]
                found = fastest_of_each(own, BOTH)
                if None in found.values():
                    continue
                ratio = faster(**found)
                rows.append(
                    {
                        **_described(network),
                        "batch": batch,
                        "precision": precision,
                        **_columns("dense", found["dense"], record["limits"]),
                        **_columns("extracted", found["extracted"], record["limits"]),
                        "mac_reduction": reduction,
                        "speed_up": ratio,
                        "speed_up_others": faster(**fastest_of_each(by_others(own), BOTH)),
                        "realised": ratio / reduction,
                    }
                )
    return pd.DataFrame(rows)


def on_all_devices(records):
    """The rows of `speed_ups` of several records, in which `device` is the last column."""
    tables = [speed_ups(record).assign(device=record["provenance"]["device"]) for record in records]
    return pd.concat(tables, ignore_index=True)


def unavailable_table(records):
    """One row for each variant that some dense or extracted networks are not timed in, and why.

    `where` names the networks and batch sizes, or says that it is all of them.
    """
    rows = []
    for record in records:
        every, found = {(network["name"], batch) for network in record["networks"] for batch in network["batches"]}, {}
        for network in record["networks"]:
            for key, batch in _missing(network):
                found.setdefault(key, []).append((network["name"], batch))
        for key, places in found.items():
            where = "all" if set(places) == every else ", ".join(f"{name} at batch {batch}" for name, batch in places)
            rows.append((record["provenance"]["device"], *key, where))
    return pd.DataFrame(rows, columns=["device", "network", "backend", "precision", "reason", "where"])


def _missing(network):
    """((dense or extracted, backend, precision, reason), batch) of all that a network of a record is not timed in."""
    for whose, entry in (("dense", "dense_unavailable"), ("extracted", "unavailable")):
        for one in network[entry]:
            yield (whose, one["backend"], one["precision"], one["reason"]), one["batch"]


def _described(network):
    names = ("name", "model", "structure", "masks")
    return {name: network[name] for name in names} | {
        "structures_pruned_pct": 100 * network["sparsity"]["structures"],
        "params": network["cost"]["extracted"]["params"],
        "macs": network["cost"]["extracted"]["macs"],
    }


def _columns(name, timing, limits):
    at_roof = roofline_seconds(Work(timing["values"], timing["macs"]), Limits(**limits), timing["precision"])
    return {
        f"{name}_variant": variant(timing),
        f"{name}_ms": 1e3 * timing["median_s"],
        f"{name}_iqr_ms": 1e3 * (timing["high_s"] - timing["low_s"]),
        f"{name}_at_copy_speed_ms": 1e3 * at_roof["memory_s"],
        f"{name}_at_matmul_speed_ms": 1e3 * at_roof["arithmetic_s"],
    }


def summary_table(cpu, gpu, batch):
    """Per network and structure: sparsity, parameters, MACs, their reduction, CPU and GPU speed-up, and realised.

    On the CPU also the speed-up among all engines but `psp.freeze`. `cpu` and `gpu` are records of the same networks;
    the GPU's may say that there was none.
    """
    shown = _at(cpu, batch)
    gpu_columns = _at(gpu, batch).set_index("name") if "networks" in gpu else None
    table = shown[
        ["name", "model", "structure", "masks", "structures_pruned_pct", "params", "macs", "mac_reduction"]
    ].assign(
        cpu_dense=shown["dense_variant"],
        cpu_extracted=shown["extracted_variant"],
        cpu_speed_up=shown["speed_up"],
        cpu_realised=shown["realised"],
        cpu_speed_up_others=shown["speed_up_others"],
    )
    for column in ("speed_up", "realised"):
        table[f"gpu_{column}"] = NO_GPU if gpu_columns is None else shown["name"].map(gpu_columns[column])
    return table.reset_index(drop=True)


def machines_table(records, batch):
    """Speed-up and realised on each of several machines, a row for each network and precision at `batch`.

    `records` are of CPUs, and columns are called by these. Shown are the networks of the first; where another machine
    has not timed one of them with the same masks, its numbers are missing.
    """
    keys = ["name", "structure", "masks", "precision"]
    shown, tables = {_identity(network) for network in records[0]["networks"]}, []
    for record in records:
        same = [network for network in record["networks"] if _identity(network) in shown]
        if same:
            rows = speed_ups({**record, "networks": same})
            rows = rows[rows["batch"] == batch].set_index(keys)[["speed_up", "realised"]]
            tables.append(rows.add_suffix(f", {record['provenance']['device']}"))
    return tables[0].join(tables[1:]).reset_index()


def _identity(network):
    """What two machines must have in common: of random masks no sha256 is known, but what they leave."""
    return network["name"], network.get("masks_sha256"), *network["cost"]["dense"].values(), network["nonzero_macs"]


def _at(record, batch):
    table = speed_ups(record)
    return table[(table["batch"] == batch) & (table["precision"] == "any")]
