"""Hold every form to a reference, then time all of them in the same rounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..errors import BrainfastError
from ..forms import OURS, Form
from ..timing import fastest, interleave, with_peak_growth
from .check import BARS, Bars, Errors
from .table import Row

_SLOW_S = 1.0  # such a variant shows in one run more whether it is the fastest

Judge = Callable[[Form, Any], Errors]
Builder = tuple[str, Callable[[], list[Form]]]


class Stage(Protocol):
    """A computation, the forms of it that are compared, and the reference that judges them."""

    bars: Bars

    def builders(self) -> Sequence[Builder]:
        """What is built, by name, and how: packing, compiling, exporting. Once for all batches."""
        ...

    def problem(self, form: Form, batch: int) -> str | None:
        """Why a form is not run at this batch size, e.g. the memory that it would need."""
        ...

    def inputs(self, batch: int) -> tuple[Any, ...]:
        """The arguments of every form's call."""
        ...

    def judge(self, inputs: tuple[Any, ...]) -> Judge:
        """Errors of a form's answer to these inputs; BrainfastError beyond its bar."""
        ...


@dataclass(frozen=True)
class _Checked:
    """A form that passed: its row so far, the call to time, and how long that took."""

    row: Row
    call: Callable[[], object]
    seconds: float


def compare(
    stage: Stage,
    batches: Sequence[int],
    rounds: int,
    *,
    budget_s: float = 10.0,
    progress: bool = True,
) -> list[Row]:
    """Rows of every form at every batch size.

    Each form is checked before it is timed; one that misses the bar of its precision is a
    BrainfastError. Then every round runs each form once, in an order that moves on by one from
    round to round. budget_s: what a slow form may take in all rounds of a batch size together.
    """
    check_positive(rounds=rounds, batch=min(batches))
    with tqdm(desc="bench", unit="step", disable=not progress) as bar:
        builders = stage.builders()
        bar.total = len(builders) + len(batches) * (rounds + 2)
        built = []
        for name, build in builders:
            bar.set_postfix_str(name)
            built += build()
            bar.update()
        rows: list[Row] = []
        for batch in batches:
            rows += _compare_batch(stage, batch, rounds, built, budget_s, bar)
    return rows


def first_row(form: Form, batch: int, bars: Bars = BARS) -> Row:
    """The row of a form of which nothing has been measured."""
    kind, bound = bars[form.precision]
    return Row(
        form.name,
        form.library,
        form.precision,
        batch,
        bar=f"{kind} {bound:.0e}",
        weight_bytes=form.weight_bytes,
        note=form.problem,
    )


def check_positive(**numbers: int) -> None:
    """BrainfastError for the first number below 1, by its name."""
    for name, value in numbers.items():
        if value < 1:
            raise BrainfastError(name, expected="1 or more", got=str(value))


def _compare_batch(
    stage: Stage, batch: int, rounds: int, built: Sequence[Form], budget_s: float, bar: Any
) -> list[Row]:
    bar.set_postfix_str(f"B={batch}: reference")
    inputs = stage.inputs(batch)
    judge = stage.judge(inputs)
    bar.update()
    rows: dict[str, Row] = {}
    passed: dict[str, _Checked] = {}
    for form in built:
        rows[form.title] = row = first_row(form, batch, stage.bars)
        problem = row.note or stage.problem(form, batch)
        if problem:
            rows[form.title] = replace(row, note=problem)
            continue
        bar.set_postfix_str(f"B={batch}: checking {form.title}")
        passed[form.title] = _check_variants(form, row, inputs, judge)
        rows[form.title] = passed[form.title].row
    bar.update()
    bar.set_postfix_str(f"B={batch}: timing")
    seconds = interleave(
        {title: checked.call for title, checked in passed.items()},
        rounds,
        known={title: checked.seconds for title, checked in passed.items()},
        budget_s=budget_s,
        after_round=bar.update,
    )
    return [_timed(rows[form.title], form, seconds, yardstick(form, built)) for form in built]


def yardstick(form: Form, built: Sequence[Form]) -> str:
    """Title of our first form of the same precision; for our own forms, of the first of all."""
    ours = [other for other in built if other.library == OURS and not other.problem]
    same = [other for other in ours if other.precision == form.precision]
    candidates = (ours if form.library == OURS else same) or ours or list(built)
    return candidates[0].title


def _check_variants(form: Form, row: Row, inputs: tuple[Any, ...], judge: Judge) -> _Checked:
    """The fastest variant, with its errors and memory."""
    best: _Checked | None = None
    for name, variant in form.variants.items():
        call = partial(variant, *inputs)
        start = time.perf_counter()
        found, memory = with_peak_growth(call)
        seconds = time.perf_counter() - start
        errors = judge(form, found)
        del found
        if len(form.variants) > 1:
            seconds = fastest(call, 1 if seconds > _SLOW_S else 3)
        if best is None or seconds < best.seconds:
            measured = replace(
                row,
                rms_error=errors.rms,
                max_error=errors.max,
                peak_memory_bytes=memory,
                note=name,
            )
            best = _Checked(measured, call, seconds)
    assert best is not None
    return best


def _timed(row: Row, form: Form, seconds: Mapping[str, NDArray[np.float64]], measure: str) -> Row:
    if form.title not in seconds:
        return row
    taken, ours = seconds[form.title], seconds[measure]
    took_part = taken[~np.isnan(taken)]
    both = ~np.isnan(taken) & ~np.isnan(ours)
    return replace(
        row,
        rounds=len(took_part),
        best_ms=1e3 * float(took_part.min()),
        median_ms=1e3 * float(np.median(took_part)),
        p99_ms=1e3 * float(np.quantile(took_part, 0.99, method="higher")),
        yardstick=measure,
        ratio=float(took_part.min() / np.nanmin(ours)),
        round_ratio=float(np.median(taken[both] / ours[both])),
    )
