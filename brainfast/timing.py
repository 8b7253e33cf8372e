"""Fair timing of several calls in one process, and the memory that a call needs."""

from __future__ import annotations

import ctypes
import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from . import _C
from .machine import status_bytes

Result = TypeVar("Result")

_SLOW_S = 0.1  # such a call needs no warm caches, and takes part in fewer rounds
_FEWEST_ROUNDS = 3
_VERY_SLOW_S = 5.0  # such a call takes part twice
_PRIME_S = 1e-3
_STATUS = Path("/proc/self/status")
_SETTLE_S = 5e-3  # until the threads of the call before have stopped spinning


def interleave(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    known: Mapping[str, float] | None = None,
    budget_s: float = 10.0,
    clock: Callable[[], float] = time.perf_counter,
    after_round: Callable[[], object] = lambda: None,
) -> dict[str, NDArray[np.float64]]:
    """Seconds [rounds] of every call: each round runs each call once, the order moving on by one.

    A call is first run untimed, so that it finds its own data in the caches and not its
    neighbour's. One slower than 0.1 s is not, and sits out rounds (NaN) so that all its runs
    together take about `budget_s`, three at least, or two of a call slower than 5 s. known: seconds
    that calls have taken before; a slow call found there needs no run to find out.
    """
    names = list(calls)
    known = known or {}
    taken = {name: _first_seconds(calls[name], known.get(name, 0.0), clock) for name in names}
    slow = {name: taken[name] > _SLOW_S for name in names}
    stride = {name: _stride(taken[name], rounds, budget_s) for name in names}
    seconds = {name: np.full(rounds, np.nan) for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            if number % stride[name]:
                continue
            time.sleep(_SETTLE_S)
            if not slow[name]:
                _prime(calls[name])
            start = clock()
            calls[name]()
            seconds[name][number] = clock() - start
        after_round()
    return seconds


def _first_seconds(call: Callable[[], object], known: float, clock: Callable[[], float]) -> float:
    if known > _SLOW_S:
        return known
    start = clock()
    call()
    return clock() - start


def _stride(taken: float, rounds: int, budget_s: float) -> int:
    """Every how many rounds a call of so many seconds takes part."""
    if taken <= _SLOW_S:
        return 1
    fewest = 2 if taken > _VERY_SLOW_S else _FEWEST_ROUNDS
    return max(1, rounds // min(rounds, max(fewest, int(budget_s / taken))))


def _prime(call: Callable[[], object]) -> None:
    end = time.perf_counter() + _PRIME_S
    call()
    while time.perf_counter() < end:
        call()


def fastest(call: Callable[[], object], times: int = 3) -> float:
    """Seconds of the fastest of some runs."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    """Give PyTorch and the compiled core `count` threads, and restore what they had."""
    before = torch.get_num_threads(), _C.num_threads()
    torch.set_num_threads(count)
    _C.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        _C.set_num_threads(before[1])


def with_peak_growth(call: Callable[[], Result]) -> tuple[Result, int | None]:
    """The result of `call`, and the bytes by which the process's resident memory rose meanwhile.

    Free heap is handed back first, so that memory which is used again counts as well. None where
    the system does not tell (Linux tells through /proc/self).
    """
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = status_bytes(_STATUS, "VmRSS")
    except (AttributeError, OSError):
        return call(), None
    result = call()
    return result, max(0, status_bytes(_STATUS, "VmHWM") - before)


class BusyElsewhere:
    """How much of this process's processors others have used since this object was made.

    A neighbour on one core makes a library that waits in spin loops look ten times slower.
    """

    def __init__(self) -> None:
        self._start, self._others = time.monotonic(), _others_seconds()

    def cores(self) -> float | None:
        """Processors kept busy by others, the mean; None where the system does not tell."""
        now = _others_seconds()
        if now is None or self._others is None:
            return None
        return round(max(0.0, now - self._others) / (time.monotonic() - self._start), 2)


def _others_seconds() -> float | None:
    """Busy seconds of the processors that this process may use, less its own and those of the
    children that it has waited for."""
    try:
        lines = Path("/proc/stat").read_text(encoding="ascii").splitlines()
        names = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    except (AttributeError, OSError):
        return None
    ticks = 0
    for fields in map(str.split, lines):
        if fields[0] in names:
            user, nice, system, _idle, _wait, irq, soft_irq, steal = map(int, fields[1:9])
            ticks += user + nice + system + irq + soft_irq + steal
    own = os.times()
    return ticks / os.sysconf("SC_CLK_TCK") - sum(own[:4])
