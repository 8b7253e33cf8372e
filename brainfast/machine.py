"""What this machine offers: its processor's name, cores and free memory. Standard library only."""

from __future__ import annotations

import gc
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# In the source folder, where nvcc is: what a build without them is told.
ADD_CUDA_KERNELS = "BRAINFAST_CUDA=1 pip install --force-reinstall --no-deps ."


def cpu_model() -> str:
    """The processor's name."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "not known"


def usable_cores() -> int:
    """Processors that this process may keep busy: as many as its affinity mask allows and a
    container's quota pays for. csrc/runtime/usable_cores.h has the same rule."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return min(cores, quota_cores() or cores)


def quota_cores(root: Path = Path("/")) -> int:
    """Processors that the quotas of this process's control group, and of those around it, pay for,
    rounded up; 0 without a quota. proc and sys are in `root`."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    found = []
    for line in lines:  # "number:controllers:path", where version 2 names no controllers
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / ("sys/fs/cgroup/cpu" if controllers else "sys/fs/cgroup")
        group = mount / path.lstrip("/")
        # A container may see its own group as the mount's root and yet be told another path.
        found += [_group_cores(at) for at in (group, *group.parents) if at.is_relative_to(mount)]
    return min(filter(None, found), default=0)


def _group_cores(folder: Path) -> int:
    """Of one control group."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            texts = [(folder / name).read_text(encoding="ascii") for name in names]
            quota, period = map(int, " ".join(texts).split())
        except (OSError, ValueError):  # not of this version, or "max" for no quota
            continue
        return -(-quota // period) if quota > 0 and period > 0 else 0
    return 0


def available_memory() -> int:
    """Bytes that can still be taken without swapping; half of all memory where nobody tells."""
    try:
        return status_bytes(Path("/proc/meminfo"), "MemAvailable")
    except OSError:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


@contextmanager
def loaded_uncollected() -> Iterator[None]:
    """Garbage collections pass over what is there by now: going through torch takes 0.1 s."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def status_bytes(path: Path, name: str) -> int:
    """A line "name: number kB" of one of Linux's status files, in bytes; OSError without one."""
    for line in path.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{path} has no {name}")
