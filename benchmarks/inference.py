"""What pruning saves on this machine: every engine on the dense ResNet-20 and on two pruned ones, in one run.

    python benchmarks/inference.py [--threads 2] [--rounds 15] [--without-amx]

Columns (80 %) or channels (50 %) are pruned at random. All variants of a batch size take turns, after a short rest, so
that no engine's threads disturb the next one's. First of the ratios is what sparsity itself brings: our own frozen
dense network against the pruned one, each in the type that is faster for it; then the fastest dense network of all
other engines against the pruned one's fastest variant. Beside them, of each precision, the time to move the values
(each layer reads and writes its maps once) and to compute the products, at the speeds of a large copy and of a large
matrix product measured in the same run; layers that fuse and stay in the cache can be faster than the one, other code
than the other.
`--without-amx` measures what a processor without AMX would do, on one that has it: oneDNN is told so by
ONEDNN_MAX_CPU_ISA, psp.freeze by PSP_WITHOUT_AMX. OpenVINO has no such switch and is left out.
"""

import argparse
import os
import platform
import statistics
import time

CHOSEN = argparse.ArgumentParser(description=__doc__.splitlines()[0])
CHOSEN.add_argument("--threads", type=int, default=2)
CHOSEN.add_argument("--rounds", type=int, default=15)
CHOSEN.add_argument("--without-amx", action="store_true")
SKIP = ("conv1", "fc")
BATCHES = (64, 1)
ENGINES = ("eager", "compile", "onnxruntime", "openvino", "lanes")
OURS = "lanes"
NAMES = {OURS: "psp.freeze", "openvino": "OpenVINO"}
TRIES = 100
WARM_UP = 3  # rounds, and calls at the beginning of each turn
REST = 0.02  # seconds before a turn, in which the threads of the engine before it stop waiting for work
LEFT_OUT = "OpenVINO is left out, which cannot be told to do without AMX: other engines are those that are shown."
CALLS = {64: 3, 1: 100}  # a turn, after its warm-up


def pruned_networks():
    """{name: ResNet-20 in evaluation mode}, the dense one without zeros that psp.freeze would leave out."""
    import torch

    from psp.extraction.extract import extract, fold_batchnorm
    from psp.timing.networks import random_masks
    from psp.timing.record import without_zeros

    image = torch.zeros(1, 3, 32, 32)
    return {
        "dense": without_zeros(fold_batchnorm(random_masks("resnet20", "column", 0.0, SKIP))),
        "columns 80 %": extract(random_masks("resnet20", "column", 0.8, SKIP), image),
        "channels 50 %": extract(random_masks("resnet20", "channel", 0.5, SKIP), image),
    }


def made(networks, images, options):
    """{(network, engine, precision): a call}, of all that there are here and whose outputs are the network's."""
    from psp.timing.record import make_variants
    from psp.timing.settings import PRECISIONS

    engines = [engine for engine in ENGINES if engine != "openvino" or not options.without_amx]
    calls = {}
    for name, network in networks.items():
        found, missing = make_variants(network, {"backends": engines, "precisions": PRECISIONS}, images)
        calls |= {(name, *variant): call for variant, call in found.items()}
        for one in missing:
            print(f"{name}, {one['backend']}, {one['precision']}: {one['reason']}")
    return calls


def in_turns(calls, rounds, number):
    """{name: milliseconds of a call, one of each round} of calls that take turns, after a warm-up."""
    times = {name: [] for name in calls}
    for turn in range(WARM_UP + rounds):
        for name, call in calls.items():
            time.sleep(REST)
            repeat(call, WARM_UP)
            taken = repeat(call, number)
            if turn >= WARM_UP:
                times[name].append(1e3 * taken / number)
    return times


def together(threads):
    """How many times as fast as one thread all `threads` multiply; on a machine that shares its cores it can be one."""
    import torch

    from psp.frozen.measure import seconds

    a, taken = torch.ones(512, 512), []
    for count in (1, threads):
        torch.set_num_threads(count)
        taken.append(seconds(lambda: a @ a, TRIES))
    return taken[0] / taken[1]


def repeat(call, number):
    """Seconds of so many calls."""
    began = time.perf_counter()
    for _ in range(number):
        call()
    return time.perf_counter() - began


