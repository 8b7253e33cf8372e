"""Every form on a GPU: held to float64, then timed in turn over inputs that no cache holds.

The calls of a form, each with constants and inputs of its own, are one CUDA graph. A replay makes
them one after the other, so that what a call reads has been pushed out of the L2 cache by those
between.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch

import gpu_clock
from brainfast.bench.check import Bars, Errors
from brainfast.errors import BrainfastError
from brainfast.forms import OURS
from ceilings import Work

MOST_SETS = 32
ROUNDS = 20
FEWEST_ROUNDS = 5
SHARE_OF_MEMORY = 0.4  # that one form may take of what is free
_SLOW_S = 0.05  # a call for which launching from Python makes no difference

Run = Callable[..., Any]
Judge = Callable[["GpuForm", Any], Errors]


@dataclass(frozen=True)
class GpuForm:
    """One way to compute what is compared.

    builds: by variant, what makes a callable with constants of its own, of `weight_bytes`; only the
    fastest variant is reported. needs: bytes of working memory at a batch size. alone: one instance
    is made, since each would be compiled anew. batches: those at which it takes part; all without.
    problem: why it cannot be run here.
    """

    name: str
    library: str
    precision: str
    builds: Mapping[str, Callable[[], Run]]
    weight_bytes: int = 0
    needs: Callable[[int], int] = field(default=lambda batch: 0)
    alone: bool = False
    batches: tuple[int, ...] | None = None
    problem: str = ""

    @property
    def title(self) -> str:
        return f"{self.name}, {self.library} {self.precision}"


@dataclass(frozen=True)
class GpuRow:
    """One form at one batch size.

    Times are of one call: best, median and p99 of the rounds over sets that push each other out of
    the L2 cache; warm_ms: the best over one set again and again; launched_ms: the best when Python
    launches every call, without a graph. sets: how many pairs of constants and inputs are rotated.
    Rates divide the least work of the call by best_ms. What was not measured is None, and `note`
    says why.
    """

    form: str
    library: str
    precision: str
    batch: int
    sets: int = 0
    rounds: int = 0
    best_ms: float | None = None
    median_ms: float | None = None
    p99_ms: float | None = None
    warm_ms: float | None = None
    launched_ms: float | None = None
    ratio: float | None = None
    rms_error: float | None = None
    max_error: float | None = None
    bar: str = ""
    tflop_per_s: float | None = None
    tbyte_per_s: float | None = None
    note: str = ""


class GpuStage(Protocol):
    """A computation and its forms; `inputs` are tensors on the device."""

    bars: Bars

    def forms(self) -> Sequence[GpuForm]: ...
    def inputs(self, batch: int, number: int) -> tuple[torch.Tensor, ...]: ...
    def judge(self, inputs: tuple[torch.Tensor, ...]) -> Judge: ...
    def work(self, precision: str, batch: int) -> Work | None: ...


@dataclass
class _Timed:
    row: GpuRow
    replay: gpu_clock.Call
    seconds: list[float] = field(default_factory=list)


def compare(
    stage: GpuStage,
    forms: Sequence[GpuForm],
    batch: int,
    device: torch.device,
    *,
    until: float,
) -> list[GpuRow]:
    """Rows of the stage's forms at one batch size; `until`: when to stop, by `time.monotonic`.

    A form that misses the bar of its precision, or cannot be made, has no times: its row says what
    was found. Our own form that does so is an error behind the others' rows: see `failures`.
    """
    first = stage.inputs(batch, 0)
    inputs = [first]
    judge = stage.judge(first)
    rows: dict[str, GpuRow] = {}
    timed: dict[str, _Timed] = {}
    for form in forms:
        kind, bound = stage.bars[form.precision]
        rows[form.title] = GpuRow(*_names(form), batch, bar=f"{kind} {bound:.0e}")
        problem = form.problem or _left_out(form, batch, device, until)
        if not problem:
            try:
                sets = _sets(form, first, device)
                while len(inputs) < sets:
                    inputs.append(stage.inputs(batch, len(inputs)))
                timed[form.title] = _prepare(
                    form, rows[form.title], inputs[:sets], judge, device, until
                )
                continue
            except torch.OutOfMemoryError:
                problem = f"out of memory, {gpu_clock.free_bytes(device) / 2**30:.1f} GiB are free"
            except Exception as error:  # one form may not cost the others
                problem = f"failed: {_short(error)}"
        rows[form.title] = replace(rows[form.title], note=problem)
    _time(list(timed.values()), device, until)
    rows |= {title: _finished(each) for title, each in timed.items()}
    return [_with_rates(row, stage, rows) for row in rows.values()]


def failures(rows: Sequence[GpuRow]) -> list[str]:
    """What went wrong with our own forms."""
    ours = [row for row in rows if row.library == OURS and row.note.startswith("failed")]
    return [f"{row.form} {row.precision} at B={row.batch}: {row.note}" for row in ours]


def memory_problem(form: GpuForm, batch: int, device: torch.device) -> str:
    """Why a form is left out: it needs more memory than it may take."""
    needed, free = form.needs(batch), gpu_clock.free_bytes(device)
    if needed <= SHARE_OF_MEMORY * free:
        return ""
    return f"left out: needs about {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"


def _left_out(form: GpuForm, batch: int, device: torch.device, until: float) -> str:
    if form.batches is not None and batch not in form.batches:
        return "left out at this batch size"
    if time.monotonic() > until:
        return "left out: no time left"
    return memory_problem(form, batch, device)


def _prepare(
    form: GpuForm,
    row: GpuRow,
    inputs: Sequence[tuple[torch.Tensor, ...]],
    judge: Judge,
    device: torch.device,
    until: float,
) -> _Timed:
    """The fastest variant, checked in the graph that is timed."""
    best: tuple[float, str, gpu_clock.Call, Errors, list[gpu_clock.Call]] | None = None
    for name, build in form.builds.items():
        if best is not None and time.monotonic() > until:
            break
        runs = _instances(build, 1 if form.alone else len(inputs))
        calls = [
            partial(_without_grad, runs[number % len(runs)], *some)
            for number, some in enumerate(inputs)
        ]
        calls[0]()
        replay, answers = gpu_clock.captured(device, calls)
        for answer in answers:
            answer.fill_(float("nan"))  # a replay must write all of them
        replay()
        errors = judge(form, answers[0])
        if not all(bool(answer.isfinite().all()) for answer in answers):
            raise BrainfastError(form.title, expected="finite answers", got="NaN or infinity")
        taken = min(gpu_clock.seconds(device, replay) for _ in range(2))
        if best is None or taken < best[0]:
            best = (taken, name, replay, errors, calls)
    assert best is not None
    taken, name, replay, errors, calls = best
    row = replace(row, sets=len(inputs), rms_error=errors.rms, max_error=errors.max, note=name)
    if taken / len(inputs) < _SLOW_S:
        warm, _ = gpu_clock.captured(device, [calls[0]] * len(inputs))
        row = replace(
            row,
            warm_ms=_best_ms(device, warm, len(inputs)),
            launched_ms=_best_ms(device, partial(_all, calls), len(inputs)),
        )
    return _Timed(row, replay)


def _instances(build: Callable[[], Run], count: int) -> list[Run]:
    """So many, each with constants of its own; a module is copied, since it may take long to
    make."""
    first = build()
    if isinstance(first, torch.nn.Module):
        return [first, *(deepcopy(first) for _ in range(count - 1))]
    return [first, *(build() for _ in range(count - 1))]


def _time(timed: Sequence[_Timed], device: torch.device, until: float) -> None:
    """Each round replays every form once, in an order that moves on by one."""
    for number in range(ROUNDS if timed else 0):
        if number >= FEWEST_ROUNDS and time.monotonic() > until:
            return
        start = number % len(timed)
        for each in (*timed[start:], *timed[:start]):
            each.seconds.append(gpu_clock.seconds(device, each.replay) / each.row.sets)


def _finished(timed: _Timed) -> GpuRow:
    milliseconds = 1e3 * np.array(timed.seconds)
    return replace(
        timed.row,
        rounds=len(milliseconds),
        best_ms=float(milliseconds.min()),
        median_ms=float(np.median(milliseconds)),
        p99_ms=float(np.quantile(milliseconds, 0.99, method="higher")),
    )


def _with_rates(row: GpuRow, stage: GpuStage, rows: Mapping[str, GpuRow]) -> GpuRow:
    """Rates, and the best time over that of our first form of the same precision."""
    if row.best_ms is None:
        return row
    ours = [other for other in rows.values() if other.library == OURS and other.best_ms]
    same = [other for other in ours if other.precision == row.precision] or ours
    ratio = row.best_ms / same[0].best_ms if same and same[0].best_ms else None
    work = stage.work(row.precision, row.batch)
    if work is None:
        return replace(row, ratio=ratio)
    return replace(
        row,
        ratio=ratio,
        tflop_per_s=work.flops / row.best_ms / 1e9,
        tbyte_per_s=work.bytes / row.best_ms / 1e9,
    )


def _sets(form: GpuForm, inputs: tuple[torch.Tensor, ...], device: torch.device) -> int:
    """So many that constants and inputs together are twice the cache, and at least two."""
    size = form.weight_bytes + sum(tensor.nbytes for tensor in inputs)
    return min(MOST_SETS, max(2, math.ceil(2 * gpu_clock.cache_bytes(device) / size) + 1))


def _best_ms(device: torch.device, call: gpu_clock.Call, count: int) -> float:
    call()
    return 1e3 * min(gpu_clock.seconds(device, call) for _ in range(3)) / count


def _all(calls: Sequence[gpu_clock.Call]) -> None:
    for call in calls:
        call()


@torch.no_grad()
def _without_grad(run: Run, *inputs: torch.Tensor) -> Any:
    return run(*inputs)


def _names(form: GpuForm) -> tuple[str, str, str]:
    return form.name, form.library, form.precision


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
