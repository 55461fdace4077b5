"""Limits of memory by control groups, as files of a small tree."""

import pytest

from psp.data import limits


@pytest.fixture
def cgroups(tmp_path, monkeypatch):
    """A function that lays out control groups: the lines of this process's own file, {file: content}."""
    monkeypatch.setattr(limits, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(limits, "OWN", tmp_path / "own")

    def lay_out(own, files):
        (tmp_path / "own").write_text(own)
        for name, content in files.items():
            file = tmp_path / "cgroup" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)

    return lay_out


def test_the_tightest_of_the_groups_counts(cgroups):
    """Version 2, as of a job of Slurm's: the step has no limit, the job above it has one."""
    cgroups(
        "0::/slurm/job_7/step_0\n",
        {
            "slurm/job_7/step_0/memory.max": "max\n",
            "slurm/job_7/memory.max": "4096\n",
            "memory.max": "9000\n",
            "slurm/job_8/memory.max": "1\n",
        },
    )
    assert sorted(limits.cgroup_limits()) == [4096, 9000]
    assert limits.memory_limit() == 4096


def test_version_1_and_the_path_of_a_host(cgroups):
    cgroups("4:memory:/docker/abc\n3:cpuset:/docker/abc\n", {"memory/memory.limit_in_bytes": "5000\n"})
    assert list(limits.cgroup_limits()) == [5000]


def test_without_control_groups_the_machine_is_the_limit(cgroups):
    assert 2**28 < limits.memory_limit() < 2**50
