"""How much of the machine this process may use: less in a container, a scheduler's job, or beside others."""

import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def cores_of_one():
    """The cores that we may use, shared by the processes that train here together."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def memory_limit():
    """Bytes of memory that this process may use."""
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *cgroup_limits()])


def cgroup_limits():
    """Bytes to which the control groups of this process and those above them are limited, of version 1 or 2."""
    try:
        lines = OWN.read_text().splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root, name = CGROUPS / controllers, "memory.limit_in_bytes" if controllers else "memory.max"
        group = root / path.lstrip("/")
        # Inside a container the path may be that of the host, while the root shows the container's own group.
        for folder in (group, *group.parents):
            file = folder / name
            if folder.is_relative_to(root) and file.is_file() and (limit := file.read_text().strip()).isdigit():
                yield int(limit)