def report(batch, networks, times, at_roof):
    """Print the table and the ratios of one batch size."""
    median = {name: statistics.median(values) for name, values in times.items()}
    print(f"\n## Batch {batch}: ms, medians (quartiles)\n")
    variants = list(dict.fromkeys((engine, precision) for _, engine, precision in times))
    print("| | " + " | ".join(f"{NAMES.get(engine, engine)} {precision}" for engine, precision in variants) + " |")
    print("|---" * (1 + len(variants)) + "|")
    for network in networks:
        cells = [cell(times.get((network, *variant))) for variant in variants]
        print(f"| {network} | " + " | ".join(cells) + " |")
    print("\n| | against our own dense | against the fastest dense | at the speed of a copy, a product: f32 | bf16 |")
    print("|---" * 5 + "|")
    other = min((n for n in median if n[0] == "dense" and n[1] != OURS), key=median.get)
    own = {name: min(median[n] for n in median if n[:2] == (name, OURS)) for name in networks}
    for name in networks:
        fastest = min((n for n in median if n[0] == name), key=median.get)
        shown = [f"{1e3 * f['memory_s']:.2f}, {1e3 * f['arithmetic_s']:.2f} ms" for f in at_roof[name]]
        against = f"{median[other] / median[fastest]:.2f} × ({NAMES.get(fastest[1], fastest[1])} {fastest[2]})"
        print(f"| {name} | {own['dense'] / own[name]:.2f} × | {against} | " + " | ".join(shown) + " |")
    name = f"{NAMES.get(other[1], other[1])} {other[2]}"
    print(f"\nFastest dense network of another engine: {name}, {median[other]:.2f} ms;")
    print(f"ours {own['dense']:.2f} ms, {median[other] / own['dense']:.2f} times as fast.")


def cell(values):
    if values is None:
        return "–"
    from psp.timing.measure import quartiles

    median, low, high = quartiles(values)
    return f"{median:.2f} ({low:.2f}–{high:.2f})"


def ways(calls, batch):
    """Which way the functions of psp.freeze that were timed took, a line for each network and type."""
    for (name, engine, precision), call in calls.items():
        if engine == OURS:
            print(f"{name}, {precision}: {call.func.way(batch)}")


def main():
    options = CHOSEN.parse_args()
    if options.rounds < 2:
        CHOSEN.error("--rounds must be at least 2: quartiles need several")
    if options.without_amx:  # before any library is loaded that reads it
        os.environ |= {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16", "PSP_WITHOUT_AMX": "1"}
    import torch

    import psp
    from psp.runs.provenance import device_name, git_commit
    from psp.timing.roofline import roofline_seconds
    from psp.timing.settings import PRECISIONS
    from psp.timing.work import measure_limits, work

    torch.set_num_threads(options.threads)
    kind = "AMX switched off" if options.without_amx else "as it is"
    print(f"ResNet-20 on {device_name(torch.device('cpu'))} ({platform.machine()}), {kind}, {options.threads} threads,")
    print(f"medians of {options.rounds} alternating rounds; commit {git_commit()}")
    if options.without_amx:
        print(LEFT_OUT)
    networks = pruned_networks()
    for network in networks.values():
        psp.freeze(network, torch.zeros(1, 3, 32, 32))  # fails here, with the reason, if it cannot run
    limits = measure_limits(torch.device("cpu"))
    for batch in BATCHES:
        images = torch.randn(batch, 3, 32, 32)
        calls = made(networks, images, options)
        before = together(options.threads)
        times = in_turns(calls, options.rounds, CALLS[batch])
        after = together(options.threads)
        done = {name: work(network, images) for name, network in networks.items()}
        at_roof = {name: [roofline_seconds(own, limits, p) for p in PRECISIONS] for name, own in done.items()}
        report(batch, networks, times, at_roof)
        print(f"{options.threads} threads multiply {before:.2f} (before) and {after:.2f} (after) times as fast as one.")
        print()
        ways(calls, batch)
    where(networks, torch.randn(1, 3, 32, 32).bfloat16())


def spent(frozen, image):
    """Seconds that one image takes by pixels as lanes, the shortest of some calls.

    Its convolutions on one thread, its other operations on one, a call without any, and all of it. Operations are
    measured again and again, with what they read in the cache. `frozen` is of no use afterwards.
    """
    from psp.frozen.measure import seconds
    from psp.frozen.pixels import TIMES
    from psp.frozen.structs import PixelOperation
    from psp.frozen.values import CONV

    way = frozen.way(1)
    program, whole = way.program, seconds(lambda: frozen(image), TRIES)
    by_kind = {True: 0.0, False: 0.0}
    for operation in (PixelOperation * program.operations).from_address(program.operation):
        by_kind[operation.kind == CONV] += way.times([operation])[0] / TIMES
    program.operations = 0
    return by_kind[True], by_kind[False], seconds(lambda: frozen(image), TRIES), whole


def where(networks, image):
    """Print what the time of one image goes to, if pixels are lanes."""
    import psp
    from psp.frozen.pixels import Pixels

    print(f"\n## Where the time of one image goes, {str(image.dtype)[6:]}: µs\n")
    print("| | convolutions, one thread | other operations, one thread | a call without them | all, all threads |")
    print("|---|---|---|---|---|")
    for name, network in networks.items():
        frozen = psp.freeze(network, image)
        if isinstance(frozen.way(1), Pixels):
            print(f"| {name} | " + " | ".join(f"{1e6 * share:.0f}" for share in spent(frozen, image)) + " |")


if __name__ == "__main__":
    main()
