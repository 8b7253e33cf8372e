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
    """Processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
