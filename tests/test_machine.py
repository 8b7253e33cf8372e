"""How many processors a process may keep busy."""

from __future__ import annotations

import os

import pytest

from brainfast import machine

OWN, MOUNT, V1 = "sys/fs/cgroup/a/b", "sys/fs/cgroup", "sys/fs/cgroup/cpu"


def both(folder, quota, period=100000):
    """The files of version 1."""
    return {f"{folder}/cpu.cfs_quota_us": quota, f"{folder}/cpu.cfs_period_us": period}


# Also those of tests/csrc/test_usable_cores.cpp.
@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        pytest.param(None, {}, 0, id="no control groups"),
        pytest.param("0::/a/b", {}, 0, id="no files"),
        pytest.param("0::/a/b", {f"{OWN}/cpu.max": "max 100000"}, 0, id="no quota"),
        pytest.param("0::/a/b", {f"{OWN}/cpu.max": "200000 100000"}, 2, id="whole processors"),
        pytest.param("0::/a/b", {f"{OWN}/cpu.max": "200001 100000"}, 3, id="rounded up"),
        pytest.param("0::/a/b", {f"{OWN}/cpu.max": "50000 100000"}, 1, id="less than one"),
        pytest.param("0::/", {f"{MOUNT}/cpu.max": "300000 100000"}, 3, id="a container's root"),
        pytest.param(
            "0::/a/b", {f"{MOUNT}/cpu.max": "300000 100000"}, 3, id="a container told another path"
        ),
        pytest.param(
            "0::/a/b",
            {f"{OWN}/cpu.max": "500000 100000", f"{MOUNT}/a/cpu.max": "150000 50000"},
            3,
            id="the least of those around",
        ),
        pytest.param("3:cpu,cpuacct:/a/b", both(f"{V1}/a/b", 150000), 2, id="version 1"),
        pytest.param("3:cpu:/a/b", both(V1, 400000, 50000), 8, id="version 1, another path"),
        pytest.param("3:cpu:/", both(V1, -1), 0, id="version 1, no quota"),
        pytest.param("5:cpuset:/\n4:cpuacct:/\n1:name=systemd:/", both(V1, 100000), 0, id="others"),
        pytest.param(
            "2:memory:/x\n1:cpu:/\n0::/", both(V1, 250000), 3, id="both versions, version 1 at work"
        ),
    ],
)
def test_the_quota_of_control_groups(tmp_path, groups, files, cores):
    told = {} if groups is None else {"proc/self/cgroup": groups}
    for name, text in (told | files).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    assert machine.quota_cores(tmp_path) == cores


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no masks")
@pytest.mark.parametrize(("quota", "cores"), [(0, 6), (2, 2), (6, 6), (40, 6)])
def test_the_mask_and_the_quota_both_bound(monkeypatch, quota, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    monkeypatch.setattr(machine, "quota_cores", lambda: quota)
    assert machine.usable_cores() == cores
